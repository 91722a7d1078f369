//! `GET /v1/files/{id}/content`: the bytes, whole or a range of them.

use std::ops::Range;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;

use super::find;
use crate::api::auth::Authenticated;
use crate::api::disposition;
use crate::api::error::NotFound;
use crate::api::error::ProvidersFailed;
use crate::api::error::RangeNotSatisfiable;
use crate::api::parameters::Path;
use crate::app::App;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::blobs::ByteStream;
use crate::error::Error;
use crate::files::Purpose;
use crate::files::store::File;
use crate::files::store::FileView;
use crate::mappings::MappingStatus;
use crate::providers::ProviderFileId;

/// Download a file
///
/// From here while its bytes are kept here (`blobs.keep`); else, unless it was rewritten for its models, from the first
/// provider that gives it back. `HEAD` answers the headers alone.
#[utoipa::path(get, path = "/v1/files/{id}/content", operation_id = "download_file", tag = "Files",
    security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "The file."),
        ("Range" = Option<String>, Header, description = "One range of bytes. Several at once, or another unit, mean \
            the whole file.", example = "bytes=0-1023"),
        ("If-Range" = Option<String>, Header, description = "The range is sent only of the file with this `ETag`."),
        ("If-None-Match" = Option<String>, Header, description = "The file is not sent again with this `ETag`."),
    ),
    responses(
        (status = 200, description = "The bytes, with the content type that they were uploaded with.",
            content_type = "*/*", headers(
                ("etag" = String, description = "The SHA-256 of the whole file, in quotes."),
                ("content-disposition" = String, description = "`attachment`, with the filename (RFC 6266)."),
                ("accept-ranges" = String, description = "`bytes`"),
            )),
        (status = 206, description = "The range that was asked for.", content_type = "*/*", headers(
                ("etag" = String, description = "The SHA-256 of the whole file, in quotes."),
                ("content-disposition" = String, description = "`attachment`, with the filename (RFC 6266)."),
                ("accept-ranges" = String, description = "`bytes`"),
                ("content-range" = String, description = "`bytes FIRST-LAST/SIZE`"),
            )),
        (status = 304, description = "The caller has it already.", headers(
                ("etag" = String, description = "The SHA-256 of the whole file, in quotes."))),
        (status = 404, response = NotFound),
        (status = 416, response = RangeNotSatisfiable),
        (status = 502, response = ProvidersFailed),
    ),
)]
pub async fn content(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let view = find(&app, &caller, &id).await?;
    let file = &view.file;
    let etag = format!("\"{}\"", file.sha256);
    let total = u64::try_from(file.bytes).unwrap_or(0);
    // Some proxies make an entity tag weak; for this comparison that makes no difference.
    if precondition(&headers, "if-none-match", &etag)
        || precondition(&headers, "if-none-match", &format!("W/{etag}"))
    {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response());
    }
    let wanted = match headers.get(header::RANGE).and_then(|range| range.to_str().ok()) {
        // A range of another version of the file would be a mixture: then the whole is sent.
        Some(range)
            if !headers.contains_key(header::IF_RANGE)
                || precondition(&headers, "if-range", &etag) =>
        {
            Wanted::read(range, total)
        }
        _ => Wanted::Whole,
    };
    let (status, range) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0..total),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Nothing => {
            let mut response = Error::Invalid {
                param: Some("Range"),
                code: Some("range_not_satisfiable"),
                message: format!("the range lies outside of the file, which has {total} bytes"),
            }
            .into_response();
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{total}"));
            return Ok(response);
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        Body::from_stream(open(&app, &view, range.clone()).await?)
    };
    let mut response = (status, body).into_response();
    set(&mut response, header::CONTENT_TYPE, &file.content_type);
    set(&mut response, header::CONTENT_DISPOSITION, &disposition::attachment(&file.filename));
    set(&mut response, header::ETAG, &etag);
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    // What a client uploaded is data: a browser must neither guess at it nor run it.
    set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    if status == StatusCode::PARTIAL_CONTENT {
        set(
            &mut response,
            header::CONTENT_RANGE,
            &format!("bytes {}-{}/{total}", range.start, range.end - 1),
        );
    }
    Ok(response)
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    let value = HeaderValue::from_str(value)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(name, value);
}

