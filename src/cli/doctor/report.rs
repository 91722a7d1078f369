//! What the checks found: a table for people, a document for scripts.

use std::process::ExitCode;
use std::time::Duration;

use comfy_table::Cell;
use comfy_table::ColumnConstraint;
use comfy_table::ContentArrangement;
use comfy_table::Table;
use comfy_table::presets;
use serde_json::Value;
use serde_json::json;

use super::counted;
use crate::cli::output::Output;
use crate::cli::output::cell;
use crate::cli::output::plain;
use crate::cli::output::status;

/// A terminal that is narrower gets its lines as they are.
const NARROWEST: u16 = 60;

/// What is checked. The names are the scripts' to rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Configuration,
    Database,
    DatabaseRoom,
    Schema,
    DatabaseWrites,
    Blobs,
    BlobsRoom,
    Installation,
    Files,
    WebhookSecrets,
    Queue,
    Workers,
    /// One process.
    Worker,
    Lane,
    Redis,
    Provider,
    Server,
}

impl Name {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Database => "database",
            Self::DatabaseRoom => "database_room",
            Self::Schema => "schema",
            Self::DatabaseWrites => "database_writes",
            Self::Blobs => "blobs",
            Self::BlobsRoom => "blobs_room",
            Self::Installation => "installation",
            Self::Files => "files",
            Self::WebhookSecrets => "webhook_secrets",
            Self::Queue => "queue",
            Self::Workers => "workers",
            Self::Worker => "worker",
            Self::Lane => "lane",
            Self::Redis => "redis",
            Self::Provider => "provider",
            Self::Server => "server",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// It works, but somebody should look.
    Warning,
    Failed,
    /// There was nothing to check, or something before it failed.
    Skipped,
}

impl Verdict {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// What one check found. The texts hold no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub verdict: Verdict,
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(message: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, message: message.into(), remedy: None }
    }

    pub fn warning(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { verdict: Verdict::Warning, message: message.into(), remedy }
    }

    pub fn failed(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { verdict: Verdict::Failed, message: message.into(), remedy }
    }

    pub fn skipped(message: impl Into<String>) -> Self {
        Self { verdict: Verdict::Skipped, message: message.into(), remedy: None }
    }

    /// Whether what depends on it can go on.
    pub fn is_good(&self) -> bool {
        matches!(self.verdict, Verdict::Ok)
    }
}

/// One check that was made.
#[derive(Clone, Debug)]
pub struct Check {
    pub name: Name,
    /// The provider, lane or process that it is about, where there are several.
    pub subject: Option<String>,
    pub took: Duration,
    pub finding: Finding,
}

pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.finding.verdict == verdict).count()
    }

    fn verdict(&self) -> Verdict {
        let worst = [Verdict::Failed, Verdict::Warning];
        worst.into_iter().find(|verdict| self.count(*verdict) > 0).unwrap_or(Verdict::Ok)
    }

    /// Warnings leave a script alone.
    pub fn exit_code(&self) -> ExitCode {
        match self.verdict() {
            Verdict::Failed => ExitCode::FAILURE,
            Verdict::Ok | Verdict::Warning | Verdict::Skipped => ExitCode::SUCCESS,
        }
    }

    pub fn print(&self, output: &mut Output) -> anyhow::Result<()> {
        if output.json {
            return output.document(&self.json());
        }
        output.line(&self.table(output.is_terminal))?;
        output.line(&format!("\n{}", self.summary()))
    }

    fn json(&self) -> Value {
        let checks: Vec<_> = self.checks.iter().map(Check::json).collect();
        json!({
            "object": "doctor",
            "version": env!("CARGO_PKG_VERSION"),
            "status": self.verdict().as_str(),
            "checks": checks,
        })
    }

    fn table(&self, is_terminal: bool) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if is_terminal {
            table.enforce_styling();
            // Only what is found is wrapped, and not where a terminal does not know its width.
            if table.width().is_some_and(|width| width >= NARROWEST) {
                table.set_content_arrangement(ContentArrangement::Dynamic);
            }
        } else {
            table.force_no_tty();
        }
        table.add_rows(self.checks.iter().map(Check::row));
        for (place, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if place < 3 {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table.trim_fmt()
    }

    fn summary(&self) -> String {
        let (failed, warnings) = (self.count(Verdict::Failed), self.count(Verdict::Warning));
        let failed_checks = format!("{} failed", counted(failed, "check"));
        let counted_warnings = counted(warnings, "warning");
        match (failed, warnings) {
            (0, 0) => "all is well".to_owned(),
            (0, _) => format!("nothing failed; {counted_warnings}"),
            (_, 0) => failed_checks,
            (_, _) => format!("{failed_checks}; {counted_warnings}"),
        }
    }
}

impl Check {
    fn json(&self) -> Value {
        json!({
            "check": self.name.as_str(),
            "subject": self.subject,
            "status": self.finding.verdict.as_str(),
            "message": self.finding.message,
            "remedy": self.finding.remedy,
            "duration_ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn row(&self) -> Vec<Cell> {
        let name = self.name.as_str().replace('_', " ");
        let name = match &self.subject {
            Some(subject) => format!("{name} {subject}"),
            None => name,
        };
        let mut text = plain(&self.finding.message).into_owned();
        if let Some(remedy) = &self.finding.remedy {
            text.push_str(&format!("\n→ {}", plain(remedy)));
        }
        let took = format!("{} ms", self.took.as_millis());
        vec![status(self.finding.verdict.as_str()), cell(&name), cell(&took), Cell::new(text)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: &[Finding]) -> Report {
        let check = |finding: &Finding| Check {
            name: Name::Provider,
            subject: Some("north".to_owned()),
            took: Duration::from_millis(7),
            finding: finding.clone(),
        };
        Report { checks: findings.iter().map(check).collect() }
    }

    #[test]
    fn only_a_failure_makes_the_exit_code_1() {
        let (ok, warning) = (Finding::ok("fine"), Finding::warning("hm", "look"));
        let failed = Finding::failed("gone", "do this");
        assert_eq!(report(std::slice::from_ref(&ok)).exit_code(), ExitCode::SUCCESS);
        assert_eq!(report(&[ok.clone(), warning.clone()]).exit_code(), ExitCode::SUCCESS);
        assert_eq!(report(&[ok, failed, warning]).exit_code(), ExitCode::FAILURE);
    }

    #[test]
    fn a_remedy_stands_under_what_it_is_for() {
        let report = report(&[Finding::failed("gone\u{1b}[2J", "do this")]);
        let expected =
            "failed  provider north  7 ms  gone\\u{1b}[2J\n                              → do this";
        assert_eq!(report.table(false), expected);
        assert_eq!(report.summary(), "1 check failed");
    }
}
