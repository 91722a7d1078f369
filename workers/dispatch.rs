//! The claim loop: it claims ready jobs, per lane, only what it has free slots for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::task::task_id::TaskId;
use sea_orm::DbErr;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;
use super::backend::Untaken;
use super::endings::Endings;
use super::held::Held;
use super::listing::Listings;
use super::registry;
use crate::app::App;
use crate::clock::Timestamp;
use crate::db::warn_of;
use crate::jobs::Lane;
use crate::jobs::LeaseTimes;
use crate::jobs::Work;
use crate::jobs::WorkerId;
use crate::jobs::claims;
use crate::jobs::claims::Claimed;
use crate::jobs::claims::LowerTurns;
use crate::jobs::claims::Turns;
use crate::jobs::lanes;
use crate::jobs::lanes::Limits;

/// How late work is seen that nobody gave a hint of: what another process queued, without Redis.
const POLL: Duration = Duration::from_millis(100);
/// How late, at most, while everything that is due lies in lanes that stand still or are full.
const LONGEST_POLL: Duration = Duration::from_secs(2);
/// How long to rest after the database refused a claim.
const FAILURE_PAUSE: Duration = Duration::from_millis(500);

/// Deliveries that one process has under way: most of them wait for somebody's answer, and cost little.
const DELIVERIES: usize = 256;

/// A lane as this process serves it.
struct Serving {
    lane: Lane,
    /// Over all workers.
    limits: Limits,
    /// Of this process.
    slots: usize,
    running: Arc<AtomicUsize>,
    /// Whether its slots are those that all our own heavy work shares.
    is_heavy: bool,
    lower: LowerTurns,
}

/// What a claim would take of a lane.
struct Wanted {
    place: usize,
    lane: Lane,
    limits: Limits,
    free: usize,
    is_heavy: bool,
    lower: LowerTurns,
}

impl Wanted {
    fn of(place: usize, serving: &Serving) -> Self {
        Self {
            place,
            lane: serving.lane.clone(),
            limits: serving.limits,
            free: serving.free(),
            is_heavy: serving.is_heavy,
            lower: serving.lower.clone(),
        }
    }

    /// What this claim has to hold: the lane, and what is counted with it, in which nobody else may claim meanwhile.
    fn held(&self) -> impl Iterator<Item = Lane> {
        let beside = self.is_heavy.then(|| self.lane.counted_with());
        std::iter::once(self.lane.clone()).chain(beside.filter(|beside| *beside != self.lane))
    }
}

/// Puts heavy lanes last, beginning behind the one that was served last: they share their slots, and one that always has
/// work would keep the others waiting.
fn put_in_turn(wanted: &mut [Wanted], last_heavy: usize) {
    wanted.sort_by_key(|Wanted { place, is_heavy, .. }| {
        (*is_heavy, *is_heavy && *place <= last_heavy, *place)
    });
}

impl Serving {
    fn free(&self) -> usize {
        self.slots.saturating_sub(self.running.load(Ordering::Acquire))
    }
}

/// A place in a lane, free again when it is dropped.
pub struct Slot {
    running: Arc<AtomicUsize>,
    freed: Arc<Notify>,
}

impl Slot {
    fn take(running: &Arc<AtomicUsize>, freed: &Arc<Notify>) -> Self {
        running.fetch_add(1, Ordering::AcqRel);
        Self { running: Arc::clone(running), freed: Arc::clone(freed) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::AcqRel);
        self.freed.notify_one();
    }
}

/// The lanes of our own work. What is heavy of it shares the slots that the configuration allows.
fn own_lanes(app: &App) -> Vec<Serving> {
    let concurrency = app.config.workers.concurrency.get() as usize;
    let own = |lane, max_concurrency, slots| Serving {
        lane,
        limits: Limits { max_concurrency, requests_per_minute: None },
        slots,
        running: Arc::default(),
        is_heavy: false,
        lower: LowerTurns::default(),
    };
    let running = Arc::default();
    let heavy = |lane, max_concurrency| Serving {
        running: Arc::clone(&running),
        is_heavy: true,
        ..own(lane, max_concurrency, concurrency)
    };
    let mut lanes = vec![own(Lane::webhooks(), u32::MAX, DELIVERIES)];
    for account in app.providers.iter() {
        let name = &account.settings.name;
        lanes.push(own(Lane::watching(name), 1, 1));
        let most = account.settings.max_concurrency.get();
        lanes.push(heavy(Lane::ingestion(name), most));
    }
    lanes.push(heavy(Lane::merges(), u32::MAX));
    lanes.push(heavy(Lane::sweeps(), u32::MAX));
    lanes
}

