//! The files API in OpenAI's shapes, as it works when nothing goes wrong.

use axum::extract::Query;
use hyper::header::HeaderValue;
use hyper::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::account::Account;
use super::answer::Answer;
use super::batches::api as batches;
use super::files::{NewFile, PageQuery, StoredFile};
use super::purpose::Purpose;
use super::routes::Target;

const MAX_LIMIT: usize = 10_000;

/// A file object as clients see it.
#[derive(Serialize)]
struct FileObject<'f> {
    id: &'f str,
    object: &'static str,
    bytes: u64,
    created_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    filename: &'f str,
    purpose: Purpose,
    status: &'static str,
    status_details: Option<&'static str>,
}

impl<'f> From<&'f StoredFile> for FileObject<'f> {
    fn from(file: &'f StoredFile) -> Self {
        Self {
            id: &file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at,
            expires_at: file.expires_after_seconds.map(|seconds| file.created_at + seconds),
            filename: &file.filename,
            purpose: file.purpose,
            status: "processed",
            status_details: None,
        }
    }
}

#[derive(Serialize)]
struct FileList<'f> {
    object: &'static str,
    data: Vec<FileObject<'f>>,
    first_id: Option<&'f str>,
    last_id: Option<&'f str>,
    has_more: bool,
}

#[derive(Deserialize)]
struct ListQuery {
    after: Option<String>,
    limit: Option<String>,
    order: Option<String>,
    purpose: Option<String>,
}

/// Does what is asked; what has a body is done by [`store`] and [`batches::create`] instead.
pub(super) fn execute(account: &Account, target: Target<'_>, uri: &Uri) -> Answer {
    match target {
        Target::List => list(account, uri).unwrap_or_else(|refusal| refusal),
        Target::Get(id) => account
            .get(id)
            .map_or_else(|| not_found(id), |file| answer_file(&FileObject::from(&*file))),
        Target::Content(id) => content(account, id),
        Target::Delete(id) => {
            if account.delete(id) {
                let deleted = json!({"id": id, "object": "file", "deleted": true});
                Answer::json(StatusCode::OK, &deleted)
            } else {
                not_found(id)
            }
        }
        Target::ListBatches => batches::list(account, uri),
        Target::GetBatch(id) => batches::get(account, id),
        Target::CancelBatch(id) => batches::cancel(account, id),
        Target::Upload | Target::CreateBatch | Target::Other => unknown_path(uri.path()),
    }
}

/// Stores a received file; gives its id along with the answer.
pub(super) fn store(account: &Account, new: NewFile) -> (Answer, Option<String>) {
    match account.store(new) {
        Some(file) => (answer_file(&FileObject::from(&*file)), Some(file.id.clone())),
        None => {
            let message = "the account holds too many files, delete some";
            (Answer::refusal(StatusCode::BAD_REQUEST, message, None, None), None)
        }
    }
}

/// The answer to a call whose bearer token is not accepted.
pub(super) fn unauthorized() -> Answer {
    Answer::refusal(
        StatusCode::UNAUTHORIZED,
        "Incorrect API key provided.",
        None,
        Some("invalid_api_key"),
    )
}

/// The answer to a path that does not exist.
pub(super) fn unknown_path(path: &str) -> Answer {
    let shown: String = path.chars().take(200).collect();
    Answer::refusal(StatusCode::NOT_FOUND, &format!("nothing is at `{shown}`"), None, None)
}

fn answer_file(file: &FileObject<'_>) -> Answer {
    Answer::json(StatusCode::OK, file)
}

fn not_found(id: &str) -> Answer {
    let message = format!("No such File object: {id}");
    Answer::refusal(StatusCode::NOT_FOUND, &message, Some("id"), None)
}

fn list(account: &Account, uri: &Uri) -> Result<Answer, Answer> {
    let Query(query) = Query::<ListQuery>::try_from_uri(uri).map_err(|rejection| {
        Answer::refusal(StatusCode::BAD_REQUEST, &rejection.body_text(), None, None)
    })?;
    let page = account.page(&PageQuery {
        after: parse_after(account, query.after.as_deref())?,
        is_ascending: parse_order(query.order.as_deref())?,
        limit: parse_limit(query.limit.as_deref())?,
        purpose: parse_purpose(query.purpose.as_deref())?,
    });
    let answer = FileList {
        object: "list",
        data: page.files.iter().map(|file| FileObject::from(&**file)).collect(),
        first_id: page.files.first().map(|file| file.id.as_str()),
        last_id: page.files.last().map(|file| file.id.as_str()),
        has_more: page.has_more,
    };
    Ok(Answer::json(StatusCode::OK, &answer))
}

fn parse_after(account: &Account, after: Option<&str>) -> Result<Option<u64>, Answer> {
    let Some(id) = after else { return Ok(None) };
    let sequence = account
        .sequence(id)
        .ok_or_else(|| Answer::invalid(&format!("`{id}` is no file to list after"), "after"))?;
    Ok(Some(sequence))
}

fn parse_order(order: Option<&str>) -> Result<bool, Answer> {
    match order {
        None | Some("desc") => Ok(false),
        Some("asc") => Ok(true),
        Some(other) => {
            Err(Answer::invalid(&format!("`{other}` is no order, use `asc` or `desc`"), "order"))
        }
    }
}

fn parse_limit(limit: Option<&str>) -> Result<usize, Answer> {
    let Some(text) = limit else { return Ok(MAX_LIMIT) };
    match text.parse() {
        Ok(number) if (1..=MAX_LIMIT).contains(&number) => Ok(number),
        _ => Err(Answer::invalid(
            &format!("`{text}` must be a number from 1 to {MAX_LIMIT}"),
            "limit",
        )),
    }
}

fn parse_purpose(purpose: Option<&str>) -> Result<Option<Purpose>, Answer> {
    let Some(text) = purpose else { return Ok(None) };
    let purpose = Purpose::parse(text)
        .ok_or_else(|| Answer::invalid(&format!("`{text}` is no purpose"), "purpose"))?;
    Ok(Some(purpose))
}

fn content(account: &Account, id: &str) -> Answer {
    let Some((file, content)) = account.content(id) else {
        return not_found(id);
    };
    if !file.purpose.is_downloadable() {
        let message =
            format!("Not allowed to download files of purpose: {}", file.purpose.as_str());
        return Answer::refusal(StatusCode::BAD_REQUEST, &message, None, None);
    }
    let Some(content) = content else {
        let message = format!(
            "the {} bytes of `{id}` were not kept, raise `keep_bytes` or `keep_total_bytes` in the \
             account's settings before the upload",
            file.bytes
        );
        return Answer::refusal(StatusCode::BAD_REQUEST, &message, None, None);
    };
    Answer::new(StatusCode::OK, HeaderValue::from_static("application/octet-stream"), content)
}
