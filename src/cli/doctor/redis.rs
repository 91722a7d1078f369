//! Redis, where it is configured: it carries hints only, so that its absence is a warning.

use std::time::Duration;

use ::redis::RedisError;

use super::Check;
use super::Finding;
use super::Name;
use super::timed;
use crate::config;
use crate::config::Config;
use crate::notices::redis;

pub async fn check(config: &Config, limit: Duration) -> Option<Check> {
    let url = config.redis.url.as_ref()?;
    let check = async {
        let begun = tokio::time::Instant::now();
        match ping(&config.redis).await {
            Ok(latency) => Finding::ok(format!(
                "`{url}` answers PING in {:.1} ms, {} ms with the connection",
                latency.as_secs_f64() * 1000.0,
                begun.elapsed().as_millis()
            )),
            Err(error) if redis::is_refusal(&error) => Finding::warning(
                format!("`{url}` refuses the user or password: {error}"),
                "correct them in `redis.url`; until then processes hear of each other's changes at their next poll",
            ),
            Err(error) => Finding::warning(
                format!("`{url}` does not answer PING: {error}"),
                "start Redis or correct `redis.url`; without it processes hear of each other's changes at their next \
                 poll, and nothing is lost",
            ),
        }
    };
    let mut check = timed(limit, Name::Redis, None, check).await;
    // Silence, too.
    if check.finding.verdict == super::report::Verdict::Failed {
        check.finding.verdict = super::report::Verdict::Warning;
    }
    Some(check)
}

async fn ping(settings: &config::Redis) -> Result<Duration, RedisError> {
    let Some(client) = redis::client(settings)? else { return Ok(Duration::ZERO) };
    let mut connection = client.get_multiplexed_async_connection().await?;
    let begun = tokio::time::Instant::now();
    let _: String = ::redis::cmd("PING").query_async(&mut connection).await?;
    Ok(begun.elapsed())
}
