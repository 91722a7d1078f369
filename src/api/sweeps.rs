//! `/v1/sweeps`.

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Json;
use axum::response::Response;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde_json::json;
use utoipa::PartialSchema;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa::openapi::RefOr;
use utoipa::openapi::Schema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Authenticated;
use super::description::described;
use super::description::words;
use super::error::Conflict;
use super::error::DiskFull;
use super::error::KeyReused;
use super::error::NotFound;
use super::error::PayloadTooLarge;
use super::error::UnsupportedMediaType;
use super::files::file_statuses;
use super::files::purposes;
use super::idempotency::Creation;
use super::idempotency::IdempotencyKey;
use super::json::OptionalJson;
use super::list::Limits;
use super::list::List;
use super::list::ListParameters;
use super::parameters::Path;
use super::parameters::Query;
use super::request::RequestId;
use super::wait;
use super::wait::WaitParameter;
use crate::app::App;
use crate::error::Error;
use crate::files::FileStatus;
use crate::files::Purpose;
use crate::files::store::Metadata;
use crate::ids::FileId;
use crate::ids::SweepId;
use crate::jobs::Failure;
use crate::notices::Hint;
use crate::owners::Caller;
use crate::sweeps;
use crate::sweeps::Filter;
use crate::sweeps::NewSweep;
use crate::sweeps::Selection;
use crate::sweeps::SweepStatus;
use crate::sweeps::store;
use crate::sweeps::store::Sweep;

const PATH: &str = "/v1/sweeps";
const LIMITS: Limits = Limits { default: 20, most: 1000 };
/// Files that one request may name.
const MOST_FILES: usize = 10_000;
/// Of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;
/// For that many ids, with the longest names of models that are seen.
const MEBIBYTES: u64 = 8;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(create, list))
        .routes(routes!(retrieve))
        .routes(routes!(cancel))
}

/// A deletion of many files.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Sweep)]
struct SweepObject {
    id: String,
    #[schema(schema_with = is_sweep)]
    object: &'static str,
    #[schema(schema_with = status)]
    status: String,
    /// Whether it only counts.
    dry_run: bool,
    filter: Filter,
    counts: Counts,
    job_id: String,
    /// Why it could not go on.
    #[schema(required = true)]
    error: Option<Failure>,
    created_at: i64,
    #[schema(required = true)]
    started_at: Option<i64>,
    #[schema(required = true)]
    finished_at: Option<i64>,
}

/// Files. `matched` is the sum of the others.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SweepCounts)]
struct Counts {
    /// Files that it has found so far.
    matched: i64,
    /// Deleted here, and on their way out at some provider. In a dry run: those that would be deleted.
    pending: i64,
    /// Gone at every provider.
    deleted: i64,
    /// Given up at some provider. Its jobs say why, and can be retried.
    failed: i64,
    /// In use by an unfinished batch.
    skipped: i64,
}

fn is_sweep() -> Object {
    words(["sweep"])
}

fn status() -> Object {
    let text = "`succeeded` when every file is gone at every provider, `failed` when something of one may be left. \
                One that is `cancelled` takes no more files; those that it took are deleted all the same.";
    described(words(SweepStatus::ALL.map(SweepStatus::as_str)), text)
}

impl SweepObject {
    fn new(sweep: &Sweep) -> Result<Self, Error> {
        let Sweep { matched, deleted, failed, skipped, .. } = *sweep;
        Ok(Self {
            id: sweep.id.to_string(),
            object: "sweep",
            status: sweep.status.clone(),
            dry_run: sweep.is_dry_run,
            filter: sweep.filter()?,
            counts: Counts {
                matched,
                pending: matched - deleted - failed - skipped,
                deleted,
                failed,
                skipped,
            },
            job_id: sweep.job_id.to_string(),
            error: sweep.failure(),
            created_at: sweep.created_at.unix_seconds(),
            started_at: sweep.started_at.map(|at| at.unix_seconds()),
            finished_at: sweep.finished_at.map(|at| at.unix_seconds()),
        })
    }
}

/// Which files. Either `file_ids`, or a filter with at least one field; of a filter, all has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct CreateSweep {
    #[serde(deserialize_with = "given")]
    file_ids: Option<Vec<String>>,
    #[serde(deserialize_with = "given")]
    purpose: Option<String>,
    /// Unix seconds.
    #[serde(deserialize_with = "whole")]
    created_before: Option<i64>,
    #[serde(deserialize_with = "given")]
    model: Option<String>,
    #[serde(deserialize_with = "given")]
    metadata: Option<Metadata>,
    #[serde(deserialize_with = "given")]
    status: Option<String>,
    all: bool,
    dry_run: bool,
}

/// What is said has a value: a `null` may have been meant to be one, and would widen what is deleted.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A whole number. JSON knows one kind of numbers only: `1.0` is one too.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let number = f64::deserialize(deserializer)?;
    if number.fract() == 0.0 {
        Ok(Some(number as i64))
    } else {
        Err(serde::de::Error::custom("a time in Unix seconds is a whole number"))
    }
}

