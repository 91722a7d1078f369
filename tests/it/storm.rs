//! Everything at once: clients that upload and look, processes that are killed again and again at any
//! moment, and providers that fail. In the end every file that was answered is whole, and nothing
//! else is anywhere.
//!
//! `LONGSHORE_TEST_SEED` repeats a storm's choices; the moments themselves are the machine's.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;
use serde_json::json;
use sha2::Digest as _;
use sha2::Sha256;

use crate::support::Client;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::RawForm;
use crate::support::eventually;

/// Of the storm on each database; both together last a minute.
const LENGTH: Duration = Duration::from_secs(30);
const MODELS: [&str; 2] = ["a", "b"];
const UPLOADERS: usize = 3;

fn seed() -> u64 {
    match std::env::var("LONGSHORE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("LONGSHORE_TEST_SEED is a number"),
        Err(_) => rand::random(),
    }
}

/// What a provider may do to an upload; a look meets some of it too.
fn fault(random: &mut StdRng) -> Fault {
    match random.random_range(0..9) {
        0 => Fault::LostAnswer,
        1 => Fault::DropBefore,
        2 => Fault::CutBody { after_bytes: random.random_range(0..300) },
        3 => Fault::CutAnswer { after_bytes: random.random_range(0..100) },
        4 => Fault::status(500, Value::Null),
        5 => Fault::status(503, Value::Null),
        6 => Fault::AfterEffect { status: 502, headers: Default::default(), body: Value::Null },
        7 => Fault::Hang { executed: random.random() },
        _ => Fault::Garbage {
            content_type: "text/html".to_owned(),
            body: "<html></html>".to_owned(),
            executed: random.random(),
        },
    }
}

/// Some of what the providers will do next.
fn script(env: &Env, random: &mut StdRng) {
    for account in MODELS {
        if env.sandbox.stats(account).faults_queued > 5 {
            continue;
        }
        for _ in 0..5 {
            let (skip, fault) = (random.random_range(0..10), fault(random));
            env.spoil_as(account, FaultRule { skip, ..FaultRule::new(Operation::Upload, fault) });
        }
        let skip = random.random_range(0..6);
        let fault = FaultRule::new(Operation::List, Fault::status(500, Value::Null));
        env.spoil_as(account, FaultRule { skip, ..fault });
    }
}

/// A file that a client sends, again and again under the same key until it is answered.
#[derive(Clone)]
struct Parcel {
    key: String,
    content: Vec<u8>,
}

impl Parcel {
    fn new(name: &str, number: usize, random: &mut StdRng) -> Self {
        let lines = random.random_range(1..200);
        let content = format!("{name} {number}\n").repeat(lines).into_bytes();
        Self { key: format!("{name}-{number}"), content }
    }

    fn form(&self) -> Vec<u8> {
        RawForm::new()
            .field("purpose", "user_data")
            .field("target_model_names", "a,b")
            .file(&format!("{}.txt", self.key), &self.content)
            .end()
    }
}

/// What the clients know.
#[derive(Default)]
struct Ledger {
    /// The id that each parcel was answered with.
    answered: BTreeMap<String, String>,
    /// Parcels whose key a process took with it when it died.
    held: Vec<Parcel>,
    /// Requests that got no answer.
    lost: usize,
}

type Shared = Arc<Mutex<Ledger>>;
type Server = Arc<Mutex<Client>>;

/// How one try to send a parcel ended.
enum Sent {
    Answered(String),
    KeyHeld,
    Lost,
}

async fn send(client: &Client, parcel: &Parcel) -> Sent {
    let request = client.raw_upload(parcel.form()).header("Idempotency-Key", &parcel.key);
    let Ok(answer) = request.send().await else { return Sent::Lost };
    let status = answer.status().as_u16();
    let Ok(body) = answer.json::<Value>().await else { return Sent::Lost };
    match status {
        200 => Sent::Answered(body["id"].as_str().unwrap().to_owned()),
        409 => Sent::KeyHeld,
        status => panic!("{status}: {body}"),
    }
}

