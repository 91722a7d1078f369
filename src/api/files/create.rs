//! `POST /v1/files`: the form streams in, then one transaction, then the answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use tracing::Instrument as _;
use uuid::Uuid;

use super::form;
use super::form::Form;
use super::form::FormFields;
use super::form::Keep;
use super::object;
use super::object::FileObject;
use crate::api::Api;
use crate::api::auth::Authenticated;
use crate::api::body::Incoming;
use crate::api::error::Conflict;
use crate::api::error::DiskFull;
use crate::api::error::KeyReused;
use crate::api::error::PayloadTooLarge;
use crate::api::error::RequestTimeout;
use crate::api::error::UnsupportedMediaType;
use crate::api::idempotency;
use crate::api::idempotency::Hold;
use crate::api::idempotency::IdempotencyKey;
use crate::api::idempotency::Repetition;
use crate::api::parameters::Query;
use crate::api::request::RequestId;
use crate::app::App;
use crate::blobs::BlobKey;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::files;
use crate::files::Purpose;
use crate::files::create::Destination;
use crate::files::create::Dispatch;
use crate::files::store::NewFile;
use crate::idempotency as records;
use crate::idempotency::Begun;
use crate::idempotency::RecordId;
use crate::ids::FileId;
use crate::ids::managed::ManagedId;
use crate::notices::Hint;
use crate::traces;

const PATH: &str = "/v1/files";

/// Upload a file
///
/// It is checked and stored as it arrives, and then carried to every model that it names. An answer of 200 means
/// that the file and its jobs are on disk; one of 400 or more that nothing was made.
#[utoipa::path(post, path = "/v1/files", operation_id = "create_file", tag = "Files", security(("bearer" = [])),
    params(
        ("target_model_names" = Option<Vec<String>>, Query, description = "As the field of the form, for clients that \
            cannot add fields to it. Both count."),
        IdempotencyKey,
        ("x-stainless-retry-count" = Option<String>, Header, description = "How often an official SDK has sent this \
            request before. With 1 or more and no `Idempotency-Key`, an equal upload of the last 15 minutes whose \
            answer was lost on the way gets that answer."),
    ),
    request_body(content = FormFields, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file, `uploaded` and on its way.", body = FileObject, headers(
            ("idempotency-replayed" = String, description = "`true` where this is the first answer again."))),
        (status = 408, response = RequestTimeout),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 422, response = KeyReused),
        (status = 507, response = DiskFull),
    ),
)]
pub async fn create(
    State(api): State<Api>,
    Authenticated(caller): Authenticated,
    request_id: RequestId,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Error> {
    let boundary = boundary(&headers)?;
    let limit = api.app.config.server.max_file_bytes.0.saturating_add(form::FORM_OVERHEAD);
    if content_length(&headers).is_some_and(|length| length > limit) {
        let most = api.app.config.server.max_file_bytes;
        return Err(Error::TooLarge(format!(
            "the file is larger than {most} (`server.max_file_bytes`)"
        )));
    }
    let repetition = Repetition::of(&headers)?;
    let begun = match &repetition {
        Repetition::Key(key) => Some(api.requests.begin(&api.app, &caller.owner, PATH, key).await?),
        _ => None,
    };
    // Let go when this request ends, or is dropped, without having made anything.
    let mut hold = Hold::new(&api);
    if let Some(Begun::Fresh(record)) = &begun {
        hold.record = Some(*record);
    }
    // Before its bytes are taken; one that may be answered as before is looked at later.
    let may_be_answered = matches!(begun, Some(Begun::Answered { .. }))
        || repetition == (Repetition::Sdk { is_retry: true });
    if !may_be_answered
        && let Some(full) = api.app.backlogs.admit(&api.app.db, &caller.owner, 0).await?
    {
        hold.let_go().await;
        return Err(full.into());
    }
    let incoming = Incoming::new(body, limit, api.app.config.server.body_timeout);
    let request = Request {
        owner: caller.owner,
        request_id: request_id.0,
        repetition,
        query_names: query
            .iter()
            .filter(|(name, _)| form::is_target_model_names(name))
            .flat_map(|(_, value)| form::split_names(value))
            .collect(),
    };
    match receive(&api, &incoming, boundary, request, begun, &mut hold).await {
        Ok(response) => Ok(response),
        Err(error) => {
            // Before the answer: the client may use the key at once.
            hold.let_go().await;
            Err(error)
        }
    }
}

/// What is known of a request before its body.
struct Request {
    owner: String,
    request_id: String,
    repetition: Repetition,
    query_names: Vec<String>,
}

async fn receive(
    api: &Api,
    incoming: &Incoming,
    boundary: String,
    request: Request,
    begun: Option<Begun>,
    hold: &mut Hold,
) -> Result<Response, Error> {
    let app = &api.app;
    let keep =
        if matches!(begun, Some(Begun::Answered { .. })) { Keep::Nothing } else { Keep::Bytes };
    let mut form = form::read(app, incoming, boundary, keep).await?;
    form.target_model_names.extend(request.query_names.iter().cloned());
    let blob = form.file.blob.clone().map(|key| Unclaimed { app: app.clone(), key: Some(key) });
    let destinations = destinations(app, &form)?;
    let fingerprint = fingerprint(&form, &destinations)?;
    if let Some(Begun::Answered { fingerprint: first, response }) = begun {
        if first == fingerprint {
            return Ok(idempotency::replay(response));
        }
        return Err(Error::Mismatch(
            "this `Idempotency-Key` was used with another file or other fields; use a new key"
                .to_owned(),
        ));
    }
    let Some(mut blob) = blob else {
        return Err(Error::Internal(anyhow::anyhow!(
            "an upload without bytes reached its transaction"
        )));
    };
    // From here on it is done whether the client waits or not; a client that hung up comes back and
    // finds it. The key and the blob belong to the transaction now.
    let commit = Commit {
        api: api.clone(),
        record: hold.record.take(),
        fingerprint,
        request,
        destinations,
        form,
        blob: blob.key.take(),
    };
    let done = tokio::spawn(traces::here().hold(commit.run().in_current_span())).await;
    let (text, record, is_replay) = done.map_err(|error| Error::Internal(error.into()))??;
    if is_replay {
        return Ok(idempotency::replay(text));
    }
    Ok(api.requests.answer(text, record))
}

/// A blob that no row names yet. Dropped, it is deleted.
struct Unclaimed {
    app: App,
    key: Option<BlobKey>,
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let blobs = self.app.blobs.clone();
            tokio::spawn(async move {
                if let Err(error) = blobs.delete(&key).await {
                    tracing::warn!(error = %error, "a blob of a refused upload stays; it is swept as an orphan");
                }
            });
        }
    }
}