/// Claims jobs and hands them to apalis, until `stop`.
pub struct Dispatcher {
    app: App,
    worker: WorkerId,
    times: LeaseTimes,
    held: Held,
    endings: Endings,
    listings: Listings,
    lanes: Vec<Serving>,
    /// The place of the heavy lane that was served last.
    last_heavy: usize,
    freed: Arc<Notify>,
    claimed: mpsc::Sender<Task<Arc<Attempt>>>,
    untaken: Untaken,
}

/// How long to rest if nothing happens meanwhile.
enum Rest {
    For(Duration),
    /// All that is due lies in lanes that stand still or are full: asking again soon helps nobody. The
    /// time, if known, when one of them goes on, or something else is due.
    Fruitless(Option<Duration>),
}

/// What one round of claims brought.
struct Round {
    claims: BTreeMap<usize, (Vec<Claimed>, bool)>,
    /// What is to be remembered of the lanes once all of this is committed.
    lower: BTreeMap<usize, LowerTurns>,
    last_heavy: Option<usize>,
    /// When a pause or a rate budget lets the next job go.
    again_at: Option<Timestamp>,
    now: Timestamp,
}

impl Dispatcher {
    pub fn new(
        app: App,
        worker: WorkerId,
        times: LeaseTimes,
        held: Held,
        endings: Endings,
        (claimed, untaken): (mpsc::Sender<Task<Arc<Attempt>>>, Untaken),
    ) -> Self {
        let mut lanes: Vec<_> = app
            .providers
            .iter()
            .map(|account| Serving {
                lane: account.lane(),
                limits: Limits {
                    max_concurrency: account.settings.max_concurrency.get(),
                    requests_per_minute: Some(account.settings.requests_per_minute.get()),
                },
                slots: account.settings.max_concurrency.get() as usize,
                running: Arc::default(),
                is_heavy: false,
                lower: LowerTurns::default(),
            })
            .collect();
        lanes.extend(own_lanes(&app));
        Self {
            app,
            worker,
            times,
            held,
            endings,
            listings: Listings::default(),
            lanes,
            last_heavy: 0,
            freed: Arc::default(),
            claimed,
            untaken,
        }
    }

    /// Slots over all lanes: more attempts than this never run at once in this process.
    pub fn slots(&self) -> usize {
        self.lanes.iter().map(|serving| serving.slots).sum()
    }

