//! From the status and the code of an answer to the kind of error it is.

use std::time::Duration;

use super::ErrorKind;

/// What a provider's error body says, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub message: Option<String>,
    pub code: Option<String>,
    pub class: Option<String>,
}

/// Judges by status first, then by code, then by class; never by the message, whose words change.
///
/// `x-should-retry` is not asked. It advises a caller that would retry at once while somebody waits; a
/// durable job comes back later and has a budget, so that `false` makes no 429 and no 5xx permanent.
pub(super) fn kind(status: u16, refusal: &Refusal, retry_after: Option<Duration>) -> ErrorKind {
    match status {
        402 => ErrorKind::OutOfMoney,
        400 | 403 | 429 if names_money(refusal.code.as_deref()) => ErrorKind::OutOfMoney,
        429 if out_of_quota(refusal) => ErrorKind::OutOfMoney,
        429 => ErrorKind::RateLimited { retry_after },
        401 | 403 => ErrorKind::CredentialRejected,
        404 | 410 => ErrorKind::NotFound,
        405 | 501 => ErrorKind::Unsupported,
        408 | 409 | 425 => ErrorKind::Conflict,
        500.. => ErrorKind::Outage { retry_after },
        _ => ErrorKind::Rejected,
    }
}

/// As [`kind`], of the creation of a batch: there, what is full is often told as too fast, or as wrong.
///
/// Work of ours ends some time, and only then there is room; a pause of seconds, as for speed, is no help.
pub(super) fn kind_of_batch(
    status: u16,
    refusal: &Refusal,
    retry_after: Option<Duration>,
) -> ErrorKind {
    let kind = kind(status, refusal, retry_after);
    let names = [refusal.code.as_deref(), refusal.class.as_deref()];
    match kind {
        ErrorKind::OutOfMoney => kind,
        _ if matches!(status, 400 | 429) && names.into_iter().flatten().any(names_room) => {
            ErrorKind::Capacity
        }
        ErrorKind::RateLimited { retry_after: None } if !names_speed(refusal.code.as_deref()) => {
            ErrorKind::Capacity
        }
        _ => kind,
    }
}

fn names_room(name: &str) -> bool {
    name == "token_limit_exceeded"
        || name.starts_with("batch_enqueued_limit")
        || name.starts_with("enqueued_token_limit")
}

fn names_speed(code: Option<&str>) -> bool {
    matches!(code, Some("rate_limit_exceeded" | "slow_down"))
}

fn names_money(code: Option<&str>) -> bool {
    code.is_some_and(|code| {
        matches!(
            code,
            "insufficient_quota" | "credit_balance_exhausted" | "billing_hard_limit_reached"
        ) || code.ends_with("_spend_limit_exceeded")
            || code.ends_with("_usage_limit_exceeded")
    })
}

