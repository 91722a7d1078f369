//! What the planners make of the queries that run all the time: history must cost them nothing.

use std::sync::Arc;
use std::sync::Mutex;

use longshore::clock::Timestamp;
use longshore::db::Transaction;
use longshore::db::is_postgres;
use longshore::db::statement;
use longshore::idempotency;
use longshore::idempotency::RecordId;
use longshore::jobs::Ending;
use longshore::jobs::JobStatus;
use longshore::jobs::Lane;
use longshore::jobs::WorkerId;
use longshore::jobs::backlog;
use longshore::jobs::claims;
use longshore::jobs::leases;
use longshore::jobs::leases::End;
use longshore::jobs::store;
use sea_orm::ConnectionTrait;
use sea_orm::DbBackend;
use sea_orm::DbErr;
use sea_orm::ExecResult;
use sea_orm::QueryResult;
use sea_orm::Statement;

use super::on_both;
use crate::support::Queue;
use crate::support::queue::LEASE;
use crate::support::queue::UNLIMITED;
use crate::support::queue::claim;

on_both!(history_costs_what_runs_all_the_time_nothing,);

/// A transaction that remembers its statements.
pub(super) struct Recorded<'a> {
    tx: &'a Transaction,
    statements: Mutex<Vec<Statement>>,
}

impl<'a> Recorded<'a> {
    pub fn new(tx: &'a Transaction) -> Self {
        Self { tx, statements: Mutex::default() }
    }
}

impl Recorded<'_> {
    /// How many statements there were.
    pub fn count(&self) -> usize {
        self.statements.lock().unwrap().len()
    }

    fn note(&self, statement: &Statement) {
        self.statements.lock().unwrap().push(statement.clone());
    }

    /// The plans of what was said so far.
    pub async fn plans(&self) -> Result<Vec<String>, DbErr> {
        let statements = self.statements.lock().unwrap().clone();
        let mut plans = Vec::new();
        for said in statements {
            let (word, column) = if is_postgres(self.tx) {
                ("EXPLAIN", "QUERY PLAN")
            } else {
                ("EXPLAIN QUERY PLAN", "detail")
            };
            let sql = format!("{word} {}", said.sql);
            let values = said.values.into_iter().flatten();
            let rows = self.tx.query_all_raw(statement(self.tx, &sql, values)).await?;
            let lines: Result<Vec<String>, _> =
                rows.iter().map(|row| row.try_get("", column)).collect();
            plans.push(format!("{}\n  {}\n", said.sql, lines?.join("\n  ")));
        }
        Ok(plans)
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Recorded<'_> {
    fn get_database_backend(&self) -> DbBackend {
        self.tx.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.note(&statement);
        self.tx.execute_raw(statement).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.tx.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.note(&statement);
        self.tx.query_one_raw(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.note(&statement);
        self.tx.query_all_raw(statement).await
    }
}

/// Fills the table with what an installation has after a while: 100,000 finished jobs, 5,000 that rest,
/// a few that are due; files, and answers that are kept.
pub(super) async fn after_a_while(queue: &Queue) {
    let (series, id) = if queue.db.is_postgres() {
        ("generate_series(1, 100000) AS series(n)", "gen_random_uuid()")
    } else {
        (
            "(WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < 100000) \
          SELECT n FROM series)",
            "randomblob(16)",
        )
    };
    let jobs = |status: &str, run_at: i64, finished_at: &str, count: usize| {
        format!(
            "INSERT INTO jobs (id, kind, lane, rank, owner, status, payload, max_attempts, run_at, created_at, \
             finished_at) SELECT {id}, 'upload_file', 'provider:p', 0, 'alice', '{status}', '{{}}', 30, {run_at} + n, \
             1, {finished_at} FROM {series} WHERE n <= {count}"
        )
    };
    let far = queue.now().await.0 + 3_600_000;
    queue.sql(&jobs("succeeded", 1, "n", 90_000)).await;
    queue.sql(&jobs("failed", 1, "n", 10_000)).await;
    let files = format!(
        "INSERT INTO files (id, managed_id, managed_id_hash, owner, filename, content_type, purpose, bytes, sha256, \
         metadata, status, created_at) SELECT {id}, '', {hash}, 'alice', '', '', 'batch', 1, '', '', 'processed', 1 \
         FROM {series} WHERE n <= 20000",
        hash =
            if queue.db.is_postgres() { "uuid_send(gen_random_uuid())" } else { "randomblob(16)" },
    );
    queue.sql(&files).await;
    let mappings = format!(
        "INSERT INTO mappings (id, file_id, position, deployment_id, model, provider, provider_model, marker, status, \
         provider_file_id, job_id, created_at) SELECT {id}, files.id, 0, '', '', 'p', '', \
         {marker}, 'ready', 'file-1', {id}, 1 FROM files",
        marker = if queue.db.is_postgres() { "files.id::text" } else { "hex(files.id)" },
    );
    queue.sql(&mappings).await;
    let kept = format!(
        "INSERT INTO idempotency_keys (id, owner, path, idempotency_key, fingerprint, response, created_at) \
         SELECT {id}, 'alice', '/', 'key-' || n, {bytes}, '', 1 FROM {series} WHERE n <= 20000",
        bytes = if queue.db.is_postgres() { "'\\x00'" } else { "x'00'" },
    );
    queue.sql(&kept).await;
    if queue.db.is_postgres() {
        // What autovacuum does within its minute. The backlog comes after it, as it does in life.
        queue.sql("ANALYZE jobs, files, mappings, idempotency_keys").await;
    }
    queue.sql(&jobs("retrying", far, "NULL", 5_000)).await;
    queue.enqueue([queue.upload("alice"), queue.upload("bob"), queue.look("bob")]).await;
}

/// Asserts that no plan reads a whole table, or the whole of an index that holds more than what is live.
pub(super) fn assert_frugal(plans: &[String]) {
    const WHOLE: [&str; 7] = [
        "Seq Scan on jobs",
        "Seq Scan on mappings",
        "Seq Scan on idempotency_keys",
        "SCAN jobs\n",
        "SCAN mappings\n",
        "SCAN idempotency_keys\n",
        "SCAN jobs USING INDEX jobs_by",
    ];
    for plan in plans {
        assert!(!WHOLE.iter().any(|scan| plan.contains(scan)), "{plan}");
    }
}

/// Asserts that what is due is found by its lane.
fn assert_by_lane(plan: &str) {
    let (_, plan) = plan.split_once('\n').unwrap();
    assert!(
        plan.contains("jobs_due_by_lane") && (plan.contains("lane =") || plan.contains("lane=?")),
        "{plan}"
    );
}

/// Asserts that a statement that names its jobs reads those.
fn assert_by_id(plan: &str) {
    assert!(plan.contains("jobs_pkey") || plan.contains("sqlite_autoindex_jobs_1"), "{plan}");
}

fn plan_of<'a>(plans: &'a [String], what: &str) -> &'a str {
    plans.iter().find(|plan| plan.contains(what)).unwrap()
}