/// Written by hand: which fields go together is more than a derived schema can say.
impl PartialSchema for CreateSweep {
    fn schema() -> RefOr<Schema> {
        let dry_run = json!({"type": "boolean", "description": "Only count."});
        let named = json!({
            "type": "object",
            "description": "Files by their ids. Those that are deleted already are passed over.",
            "required": ["file_ids"],
            "properties": {
                "file_ids": {"type": "array", "items": {"type": "string"}, "maxItems": MOST_FILES},
                "dry_run": dry_run,
            },
            "additionalProperties": false,
        });
        let fields = json!({
            "type": "object",
            "properties": {
                "purpose": purposes(),
                "created_before": {
                    "type": "integer",
                    "description": "Unix seconds.",
                    "minimum": 0,
                    "maximum": LAST_SECOND,
                },
                "model": {
                    "type": "string",
                    "description": "A model that the file was sent to.",
                    "pattern": "^[^\\x00]*$",
                },
                "metadata": {
                    "type": "object",
                    "description": "Pairs that the file has, among others.",
                    "additionalProperties": {"type": "string"},
                },
                "status": file_statuses(),
                "all": {"type": "boolean", "description": "Every file of the owner."},
                "dry_run": dry_run,
            },
            "additionalProperties": false,
        });
        let one_of_them = json!({"anyOf": [
            {"type": "object", "required": ["purpose"]},
            {"type": "object", "required": ["created_before"]},
            {"type": "object", "required": ["model"]},
            {"type": "object", "required": ["status"]},
            {"type": "object", "required": ["metadata"],
                "properties": {"metadata": {"type": "object", "minProperties": 1}}},
            {"type": "object", "required": ["all"],
                "properties": {"all": {"type": "boolean", "enum": [true]}}},
        ]});
        let description =
            "Which files: by their ids, or by what they are like. Of a filter, all has to hold.";
        let schema = json!({
            "description": description,
            "oneOf": [named, {"allOf": [fields, one_of_them]}],
        });
        serde_json::from_value(schema).expect("the schema is one")
    }
}

impl ToSchema for CreateSweep {
    fn name() -> Cow<'static, str> {
        "CreateSweep".into()
    }
}

impl CreateSweep {
    /// The filter, checked.
    fn filter(&self) -> Result<Filter, Error> {
        if let Some(purpose) = &self.purpose {
            purpose.parse::<Purpose>().map_err(|message| Error::invalid("purpose", message))?;
        }
        if let Some(status) = &self.status {
            status.parse::<FileStatus>().map_err(|message| Error::invalid("status", message))?;
        }
        if self.created_before.is_some_and(|at| !(0..=LAST_SECOND).contains(&at)) {
            return Err(Error::invalid(
                "created_before",
                "`created_before` must be a time in Unix seconds",
            ));
        }
        let has_nul = |text: &String| text.contains('\0');
        if self.model.iter().any(has_nul) {
            return Err(Error::invalid("model", "`model` holds a NUL character"));
        }
        Ok(Filter {
            purpose: self.purpose.clone(),
            created_before: self.created_before,
            model: self.model.clone(),
            metadata: self.metadata.clone().unwrap_or_default(),
            status: self.status.clone(),
            all: self.all,
            file_ids: None,
        })
    }
}

async fn select(app: &App, caller: &Caller, asked: &CreateSweep) -> Result<Selection, Error> {
    let filter = asked.filter()?;
    // A list without ids is a list: what an empty one was meant to say is not guessed.
    match (&asked.file_ids, filter.is_empty()) {
        (None, true) => Err(Error::missing(
            "file_ids",
            "say which files: `file_ids`, or at least one of `purpose`, `created_before`, `model`, `metadata`, \
             `status`; `\"all\": true` means every file of yours",
        )),
        (Some(_), false) => Err(Error::invalid(
            "file_ids",
            "`file_ids` and a filter exclude each other: files that are named need not be like anything",
        )),
        (None, false) => Ok(Selection::Matching(filter)),
        (Some(ids), true) => named(app, caller, ids).await.map(Selection::Files),
    }
}

/// The files that a request names. All of them have to be the caller's.
async fn named(app: &App, caller: &Caller, ids: &[String]) -> Result<Vec<FileId>, Error> {
    if ids.len() > MOST_FILES {
        return Err(Error::invalid(
            "file_ids",
            format!(
                "`file_ids` names {} files; {MOST_FILES} at most go with one request",
                ids.len()
            ),
        ));
    }
    let known = crate::files::store::positions(app.db.scan(), ids).await?;
    let mut files = Vec::with_capacity(ids.len());
    for id in ids {
        let (file, owner) = known.get(id).ok_or_else(|| Error::no_such("file", "file_ids", id))?;
        if !caller.may_touch(owner) {
            return Err(Error::foreign(&caller.owner, "file", id));
        }
        files.push(*file);
    }
    Ok(files)
}