/// The transaction of an upload, and what comes after it.
struct Commit {
    api: Api,
    record: Option<RecordId>,
    fingerprint: Vec<u8>,
    request: Request,
    destinations: Vec<Destination>,
    form: Form,
    blob: Option<BlobKey>,
}

impl Commit {
    /// The text of the answer; the record that keeps it until it was sent; whether it is a repetition.
    async fn run(self) -> Result<(String, Option<RecordId>, bool), Error> {
        let Self { api, record, fingerprint, request, destinations, mut form, blob } = self;
        let (app, requests) = (api.app.clone(), api.requests.clone());
        let mut unclaimed = Unclaimed { app: app.clone(), key: blob.clone() };
        let mut hold = Hold { api, record };
        let (now, id) = (app.clock.now(), FileId::mint());
        let scanned = form.file.scanned.take();
        let lines = scanned.as_ref().map(|scanned| scanned.lines);
        let file = new_file(id, now, &request.owner, &form, &destinations, blob.as_ref());
        let file = Arc::new(NewFile { lines, ..file });
        let dispatch = Arc::new(Dispatch {
            installation_id: Arc::clone(&app.installation.id),
            max_attempts: app.config.retry.max_attempts.get(),
            request_id: Some(request.request_id.clone()),
        });
        let (destinations, fingerprint): (Arc<[Destination]>, Arc<[u8]>) =
            (destinations.into(), fingerprint.into());
        let repetition = request.repetition.clone();
        let holder: Arc<str> = requests.holder().into();
        let models = destinations.len();
        let admitted = app.backlogs.admit(&app.db, &request.owner, models).await;
        let full = match admitted {
            Ok(full) => full,
            Err(error) => {
                hold.let_go().await;
                return Err(error.into());
            }
        };
        // A worker may start before this returns: what it needs is there first.
        if let Some(scanned) = scanned {
            app.edits.put(id, scanned.edits);
        }
        let written = app
            .db
            .intake(move |tx| {
                let (file, dispatch, destinations) =
                    (Arc::clone(&file), Arc::clone(&dispatch), Arc::clone(&destinations));
                let (fingerprint, repetition, holder) =
                    (Arc::clone(&fingerprint), repetition.clone(), Arc::clone(&holder));
                Box::pin(async move {
                    let of = records::Request { owner: &file.owner, path: PATH };
                    if repetition == (Repetition::Sdk { is_retry: true })
                        && let Some(text) = records::unanswered(tx, now, &of, &fingerprint).await?
                    {
                        return Ok((text, None, true));
                    }
                    if let Some(full) = full {
                        return Err(full.into());
                    }
                    let view =
                        files::create::create(tx, now, &file, &destinations, &dispatch).await?;
                    let text = object::to_text(view)?;
                    if let Some(record) = record {
                        if !records::complete(tx, record, &holder, &fingerprint, &text).await? {
                            return Err(idempotency::taken_over());
                        }
                        return Ok((text, None, false));
                    }
                    let kept = matches!(repetition, Repetition::Sdk { .. })
                        .then(|| RecordId(Uuid::now_v7()));
                    if let Some(kept) = kept {
                        records::keep(tx, now, &of, kept, &fingerprint, &text).await?;
                    }
                    Ok((text, kept, false))
                })
            })
            .await;
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                // A database that went away in the middle of the commit may have done it all the same:
                // then the file needs its bytes. Otherwise they are swept as an orphan.
                if matches!(error, Error::Unavailable { .. } | Error::Internal(_)) {
                    unclaimed.key = None;
                }
                hold.let_go().await;
                return Err(error);
            }
        };
        if let Some(record) = hold.record.take() {
            requests.ended(record);
        }
        let is_replay = written.2;
        if !is_replay {
            unclaimed.key = None;
            app.notices.hint(Hint::Work);
            metrics::counter!("longshore_files_accepted_total").increment(1);
            metrics::counter!("longshore_bytes_total", "direction" => "received")
                .increment(form.file.bytes);
            tracing::info!(file.id = %id, bytes = form.file.bytes, "accepted file for {models} models");
        }
        Ok(written)
    }
}

