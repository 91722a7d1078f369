//! The faults: what is broken, frozen, cut and lied about while the clients work, by choices that a seed repeats.

use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::Value;

use super::fleet::DRAIN;
use super::fleet::END_MARGIN;
use super::fleet::FIRST_WORKER;
use super::fleet::Fleet;
use super::fleet::LEASE;
use super::fleet::MODELS;
use super::fleet::Member;
use super::history::History;
use super::strangers;
use crate::support::ADMIN_KEY;
use crate::support::Client;

/// Often enough for it to meet uploads, deletes and faults in every order.
const RECONCILED_EVERY: Duration = Duration::from_secs(3);

/// What goes wrong, and how it is put right again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Kill { place: usize },
    KillAllWorkers,
    Terminate { place: usize },
    Freeze { place: usize },
    CutPostgres { place: usize },
    CutRedis { place: usize },
    HalfOpenPostgres { place: usize },
    HalfOpenRedis { place: usize },
    RestartPostgres,
    CrashPostgres,
    StopPostgres,
    FlushRedis,
    RestartRedis,
    StopRedis,
    FreezeRedis,
    CutProviders,
    HalfOpenProviders,
    TurnClock { place: usize },
}

impl Trouble {
    fn choose(fleet: &Fleet, random: &mut StdRng) -> Self {
        let place = random.random_range(0..fleet.members.len());
        match random.random_range(0..100) {
            0..22 => Self::Kill { place },
            22..26 => Self::KillAllWorkers,
            26..34 => Self::Terminate { place },
            34..46 => Self::Freeze { place },
            46..52 => Self::CutPostgres { place },
            52..56 => Self::CutRedis { place },
            56..61 => Self::HalfOpenPostgres { place },
            61..65 => Self::HalfOpenRedis { place },
            65..68 => Self::RestartPostgres,
            68..71 => Self::CrashPostgres,
            71..73 => Self::StopPostgres,
            73..78 => Self::FlushRedis,
            78..81 => Self::RestartRedis,
            81..84 => Self::StopRedis,
            84..87 => Self::FreezeRedis,
            87..91 => Self::CutProviders,
            91..95 => Self::HalfOpenProviders,
            _ => Self::TurnClock { place },
        }
    }

    fn target(self) -> Target {
        match self {
            Self::Kill { place }
            | Self::Terminate { place }
            | Self::Freeze { place }
            | Self::CutPostgres { place }
            | Self::CutRedis { place }
            | Self::HalfOpenPostgres { place }
            | Self::HalfOpenRedis { place }
            | Self::TurnClock { place } => Target::Member(place),
            Self::KillAllWorkers => Target::Workers,
            Self::RestartPostgres | Self::CrashPostgres | Self::StopPostgres => Target::Postgres,
            Self::FlushRedis | Self::RestartRedis | Self::StopRedis | Self::FreezeRedis => {
                Target::Redis
            }
            Self::CutProviders | Self::HalfOpenProviders => Target::Providers,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kill { .. } => "process killed",
            Self::KillAllWorkers => "all workers killed",
            Self::Terminate { .. } => "process terminated",
            Self::Freeze { .. } => "process frozen",
            Self::CutPostgres { .. } => "connections to PostgreSQL cut",
            Self::CutRedis { .. } => "connections to Redis cut",
            Self::HalfOpenPostgres { .. } => "connections to PostgreSQL half-open",
            Self::HalfOpenRedis { .. } => "connections to Redis half-open",
            Self::RestartPostgres => "PostgreSQL restarted",
            Self::CrashPostgres => "PostgreSQL crashed",
            Self::StopPostgres => "PostgreSQL stopped for a while",
            Self::FlushRedis => "Redis flushed",
            Self::RestartRedis => "Redis restarted",
            Self::StopRedis => "Redis stopped for a while",
            Self::FreezeRedis => "Redis frozen",
            Self::CutProviders => "connections to providers cut",
            Self::HalfOpenProviders => "connections to providers half-open",
            Self::TurnClock { .. } => "a clock turned by hours",
        }
    }
}

/// What a trouble is about: one trouble at a time for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Member(usize),
    Workers,
    Postgres,
    Redis,
    Providers,
}

impl Target {
    fn touches(self, other: Self) -> bool {
        self == other
            || matches!(
                (self, other),
                (Self::Workers, Self::Member(_)) | (Self::Member(_), Self::Workers)
            )
    }
}

/// A trouble that has begun.
struct Begun {
    trouble: Trouble,
    ends_at: Instant,
}