/// Delete many files
///
/// One job deletes them, and goes on where it stopped when its worker ends. `counts` says how far it is.
#[utoipa::path(post, path = "/v1/sweeps", operation_id = "create_sweep", tag = "Sweeps", security(("bearer" = [])),
    params(IdempotencyKey),
    request_body = CreateSweep,
    responses(
        (status = 200, description = "The sweep, `queued`.", body = SweepObject, headers(
            ("idempotency-replayed" = String, description = "`true` where this is the first answer again."))),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 422, response = KeyReused),
        (status = 507, response = DiskFull),
    ),
)]
async fn create(
    State(api): State<Api>,
    Authenticated(caller): Authenticated,
    request_id: RequestId,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<CreateSweep, MEBIBYTES>,
) -> Result<Response, Error> {
    let asked = body.unwrap_or_default();
    let creation = Creation::new(&caller.owner, PATH, &headers, &asked)?;
    let app = &api.app;
    let new = Arc::new(NewSweep {
        id: SweepId::mint(),
        selection: select(app, &caller, &asked).await?,
        owner: caller.owner,
        is_dry_run: asked.dry_run,
        max_attempts: app.config.retry.max_attempts.get(),
        request_id: Some(request_id.0),
    });
    let now = app.clock.now();
    let full =
        if asked.dry_run { None } else { app.backlogs.admit(&app.db, &new.owner, 1).await? };
    let response = creation
        .once(&api, move |tx| {
            let new = Arc::clone(&new);
            Box::pin(async move {
                if let Some(full) = full {
                    return Err(full.into());
                }
                let sweep = sweeps::create(tx, now, &new).await?;
                serde_json::to_string(&SweepObject::new(&sweep)?)
                    .map_err(|error| Error::Internal(error.into()))
            })
        })
        .await?;
    app.notices.hint(Hint::Work);
    Ok(response)
}

async fn find(app: &App, caller: &Caller, text: &str) -> Result<Sweep, Error> {
    let no_such = || Error::no_such("sweep", "sweep_id", text);
    let id: SweepId = text.parse().map_err(|_| no_such())?;
    let sweep = store::find(app.db.read(), id).await?.ok_or_else(no_such)?;
    if caller.may_touch(&sweep.owner) {
        Ok(sweep)
    } else {
        Err(Error::foreign(&caller.owner, "sweep", text))
    }
}

/// List sweeps
#[utoipa::path(get, path = "/v1/sweeps", operation_id = "list_sweeps", tag = "Sweeps", security(("bearer" = [])),
    params(
        ListParameters,
        ("limit" = Option<u32>, Query, description = "How many at most; 20 if it is not said.",
            minimum = 1, maximum = 1000),
    ),
    responses((status = 200, description = "A page of the owner's sweeps.", body = List<SweepObject>)),
)]
async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListParameters>,
) -> Result<Json<List<SweepObject>>, Error> {
    let after = match query.after() {
        None => None,
        Some(after) => {
            let unknown =
                |_| Error::invalid("after", "`after` must be the id of a sweep of this list");
            Some(find(&app, &caller, after).await.map_err(unknown)?.id)
        }
    };
    let page = query.page(after, LIMITS)?;
    let sweeps = store::list(app.db.scan(), &caller.scope(), &page).await?;
    let sweeps: Result<Vec<_>, _> = sweeps.iter().map(SweepObject::new).collect();
    Ok(Json(List::new(sweeps?, &page, |sweep: &SweepObject| sweep.id.clone())))
}

/// Retrieve a sweep
#[utoipa::path(get, path = "/v1/sweeps/{id}", operation_id = "retrieve_sweep", tag = "Sweeps",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The sweep."), WaitParameter),
    responses(
        (status = 200, description = "The sweep.", body = SweepObject),
        (status = 404, response = NotFound),
    ),
)]
async fn retrieve(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    Query(query): Query<WaitParameter>,
) -> Result<Json<SweepObject>, Error> {
    let is_final = |sweep: &Sweep| sweep.status().is_ok_and(SweepStatus::is_final);
    let read = || find(&app, &caller, &id);
    let sweep = wait::until_final(&app, &query, |sweep| sweep.id.0, is_final, read).await?;
    Ok(Json(SweepObject::new(&sweep)?))
}

/// Cancel a sweep
///
/// It takes no more files. Those that it took are deleted all the same.
#[utoipa::path(post, path = "/v1/sweeps/{id}/cancel", operation_id = "cancel_sweep", tag = "Sweeps",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The sweep.")),
    responses(
        (status = 200, description = "The sweep as it is now.", body = SweepObject),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 507, response = DiskFull),
    ),
)]
async fn cancel(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<SweepObject>, Error> {
    let sweep = find(&app, &caller, &id).await?;
    let now = app.clock.now();
    app.db
        .intake(move |tx| {
            let sweep = sweep.clone();
            Box::pin(async move { sweeps::cancel(tx, now, &sweep).await })
        })
        .await?;
    app.notices.hint(Hint::Change);
    Ok(Json(SweepObject::new(&find(&app, &caller, &id).await?)?))
}