fn precondition(headers: &HeaderMap, name: &str, etag: &str) -> bool {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.split(',').any(|one| one.trim() == etag || one.trim() == "*"))
}

/// From the blob store where it still has them, else from the first provider that answers.
async fn open(app: &App, view: &FileView, range: Range<u64>) -> Result<ByteStream, Error> {
    let file = &view.file;
    if let Some(key) = &file.blob_key {
        match app.blobs.read(&BlobKey::Stored(key.clone()), range.clone()).await {
            Ok(stream) => return Ok(stream),
            Err(BlobError::Missing(_)) => {
                tracing::error!(file.id = %file.id, "the blob store has lost the bytes of a file");
            }
            Err(error) => return Err(error.into()),
        }
    }
    from_providers(app, view, range).await
}

async fn from_providers(
    app: &App,
    view: &FileView,
    range: Range<u64>,
) -> Result<ByteStream, Error> {
    let gone = "the bytes are no longer kept here";
    if file_is_rewritten(&view.file) {
        let message =
            format!("{gone}, and the providers hold them with their own model names in them");
        return Err(Error::ProvidersFailed(message));
    }
    let mut reasons = Vec::new();
    for mapping in &view.mappings {
        let (Ok(MappingStatus::Ready), Some(id)) = (mapping.status(), &mapping.provider_file_id)
        else {
            continue;
        };
        let Some(account) = app.providers.get(&mapping.provider) else { continue };
        if !account.driver.capabilities().content_readable(&view.file.purpose) {
            reasons
                .push(format!("`{}` does not give back files of this purpose", mapping.provider));
            continue;
        }
        let whole = range == (0..u64::try_from(view.file.bytes).unwrap_or(0));
        let asked = (!whole).then_some((range.start, Some(range.end.saturating_sub(1))));
        match account.driver.file_content(&ProviderFileId(id.clone()), asked).await {
            Ok(content) if whole || content.partial => return Ok(content.body),
            Ok(_) => reasons.push(format!("`{}` does not answer ranges", mapping.provider)),
            Err(error) => reasons.push(error.message),
        }
    }
    let reasons =
        if reasons.is_empty() { "no provider holds them".to_owned() } else { reasons.join("; ") };
    Err(Error::ProvidersFailed(format!("{gone}: {reasons}")))
}

fn file_is_rewritten(file: &File) -> bool {
    file.purpose.parse().is_ok_and(Purpose::is_rewritten)
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    Part(Range<u64>),
    Nothing,
}

impl Wanted {
    /// One range of bytes. Several at once, or another unit, mean the whole (RFC 9110, 14.2).
    fn read(header: &str, total: u64) -> Self {
        let Some(range) = header.trim().strip_prefix("bytes=").filter(|range| !range.contains(','))
        else {
            return Self::Whole;
        };
        let Some((first, last)) = range.split_once('-') else { return Self::Whole };
        let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(total),
            (Ok(first), Err(_)) if last.trim().is_empty() => first..total,
            (Err(_), Ok(suffix)) if first.trim().is_empty() => total.saturating_sub(suffix)..total,
            _ => return Self::Whole,
        };
        if range.is_empty() { Self::Nothing } else { Self::Part(range) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_has_them() {
        for (header, expected) in [
            ("bytes=0-9", Wanted::Part(0..10)),
            ("bytes=90-", Wanted::Part(90..100)),
            ("bytes=90-900", Wanted::Part(90..100)),
            ("bytes=-10", Wanted::Part(90..100)),
            ("bytes=-1000", Wanted::Part(0..100)),
            ("bytes=100-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=9-3", Wanted::Whole),
            ("bytes=0-1,4-5", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
            ("bytes=18446744073709551615-18446744073709551615", Wanted::Nothing),
        ] {
            assert_eq!(Wanted::read(header, 100), expected, "{header}");
        }
    }
}
