//! A rolling restart: each process of a fleet in turn, while clients go on.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::Settings;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::support::ALICE_KEY;
use crate::support::Client;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::Process;
use crate::support::Redis;
use crate::support::answer;
use crate::support::eventually;
use crate::support::mapping;

const CLIENTS: usize = 4;
const DELAY: Duration = Duration::from_secs(1);
const DRAIN: Duration = Duration::from_secs(3);
/// Of which 2 s are promised; the rest is what the debug build and everybody else on two cores cost.
const END_MARGIN: Duration = Duration::from_secs(8);

/// Who sends requests to intakes that say that they are ready, as the proxy of docker-compose.yml does: a connection for
/// each request, and another intake where none can be made.
#[derive(Clone, Default)]
struct Balancer {
    intakes: Arc<Mutex<Vec<Intake>>>,
}

struct Intake {
    client: Client,
    is_ready: bool,
    answered: usize,
}

impl Balancer {
    fn lock(&self) -> MutexGuard<'_, Vec<Intake>> {
        self.intakes.lock().unwrap()
    }

    /// The intake at this place is one that listens here, from now on.
    fn set(&self, place: usize, base: &str) {
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0);
        let http = http.timeout(Duration::from_secs(60)).build().unwrap();
        let client = Client { http, ..Client::new(base, ALICE_KEY) };
        let mut intakes = self.lock();
        let intake = Intake { client, is_ready: false, answered: 0 };
        if place == intakes.len() { intakes.push(intake) } else { intakes[place] = intake }
    }

    /// Asks each how it is, again and again.
    async fn watch(self) {
        loop {
            let clients: Vec<_> = self.lock().iter().map(|intake| intake.client.clone()).collect();
            for (place, client) in clients.into_iter().enumerate() {
                let asked = client.http.get(format!("{}/readyz", client.base)).send().await;
                let is_ready = asked.is_ok_and(|response| response.status() == 200);
                let intake = &mut self.lock()[place];
                if intake.client.base == client.base {
                    intake.is_ready = is_ready;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Uploads a file, by the intake whose turn it is of those that are ready.
    async fn upload(&self, turn: usize) -> Result<Value, String> {
        let mut failed = Vec::new();
        for next in 0..20 {
            let chosen = {
                let intakes = self.lock();
                let ready: Vec<_> =
                    (0..intakes.len()).filter(|place| intakes[*place].is_ready).collect();
                let place = (!ready.is_empty()).then(|| ready[(turn + next) % ready.len()]);
                place.map(|place| (place, intakes[place].client.clone()))
            };
            let Some((place, client)) = chosen else {
                return Err("no intake is ready".to_owned());
            };
            let part = Part {
                filename: "notes.txt",
                purpose: "user_data",
                models: &["a", "b"],
                content: b"some bytes\n".to_vec(),
            };
            let request = client.request(reqwest::Method::POST, "/v1/files");
            match request.multipart(Client::form(part)).send().await {
                Ok(response) => {
                    let (status, file) = answer(response).await;
                    self.lock()[place].answered += 1;
                    return if status == 200 { Ok(file) } else { Err(format!("{status}: {file}")) };
                }
                // Nothing was sent: another may be asked.
                Err(error) if error.is_connect() => failed.push(error.to_string()),
                Err(error) => return Err(format!("{error:?}")),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(failed.join("; "))
    }
}

/// SIGTERM, and the end that was promised.
fn end(process: &mut Process, most: Duration) {
    let (status, took) = tokio::task::block_in_place(|| process.terminate());
    assert_eq!(status.code(), Some(0), "{}", process.log());
    assert!(took < most + END_MARGIN, "{took:?}");
}

fn base_of(process: &mut Process) -> String {
    let line = process.logged("listening on http://");
    let (_, rest) = line.split_once("listening on ").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_process_is_restarted_in_turn_and_no_request_fails_and_no_attempt_is_lost() {
    let redis = tokio::task::block_in_place(Redis::running);
    let mut env = Env::with(Options {
        command: "serve",
        // No lease ends because the machine is busy.
        lease: "20s",
        drain: "3s",
        server: format!("drain_delay = \"{}s\"\n", DELAY.as_secs()),
        extra: format!("[redis]\nurl = \"{}\"\n", redis.url()),
        ..Options::on(Kind::Postgres)
    })
    .await;
    for account in ["a", "b"] {
        env.sandbox.configure(account, Settings { latency_ms: 30, ..Settings::default() });
    }
    let mut workers = [env.also("work"), env.also("work")];
    let mut second = env.also("serve");
    let balancer = Balancer::default();
    balancer.set(0, &env.client.base);
    balancer.set(1, &base_of(&mut second));
    let all_ready = async || {
        let patience = Duration::from_secs(30);
        let is_ready = async || balancer.lock().iter().all(|intake| intake.is_ready).then_some(());
        eventually(patience, is_ready).await;
    };
    let watching = tokio::spawn(balancer.clone().watch());
    all_ready().await;

    let over = CancellationToken::new();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (balancer, over) = (balancer.clone(), over.clone());
            tokio::spawn(async move {
                let mut files = Vec::new();
                for turn in number.. {
                    if over.is_cancelled() {
                        break;
                    }
                    files.push(balancer.upload(turn).await);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                files
            })
        })
        .collect();

    // The intakes, each while the other goes on.
    let answered = |place: usize| {
        let balancer = balancer.clone();
        async move {
            let patience = Duration::from_secs(30);
            let busy = async || (balancer.lock()[place].answered > 3).then_some(());
            eventually(patience, busy).await;
        }
    };
    answered(0).await;
    end(&mut env.server, DELAY + DRAIN);
    tokio::task::block_in_place(|| env.restart());
    balancer.set(0, &env.client.base);
    all_ready().await;
    answered(1).await;
    end(&mut second, DELAY + DRAIN);
    second = env.also("serve");
    let base = tokio::task::block_in_place(|| base_of(&mut second));
    balancer.set(1, &base);
    all_ready().await;
    answered(1).await;

    // The workers, one of which runs an upload that does not end within the drain: it is the one that has begun it, or
    // the other one, which has taken it over.
    env.spoil("c", Fault::Hold { hold_before: false });
    let held = env.client.upload(&["c"]).await;
    env.held("c", 1).await;
    for worker in &mut workers {
        end(worker, DRAIN);
        *worker = tokio::task::block_in_place(|| env.also("work"));
    }
    env.sandbox.release("c");
    over.cancel();
    let mut files = vec![held];
    for client in clients {
        for file in client.await.unwrap() {
            files.push(file.unwrap_or_else(|error| panic!("a request failed: {error}")));
        }
    }
    watching.abort();

    assert!(files.len() > 40, "only {} files", files.len());
    for file in &files {
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
    }
    env.quiet().await;
    let mut copies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut settled = Vec::new();
    for file in &files {
        let file = env.client.file(file["id"].as_str().unwrap()).await;
        for mapping in file["mappings"].as_array().unwrap() {
            let [model, copy] = ["model", "provider_file_id"].map(|field| mapping[field].as_str());
            copies.entry(model.unwrap().to_owned()).or_default().insert(copy.unwrap().to_owned());
        }
        settled.push(file);
    }
    for (account, count) in [("a", files.len() - 1), ("b", files.len() - 1), ("c", 1)] {
        let live =
            env.sandbox.live_files(account).into_iter().map(|file| file.id.as_str().to_owned());
        assert_eq!(live.collect::<BTreeSet<_>>(), copies[account]);
        assert_eq!(copies[account].len(), count);
    }
    let spent = "SELECT count(*) FROM jobs WHERE kind = 'upload_file' AND attempt <> 1";
    assert_eq!(env.database.count(spent).await, 0);
    let died = "SELECT count(*) FROM job_attempts WHERE outcome IN ('died', 'failed')";
    assert_eq!(env.database.count(died).await, 0);
    let outcomes = env.outcomes(mapping(&settled[0], "c")).await;
    assert_eq!(outcomes[0], "handed_back", "{outcomes:?}");
}