/// The class decides only where no code says that it is about speed.
fn out_of_quota(refusal: &Refusal) -> bool {
    refusal.class.as_deref() == Some("insufficient_quota") && !names_speed(refusal.code.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTAGE: ErrorKind = ErrorKind::Outage { retry_after: None };
    const RATE: ErrorKind = ErrorKind::RateLimited { retry_after: None };

    #[test]
    fn a_status_alone_decides_where_there_is_no_code() {
        let table = [
            (302, ErrorKind::Rejected),
            (400, ErrorKind::Rejected),
            (401, ErrorKind::CredentialRejected),
            (402, ErrorKind::OutOfMoney),
            (403, ErrorKind::CredentialRejected),
            (404, ErrorKind::NotFound),
            (405, ErrorKind::Unsupported),
            (408, ErrorKind::Conflict),
            (409, ErrorKind::Conflict),
            (410, ErrorKind::NotFound),
            (413, ErrorKind::Rejected),
            (415, ErrorKind::Rejected),
            (418, ErrorKind::Rejected),
            (422, ErrorKind::Rejected),
            (425, ErrorKind::Conflict),
            (429, RATE),
            (500, OUTAGE),
            (501, ErrorKind::Unsupported),
            (502, OUTAGE),
            (503, OUTAGE),
            (504, OUTAGE),
            (520, OUTAGE),
            (524, OUTAGE),
            (529, OUTAGE),
            (599, OUTAGE),
        ];
        for (status, expected) in table {
            assert_eq!(kind(status, &Refusal::default(), None), expected, "{status}");
        }
    }

    #[test]
    fn money_is_told_from_speed_by_the_code_and_then_by_the_class() {
        let table = [
            (429, Some("insufficient_quota"), None, ErrorKind::OutOfMoney),
            (
                429,
                Some("credit_balance_exhausted"),
                Some("insufficient_quota"),
                ErrorKind::OutOfMoney,
            ),
            (429, Some("organization_spend_limit_exceeded"), None, ErrorKind::OutOfMoney),
            (429, Some("project_spend_limit_exceeded"), None, ErrorKind::OutOfMoney),
            (429, Some("organization_usage_limit_exceeded"), None, ErrorKind::OutOfMoney),
            (429, None, Some("insufficient_quota"), ErrorKind::OutOfMoney),
            (429, Some("something_new"), Some("insufficient_quota"), ErrorKind::OutOfMoney),
            (429, Some("rate_limit_exceeded"), Some("insufficient_quota"), RATE),
            (429, Some("slow_down"), Some("rate_limit_error"), RATE),
            (429, Some("something_new"), Some("tokens"), RATE),
            (400, Some("billing_hard_limit_reached"), None, ErrorKind::OutOfMoney),
            (400, Some("invalid_value"), Some("insufficient_quota"), ErrorKind::Rejected),
            (403, Some("insufficient_quota"), None, ErrorKind::OutOfMoney),
            (401, Some("insufficient_quota"), None, ErrorKind::CredentialRejected),
            (503, Some("slow_down"), None, OUTAGE),
        ];
        for (status, code, class, expected) in table {
            let refusal = Refusal {
                message: None,
                code: code.map(str::to_owned),
                class: class.map(str::to_owned),
            };
            assert_eq!(kind(status, &refusal, None), expected, "{status} {code:?} {class:?}");
        }
    }

    #[test]
    fn a_batch_that_finds_no_room_is_told_from_one_that_came_too_fast() {
        let wait = Some(Duration::from_secs(7));
        let asked = ErrorKind::RateLimited { retry_after: wait };
        let table = [
            (429, None, None, None, ErrorKind::Capacity),
            (429, Some("something_new"), Some("tokens"), None, ErrorKind::Capacity),
            (429, Some("something_new"), None, wait, asked),
            (429, Some("rate_limit_exceeded"), None, None, RATE),
            (429, Some("slow_down"), None, None, RATE),
            (429, Some("token_limit_exceeded"), None, wait, ErrorKind::Capacity),
            (400, Some("token_limit_exceeded"), None, None, ErrorKind::Capacity),
            (400, Some("batch_enqueued_limit_reached"), None, None, ErrorKind::Capacity),
            (400, None, Some("enqueued_token_limit_exceeded"), None, ErrorKind::Capacity),
            (400, Some("invalid_value"), None, None, ErrorKind::Rejected),
            (403, Some("token_limit_exceeded"), None, None, ErrorKind::CredentialRejected),
            (429, Some("insufficient_quota"), None, None, ErrorKind::OutOfMoney),
            (429, None, Some("insufficient_quota"), None, ErrorKind::OutOfMoney),
            (503, Some("token_limit_exceeded"), None, None, OUTAGE),
        ];
        for (status, code, class, wait, expected) in table {
            let refusal = Refusal {
                message: None,
                code: code.map(str::to_owned),
                class: class.map(str::to_owned),
            };
            let kind = kind_of_batch(status, &refusal, wait);
            assert_eq!(kind, expected, "{status} {code:?} {class:?} {wait:?}");
        }
    }
}
