//! The stream of events, as a program follows it that must miss none.

use std::time::Duration;

use futures_util::StreamExt as _;
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use reqwest::RequestBuilder;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::clients::World;
use crate::support::ALICE_KEY;

/// Follows the stream of events, wherever it breaks off, and goes on behind the last one.
pub async fn follow(world: World, seed: u64, until: CancellationToken) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut last: Option<String> = None;
    while !until.is_cancelled() {
        let server = world.any(&mut random).clone();
        let mut request = reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .get(format!("{}/v1/events", server.base))
            .bearer_auth(ALICE_KEY);
        if let Some(last) = &last {
            request = request.header("Last-Event-ID", last);
        }
        let read = read_events(&world, request, &mut last);
        tokio::select! {
            () = until.cancelled() => return,
            () = read => {}
            // As a client does that hears no heartbeat; and to resume often.
            () = tokio::time::sleep(Duration::from_secs(random.random_range(5..25))) => {}
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn read_events(world: &World, request: RequestBuilder, last: &mut Option<String>) {
    let Ok(answer) = request.send().await else { return };
    let status = answer.status().as_u16();
    if status != 200 {
        if !matches!(status, 429 | 503) {
            world.history.violation(format_args!("events: {status}"));
        }
        return;
    }
    let mut stream = answer.bytes_stream();
    let mut pending = String::new();
    while let Some(Ok(bytes)) = stream.next().await {
        pending.push_str(&String::from_utf8_lossy(&bytes));
        while let Some(end) = pending.find("\n\n") {
            let message: String = pending.drain(..end + 2).collect();
            let field = |name: &str| {
                message.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
            };
            if let Some(id) = field("id:") {
                *last = Some(id.to_owned());
            }
            let (Some(kind), Some(data)) = (field("event:"), field("data:")) else { continue };
            let data: Value = serde_json::from_str(data).unwrap_or_default();
            world.history.heard(kind, data["data"]["id"].as_str().unwrap_or_default());
        }
    }
}
