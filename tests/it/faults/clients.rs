//! The load: clients that upload, look, run batches, cancel and delete at whatever intake answers, as programs with an
//! ordinary retry do, and hold every answer against what they were told before.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use reqwest::Method;
use reqwest::RequestBuilder;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

use super::fleet::MODELS;
use super::history::Batch;
use super::history::Fate;
use super::history::File;
use super::history::History;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::RawForm;
use crate::support::batches::requests;

/// How long a client waits for one answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// Files that one client has given and that are not carried yet, at most.
const AHEAD: usize = 8;
const PAIRS: [&[&str]; 3] = [&MODELS, &["a"], &["b"]];
const ENDS: [&str; 4] = ["completed", "failed", "expired", "cancelled"];

/// Everybody's view of the service.
#[derive(Clone)]
pub struct World {
    pub servers: Arc<[Client]>,
    pub history: History,
    /// No new operations from here on; what was begun is carried to its end.
    pub closing: CancellationToken,
}

/// What an operation came to.
enum Answer {
    Told {
        status: u16,
        body: Value,
        was_unsure: bool,
    },
    /// It was given up, since everything ends.
    GivenUp,
}

impl World {
    pub fn any(&self, random: &mut StdRng) -> &Client {
        &self.servers[random.random_range(0..self.servers.len())]
    }

