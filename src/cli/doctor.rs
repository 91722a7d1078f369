//! `longshore doctor`: checks everything that a server stands on, and says what to do where it is amiss.
//!
//! It changes nothing, but for a small object in the blob store that it writes and deletes again, and for
//! what `--adopt` asks for. Every check is made, whatever became of the others, and each ends by itself.

mod database;
mod installation;
mod providers;
mod queue;
mod redis;
mod report;
mod server;
mod store;
mod webhooks;
mod workers;

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

pub use self::database::remedy as database_remedy;
use self::report::Check;
use self::report::Finding;
use self::report::Name;
use self::report::Report;
use super::Failed;
use super::Start;
use super::output::Output;
use super::output::unless_closed;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::Loaded;
use crate::config::Source;

/// Changes nothing. Exit code 0 if all is well or there are only warnings, 1 if a check failed, 2 if the
/// configuration is wrong.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print the checks as JSON, for scripts
    #[arg(long)]
    json: bool,
    /// Say that this database and this blob store belong together though their installation ids differ,
    /// as after a restore: the store takes the database's id
    #[arg(long)]
    adopt: bool,
    /// How long each check may take
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

impl Doctor {
    pub async fn run(self, start: &Start) -> Result<ExitCode, Failed> {
        // What goes wrong is in the report.
        start.start_logging("off")?;
        let loaded = start.load()?;
        let mut output = Output::standard(self.json);
        let busy = output.progress.state("checking");
        // All checks at once are a large future.
        let report = Box::pin(self.examine(&loaded)).await;
        busy.finish_and_clear();
        let printed = report.print(&mut output).map(|()| report.exit_code());
        Ok(unless_closed(printed)?)
    }

    async fn examine(&self, loaded: &Loaded) -> Report {
        let Loaded { config, .. } = loaded;
        let (inside, redis, providers, server) = tokio::join!(
            self.inside(config),
            redis::check(config, self.timeout),
            providers::check(config, self.timeout),
            server::check(config, self.timeout),
        );
        let mut checks = vec![configuration(loaded)];
        checks.extend(inside);
        checks.extend(redis);
        checks.extend(providers);
        checks.push(server);
        Report { checks }
    }

    /// The database, the blob store, and whether they belong together.
    async fn inside(&self, config: &Config) -> Vec<Check> {
        let limit = self.timeout;
        let (mut database, mut store) =
            tokio::join!(database::open(config, limit), store::open(config, limit));
        let mut checks = std::mem::take(&mut database.checks);
        checks.append(&mut store.checks);

        // The schema comes first: what lacks it cannot be asked for the rest.
        let schema = timed(limit, Name::Schema, None, database::schema(&database)).await;
        let has_schema = schema.finding.is_good();
        checks.push(schema);
        let (writes, installation, files, webhooks, queue) = tokio::join!(
            timed(limit, Name::DatabaseWrites, None, database::writes(&database, has_schema)),
            timed(
                limit,
                Name::Installation,
                None,
                installation::check(&database, &store, has_schema, self.adopt)
            ),
            timed(limit, Name::Files, None, store::files(config, &database, &store, has_schema)),
            timed(
                limit,
                Name::WebhookSecrets,
                None,
                webhooks::secrets(config, &database, has_schema)
            ),
            queue::check(config, &database, has_schema, limit),
        );
        checks.extend([writes, installation, files, webhooks]);
        checks.extend(queue);
        checks
    }
}

/// What was opened, or why there is nothing to ask.
enum Part<T> {
    There(T),
    /// Not made yet.
    Missing,
    /// It failed, which is said already.
    Broken,
}

/// A part, and what was found on the way to it.
struct Opened<T> {
    part: Part<T>,
    checks: Vec<Check>,
}

impl<T> Opened<T> {
    /// The part, or the finding of a check that needs it.
    fn for_check(&self, what: &str) -> Result<&T, Finding> {
        match &self.part {
            Part::There(part) => Ok(part),
            Part::Missing => Err(Finding::skipped(format!("there is no {what} yet"))),
            Part::Broken => Err(Finding::skipped(format!("the {what} cannot be reached"))),
        }
    }
}

/// Makes one check within its time.
async fn timed(
    limit: Duration,
    name: Name,
    subject: Option<&str>,
    check: impl Future<Output = Finding>,
) -> Check {
    let begun = Instant::now();
    let finding = tokio::time::timeout(limit, check).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(limit);
        Finding::failed(
            format!("no answer within {limit}"),
            "see whether it is overloaded or unreachable; `--timeout` gives it more time",
        )
    });
    Check { name, subject: subject.map(str::to_owned), took: begun.elapsed(), finding }
}

fn configuration(loaded: &Loaded) -> Check {
    let source = match &loaded.source {
        Source::File(path) => format!("`{}` is in order", path.display()),
        Source::Defaults => "there is no file, so these are the defaults".to_owned(),
    };
    let Config { providers, models, .. } = &loaded.config;
    let counts =
        format!("{}, {}", counted(providers.len(), "provider"), counted(models.len(), "model"));
    let finding = match loaded.warnings.split_first() {
        None if providers.is_empty() => Finding::warning(
            format!("{source}: no provider is configured"),
            "set OPENAI_API_KEY, or add `[[providers]]` as `longshore config example` shows it",
        ),
        None => Finding::ok(format!("{source}: {counts}")),
        Some((first, rest)) => {
            let more = if rest.is_empty() { "" } else { "; `longshore config check` shows more" };
            Finding::warning(source, format!("{first}{more}"))
        }
    };
    Check { name: Name::Configuration, subject: None, took: Duration::ZERO, finding }
}

/// `1 job`, `2 jobs`.
fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    match count.try_into().unwrap_or_default() {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// A length of time as people say it, to the second.
fn spoken(duration: Duration) -> String {
    let seconds = match duration.as_secs() {
        seconds @ 0..3600 => seconds,
        seconds @ 3600..86_400 => seconds / 60 * 60,
        seconds => seconds / 3600 * 3600,
    };
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

fn now() -> crate::clock::Timestamp {
    Clock::default().now()
}