async fn history_costs_what_runs_all_the_time_nothing(queue: Queue) {
    after_a_while(&queue).await;
    a_claim_reads_no_more_than_what_is_due(&queue).await;
    the_loops_read_what_is_live(&queue).await;
    pruning_reads_no_more_than_what_is_old(&queue).await;
    a_backlog_is_counted_by_what_waits(&queue).await;
    a_backlog_in_one_lane_costs_a_look_at_others_nothing(&queue).await;
}

async fn a_backlog_in_one_lane_costs_a_look_at_others_nothing(queue: &Queue) {
    queue
        .sql("UPDATE jobs SET status = 'queued', finished_at = NULL WHERE status = 'succeeded'")
        .await;
    if queue.db.is_postgres() {
        queue.sql("ANALYZE jobs").await;
    }
    let lanes = [queue.lane.clone(), Lane::sweeps(), Lane::merges(), Lane::watching("p")];
    queue.open_others(&lanes[1..]).await;
    let plans = queue
        .write(move |tx| {
            let lanes = lanes.clone();
            Box::pin(async move {
                let recorded = Recorded::new(tx);
                let due = claims::next_due(&recorded, &lanes).await?;
                assert!(lanes.iter().all(|lane| due.is_due(lane) == (*lane == lanes[0])));
                recorded.plans().await
            })
        })
        .await;
    assert_frugal(&plans);
    assert_by_lane(&plans[0]);
}