/// Sends one parcel after another to whatever server there is.
async fn upload(name: String, seed: u64, server: Server, ledger: Shared) {
    let mut random = StdRng::seed_from_u64(seed);
    for number in 0.. {
        let parcel = Parcel::new(&name, number, &mut random);
        loop {
            let client = server.lock().unwrap().clone();
            match send(&client, &parcel).await {
                Sent::Answered(id) => {
                    ledger.lock().unwrap().answered.insert(parcel.key, id);
                    break;
                }
                Sent::KeyHeld => {
                    ledger.lock().unwrap().held.push(parcel);
                    break;
                }
                Sent::Lost => {
                    ledger.lock().unwrap().lost += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
    }
}

/// Looks at what was answered: whatever is killed meanwhile, it is there.
async fn look(seed: u64, server: Server, ledger: Shared) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let known: Vec<String> = ledger.lock().unwrap().answered.values().cloned().collect();
        if !known.is_empty() {
            let id = &known[random.random_range(0..known.len())];
            let client = server.lock().unwrap().clone();
            let request = client.request(reqwest::Method::GET, &format!("/v1/files/{id}"));
            if let Ok(answer) = request.send().await {
                let status = answer.status().as_u16();
                assert!(matches!(status, 200 | 503), "{status} for a file that was answered");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits for a moment to kill at: any; or one close to what a worker commits around a provider's
/// call; or one close to what the intake commits around its answer.
async fn moment(env: &Env, ledger: &Shared, random: &mut StdRng) {
    let patience = Duration::from_millis(1500);
    let close = Duration::from_micros(random.random_range(0..30_000));
    match random.random_range(0..3) {
        0 => tokio::time::sleep(patience.mul_f64(random.random())).await,
        1 => {
            let account = MODELS[random.random_range(0..MODELS.len())];
            let next = env.calls(account, Operation::Upload) + 1;
            let call = env.sandbox.reached(account, Operation::Upload, next);
            drop(tokio::time::timeout(patience, call).await);
            tokio::time::sleep(close).await;
        }
        _ => {
            let answered = || ledger.lock().unwrap().answered.len();
            let (before, begun) = (answered(), Instant::now());
            while answered() == before && begun.elapsed() < patience {
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
            tokio::time::sleep(close).await;
        }
    }
}

/// Kills the workers, or the intake, or both, where they are not one process.
fn kill(crew: &mut Crew, random: &mut StdRng) {
    let (intake, workers) = match (crew.env.options.kind, random.random_range(0..4)) {
        (Kind::Sqlite, _) | (Kind::Postgres, 0 | 1) => (false, true),
        (Kind::Postgres, 2) => (true, false),
        (Kind::Postgres, _) => (true, true),
    };
    if workers {
        crew.kill();
    }
    if intake {
        crew.env.server.kill();
        crew.env.restart();
    }
    if workers {
        crew.restart();
    }
}

/// Waits until every file is settled. A job that outlived three workers is a dead letter, rightly so
/// after that many kills: it is retried as a person would.
async fn settle(env: &Env, ids: impl Iterator<Item = &String>) {
    for id in ids {
        let mut file = env.client.settled(id).await;
        if file["status"] == "error" {
            let details = file["status_details"].as_str().unwrap();
            assert!(details.contains("went silent"), "{file}");
            let (code, answer) = env.client.post(&format!("/v1/files/{id}/retry"), json!({})).await;
            assert_eq!(code, 200, "{answer}");
            file = env.client.settled(id).await;
        }
        assert_eq!(file["status"], "processed", "{file}");
    }
}

async fn files(env: &Env) -> Vec<Value> {
    let (status, list) = env.client.get("/v1/files?limit=10000").await;
    assert_eq!((status, &list["has_more"]), (200, &json!(false)));
    list["data"].as_array().unwrap().clone()
}

/// Every parcel that was answered is one file, with the content that was sent; and there is no other file.
fn assert_files(files: &[Value], answered: &BTreeMap<String, String>) {
    let there: BTreeMap<String, &Value> = files
        .iter()
        .map(|file| (file["filename"].as_str().unwrap().trim_end_matches(".txt").to_owned(), file))
        .collect();
    assert_eq!(there.len(), files.len(), "a parcel is there twice");
    let ids: BTreeMap<String, String> = there
        .iter()
        .map(|(key, file)| (key.clone(), file["id"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(&ids, answered);
}

/// Each mapping's copy is live at its provider, with the file's bytes; and no other copy is.
fn assert_copies(env: &Env, files: &[Value]) {
    for account in MODELS {
        let mut live: BTreeMap<String, (u64, String)> = env
            .sandbox
            .live_files(account)
            .into_iter()
            .map(|copy| (copy.id, (copy.bytes, copy.sha256)))
            .collect();
        for file in files {
            let mapping = crate::support::mapping(file, account);
            assert_eq!(mapping["status"], "ready", "{file}");
            assert_eq!(mapping["error"], Value::Null, "{file}");
            let (bytes, sha256) = live
                .remove(mapping["provider_file_id"].as_str().unwrap())
                .unwrap_or_else(|| panic!("no copy at `{account}` of {file}"));
            assert_eq!(
                (Some(bytes), Some(sha256.as_str())),
                (file["bytes"].as_u64(), file["sha256"].as_str())
            );
        }
        assert!(live.is_empty(), "copies at `{account}` that are no mapping's: {live:?}");
    }
}

/// The rows agree with each other.
async fn assert_rows(env: &Env) {
    for (what, sql) in [
        ("files that are not processed", "SELECT count(*) FROM files WHERE status <> 'processed'"),
        ("mappings that are not ready", "SELECT count(*) FROM mappings WHERE status <> 'ready'"),
        (
            "mappings that still wonder about an upload",
            "SELECT count(*) FROM mappings WHERE unknown_since IS NOT NULL OR looked_at IS NOT NULL",
        ),
        ("copies that are to go", "SELECT count(*) FROM strays WHERE deleted_at IS NULL"),
        (
            "jobs that did not succeed",
            "SELECT count(*) FROM jobs WHERE status <> 'succeeded' OR finished_at IS NULL",
        ),
        (
            "mappings without their job",
            "SELECT count(*) FROM mappings m WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = m.job_id \
             AND j.kind = 'upload_file' AND j.file_id = m.file_id)",
        ),
        (
            "upload jobs without their mapping",
            "SELECT count(*) FROM jobs j WHERE j.kind = 'upload_file' AND NOT EXISTS \
             (SELECT 1 FROM mappings m WHERE m.job_id = j.id)",
        ),
        (
            "claims without an end, or ends without a claim",
            "SELECT count(*) FROM jobs j WHERE j.epoch <> \
             (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id)",
        ),
        (
            "mappings that count other tries than their jobs",
            "SELECT count(*) FROM mappings m JOIN jobs j ON j.id = m.job_id WHERE m.attempts <> j.epoch",
        ),
        (
            "uploads that succeeded twice, or never",
            "SELECT count(*) FROM jobs j WHERE j.kind = 'upload_file' AND 1 <> \
             (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id AND a.outcome = 'succeeded')",
        ),
        (
            "jobs with more attempts than they may have",
            "SELECT count(*) FROM jobs WHERE attempt > max_attempts",
        ),
    ] {
        assert_eq!(env.database.count(sql).await, 0, "{what}");
    }
}

/// Every row's blob is there; and, once what crashes left behind is old enough to be swept, no other.
async fn assert_blobs(crew: &mut Crew) {
    let rows = crew.env.database.query("SELECT blob_key FROM files").await;
    let named: BTreeSet<String> = rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect();
    crew.env.age_blobs();
    // It is swept at the start.
    crew.kill();
    crew.restart();
    let env = &crew.env;
    eventually(Duration::from_secs(60), async || {
        let kept = env.blob_keys();
        assert!(named.is_subset(&kept), "a file's blob is gone");
        (kept == named).then_some(())
    })
    .await;
}

async fn weather(kind: Kind) {
    let seed = seed();
    println!("LONGSHORE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut crew = Crew::with(Options {
        models: &MODELS,
        provider: "timeout = \"1s\"\n".to_owned(),
        ..Options::on(kind)
    })
    .await;
    let server: Server = Arc::new(Mutex::new(crew.env.client.clone()));
    let ledger = Shared::default();
    let mut clients: Vec<_> = (0..UPLOADERS)
        .map(|number| {
            let (name, seed) = (format!("parcel-{number}"), random.random());
            tokio::spawn(upload(name, seed, Arc::clone(&server), Arc::clone(&ledger)))
        })
        .collect();
    clients.push(tokio::spawn(look(random.random(), Arc::clone(&server), Arc::clone(&ledger))));
    let (begun, mut kills) = (Instant::now(), 0);
    while begun.elapsed() < LENGTH {
        script(&crew.env, &mut random);
        moment(&crew.env, &ledger, &mut random).await;
        kill(&mut crew, &mut random);
        kills += 1;
        *server.lock().unwrap() = crew.env.client.clone();
        // Providers fail more often than in years: what they pause for would be the end of the storm.
        for account in MODELS {
            crew.env.lane(account, "resume").await;
        }
    }
    for client in clients {
        client.abort();
        // It ends as aborted, unless an answer was not as it should be.
        assert!(client.await.unwrap_err().is_cancelled());
    }

    let env = &crew.env;
    for account in MODELS {
        env.sandbox.clear_faults(account);
        env.sandbox.release(account);
        env.lane(account, "resume").await;
    }
    let (mut answered, held, lost) = {
        let mut ledger = ledger.lock().unwrap();
        (ledger.answered.clone(), std::mem::take(&mut ledger.held), ledger.lost)
    };
    println!("{kills} kills, {} answered, {} held, {lost} lost", answered.len(), held.len());
    // As if the holds of the dead had lapsed: then a repetition gets what there is, or makes it.
    let lapse = "UPDATE idempotency_keys SET held_until = 0 WHERE held_until IS NOT NULL";
    env.database.execute(lapse).await;
    for parcel in held {
        let Sent::Answered(id) = send(&env.client, &parcel).await else {
            panic!("`{}` got no answer", parcel.key)
        };
        answered.insert(parcel.key, id);
    }
    // And so do those that were cut off when the storm ended.
    for file in files(env).await {
        let name = file["filename"].as_str().unwrap().trim_end_matches(".txt").to_owned();
        let id = file["id"].as_str().unwrap().to_owned();
        answered.entry(name).or_insert(id);
    }
    settle(env, answered.values()).await;
    env.quiet().await;

    let files = files(env).await;
    assert_files(&files, &answered);
    for file in &files {
        let name = file["filename"].as_str().unwrap();
        let path = format!("/v1/files/{}/content", file["id"].as_str().unwrap());
        let content = env.client.request(reqwest::Method::GET, &path).send().await.unwrap();
        let content = content.bytes().await.unwrap();
        let sha256 = data_encoding::HEXLOWER.encode(&Sha256::digest(&content));
        assert_eq!(file["sha256"], sha256.as_str(), "{name}");
    }
    assert_copies(env, &files);
    assert_rows(env).await;
    let died = "SELECT count(*) FROM job_attempts WHERE outcome = 'died'";
    assert!(env.database.count(died).await > 0, "no storm: nobody died at work");
    assert!(kills >= 10 && files.len() > 20, "no storm: {kills} kills, {} files", files.len());
    assert_blobs(&mut crew).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_is_lost_or_doubled_in_a_storm() {
    weather(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_is_lost_or_doubled_in_a_storm_over_processes() {
    weather(Kind::Postgres).await;
}