    pub async fn run(mut self, stop: CancellationToken) {
        let (mut rest, mut idle) = (Duration::ZERO, POLL);
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    // apalis takes no more: what it left is run here, and stopped with the rest.
                    while let Some(attempt) = self.untaken.take() {
                        tokio::spawn(attempt.run());
                    }
                    return;
                }
                () = tokio::time::sleep(rest) => {}
                () = self.app.notices.work() => {}
                () = self.freed.notified() => {}
            }
            rest = match self.round(&stop).await {
                Ok(Rest::For(rest)) => {
                    idle = POLL;
                    rest
                }
                Ok(Rest::Fruitless(again)) => {
                    idle = (idle * 2).min(LONGEST_POLL);
                    again.unwrap_or(idle).min(idle)
                }
                Err(error) => {
                    warn_of(&error, "could not claim jobs; trying again");
                    FAILURE_PAUSE
                }
            };
        }
    }

    /// Claims what is due.
    async fn round(&mut self, stop: &CancellationToken) -> Result<Rest, DbErr> {
        let free: Vec<usize> =
            (0..self.lanes.len()).filter(|place| self.lanes[*place].free() > 0).collect();
        if free.is_empty() {
            return Ok(Rest::For(POLL));
        }
        let lanes: Vec<_> = free.iter().map(|place| self.lanes[*place].lane.clone()).collect();
        let due = claims::next_due(self.app.db.read(), &lanes).await?;
        let places: Vec<_> =
            free.into_iter().filter(|place| due.is_due(&self.lanes[*place].lane)).collect();
        if places.is_empty() {
            return Ok(Rest::For(due.rest().unwrap_or(POLL).min(POLL)));
        }
        let claiming = self.held.claiming().await;
        // The lease is counted from before the claim: by our own clock it ends early, never late.
        let claimed_at = Instant::now();
        let round = self.claim(places).await?;
        let is_fruitless = round.claims.is_empty();
        self.last_heavy = round.last_heavy.unwrap_or(self.last_heavy);
        for (place, lower) in round.lower {
            self.lanes[place].lower = lower;
        }
        let mut attempts = Vec::new();
        for (place, (claims, is_probe)) in round.claims {
            for job in claims {
                let lease = self.held.add(job.id, job.epoch, claimed_at, self.times.lease);
                attempts.push(Attempt {
                    app: self.app.clone(),
                    fence: job.fence(&self.worker),
                    lease,
                    lease_length: self.times.lease,
                    is_probe,
                    held: self.held.clone(),
                    endings: self.endings.clone(),
                    listings: self.listings.clone(),
                    _slot: Slot::take(&self.lanes[place].running, &self.freed),
                    job,
                });
            }
        }
        drop(claiming);
        for attempt in attempts {
            self.hand_over(attempt, stop).await;
        }
        let again_at = round.again_at.map(|at| at.since(round.now));
        let again = [again_at, due.rest()].into_iter().flatten().min();
        if is_fruitless {
            Ok(Rest::Fruitless(again))
        } else {
            Ok(Rest::For(again.unwrap_or(POLL).min(POLL)))
        }
    }

    async fn hand_over(&self, attempt: Attempt, stop: &CancellationToken) {
        let id = TaskId::from_string(attempt.job.id.to_string());
        let attempt = Arc::new(attempt);
        let room = tokio::select! {
            biased;
            // apalis takes no more, and would leave it in the channel for as long as what it has taken runs.
            () = stop.cancelled() => None,
            room = self.claimed.reserve() => room.ok(),
        };
        match room {
            Some(room) => room.send(TaskBuilder::new(attempt).task_id(id).build()),
            None => drop(tokio::spawn(attempt.run())),
        }
    }

    async fn claim(&self, places: Vec<usize>) -> Result<Round, DbErr> {
        let mut wanted: Vec<_> = places
            .into_iter()
            .filter_map(|place| Some(Wanted::of(place, self.lanes.get(place)?)))
            .collect();
        put_in_turn(&mut wanted, self.last_heavy);
        let held: Arc<[Lane]> = wanted.iter().flat_map(Wanted::held).collect();
        let wanted: Arc<[Wanted]> = wanted.into();
        let (worker, lease) = (self.worker.clone(), self.times.lease);
        self.app
            .db
            .work_alone(move |tx| {
                let (wanted, held) = (Arc::clone(&wanted), Arc::clone(&held));
                let worker = worker.clone();
                Box::pin(async move {
                    let mut round = Round {
                        claims: BTreeMap::new(),
                        lower: BTreeMap::new(),
                        last_heavy: None,
                        again_at: None,
                        now: Timestamp(0),
                    };
                    let (mut all, mut taken) = (Vec::new(), 0);
                    lanes::lock(tx, &held).await?;
                    for Wanted { place, lane, limits, free, is_heavy, lower } in wanted.iter() {
                        let free = if *is_heavy { free.saturating_sub(taken) } else { *free };
                        let state = lanes::read(tx, lane).await?;
                        let admission = state.admit(limits, free);
                        round.now = state.now;
                        if let Some(at) = admission.again_at {
                            round.again_at =
                                Some(round.again_at.map_or(at, |earlier| earlier.min(at)));
                        }
                        if admission.slots == 0 {
                            continue;
                        }
                        let turns = Turns { last: state.last_owner.clone(), lower: lower.clone() };
                        let claims =
                            claims::claim(tx, &worker, lease, lane, &turns, admission.slots)
                                .await?;
                        if let Some(last) = claims.last() {
                            let turns = turns.after(&claims);
                            lanes::leave(
                                tx,
                                lane,
                                &state,
                                &admission,
                                claims.iter().map(|job| Work::calls(&job.kind)).sum(),
                                (last.id, &turns.last),
                            )
                            .await?;
                            all.extend(claims.iter().cloned());
                            if *is_heavy {
                                taken += claims.len();
                                round.last_heavy = Some(*place);
                            }
                            round.lower.insert(*place, turns.lower);
                            round.claims.insert(*place, (claims, admission.is_probe));
                        }
                    }
                    // The intent is on disk before the first byte leaves.
                    registry::claimed(tx, &all).await?;
                    Ok(round)
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A claim in a lane of each, heavy or not, in this order.
    fn wanted(heavy: &[bool]) -> Vec<Wanted> {
        let wanted = heavy.iter().enumerate().map(|(place, is_heavy)| Wanted {
            place,
            lane: Lane::ingestion("p"),
            limits: Limits { max_concurrency: 1, requests_per_minute: None },
            free: 1,
            is_heavy: *is_heavy,
            lower: LowerTurns::default(),
        });
        wanted.collect()
    }

    #[test]
    fn heavy_lanes_take_turns_at_the_slots_they_share() {
        let (mut last_heavy, mut served) = (0, Vec::new());
        for _ in 0..6 {
            let mut wanted = wanted(&[false, true, false, true, true]);
            put_in_turn(&mut wanted, last_heavy);
            assert!(
                wanted[..2].iter().all(|wanted| !wanted.is_heavy),
                "they wait for none of them"
            );
            // All have work, and there is one slot.
            last_heavy = wanted[2].place;
            served.push(last_heavy);
        }
        assert_eq!(served, [1, 3, 4, 1, 3, 4]);
    }

    #[test]
    fn a_lane_that_counts_with_another_holds_both() {
        let wanted = &wanted(&[true])[0];
        let held: Vec<_> = wanted.held().collect();
        assert_eq!(held, [Lane::ingestion("p"), Lane::of_provider("p")]);
    }
}
