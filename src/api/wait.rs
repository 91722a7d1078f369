//! `?wait=SECONDS`: an answer as soon as a thing is in a final state, or when the time is up.

use std::future::Future;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;
use utoipa::IntoParams;
use uuid::Uuid;

use super::server;
use crate::app::App;
use crate::error::Error;

const MOST: Duration = Duration::from_secs(60);
/// How soon who finds no place to wait is asked to come again.
const COME_AGAIN: Duration = Duration::from_secs(1);

/// The parameter, as it was sent.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WaitParameter {
    /// Seconds to wait for a final state, 60 at most; more means 60. The answer comes as soon as the state
    /// is final, or when the time is up.
    #[param(value_type = Option<f64>, minimum = 0)]
    wait: Option<String>,
}

impl WaitParameter {
    /// How long to wait at most; more than 60 s means 60 s.
    ///
    /// # Errors
    ///
    /// When it is not a number of seconds.
    fn duration(&self) -> Result<Duration, Error> {
        let Some(text) = self.wait.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(Duration::ZERO);
        };
        let seconds =
            text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        let seconds = seconds
            .ok_or_else(|| Error::invalid("wait", "`wait` must be a number of seconds, 0 to 60"))?;
        Ok(Duration::from_secs_f64(seconds.min(MOST.as_secs_f64())))
    }
}

/// Answers what `read` finds as soon as it is final, and at the latest after `wait`.
///
/// It registers first and then reads once more, so that no change between the two is missed. Thousands rest here: what
/// they read, and what reading takes, is in boxes, and not kept meanwhile.
///
/// # Errors
///
/// Whatever `read` says, then of the parameter, or when too many wait already.
pub async fn until_final<T, R>(
    app: &App,
    wait: &WaitParameter,
    subject: impl Fn(&T) -> Uuid,
    is_final: impl Fn(&T) -> bool,
    read: impl Fn() -> R,
) -> Result<Box<T>, Error>
where
    R: Future<Output = Result<T, Error>>,
{
    let current = Box::new(Box::pin(read()).await?);
    let wait = wait.duration()?;
    if wait.is_zero() || is_final(&current) {
        return Ok(current);
    }
    check_room(app, "come again, or ask without `wait`")?;
    let subject = subject(&current);
    drop(current);
    let deadline = Instant::now() + wait;
    let waiting = Box::pin(app.notices.wait_for(&app.db, subject)).await?;
    loop {
        let changed = waiting.changed();
        let turn = app.notices.turn().await;
        let current = Box::new(Box::pin(read()).await?);
        drop(turn);
        if is_final(&current) || Instant::now() >= deadline || app.notices.is_closing() {
            return Ok(current);
        }
        drop(current);
        // Time up or change: either way the state is read once more.
        drop(tokio::time::timeout_at(deadline, changed).await);
    }
}

/// Whether one more may wait: the other connections are for those who do not.
///
/// # Errors
///
/// When too many wait already. `what_else` says what to do then.
pub fn check_room(app: &App, what_else: &str) -> Result<(), Error> {
    let most = server::max_connections() / 5 * 4;
    if app.notices.waiters() < most {
        return Ok(());
    }
    Err(Error::Limited {
        code: "too_many_waiting",
        message: format!("{most} requests wait already; {what_else}"),
        retry_after: COME_AGAIN,
    })
}