async fn a_backlog_is_counted_by_what_waits(queue: &Queue) {
    queue.sql("UPDATE jobs SET status = 'queued' WHERE status = 'retrying'").await;
    let (counts, plans) = queue
        .write(|tx| {
            Box::pin(async move {
                let recorded = Recorded::new(tx);
                let mut counts = Vec::new();
                for (owner, most) in
                    [("alice", 10_000), ("bob", 10_000), ("carol", 10), ("alice", 100)]
                {
                    counts.push(backlog::waiting(&recorded, owner, most).await?);
                }
                Ok((counts, recorded.plans().await?))
            })
        })
        .await;
    let bob =
        queue.count("SELECT count(*) FROM jobs WHERE owner = 'bob' AND status = 'queued'").await;
    let alice =
        queue.count("SELECT count(*) FROM jobs WHERE owner = 'alice' AND status = 'queued'").await;
    assert!(alice > 4_000, "{alice}");
    assert_eq!(counts, [alice.unsigned_abs(), bob.unsigned_abs(), 0, 101]);
    assert_frugal(&plans);
    for plan in &plans {
        let (_, plan) = plan.split_once('\n').unwrap();
        assert!(plan.contains("jobs_ready") && !plan.contains("jobs_by_owner"), "{plan}");
    }
}

async fn a_claim_reads_no_more_than_what_is_due(queue: &Queue) {
    let lane = queue.lane.clone();
    let (claims, plans) = queue
        .write(move |tx| {
            let lane = lane.clone();
            Box::pin(async move {
                let recorded = Recorded { tx, statements: Mutex::default() };
                let claims = claim(&recorded, &WorkerId::new(), &lane, &UNLIMITED, 8).await?;
                Ok((claims, recorded.plans().await?))
            })
        })
        .await;
    assert_eq!(claims.len(), 3);
    assert_frugal(&plans);
    let owners = plan_of(&plans, "WITH RECURSIVE");
    assert!(owners.contains("jobs_ready"), "{owners}");
    // The time is in the condition of the index: those who rest are not read and thrown away.
    let choice = plan_of(&plans, "ORDER BY run_at");
    let (_, plan) = choice.split_once('\n').unwrap();
    assert!(plan.contains("jobs_ready"), "{choice}");
    let is_bounded = plan.lines().any(|line| {
        line.contains("run_at<?") || (line.contains("Index Cond") && line.contains("run_at <="))
    });
    assert!(is_bounded, "{choice}");
    assert!(plans.iter().all(|plan| !plan.contains("jobs_due")), "{plans:?}");
    assert_by_id(plan_of(&plans, "SET status = 'running'"));
}

async fn the_loops_read_what_is_live(queue: &Queue) {
    let worker = WorkerId::new();
    queue.one().await;
    let claim = queue.claim_one(&worker).await;
    let (fence, lane) = (claim.fence(&worker), queue.lane.clone());
    let plans = queue
        .write(move |tx| {
            let (worker, fence) = (worker.clone(), fence.clone());
            let lanes = [lane.clone(), Lane::webhooks()];
            Box::pin(async move {
                let recorded = Recorded { tx, statements: Mutex::default() };
                claims::next_due(&recorded, &lanes).await?;
                leases::lapsed(&recorded).await?;
                leases::renew(&recorded, &worker, LEASE).await?;
                leases::check(&recorded, &fence).await?;
                let end = End {
                    fence,
                    claimed_at: Timestamp(1),
                    ending: Ending::Succeeded,
                    outcome: "succeeded",
                };
                leases::end(&recorded, &[end]).await?;
                idempotency::renew(
                    &recorded,
                    Timestamp(1),
                    "holder",
                    &[RecordId(uuid::Uuid::nil())],
                )
                .await?;
                recorded.plans().await
            })
        })
        .await;
    assert_frugal(&plans);
    assert_by_lane(plan_of(&plans, "min(run_at)"));
    assert_by_id(plan_of(&plans, "SELECT 1 FROM jobs"));
    assert_by_id(plan_of(&plans, "UPDATE jobs SET status"));
    let lapsed = plan_of(&plans, "lease_until <");
    assert!(lapsed.contains("jobs_running") || lapsed.contains("jobs_leased"), "{lapsed}");
}

async fn pruning_reads_no_more_than_what_is_old(queue: &Queue) {
    let plans: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = Arc::clone(&plans);
    let pruned = queue.write(move |tx| {
        let told = Arc::clone(&told);
        Box::pin(async move {
            let recorded = Recorded { tx, statements: Mutex::default() };
            let mut pruned = 0;
            for status in [JobStatus::Succeeded, JobStatus::Failed] {
                pruned += store::prune(&recorded, status, Timestamp(1_000), 500).await?;
            }
            *told.lock().unwrap() = recorded.plans().await?;
            Ok(pruned)
        })
    });
    assert_eq!(pruned.await, 1000);
    assert_frugal(&plans.lock().unwrap());
}
