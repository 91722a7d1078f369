//! Why the store failed, in words that hold no secret.

use object_store::Error as StoreError;

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("the blob store is full")]
    Full(#[source] anyhow::Error),
    #[error("the blob store has no object `{0}`")]
    Missing(String),
    /// Nothing can be said of the objects then.
    #[error("the blob store has no such bucket")]
    NoBucket(#[source] anyhow::Error),
    #[error("the blob store refuses the credentials")]
    Refused(#[source] anyhow::Error),
    /// Too many are being written at once.
    #[error("no memory came free in time for what is written to the blob store")]
    NoBuffer,
    #[error("the blob store failed")]
    Store(#[source] anyhow::Error),
}

impl BlobError {
    /// What an answer other than a success means, to a request for an object of this key.
    pub(super) fn answered(status: u16, key: &str, body: &str) -> Self {
        let text = format!("status code: {status}: {body}");
        let kind = match status {
            404 => Kind::NotFound,
            401 | 403 => Kind::Refused,
            _ => Kind::Other,
        };
        Self::of(kind, key, Said::at_bottom(&text))
    }

    fn of(kind: Kind, key: &str, said: Said) -> Self {
        let code = said.code.as_deref().unwrap_or_default();
        let reason = anyhow::anyhow!("{}", said.text);
        match (kind, code) {
            (_, "NoSuchBucket" | "ContainerNotFound") => Self::NoBucket(reason),
            (_, "XMinioStorageFull" | "QuotaExceeded") => Self::Full(reason),
            // Nothing else is believed: a proxy, or a store at another address, answers 404 to everything.
            (Kind::NotFound, "NoSuchKey" | "BlobNotFound" | "NoSuchUpload") => {
                Self::Missing(key.to_owned())
            }
            (Kind::Refused, _)
            // Of another region, or no longer good.
            | (_, "AuthorizationHeaderMalformed" | "ExpiredToken" | "InvalidToken") => {
                Self::Refused(reason)
            }
            (Kind::NotFound | Kind::Other, _) => Self::Store(reason),
        }
    }
}

enum Kind {
    NotFound,
    Refused,
    Other,
}

impl From<StoreError> for BlobError {
    fn from(error: StoreError) -> Self {
        if is_full(&error) {
            return Self::Full(error.into());
        }
        let said = Said::by(&error);
        match &error {
            StoreError::NotFound { path, .. } if is_no_file(&error) => Self::Missing(path.clone()),
            StoreError::NotFound { path, .. } => Self::of(Kind::NotFound, path, said),
            StoreError::PermissionDenied { path, .. }
            | StoreError::Unauthenticated { path, .. } => Self::of(Kind::Refused, path, said),
            _ => Self::of(Kind::Other, "", said),
        }
    }
}

impl From<std::io::Error> for BlobError {
    fn from(error: std::io::Error) -> Self {
        if is_full(&error) { Self::Full(error.into()) } else { Self::Store(error.into()) }
    }
}

/// Whether an I/O error somewhere below says that no room is left.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).filter_map(|error| error.downcast_ref::<std::io::Error>()).any(|error| {
        matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    })
}

/// Whether it is the file system that says so.
fn is_no_file(error: &StoreError) -> bool {
    causes(error)
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::NotFound)
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// What is at the bottom of an error. All that is above repeats it, with addresses that may be signed; and the
/// whole answer of a store may repeat the headers that it was sent.
struct Said {
    /// By which the store calls it.
    code: Option<String>,
    text: String,
}

impl Said {
    fn by(error: &StoreError) -> Self {
        let bottom = causes(error).last().map(ToString::to_string).unwrap_or_default();
        let mut said = Self::at_bottom(&bottom);
        if causes(error).any(|error| error.to_string().contains("/latest/api/token")) {
            said.text =
                format!("there are no credentials, and no instance gives any: {}", said.text);
        }
        said
    }

    fn at_bottom(text: &str) -> Self {
        // Azure's answer to a delete is one of many in a body, of which object_store keeps the reason.
        let gone_at_azure =
            || text.contains("The specified blob does not exist.").then_some("BlobNotFound");
        let code = element(text, "Code").or_else(gone_at_azure).map(str::to_owned);
        let text = match (&code, element(text, "Message")) {
            (Some(code), Some(message)) => format!("{code}: {}", shortened(message)),
            (Some(code), None) => code.clone(),
            // Without the body, which is no text of S3's.
            (None, _) => shortened(text.split(['<', '{']).next().unwrap_or_default()),
        };
        Self { code, text: text.trim_end_matches([':', ' ']).to_owned() }
    }
}

fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once('<')?.0)
}

fn shortened(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> StoreError {
        StoreError::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn what_a_store_answers_is_cut_down_to_its_code_and_message() {
        let text = "Server returned non-2xx status code: 403 Forbidden: <?xml?><Error><Code>SignatureDoesNotMatch</Code>\
                    <Message>It does not match.</Message><StringToSign>x-amz-security-token:canary</StringToSign></Error>";
        let refused = StoreError::PermissionDenied { path: "a".to_owned(), source: text.into() };
        let refused = BlobError::from(refused);
        assert!(matches!(refused, BlobError::Refused(_)));
        let shown = format!("{:#}", anyhow::Error::from(refused));
        assert_eq!(
            shown,
            "the blob store refuses the credentials: SignatureDoesNotMatch: It does not match."
        );
    }

    #[test]
    fn only_a_store_that_says_so_lacks_an_object() {
        let not_found = |text: &str| {
            BlobError::from(StoreError::NotFound { path: "a".to_owned(), source: text.into() })
        };
        for code in ["NoSuchKey", "BlobNotFound", "NoSuchUpload"] {
            let text = format!("404 Not Found: <Error><Code>{code}</Code></Error>");
            assert!(matches!(not_found(&text), BlobError::Missing(_)), "{code}");
            assert!(
                matches!(BlobError::answered(404, "a", &text), BlobError::Missing(_)),
                "{code}"
            );
        }
        for text in ["404 Not Found: ", "404: <html>nginx</html>", "<Code>NoSuchThing</Code>", "{}"]
        {
            assert!(matches!(not_found(text), BlobError::Store(_)), "{text}");
            assert!(matches!(BlobError::answered(404, "a", text), BlobError::Store(_)), "{text}");
        }
        let deleted =
            "Bulk delete request failed for key a: The specified blob does not exist. (code: 404)";
        assert!(matches!(not_found(deleted), BlobError::Missing(_)));
        let no_file = std::io::Error::from(std::io::ErrorKind::NotFound);
        let no_file = StoreError::NotFound { path: "a".to_owned(), source: no_file.into() };
        assert!(matches!(BlobError::from(no_file), BlobError::Missing(_)));
        assert!(matches!(not_found("<Code>NoSuchBucket</Code>"), BlobError::NoBucket(_)));
        assert!(matches!(not_found("<Code>ContainerNotFound</Code>"), BlobError::NoBucket(_)));
        let BlobError::Store(reason) = BlobError::from(error("502 Bad Gateway: <html>x</html>"))
        else {
            panic!("another kind");
        };
        assert_eq!(reason.to_string(), "502 Bad Gateway");
    }
}
