//! Everything at once: clients that upload, a server that is killed again and again, and providers
//! that fail. In the end every file that was answered is whole.

use std::collections::HashMap;
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

use crate::support::Client;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;

const SEED: u64 = 20_261_123;

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

fn script(env: &Env, random: &mut StdRng) {
    for account in env.options.models {
        for _ in 0..60 {
            let skip = random.random_range(0..6);
            let fault = fault(random);
            env.spoil_as(account, FaultRule { skip, ..FaultRule::new(Operation::Upload, fault) });
        }
        for _ in 0..6 {
            let skip = random.random_range(0..6);
            let fault = FaultRule::new(Operation::List, Fault::status(500, Value::Null));
            env.spoil_as(account, FaultRule { skip, ..fault });
        }
    }
}

/// Uploads one file after another to whatever server there is, and keeps the ids that were answered.
async fn upload(server: Arc<Mutex<Client>>, answered: Arc<Mutex<Vec<String>>>) {
    loop {
        let client = server.lock().unwrap().clone();
        let part = crate::support::Part {
            filename: "storm.txt",
            purpose: "user_data",
            models: &["a", "b"],
            content: b"some bytes\n".repeat(50),
        };
        let request = client.request(reqwest::Method::POST, "/v1/files");
        let Ok(answer) = request.multipart(Client::form(part)).send().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let is_success = answer.status() == 200;
        if let Ok(file) = answer.json::<Value>().await {
            assert!(is_success, "{file}");
            answered.lock().unwrap().push(file["id"].as_str().unwrap().to_owned());
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
}

/// Waits until every file is settled. A job that outlived three workers is a dead letter, rightly so
/// after that many kills: it is retried as a person would.
async fn settle(env: &Env, ids: &[String]) {
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
    env.quiet().await;
}

async fn weather(kind: Kind, length: Duration) {
    println!("seed {SEED}");
    let mut random = StdRng::seed_from_u64(SEED);
    let mut crew = Crew::with(Options {
        models: &["a", "b"],
        provider: "timeout = \"1s\"\n".to_owned(),
        ..Options::on(kind)
    })
    .await;
    script(&crew.env, &mut random);
    let (server, answered) = (Arc::new(Mutex::new(crew.env.client.clone())), Arc::default());
    let clients: Vec<_> =
        (0..3).map(|_| tokio::spawn(upload(Arc::clone(&server), Arc::clone(&answered)))).collect();
    let begun = Instant::now();
    while begun.elapsed() < length {
        tokio::time::sleep(Duration::from_millis(random.random_range(1000..2000))).await;
        crew.kill();
        crew.restart();
        *server.lock().unwrap() = crew.env.client.clone();
    }
    for client in clients {
        client.abort();
        // It ends as aborted, unless an answer was not as it should be.
        assert!(client.await.unwrap_err().is_cancelled());
    }
    let env = &crew.env;
    for account in env.options.models {
        env.sandbox.clear_faults(account);
        env.lane(account, "resume").await;
    }
    let ids: Vec<String> = answered.lock().unwrap().clone();
    assert!(ids.len() > 20, "only {} files in the storm", ids.len());
    settle(env, &ids).await;
    // A file whose answer was lost with the server is there all the same, and as whole as the rest.
    let (_, list) = env.client.get("/v1/files?limit=10000").await;
    let files = list["data"].as_array().unwrap();
    let there: HashMap<&str, &Value> =
        files.iter().map(|file| (file["id"].as_str().unwrap(), file)).collect();
    assert!(ids.iter().all(|id| there.contains_key(id.as_str())), "a file was lost");
    let unanswered: Vec<String> = there
        .keys()
        .filter(|id| !ids.iter().any(|known| known == *id))
        .map(|id| (*id).to_owned())
        .collect();
    settle(env, &unanswered).await;

    let (_, list) = env.client.get("/v1/files?limit=10000").await;
    let files = list["data"].as_array().unwrap();
    for account in env.options.models {
        let mut held: Vec<String> = files
            .iter()
            .map(|file| {
                crate::support::mapping(file, account)["provider_file_id"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        let mut live: Vec<String> =
            env.sandbox.live_files(account).into_iter().map(|file| file.id).collect();
        held.sort();
        live.sort();
        assert_eq!(held, live, "copies at `{account}` that are no mapping's, or missing");
    }
    let died = "SELECT count(*) FROM job_attempts WHERE outcome = 'died'";
    assert!(env.database.count(died).await > 0, "no storm: nobody died at work");
    let stuck = "SELECT count(*) FROM mappings WHERE status <> 'ready'";
    assert_eq!(env.database.count(stuck).await, 0);
    assert!(env.blobs() >= files.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_is_lost_or_doubled_in_a_storm() {
    weather(Kind::Sqlite, Duration::from_secs(9)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_file_is_lost_or_doubled_in_a_storm_over_processes() {
    weather(Kind::Postgres, Duration::from_secs(5)).await;
}