/// Makes trouble until `end`, several at a time, and puts everything right.
pub async fn make_trouble(fleet: &mut Fleet, history: &History, random: &mut StdRng, end: Instant) {
    let (mut begun, mut next) = (Vec::<Begun>::new(), Instant::now());
    let (mut tidied, mut reconciled) = (Instant::now(), Instant::now());
    while Instant::now() < end {
        let (over, rest) = begun.into_iter().partition(|begun| begun.ends_at <= Instant::now());
        begun = rest;
        for Begun { trouble, .. } in over {
            finish(fleet, history, random, trouble).await;
        }
        if next <= Instant::now() {
            next = Instant::now() + millis(random, 200, 2200);
            if let Some(trouble) = choose(fleet, &begun, random) {
                history.fault(trouble.name());
                let ends_at = Instant::now() + begin(fleet, random, trouble).await;
                begun.push(Begun { trouble, ends_at });
            }
        }
        if tidied.elapsed() > Duration::from_secs(1) {
            tidied = Instant::now();
            script_providers(fleet, random);
            // By whoever answers: none is waited for.
            tokio::spawn(resume_lanes(fleet.clients()));
            for model in MODELS {
                // What a provider holds back it gives up in the end, perhaps late.
                fleet.sandbox.release(model);
            }
        }
        if reconciled.elapsed() > RECONCILED_EVERY {
            reconciled = Instant::now();
            tokio::spawn(strangers::ask(fleet.clients()));
        }
        supervise(fleet, &begun);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for Begun { trouble, ends_at } in begun {
        // A process that was told to end has the time that it was promised.
        if matches!(trouble, Trouble::Terminate { .. }) {
            tokio::time::sleep_until(ends_at.into()).await;
        }
        finish(fleet, history, random, trouble).await;
    }
    for model in MODELS {
        fleet.sandbox.clear_faults(model);
        fleet.sandbox.release(model);
        for kind in fleet.sandbox.calls(model).into_iter().filter_map(|call| call.fault) {
            history.fault(&format!("provider: {}", kind.replace('_', " ")));
        }
    }
    fleet.all_up().await;
}

/// One that is about something that is not in trouble yet.
fn choose(fleet: &Fleet, begun: &[Begun], random: &mut StdRng) -> Option<Trouble> {
    let is_free = |trouble: &Trouble| {
        !begun.iter().any(|other| other.trouble.target().touches(trouble.target()))
    };
    std::iter::repeat_with(|| Trouble::choose(fleet, random)).take(5).find(is_free)
}

/// Starts what has ended by itself, but not what is being kept down.
fn supervise(fleet: &mut Fleet, begun: &[Begun]) {
    for place in 0..fleet.members.len() {
        let target = Target::Member(place);
        if !begun.iter().any(|begun| begun.trouble.target().touches(target)) {
            fleet.supervise(place);
        }
    }
}

fn millis(random: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..to))
}

/// Begins it, and says how long it is to last.
async fn begin(fleet: &mut Fleet, random: &mut StdRng, trouble: Trouble) -> Duration {
    let lease = u64::try_from(LEASE.as_millis()).unwrap();
    match trouble {
        Trouble::Freeze { place }
        | Trouble::CutPostgres { place }
        | Trouble::HalfOpenPostgres { place } => fleet.members[place].harm(),
        trouble if trouble.target() == Target::Postgres => {
            fleet.members.iter_mut().for_each(Member::harm);
        }
        // Kills say it themselves, and nothing else may keep a worker from its leases.
        _ => {}
    }
    match trouble {
        Trouble::Kill { place } => {
            fleet.kill(place);
            millis(random, 0, 1500)
        }
        Trouble::KillAllWorkers => {
            for place in FIRST_WORKER..fleet.members.len() {
                fleet.kill(place);
            }
            millis(random, 0, 3000)
        }
        Trouble::Terminate { place } => {
            fleet.members[place].signal("TERM");
            DRAIN + END_MARGIN
        }
        Trouble::Freeze { place } => {
            fleet.members[place].signal("STOP");
            millis(random, lease / 4, 3 * lease)
        }
        Trouble::CutPostgres { place } => {
            fleet.members[place].to_postgres.cut();
            millis(random, 0, 2000)
        }
        Trouble::CutRedis { place } => {
            fleet.members[place].to_redis.cut();
            millis(random, 0, 2000)
        }
        Trouble::HalfOpenPostgres { place } => {
            fleet.members[place].to_postgres.half_open();
            millis(random, lease / 2, 4 * lease)
        }
        Trouble::HalfOpenRedis { place } => {
            fleet.members[place].to_redis.half_open();
            millis(random, 500, 5000)
        }
        Trouble::RestartPostgres => {
            tokio::task::block_in_place(|| fleet.postgres.restart());
            Duration::ZERO
        }
        Trouble::CrashPostgres => {
            tokio::task::block_in_place(|| {
                fleet.postgres.kill();
                fleet.postgres.start();
            });
            Duration::ZERO
        }
        Trouble::StopPostgres => {
            tokio::task::block_in_place(|| fleet.postgres.stop());
            millis(random, 500, 6000)
        }
        Trouble::FlushRedis => {
            fleet.redis.flush().await;
            Duration::ZERO
        }
        Trouble::RestartRedis => {
            tokio::task::block_in_place(|| fleet.redis.restart());
            Duration::ZERO
        }
        Trouble::StopRedis => {
            tokio::task::block_in_place(|| fleet.redis.kill());
            millis(random, 500, 5000)
        }
        Trouble::FreezeRedis => {
            fleet.redis.freeze();
            millis(random, 500, 5000)
        }
        Trouble::CutProviders => {
            fleet.to_providers.cut();
            millis(random, 0, 1500)
        }
        Trouble::HalfOpenProviders => {
            fleet.to_providers.half_open();
            millis(random, 200, 2500)
        }
        Trouble::TurnClock { place } => {
            // It starts again under another clock: one that turns while a process runs is the same to it.
            let hours = [-26, -1, 0, 0, 1, 3][random.random_range(0..6)];
            fleet.kill(place);
            fleet.members[place].clock_ahead = hours * 3600 + random.random_range(-60..60);
            Duration::ZERO
        }
    }
}

