//! What a method and a path ask for.

use hyper::Method;

use super::ledger::Operation;

/// The first segment of the paths that script the sandbox; no account can be called so.
pub(super) const CONTROL: &str = "_control";

const MAX_ACCOUNT_BYTES: usize = 64;

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'r> {
    /// The provider API of an account.
    Provider { account: &'r str, target: Target<'r> },
    /// The script of an account, with what follows its name.
    Control { account: &'r str, rest: &'r str },
    /// Not even to an account.
    Nowhere,
}

/// What is asked of an account's provider API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'r> {
    Upload,
    List,
    Get(&'r str),
    Content(&'r str),
    Delete(&'r str),
    CreateBatch,
    ListBatches,
    GetBatch(&'r str),
    CancelBatch(&'r str),
    Other,
}

impl<'r> Route<'r> {
    pub(super) fn of(method: &Method, path: &'r str) -> Self {
        let mut segments = path.strip_prefix('/').unwrap_or(path).splitn(2, '/');
        let first = segments.next().unwrap_or_default();
        let rest = segments.next().unwrap_or_default();
        if first == CONTROL {
            let (account, rest) = rest.split_once('/').unwrap_or((rest, ""));
            return if is_account(account) {
                Self::Control { account, rest }
            } else {
                Self::Nowhere
            };
        }
        if is_account(first) {
            Self::Provider { account: first, target: Target::of(method, rest) }
        } else {
            Self::Nowhere
        }
    }
}

impl<'r> Target<'r> {
    fn of(method: &Method, path: &'r str) -> Self {
        let segments: Vec<&str> = path.splitn(5, '/').collect();
        match (method, segments.as_slice()) {
            (&Method::POST, ["v1", "files"]) => Self::Upload,
            (&Method::GET, ["v1", "files"]) => Self::List,
            (&Method::GET, ["v1", "files", id]) if !id.is_empty() => Self::Get(id),
            (&Method::DELETE, ["v1", "files", id]) if !id.is_empty() => Self::Delete(id),
            (&Method::GET, ["v1", "files", id, "content"]) if !id.is_empty() => Self::Content(id),
            (&Method::POST, ["v1", "batches"]) => Self::CreateBatch,
            (&Method::GET, ["v1", "batches"]) => Self::ListBatches,
            (&Method::GET, ["v1", "batches", id]) if !id.is_empty() => Self::GetBatch(id),
            (&Method::POST, ["v1", "batches", id, "cancel"]) if !id.is_empty() => {
                Self::CancelBatch(id)
            }
            _ => Self::Other,
        }
    }

    pub(super) const fn operation(self) -> Operation {
        match self {
            Self::Upload => Operation::Upload,
            Self::List => Operation::List,
            Self::Get(_) => Operation::Get,
            Self::Content(_) => Operation::Content,
            Self::Delete(_) => Operation::Delete,
            Self::CreateBatch => Operation::CreateBatch,
            Self::ListBatches => Operation::ListBatches,
            Self::GetBatch(_) => Operation::GetBatch,
            Self::CancelBatch(_) => Operation::CancelBatch,
            Self::Other => Operation::Other,
        }
    }

    /// The id of a file in the path.
    pub(super) const fn file_id(self) -> Option<&'r str> {
        match self {
            Self::Get(id) | Self::Content(id) | Self::Delete(id) => Some(id),
            Self::Upload
            | Self::List
            | Self::CreateBatch
            | Self::ListBatches
            | Self::GetBatch(_)
            | Self::CancelBatch(_)
            | Self::Other => None,
        }
    }

    /// The id of a batch in the path.
    pub(super) const fn batch_id(self) -> Option<&'r str> {
        match self {
            Self::GetBatch(id) | Self::CancelBatch(id) => Some(id),
            Self::Upload
            | Self::List
            | Self::Get(_)
            | Self::Content(_)
            | Self::Delete(_)
            | Self::CreateBatch
            | Self::ListBatches
            | Self::Other => None,
        }
    }
}

fn is_account(name: &str) -> bool {
    (1..=MAX_ACCOUNT_BYTES).contains(&name.len())
        && name != CONTROL
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apis_of_files_and_batches_are_known_and_nothing_else_is() {
        for (method, path, target) in [
            (Method::POST, "/a/v1/files", Target::Upload),
            (Method::GET, "/a/v1/files", Target::List),
            (Method::GET, "/a/v1/files/file-1", Target::Get("file-1")),
            (Method::GET, "/a/v1/files/file-1/content", Target::Content("file-1")),
            (Method::DELETE, "/a/v1/files/file-1", Target::Delete("file-1")),
            (Method::POST, "/a/v1/batches", Target::CreateBatch),
            (Method::GET, "/a/v1/batches", Target::ListBatches),
            (Method::GET, "/a/v1/batches/batch_1", Target::GetBatch("batch_1")),
            (Method::POST, "/a/v1/batches/batch_1/cancel", Target::CancelBatch("batch_1")),
            (Method::DELETE, "/a/v1/batches/batch_1", Target::Other),
            (Method::GET, "/a/v1/batches/batch_1/cancel", Target::Other),
            (Method::PUT, "/a/v1/files", Target::Other),
            (Method::GET, "/a/v1/files/", Target::Other),
            (Method::GET, "/a/v1/files//content", Target::Other),
            (Method::GET, "/a/v1/files/file-1/content/x", Target::Other),
            (Method::DELETE, "/a/v1/files/file-1/content", Target::Other),
            (Method::GET, "/a/files", Target::Other),
            (Method::GET, "/a", Target::Other),
        ] {
            let expected = Route::Provider { account: "a", target };
            assert_eq!(Route::of(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn an_account_has_a_plain_name_that_is_not_that_of_the_script() {
        assert_eq!(
            Route::of(&Method::GET, "/_control/a/files/plant"),
            Route::Control { account: "a", rest: "files/plant" }
        );
        let long = format!("/{}/v1/files", "a".repeat(65));
        for path in ["/", "", "//v1/files", "/a%20b/v1/files", "/_control", "/_control//x", &long] {
            assert_eq!(Route::of(&Method::GET, path), Route::Nowhere, "{path}");
        }
    }
}
