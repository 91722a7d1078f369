//! `GET /v1/batches/{id}/results`: the ingested lines, each with its body.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse as _;
use axum::response::Response;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::TryStreamExt as _;
use futures_util::stream;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use utoipa::IntoParams;
use utoipa::PartialSchema;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa::openapi::RefOr;
use utoipa::openapi::Schema;

use super::find;
use crate::api::Api;
use crate::api::auth::Authenticated;
use crate::api::description::described;
use crate::api::description::words;
use crate::api::error::Conflict;
use crate::api::error::NotFound;
use crate::api::list::List;
use crate::api::parameters::Path;
use crate::api::parameters::Query;
use crate::app::App;
use crate::batches::store::BatchView;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::blobs::Blobs;
use crate::error::Error;
use crate::files;
use crate::results;
use crate::results::LineOutcome;
use crate::results::Presented;
use crate::results::ResultId;
use crate::results::Source;
use crate::results::page::Asked;
use crate::results::page::Located;
use crate::results::page::Page;
use crate::results::present;
use crate::results::store::Filter;

const DEFAULT: usize = 20;
const MOST: usize = 1000;
/// What is read of a file at once, and how much of it may be lines that nobody asked for.
const READ: u64 = 1024 * 1024;
const GAP: u64 = 64 * 1024;
/// Kilobytes for lines that are larger than that.
const ROOM: usize = 128 * 1024;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ResultsQuery {
    /// Only the results of this request.
    custom_id: Option<String>,
    /// Only results of this model of the batch.
    model: Option<String>,
    #[param(schema_with = line_filter, required = false)]
    status: Option<String>,
    /// The `last_id` of the page before.
    after: Option<String>,
    #[param(ignore)]
    limit: Option<String>,
}

fn line_filter() -> Object {
    described(words(LineOutcome::ALL.map(LineOutcome::as_str)), "Only lines in this status.")
}

const ANYTHING: [&str; 6] = ["string", "number", "boolean", "object", "array", "null"];

/// A line as it is answered. It is written by hand, since its own keys are the provider's.
pub struct BatchResult;

impl PartialSchema for BatchResult {
    fn schema() -> RefOr<Schema> {
        let schema = json!({
            "type": "object",
            "description": "A line of what the provider wrote, with every key it has (`custom_id`, `response`, \
                `error`), and what is said of it here. Keys of the line with one of our names begin with `provider_`.",
            "required": ["id", "model", "status"],
            "properties": {
                "id": {"type": "string", "description": "What to send as `after`.", "pattern": "^result_"},
                "model": {"type": "string"},
                "status": {
                    "type": "string",
                    "enum": LineOutcome::ALL.map(LineOutcome::as_str),
                    "description": "`succeeded` with a status code of 2xx and no error, `failed` otherwise; `broken` \
                        where the line is no result at all.",
                },
                "problem": {
                    "type": "string",
                    "enum": results::Problem::ALL.map(results::Problem::as_str),
                    "description": "Why the line does not count: a line before it has this `custom_id`, or the input \
                        has no such request.",
                },
                "raw": {"type": "string", "description": "Of a broken line: its text, as far as it is one, cut."},
                "provider_id": {"type": ANYTHING, "description": "The line's own `id`."},
            },
            "additionalProperties": true,
        });
        serde_json::from_value(schema).expect("the schema is one")
    }
}

impl ToSchema for BatchResult {
    fn name() -> Cow<'static, str> {
        "BatchResult".into()
    }
}

/// List the results of a batch
///
/// What is ingested of them so far; when the batch has ended, that is all. They come in the order in which the provider
/// wrote them, model after model. A page ends early where the results on it are large.
#[utoipa::path(get, path = "/v1/batches/{id}/results", operation_id = "list_batch_results", tag = "Batches",
    security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "The batch."),
        ResultsQuery,
        ("limit" = Option<u32>, Query, description = "How many at most; 20 if it is not said.",
            minimum = 1, maximum = 1000),
    ),
    responses(
        (status = 200, description = "A page of results.", body = List<BatchResult>),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
    ),
)]
pub async fn results(
    State(api): State<Api>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    Query(query): Query<ResultsQuery>,
) -> Result<Response, Error> {
    let app = &api.app;
    let mut view = find(app, &caller, &id).await?;
    let asked = asked(app, &view, &query).await?;
    if let Some(model) = query.model.filter(|model| !model.is_empty()) {
        view.runs.retain(|run| run.model == model);
    }
    let page = results::page::page(app.db.scan(), &view.runs, &asked).await?;
    check_kept(app, &view, &page).await?;
    answer(&api, page).await
}

