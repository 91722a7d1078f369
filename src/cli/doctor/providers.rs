//! The providers: whether each is there and takes its key, by a call that changes nothing.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::Check;
use super::Finding;
use super::Name;
use super::spoken;
use super::timed;
use crate::app::Account;
use crate::config::Config;
use crate::config::Provider;
use crate::providers::Contact;
use crate::providers::ErrorKind;
use crate::providers::ProviderError;

/// How many providers are asked at the same time.
const AT_ONCE: usize = 8;
/// A clock that is wrong by more makes certificates look invalid, and waits until a date too long.
const CLOCK_TOLERANCE: i64 = 60;

/// Asks all providers, a few at a time.
pub async fn check(config: &Config, limit: Duration) -> Vec<Check> {
    stream::iter(&config.providers)
        .map(|settings| timed(limit, Name::Provider, Some(&settings.name), one(settings)))
        .buffered(AT_ONCE)
        .collect()
        .await
}

async fn one(settings: &Provider) -> Finding {
    let account = match Account::open(settings) {
        Ok(account) => account,
        Err(error) => return Finding::failed(error.to_string(), "correct it in the configuration"),
    };
    match account.driver.check().await {
        Ok(contact) => reached(settings, contact),
        Err(error) => refused(settings, &error),
    }
}

fn reached(settings: &Provider, contact: Contact) -> Finding {
    let key = if settings.api_key.is_some() { "takes the key" } else { "answers without a key" };
    let message = format!("`{}` {key}", settings.base_url);
    match contact.clock_ahead {
        Some(ahead) if ahead.abs() > CLOCK_TOLERANCE => {
            let apart = spoken(Duration::from_secs(ahead.unsigned_abs()));
            let side = if ahead > 0 { "ahead of" } else { "behind" };
            Finding::warning(
                format!("{message}, but this machine's clock is {apart} {side} its clock"),
                "set this machine's clock, by NTP",
            )
        }
        _ => Finding::ok(message),
    }
}

fn refused(settings: &Provider, error: &ProviderError) -> Finding {
    let Provider { name, base_url, .. } = settings;
    let message = error.to_string();
    let request = error
        .provider_request_id
        .as_ref()
        .map(|id| format!("; the provider's support finds the call by `{id}`"))
        .unwrap_or_default();
    let remedy = match error.kind {
        ErrorKind::CredentialRejected => {
            format!("correct `api_key` of the provider `{name}`, and give it access to files")
        }
        ErrorKind::OutOfMoney => {
            "add credit to the account at the provider, or raise its limit".to_owned()
        }
        ErrorKind::Outage { .. } if error.http_status.is_none() => {
            format!("check `base_url` (`{base_url}`), the network, and the provider's status page")
        }
        ErrorKind::Outage { .. } => {
            "the provider fails on its side: see its status page; jobs wait meanwhile".to_owned()
        }
        // The key was taken.
        ErrorKind::RateLimited { .. } | ErrorKind::Capacity | ErrorKind::Conflict => {
            return Finding::warning(
                message,
                "the account is busy; where it stays so, lower `requests_per_minute` or `max_concurrency`",
            );
        }
        ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Garbled => format!(
            "check `base_url` (`{base_url}`): there is no files API as OpenAI has it below it; OpenAI's ends with `/v1`"
        ),
        ErrorKind::Rejected | ErrorKind::Source => {
            format!("check `base_url` (`{base_url}`) and `kind` of the provider `{name}`")
        }
    };
    Finding::failed(message, format!("{remedy}{request}"))
}