/// Puts it right.
async fn finish(fleet: &mut Fleet, history: &History, random: &mut StdRng, trouble: Trouble) {
    match trouble {
        Trouble::Kill { place } | Trouble::TurnClock { place } => fleet.launch(place),
        Trouble::KillAllWorkers => {
            for place in FIRST_WORKER..fleet.members.len() {
                fleet.launch(place);
            }
        }
        Trouble::Terminate { place } => {
            fleet.members[place].check_ended(history);
            fleet.launch(place);
        }
        Trouble::Freeze { place } => fleet.members[place].signal("CONT"),
        Trouble::CutPostgres { place } => fleet.members[place].to_postgres.pass(),
        Trouble::CutRedis { place } => fleet.members[place].to_redis.pass(),
        Trouble::HalfOpenPostgres { place } => {
            // What a firewall has dropped, it does not let through later.
            fleet.members[place].to_postgres.cut();
            tokio::time::sleep(Duration::from_millis(20)).await;
            fleet.members[place].to_postgres.pass();
        }
        Trouble::HalfOpenRedis { place } => fleet.members[place].to_redis.pass(),
        Trouble::RestartPostgres | Trouble::CrashPostgres => {}
        Trouble::StopPostgres => tokio::task::block_in_place(|| fleet.postgres.start()),
        Trouble::FlushRedis | Trouble::RestartRedis => {}
        Trouble::StopRedis => tokio::task::block_in_place(|| fleet.redis.start()),
        Trouble::FreezeRedis => fleet.redis.thaw(),
        Trouble::CutProviders => fleet.to_providers.pass(),
        Trouble::HalfOpenProviders => {
            // What was held back may arrive after all.
            if random.random() {
                fleet.to_providers.cut();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            fleet.to_providers.pass();
        }
    }
}

/// Some of what the providers will do next.
fn script_providers(fleet: &Fleet, random: &mut StdRng) {
    for model in MODELS {
        // What met no call within a second would only stand in the way of others.
        fleet.sandbox.clear_faults(model);
        for _ in 0..6 {
            let operation = [
                Operation::Upload,
                Operation::Upload,
                Operation::Upload,
                Operation::Delete,
                Operation::List,
                Operation::Get,
                Operation::CreateBatch,
                Operation::GetBatch,
                Operation::ListBatches,
                Operation::CancelBatch,
                Operation::Content,
            ][random.random_range(0..11)];
            // Batches are few, and what a second one costs is money.
            let skip =
                random.random_range(0..if operation == Operation::CreateBatch { 3 } else { 12 });
            let rule = FaultRule::new(operation, fault(random));
            fleet.sandbox.add_fault(model, FaultRule { skip, ..rule }).unwrap();
        }
    }
}

/// What a provider may do to any call. Nothing that speaks against the request itself.
fn fault(random: &mut StdRng) -> Fault {
    match random.random_range(0..12) {
        0 | 1 => Fault::LostAnswer,
        2 => Fault::DropBefore,
        3 => Fault::CutBody { after_bytes: random.random_range(0..2000) },
        4 => Fault::CutAnswer { after_bytes: random.random_range(0..100) },
        5 => Fault::status(500, Value::Null),
        6 => Fault::status(503, Value::Null),
        7 => Fault::AfterEffect { status: 502, headers: Default::default(), body: Value::Null },
        8 => Fault::Hang { executed: random.random() },
        9 => Fault::Hold { hold_before: random.random() },
        10 => Fault::Status {
            status: 429,
            headers: [("retry-after".to_owned(), "1".to_owned())].into(),
            body: Value::Null,
            drain: true,
        },
        _ => Fault::Garbage {
            content_type: "text/html".to_owned(),
            body: "<html></html>".to_owned(),
            executed: random.random(),
        },
    }
}

/// Providers fail more often than in years: what lanes pause for would be the end of the run.
pub async fn resume_lanes(clients: Vec<Client>) {
    for client in clients {
        let admin = client.with_key(ADMIN_KEY);
        for model in MODELS {
            let path = format!("/v1/admin/providers/at-{model}/resume");
            let request = admin.request(reqwest::Method::POST, &path);
            let answer = request.timeout(Duration::from_secs(2)).send().await;
            if !answer.is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
        }
    }
}