async fn asked(app: &App, view: &BatchView, query: &ResultsQuery) -> Result<Asked, Error> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let limit = match given(&query.limit) {
        None => DEFAULT,
        Some(text) => {
            text.parse().ok().filter(|limit| (1..=MOST).contains(limit)).ok_or_else(|| {
                Error::invalid("limit", format!("`limit` must be a whole number from 1 to {MOST}"))
            })?
        }
    };
    let outcome = given(&query.status).map(|status| status.parse()).transpose();
    let outcome = outcome.map_err(|message: String| Error::invalid("status", message))?;
    let custom_id = given(&query.custom_id).map(|id| results::stored(id.as_bytes()).into_owned());
    let after = match given(&query.after) {
        None => None,
        Some(text) => Some(known(app, view, &text).await?),
    };
    Ok(Asked { filter: Filter { custom_id, outcome }, after, limit })
}

async fn known(app: &App, view: &BatchView, text: &str) -> Result<ResultId, Error> {
    let unknown = || Error::invalid("after", "`after` must be the id of a result of this batch");
    let id: ResultId = text.parse().map_err(|_| unknown())?;
    let is_ours = view.runs.iter().any(|run| run.id == id.run);
    if is_ours && results::store::is_there(app.db.read(), id.run, id.source, id.line).await? {
        Ok(id)
    } else {
        Err(unknown())
    }
}

/// The bodies of results lie in the files of the batch: they go with them.
async fn check_kept(app: &App, view: &BatchView, page: &Page) -> Result<(), Error> {
    for run in &view.runs {
        for (source, file) in
            [(Source::Output, run.output_file_id), (Source::Error, run.error_file_id)]
        {
            // The rows of lines go soon after the file.
            let is_needed = page.lines.is_empty()
                || page.lines.iter().any(|line| line.id.run == run.id && line.id.source == source);
            let Some(file) = file.filter(|_| is_needed) else { continue };
            let found = files::store::find_by_id(app.db.read(), file).await?;
            if found.is_none_or(|view| view.file.deleted_at.is_some()) {
                return Err(gone());
            }
        }
    }
    Ok(())
}

fn gone() -> Error {
    Error::Conflict {
        code: "results_gone",
        message: "the file of the batch that these results lie in was deleted, and they with it"
            .to_owned(),
        retry_after: None,
    }
}

/// Room in memory for large lines, over all requests: whoever asks for one waits while others are being sent.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM)))
    }
}

impl Room {
    /// Room for a line as it is read and as it is answered. What is read at once anyway needs none.
    async fn take(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        if bytes <= READ {
            return None;
        }
        let kilobytes = usize::try_from(bytes / 1024 * 2).unwrap_or(ROOM).min(ROOM);
        let semaphore = Arc::clone(&self.0);
        semaphore.acquire_many_owned(u32::try_from(kilobytes).unwrap_or(u32::MAX)).await.ok()
    }
}

/// What is being sent, and the room that it takes.
struct Held {
    text: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Lines that lie close together in one file.
struct Group {
    blob_key: String,
    begins_at: u64,
    ends_at: u64,
    lines: Vec<Located>,
}

impl Group {
    fn of(line: Located) -> Self {
        let (begins_at, ends_at) = place(&line);
        Self { blob_key: line.blob_key.clone(), begins_at, ends_at, lines: vec![line] }
    }

    /// Whether a line is read along with the others.
    fn takes(&self, line: &Located) -> bool {
        let (begins_at, ends_at) = place(line);
        self.blob_key == line.blob_key
            && begins_at >= self.ends_at
            && begins_at - self.ends_at <= GAP
            && ends_at - self.begins_at <= READ
    }

    fn add(&mut self, line: Located) {
        self.ends_at = place(&line).1;
        self.lines.push(line);
    }

    async fn read(&self, blobs: &Blobs) -> Result<Vec<u8>, BlobError> {
        let key = BlobKey::Stored(self.blob_key.clone());
        let mut body = blobs.read(&key, self.begins_at..self.ends_at).await?;
        let mut read =
            Vec::with_capacity(usize::try_from(self.ends_at - self.begins_at).unwrap_or(0));
        while let Some(chunk) = body.try_next().await? {
            read.extend_from_slice(&chunk);
        }
        Ok(read)
    }

    /// As [`Self::present`], behind `before`, once there is room for it.
    async fn shown(&self, before: &[u8], blobs: &Blobs, room: &Room) -> Result<Held, BlobError> {
        let room = room.take(self.ends_at - self.begins_at).await;
        let read = self.read(blobs).await?;
        let mut text = before.to_vec();
        self.present(&read, &mut text);
        Ok(Held { text, _room: room })
    }