    /// Repeats a request, at one server or another, until it gets an answer that settles it.
    async fn insist(
        &self,
        operation: &'static str,
        random: &mut StdRng,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Answer {
        let mut was_unsure = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let sent = request(self.any(random)).timeout(PATIENCE).send().await;
            let pause = match self.judge(operation, sent).await {
                Judged::Settled(status, body) => {
                    return Answer::Told { status, body, was_unsure };
                }
                Judged::NotNow => Duration::from_millis(random.random_range(100..400)),
                Judged::PerhapsDone => {
                    was_unsure = true;
                    Duration::from_millis(random.random_range(100..400))
                }
                Judged::Unsure => {
                    was_unsure = true;
                    Duration::from_millis(random.random_range(20..200))
                }
            };
            // When everything ends, it still has as long as a held idempotency key.
            if self.closing.is_cancelled() && tries > 200 {
                self.history.violation(format_args!("{operation}: no answer after {tries} tries"));
                return Answer::GivenUp;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks once; `None` where there was no answer to look at.
    async fn look(
        &self,
        operation: &'static str,
        random: &mut StdRng,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Option<(u16, Value)> {
        let sent = request(self.any(random)).timeout(Duration::from_secs(75)).send().await;
        match self.judge(operation, sent).await {
            Judged::Settled(status, body) => Some((status, body)),
            Judged::NotNow | Judged::PerhapsDone | Judged::Unsure => None,
        }
    }

    /// What an answer says of its request. A refusal has to be one that clients understand.
    async fn judge(
        &self,
        operation: &'static str,
        sent: reqwest::Result<reqwest::Response>,
    ) -> Judged {
        let lost = || {
            self.history.tally(operation, |tally| tally.lost += 1);
            Judged::Unsure
        };
        let Ok(answer) = sent else { return lost() };
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let Ok(text) = answer.text().await else { return lost() };
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let has_time = headers.contains_key("retry-after");
        if !headers.contains_key("x-request-id") {
            self.history.violation(format_args!("{operation}: no request id on {status}: {body}"));
        }
        if status >= 400 && !body["error"]["message"].is_string() {
            self.history.violation(format_args!("{operation}: {status} in another form: {body}"));
        }
        let judged = match status {
            503 if has_time => Judged::PerhapsDone,
            429 if has_time => Judged::NotNow,
            409 if has_time => Judged::NotNow,
            // A process that was frozen finds its sender silent.
            408 => Judged::NotNow,
            500.. => Judged::Unsure,
            _ => Judged::Settled(status, body.clone()),
        };
        match judged {
            Judged::Settled(..) => self.history.checked(operation),
            Judged::NotNow | Judged::PerhapsDone => {
                self.history.tally(operation, |tally| tally.put_off += 1)
            }
            Judged::Unsure => {
                self.history.tally(operation, |tally| tally.put_off += 1);
                self.history.violation(format_args!("{operation}: {status} {body}"));
            }
        }
        judged
    }
}

enum Judged {
    Settled(u16, Value),
    /// Nothing was done, and it may pass later.
    NotNow,
    /// The database went away, perhaps between the commit and its answer; it may pass later.
    PerhapsDone,
    /// It may have been done.
    Unsure,
}

/// One client, doing one thing after another until everything ends.
pub async fn client(world: World, name: String, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut given = Vec::new();
    for number in 0.. {
        if world.closing.is_cancelled() {
            return;
        }
        let name = format!("{name}-{number}");
        match random.random_range(0..100) {
            0..28 if given.len() >= AHEAD => settle(&world, &mut given, &mut random).await,
            0..22 => given.extend(upload(&world, &name, 0, &mut random).await),
            22..28 => {
                let requests = random.random_range(3..30);
                given.extend(upload(&world, &name, requests, &mut random).await);
            }
            28..32 => hang_up(&world, &name, &mut random).await,
            32..52 => read(&world, &mut random).await,
            52..60 => content(&world, &mut random).await,
            60..64 => wait(&world, &mut random).await,
            64..68 => list(&world, &mut random).await,
            68..72 => peek(&world, &mut random).await,
            72..80 => remove(&world, &mut random).await,
            80..82 => sweep(&world, &name, &mut random).await,
            82..87 => create_batch(&world, &name, &mut random).await,
            87..89 => cancel_batch(&world, &mut random).await,
            89..96 => read_batch(&world, &mut random).await,
            _ => jobs(&world, &mut random).await,
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..80))).await;
    }
}

fn pick(random: &mut StdRng) -> impl FnOnce(usize) -> usize {
    // Mostly what is recent: that is where things happen.
    let share = random.random::<f64>().powi(2);
    move |count| count - 1 - ((count as f64 * share) as usize).min(count - 1)
}

fn form(filename: &str, content: &[u8], requests: usize, models: &[&str]) -> Vec<u8> {
    let purpose = if requests > 0 { "batch" } else { "user_data" };
    RawForm::new()
        .field("purpose", purpose)
        .field("target_model_names", &models.join(","))
        .file(filename, content)
        .end()
}

/// Uploads a file, of so many requests for batches if any, until it is answered. The key makes repetitions safe.
async fn upload(world: &World, name: &str, lines: usize, random: &mut StdRng) -> Option<String> {
    let filename = format!("{name}.{}", if lines > 0 { "jsonl" } else { "txt" });
    let content = if lines > 0 {
        requests(lines)
    } else {
        format!("{name} {}\n", random.random::<u64>())
            .repeat(random.random_range(1..1500))
            .into_bytes()
    };
    let models = PAIRS[random.random_range(0..4_usize).saturating_sub(1)];
    let body = form(&filename, &content, lines, models);
    let answer = world
        .insist("upload", random, |client| {
            client.raw_upload(body.clone()).header("Idempotency-Key", name)
        })
        .await;
    let Answer::Told { status, body, .. } = answer else { return None };
    let Some(id) = body["id"].as_str().filter(|_| status == 200) else {
        world.history.violation(format_args!("upload of `{filename}`: {status} {body}"));
        return None;
    };
    if body["bytes"] != content.len() || body["filename"] != filename.as_str() {
        world.history.violation(format_args!("upload of `{filename}` was answered {body}"));
    }
    world.history.add_file(File {
        id: id.to_owned(),
        filename: filename.clone(),
        content: content.into(),
        requests: lines,
        models,
        fate: Fate::Kept,
    });
    Some(filename)
}

/// Waits for what this client has given, since it is too far ahead: what is under way is to be hit, not what lies in a
/// queue for minutes.
async fn settle(world: &World, given: &mut Vec<String>, random: &mut StdRng) {
    let place = random.random_range(0..given.len());
    let Some(file) = world.history.file(&given[place]) else { return };
    if let Some((status, body)) = wait_for(world, &file, random).await
        && (status == 404 || body["status"] != "uploaded")
    {
        given.swap_remove(place);
    }
}

/// A sender that goes away in the middle of its file: nothing of it may be left.
async fn hang_up(world: &World, name: &str, random: &mut StdRng) {
    let client = world.any(random).clone();
    let content = vec![b'x'; random.random_range(1000..200_000)];
    let body = form(&format!("gone-{name}.txt"), &content, 0, &MODELS);
    let head = client.upload_head(body.len(), "");
    let sent = random.random_range(0..body.len() - 20);
    let Ok(mut stream) =
        tokio::net::TcpStream::connect(client.base.trim_start_matches("http://")).await
    else {
        return;
    };
    let write = async {
        stream.write_all(&head).await?;
        stream.write_all(&body[..sent]).await
    };
    // It may meet a process that is frozen or dies.
    drop(tokio::time::timeout(Duration::from_secs(5), write).await);
    world.history.fault("client hangs up");
    world.history.checked("hang up");
}

/// A file is there as long as nobody asked it to go, and not after.
fn check_presence(world: &World, operation: &str, before: &File, status: u16, body: &Value) {
    let after = world.history.file(&before.filename).map_or(before.fate, |file| file.fate);
    let is_wrong = match status {
        200 => before.fate == Fate::Gone,
        404 => after == Fate::Kept,
        _ => true,
    };
    if is_wrong {
        let (filename, id) = (&before.filename, &before.id);
        world.history.violation(format_args!(
            "{operation} of `{filename}` ({:?}, then {after:?}; {id}): {status} {body}",
            before.fate
        ));
    }
}

async fn read(world: &World, random: &mut StdRng) {
    let Some(file) = world.history.pick_file(|_| true, pick(random)) else { return };
    let path = format!("/v1/files/{}", file.id);
    let Some((status, body)) =
        world.look("retrieve", random, |client| client.request(Method::GET, &path)).await
    else {
        return;
    };
    check_presence(world, "retrieve", &file, status, &body);
    let is_his = body["filename"] == file.filename.as_str() && body["bytes"] == file.content.len();
    if status == 200 && !is_his {
        world.history.violation(format_args!("`{}` reads as {body}", file.filename));
    }
}

async fn wait(world: &World, random: &mut StdRng) {
    let Some(file) = world.history.pick_file(|file| file.fate == Fate::Kept, pick(random)) else {
        return;
    };
    wait_for(world, &file, random).await;
}

async fn wait_for(world: &World, file: &File, random: &mut StdRng) -> Option<(u16, Value)> {
    let path = format!("/v1/files/{}?wait=5", file.id);
    let begun = std::time::Instant::now();
    let (status, body) =
        world.look("wait", random, |client| client.request(Method::GET, &path)).await?;
    check_presence(world, "wait", file, status, &body);
    let took = begun.elapsed();
    if took > Duration::from_secs(30) {
        world.history.violation(format_args!("?wait=5 took {took:?}"));
    }
    Some((status, body))
}

async fn content(world: &World, random: &mut StdRng) {
    let Some(file) = world.history.pick_file(|_| true, pick(random)) else { return };
    let path = format!("/v1/files/{}/content", file.id);
    let request = world.any(random).request(Method::GET, &path).timeout(PATIENCE);
    let Ok(answer) = request.send().await else { return };
    let status = answer.status().as_u16();
    let Ok(bytes) = answer.bytes().await else { return };
    match status {
        200 if *bytes != *file.content => {
            world.history.violation(format_args!("`{}` has other content", file.filename));
        }
        200 | 404 => check_presence(world, "content", &file, status, &Value::Null),
        503 | 429 => return,
        _ => world.history.violation(format_args!("content: {status} {bytes:?}")),
    }
    world.history.checked("content");
}

/// What is listed is there, in order, and each once.
async fn list(world: &World, random: &mut StdRng) {
    let limit = random.random_range(1..200);
    let before = world.history.files();
    let path = format!("/v1/files?limit={limit}&order=desc");
    let Some((status, body)) =
        world.look("list", random, |client| client.request(Method::GET, &path)).await
    else {
        return;
    };
    let Some(data) = body["data"].as_array().filter(|_| status == 200) else {
        return world.history.violation(format_args!("list: {status} {body}"));
    };
    let mut seen = std::collections::BTreeSet::new();
    for item in data {
        if !seen.insert(item["id"].as_str()) {
            world.history.violation(format_args!("listed twice: {item}"));
        }
        let known = before.iter().find(|file| item["id"] == file.id.as_str());
        if known.is_some_and(|file| file.fate == Fate::Gone) {
            world.history.violation(format_args!("listed, though deleted: {item}"));
        }
    }
}

/// Another owner's key opens nothing.
async fn peek(world: &World, random: &mut StdRng) {
    let Some(file) = world.history.pick_file(|file| file.fate == Fate::Kept, pick(random)) else {
        return;
    };
    let path = format!("/v1/files/{}", file.id);
    let answer = world
        .look("as another owner", random, |client| {
            client.with_key(BOB_KEY).request(Method::GET, &path)
        })
        .await;
    if let Some((status, body)) = answer
        && status != 403
        && world.history.file(&file.filename).is_some_and(|file| file.fate == Fate::Kept)
    {
        world.history.violation(format_args!("another owner's {}: {status} {body}", file.filename));
    }
}

async fn remove(world: &World, random: &mut StdRng) {
    let Some(file) = world.history.pick_file(|file| file.fate == Fate::Kept, pick(random)) else {
        return;
    };
    if !world.history.take(&file.filename) {
        return;
    }
    let is_forced = random.random_ratio(1, 4);
    let path = format!("/v1/files/{}{}", file.id, if is_forced { "?force=true" } else { "" });
    let answer =
        world.insist("delete", random, |client| client.request(Method::DELETE, &path)).await;
    let Answer::Told { status, body, was_unsure } = answer else { return };
    match status {
        200 => world.history.decide(&file.filename, Fate::Gone),
        404 => {
            // Only our own delete, whose answer was lost, can have been before.
            if !was_unsure {
                world.history.violation(format_args!("delete of `{}`: 404", file.filename));
            }
            world.history.decide(&file.filename, Fate::Gone);
        }
        409 if file.requests > 0 => {
            if is_forced {
                world.history.violation(format_args!("forced delete: 409 {body}"));
            }
            if !was_unsure {
                world.history.spare(&file.filename);
            }
        }
        _ => world.history.violation(format_args!("delete: {status} {body}")),
    }
}

async fn sweep(world: &World, name: &str, random: &mut StdRng) {
    let mut files = Vec::new();
    for _ in 0..random.random_range(2..6) {
        let is_so = |file: &File| file.fate == Fate::Kept && file.requests == 0;
        let picked = world.history.pick_file(is_so, pick(random));
        files.extend(picked.filter(|file| world.history.take(&file.filename)));
    }
    if files.is_empty() {
        return;
    }
    let ids: Vec<&str> = files.iter().map(|file| file.id.as_str()).collect();
    let answer = world
        .insist("sweep", random, |client| {
            let body = json!({"file_ids": ids});
            let request = client.request(Method::POST, "/v1/sweeps").json(&body);
            request.header("Idempotency-Key", format!("sweep-{name}"))
        })
        .await;
    let Answer::Told { status, body, .. } = answer else { return };
    if status != 200 {
        return world.history.violation(format_args!("sweep: {status} {body}"));
    }
    for file in &files {
        world.history.decide(&file.filename, Fate::Promised);
    }
}

async fn create_batch(world: &World, name: &str, random: &mut StdRng) {
    let is_so = |file: &File| file.fate == Fate::Kept && file.requests > 0;
    let Some(file) = world.history.pick_file(is_so, pick(random)) else { return };
    let answer = world
        .insist("create batch", random, |client| {
            let body = json!({
                "input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h",
            });
            let request = client.request(Method::POST, "/v1/batches").json(&body);
            request.header("Idempotency-Key", format!("batch-{name}"))
        })
        .await;
    let Answer::Told { status, body, .. } = answer else { return };
    match body["id"].as_str().filter(|_| status == 200) {
        Some(id) => world.history.add_batch(Batch {
            id: id.to_owned(),
            input: file.filename,
            is_cancelled: false,
            end: None,
        }),
        None => {
            let now = world.history.file(&file.filename).map(|file| file.fate);
            // A copy's job that outlived three workers is a dead letter, rightly so after that many kills.
            let is_dead = body["error"]["code"] == "file_not_ready"
                && body["error"]["message"].as_str().is_some_and(|why| why.contains("went silent"));
            if now == Some(Fate::Kept) && !is_dead {
                let filename = file.filename;
                world.history.violation(format_args!("batch on `{filename}`: {status} {body}"));
            }
        }
    }
}

async fn cancel_batch(world: &World, random: &mut StdRng) {
    let is_so = |batch: &Batch| batch.end.is_none();
    let Some(batch) = world.history.pick_batch(is_so, pick(random)) else { return };
    world.history.change_batch(&batch.id, |batch| batch.is_cancelled = true);
    let path = format!("/v1/batches/{}/cancel", batch.id);
    let answer =
        world.insist("cancel batch", random, |client| client.request(Method::POST, &path)).await;
    let Answer::Told { status, body, .. } = answer else { return };
    if !matches!(status, 200 | 409) {
        world.history.violation(format_args!("cancel: {status} {body}"));
    }
}

async fn read_batch(world: &World, random: &mut StdRng) {
    let Some(batch) = world.history.pick_batch(|_| true, pick(random)) else { return };
    let wait = if random.random_ratio(1, 4) { "?wait=3" } else { "" };
    let path = format!("/v1/batches/{}{wait}", batch.id);
    let Some((status, body)) =
        world.look("retrieve batch", random, |client| client.request(Method::GET, &path)).await
    else {
        return;
    };
    if status != 200 {
        return world.history.violation(format_args!("batch {}: {status} {body}", batch.id));
    }
    check_end(world, &batch, &body);
}

/// A final state is for ever.
fn check_end(world: &World, before: &Batch, now: &Value) {
    let status = now["status"].as_str().unwrap_or_default();
    match &before.end {
        Some(end) if end != status => {
            world.history.violation(format_args!("batch {} was {end} and is {status}", before.id));
        }
        None if ENDS.contains(&status) => {
            let end = Some(status.to_owned());
            world.history.change_batch(&before.id, |batch| batch.end = end);
        }
        _ => {}
    }
}

async fn jobs(world: &World, random: &mut StdRng) {
    let status =
        ["queued", "running", "retrying", "succeeded", "failed"][random.random_range(0..5)];
    let path = format!("/v1/jobs?status={status}&limit=20");
    let answer = world.look("list jobs", random, |client| client.request(Method::GET, &path)).await;
    let Some((code, body)) = answer else { return };
    let data = body["data"].as_array().cloned().unwrap_or_default();
    if code != 200 || data.iter().any(|job| job["status"] != status) {
        world.history.violation(format_args!("jobs that are {status}: {code} {body}"));
    }
}