fn new_file(
    id: FileId,
    now: Timestamp,
    owner: &str,
    form: &Form,
    destinations: &[Destination],
    blob: Option<&BlobKey>,
) -> NewFile {
    let mut names: Vec<String> =
        destinations.iter().map(|destination| destination.model.clone()).collect();
    names.dedup();
    let managed_id = ManagedId::File {
        content_type: form.file.content_type.clone(),
        uuid: id.0,
        target_model_names: names,
        output: None,
    };
    NewFile {
        id,
        managed_id: managed_id.encode(),
        owner: owner.to_owned(),
        filename: form.file.filename.replace('\0', "\u{fffd}"),
        content_type: form.file.content_type.clone(),
        purpose: form.purpose.as_str().to_owned(),
        bytes: form.file.bytes,
        sha256: form.file.sha256.clone(),
        metadata: form.metadata.clone(),
        blob_key: blob.map(BlobKey::path).unwrap_or_default(),
        expires_at: form.expires_after.map(|after| now.after(after)),
        lines: None,
    }
}

/// Where the file goes: what it names, or the default models; within what each provider takes.
fn destinations(app: &App, form: &Form) -> Result<Vec<Destination>, Error> {
    let names = if form.target_model_names.is_empty() {
        &app.config.server.default_models
    } else {
        &form.target_model_names
    };
    if names.is_empty() {
        return Err(Error::missing(
            "target_model_names",
            format!(
                "`target_model_names` is missing, and no default models are configured (`server.default_models`); \
                 name the models to send the file to; {}",
                app.known_models()
            ),
        ));
    }
    let destinations = app.destinations(names)?;
    if form.purpose == Purpose::Batch {
        let lines = form.file.scanned.as_ref().map_or(0, |scanned| scanned.lines);
        app.check_batch(&destinations, lines, form.file.bytes)?;
    }
    Ok(destinations)
}

/// What was said, not the bytes on the wire: a form's boundary differs at each try.
#[derive(Serialize)]
struct Said<'a> {
    filename: &'a str,
    content_type: &'a str,
    sha256: &'a str,
    purpose: &'a str,
    deployments: Vec<&'a str>,
    expires_after: Option<u64>,
    metadata: &'a files::store::Metadata,
}

fn fingerprint(form: &Form, destinations: &[Destination]) -> Result<Vec<u8>, Error> {
    let said = Said {
        filename: &form.file.filename,
        content_type: &form.file.content_type,
        sha256: &form.file.sha256,
        purpose: form.purpose.as_str(),
        deployments: destinations
            .iter()
            .map(|destination| destination.deployment_id.as_str())
            .collect(),
        expires_after: form.expires_after.map(|after| after.as_secs()),
        metadata: &form.metadata,
    };
    let text = serde_json::to_vec(&said).map_err(|error| Error::Internal(error.into()))?;
    Ok(Sha256::digest(text).to_vec())
}

fn boundary(headers: &HeaderMap) -> Result<String, Error> {
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|header| header.to_str().ok()).unwrap_or_default();
    multer::parse_boundary(content_type).map_err(|_| {
        Error::UnsupportedMediaType(
            "the body must be multipart/form-data with a boundary, with the fields `file` and `purpose`".to_owned(),
        )
    })
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