    /// Writes the lines as they are answered, with a comma between any two.
    fn present(&self, read: &[u8], out: &mut Vec<u8>) {
        // And the end of the page.
        out.reserve(read.len() + (self.lines.len() + 2) * 128);
        for (place_in_group, line) in self.lines.iter().enumerate() {
            if place_in_group > 0 {
                out.push(b',');
            }
            let (begins_at, ends_at) = place(line);
            let at = |place: u64| usize::try_from(place - self.begins_at).unwrap_or(usize::MAX);
            let text = read.get(at(begins_at)..at(ends_at)).unwrap_or_default();
            let (id, entry) = (line.id.to_string(), &line.entry);
            let presented = Presented {
                id: &id,
                model: &line.model,
                outcome: entry.outcome,
                problem: entry.problem,
            };
            present(text, presented, out);
        }
    }
}

/// What is read of a line.
fn place(line: &Located) -> (u64, u64) {
    let begins_at = line.entry.begins_at.unsigned_abs();
    (begins_at, begins_at + line.bytes())
}

fn grouped(lines: Vec<Located>) -> VecDeque<Group> {
    let mut groups: VecDeque<Group> = VecDeque::new();
    for line in lines {
        match groups.back_mut().filter(|group| group.takes(&line)) {
            Some(group) => group.add(line),
            None => groups.push_back(Group::of(line)),
        }
    }
    groups
}

/// Streams the page: of its bodies, one group is in memory at a time.
async fn answer(api: &Api, page: Page) -> Result<Response, Error> {
    let id = |line: Option<&Located>| Value::from(line.map(|line| line.id.to_string()));
    let (first, last) = (id(page.lines.first()), id(page.lines.last()));
    let has_more = page.has_more;
    let mut groups = grouped(page.lines);
    let begin = br#"{"object":"list","data":["#;
    let (blobs, room) = (api.app.blobs.clone(), api.large_results.clone());
    // The first ones are read before anything is answered, so that what fails is told.
    let mut first_part = match groups.pop_front() {
        Some(group) => group.shown(begin, &blobs, &room).await.map_err(|error| match error {
            BlobError::Missing(_) => gone(),
            error => error.into(),
        })?,
        None => Held { text: begin.to_vec(), _room: None },
    };
    let end = format!(r#"],"first_id":{first},"last_id":{last},"has_more":{has_more}}}"#);
    let kind = [(header::CONTENT_TYPE, "application/json")];
    if groups.is_empty() {
        first_part.text.extend_from_slice(end.as_bytes());
        return Ok((kind, Body::from(Bytes::from_owner(first_part))).into_response());
    }
    let others = stream::iter(groups).then(move |group| {
        let (blobs, room) = (blobs.clone(), room.clone());
        async move {
            let part = group.shown(b",", &blobs, &room).await;
            part.map(Bytes::from_owner).map_err(std::io::Error::other)
        }
    });
    let body = stream::iter([Ok(Bytes::from_owner(first_part))])
        .chain(others)
        .chain(stream::iter([Ok(Bytes::from(end))]));
    Ok((kind, Body::from_stream(body)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RunId;
    use crate::results::store::Entry;

    fn line(begins_at: i64, length: i64, blob_key: &str) -> Located {
        let source = Source::Output;
        let entry = Entry {
            source,
            line: begins_at,
            outcome: LineOutcome::Succeeded,
            problem: None,
            begins_at,
            length,
        };
        let id = ResultId { run: RunId(uuid::Uuid::nil()), source, line: begins_at };
        Located { id, model: "m".to_owned(), blob_key: blob_key.to_owned(), entry }
    }

    #[test]
    fn lines_that_lie_close_together_are_read_at_once() {
        let (gap, most) = (GAP as i64, READ as i64);
        let lines = vec![
            line(0, 10, "a"),
            line(11, 10, "a"),
            line(21 + gap, 10, "a"),
            line(32 + gap * 2, 10, "a"),
            line(43 + gap * 2, most, "a"),
            line(0, 5, "b"),
        ];
        let sizes: Vec<_> = grouped(lines).iter().map(|group| group.lines.len()).collect();
        assert_eq!(sizes, [3, 1, 1, 1]);
    }

    #[test]
    fn the_schema_of_a_result_is_one() {
        assert!(matches!(BatchResult::schema(), RefOr::T(Schema::Object(_))));
    }
}
