//! OpenAI: files and batches. The reference that the other providers differ from.

mod wire;

use std::time::Duration;

use async_trait::async_trait;
use rand::random;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE,
};
use reqwest::{Method, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};

use super::http::{Answer, BuildError, Dialect, Http, Limits, MAX_OBJECT_BYTES, MAX_PAGE_BYTES};
use super::multipart::Form;
use super::{
    BatchPage, ByteRange, Capabilities, Contact, Content, Deleted, ErrorKind, NewBatch, Page,
    Provider, ProviderBatchId, ProviderError, ProviderFileId, RemoteBatch, RemoteBatchState,
    RemoteFile, Upload, refusal,
};

static CAPABILITIES: Capabilities = Capabilities {
    can_list_files: true,
    can_list_batches: true,
    has_batch_events: true,
    max_file_bytes: 512 << 20,
    readable_purposes: &["batch", "batch_output", "fine-tune", "fine-tune-results"],
};

/// What `expires_after[seconds]` may be, and `seconds` of `output_expires_after`.
const SHORTEST_LIFE: Duration = Duration::from_hours(1);
const LONGEST_LIFE: Duration = Duration::from_hours(30 * 24);

/// Where and as whom to call.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configured name, for messages, traces and metrics.
    pub name: String,
    /// With the version: `https://api.openai.com/v1`.
    pub base_url: String,
    pub api_key: SecretString,
    /// Of silence, not of a whole transfer.
    pub timeout: Duration,
}

/// OpenAI, or a server that speaks as it does.
pub struct OpenAi {
    http: Http,
}

impl OpenAi {
    /// Fails on settings that no call could succeed with; calls nobody.
    pub fn new(settings: Settings) -> Result<Self, BuildError> {
        let limits = Limits::of_silence(settings.timeout);
        Self::with_limits(settings, limits)
    }

    fn with_limits(settings: Settings, limits: Limits) -> Result<Self, BuildError> {
        let Settings { name, base_url, api_key, timeout: _ } = settings;
        let Some(bearer) = bearer(&api_key) else {
            return Err(BuildError::ApiKey { provider: name });
        };
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        let dialect = Dialect { explain: wire::refusal, request_id: "x-request-id" };
        Ok(Self { http: Http::new(name, &base_url, headers, api_key, limits, dialect)? })
    }

    fn files(&self) -> Url {
        self.http.url(&["files"]).expect("`files` is a plain segment")
    }

    fn file_url(&self, id: &ProviderFileId, rest: &[&str]) -> Result<Url, ProviderError> {
        self.http.url(&[&["files", &id.0], rest].concat()).ok_or_else(|| {
            let message = format!("`{id}` cannot be the id of a file");
            self.http.error(ErrorKind::Rejected, None, &message)
        })
    }

    fn batches(&self) -> Url {
        self.http.url(&["batches"]).expect("`batches` is a plain segment")
    }

    fn batch_url(&self, id: &ProviderBatchId, rest: &[&str]) -> Result<Url, ProviderError> {
        self.http.url(&[&["batches", &id.0], rest].concat()).ok_or_else(|| {
            let message = format!("`{id}` cannot be the id of a batch");
            self.http.error(ErrorKind::Rejected, None, &message)
        })
    }

    fn read_batch(&self, answer: &Answer) -> Result<RemoteBatch, ProviderError> {
        wire::batch(&answer.body, |text| self.http.presentable(text))
            .ok_or_else(|| self.garbled(answer, "with something that is not a batch"))
    }

    /// The batch of an answer about `id`, and of no other.
    fn batch_of(
        &self,
        answer: &Answer,
        id: &ProviderBatchId,
    ) -> Result<RemoteBatch, ProviderError> {
        let batch = self.read_batch(answer)?;
        if batch.id != *id {
            return Err(self.garbled(answer, "with another batch than was asked for"));
        }
        Ok(batch)
    }

    /// `reason` completes "openai answered 200 …".
    fn garbled(&self, answer: &Answer, reason: &str) -> ProviderError {
        self.http.garbled(answer.status, answer.request_id.clone(), reason)
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn upload_file(&self, upload: Upload) -> Result<RemoteFile, ProviderError> {
        let sent = upload.sent.clone();
        let mut fields = vec![("purpose", upload.purpose.clone())];
        if let Some(life) = upload.expires_after {
            let life = within_limits(life);
            fields.push(("expires_after[anchor]", "created_at".to_owned()));
            fields.push(("expires_after[seconds]", life.as_secs().to_string()));
        }
        let boundary = format!("longshore{:032x}", random::<u128>());
        let form = Form::around_file(&boundary, &fields, &upload.filename, &upload.content_type);

        let answer = self.http.upload("upload_file", self.files(), form, upload).await?;
        wire::file(&answer.body).ok_or_else(|| {
            self.garbled(&answer, "with something that is not a file").of_create(sent.is_set())
        })
    }

    async fn list_files(&self, after: Option<&ProviderFileId>) -> Result<Page, ProviderError> {
        let mut url = self.files();
        // No `limit`: the default is the most that OpenAI gives, and lookalikes know their own best.
        url.query_pairs_mut().append_pair("order", "desc");
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", &after.0);
        }
        let answer = self.http.fetch("list_files", Method::GET, url, MAX_PAGE_BYTES).await?;
        let page = wire::page(&answer.body)
            .ok_or_else(|| self.garbled(&answer, "with something that is not a list of files"))?;
        // A server that does not know `after` would give the same page for ever.
        if page.next.is_some() && page.next.as_ref() == after {
            return Err(self.garbled(&answer, "with the same page of files again"));
        }
        Ok(page)
    }

    async fn file(&self, id: &ProviderFileId) -> Result<RemoteFile, ProviderError> {
        let url = self.file_url(id, &[])?;
        let answer = self.http.fetch("file", Method::GET, url, MAX_OBJECT_BYTES).await?;
        match wire::file(&answer.body) {
            Some(file) if file.id == *id => Ok(file),
            Some(_) => Err(self.garbled(&answer, "with another file than was asked for")),
            None => Err(self.garbled(&answer, "with something that is not a file")),
        }
    }

    async fn file_content(
        &self,
        id: &ProviderFileId,
        range: Option<ByteRange>,
    ) -> Result<Content, ProviderError> {
        let url = self.file_url(id, &["content"])?;
        let mut headers = HeaderMap::new();
        if let Some((first, last)) = range {
            let last = last.map(|last| last.to_string()).unwrap_or_default();
            let value = HeaderValue::from_str(&format!("bytes={first}-{last}"))
                .expect("digits and a dash are a header value");
            headers.insert(RANGE, value);
        }
        let response = self.http.open("file_content", url, headers).await?;

        let garbled =
            |reason| self.http.garbled(response.status(), self.http.request_id(&response), reason);
        let partial = match (response.status(), range) {
            (StatusCode::OK, _) => false,
            (StatusCode::PARTIAL_CONTENT, Some(range)) if starts_as_asked(&response, range) => true,
            _ => return Err(garbled("with other bytes than were asked for")),
        };
        let text =
            |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        if text(CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity"))
        {
            return Err(garbled("with content encoded in a way that was not asked for"));
        }
        Ok(Content {
            bytes: response.content_length(),
            partial,
            content_type: text(CONTENT_TYPE).map(str::to_owned),
            body: self.http.body(response),
        })
    }

    async fn delete_file(&self, id: &ProviderFileId) -> Result<Deleted, ProviderError> {
        let url = self.file_url(id, &[])?;
        match self.http.fetch("delete_file", Method::DELETE, url, MAX_OBJECT_BYTES).await {
            Ok(answer)
                if answer.status == StatusCode::NO_CONTENT || wire::is_deleted(&answer.body) =>
            {
                Ok(Deleted { http_status: answer.status.as_u16(), was_there: true })
            }
            // The next attempt finds out: it is deleted then, or gone.
            Ok(answer) => Err(self.garbled(&answer, "without saying that the file is deleted")),
            Err(error) if error.kind == ErrorKind::NotFound => {
                Ok(Deleted { http_status: error.http_status.unwrap_or(404), was_there: false })
            }
            Err(error) => Err(error),
        }
    }

    async fn create_batch(&self, batch: NewBatch) -> Result<RemoteBatch, ProviderError> {
        let sent = batch.sent.clone();
        let json = wire::new_batch(&batch, batch.output_expires_after.map(within_limits));
        let judge = refusal::kind_of_batch;
        let url = self.batches();
        let answer = self.http.create("create_batch", url, json, batch.sent, judge).await?;
        self.read_batch(&answer).map_err(|error| error.of_create(sent.is_set()))
    }

    async fn batch(&self, id: &ProviderBatchId) -> Result<RemoteBatch, ProviderError> {
        let url = self.batch_url(id, &[])?;
        let answer = self.http.fetch("batch", Method::GET, url, MAX_OBJECT_BYTES).await?;
        self.batch_of(&answer, id)
    }

    async fn list_batches(
        &self,
        after: Option<&ProviderBatchId>,
    ) -> Result<BatchPage, ProviderError> {
        let mut url = self.batches();
        // The most that OpenAI gives; there is no other order than newest first.
        url.query_pairs_mut().append_pair("limit", "100");
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", &after.0);
        }
        let answer = self.http.fetch("list_batches", Method::GET, url, MAX_PAGE_BYTES).await?;
        let page = wire::batch_page(&answer.body, |text| self.http.presentable(text))
            .ok_or_else(|| self.garbled(&answer, "with something that is not a list of batches"))?;
        // A server that does not know `after` would give the same page for ever.
        if page.next.is_some() && page.next.as_ref() == after {
            return Err(self.garbled(&answer, "with the same page of batches again"));
        }
        Ok(page)
    }

    async fn cancel_batch(&self, id: &ProviderBatchId) -> Result<RemoteBatch, ProviderError> {
        let url = self.batch_url(id, &["cancel"])?;
        let answer = self.http.fetch("cancel_batch", Method::POST, url, MAX_OBJECT_BYTES).await;
        match answer {
            Ok(answer) => self.batch_of(&answer, id),
            // What it is told for cancelling what has ended: the batch itself knows better.
            Err(refused) if matches!(refused.kind, ErrorKind::Rejected | ErrorKind::Conflict) => {
                let batch = self.batch(id).await?;
                let is_settled =
                    batch.state.is_terminal() || batch.state == RemoteBatchState::Cancelling;
                if is_settled { Ok(batch) } else { Err(refused) }
            }
            Err(error) => Err(error),
        }
    }

    async fn check(&self) -> Result<Contact, ProviderError> {
        let mut url = self.files();
        url.query_pairs_mut().append_pair("limit", "1");
        let answer = self.http.fetch("check", Method::GET, url, MAX_PAGE_BYTES).await?;
        match wire::page(&answer.body) {
            Some(_) => Ok(Contact { clock_ahead: answer.clock_ahead }),
            None => Err(self.garbled(&answer, "with something that is not a list of files")),
        }
    }

    fn capabilities(&self) -> &'static Capabilities {
        &CAPABILITIES
    }
}

fn within_limits(life: Duration) -> Duration {
    life.clamp(SHORTEST_LIFE, LONGEST_LIFE)
}

/// None for a key that cannot be one, such as one with a line break from the file it was read from.
fn bearer(api_key: &SecretString) -> Option<HeaderValue> {
    let key = api_key.expose_secret();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {key}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whether a 206 holds bytes from where the range begins, and none past its end.
fn starts_as_asked(response: &Response, (first, last): ByteRange) -> bool {
    let answered = || {
        let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
        let (from, to) = value.strip_prefix("bytes ")?.split_once('/')?.0.split_once('-')?;
        Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?))
    };
    answered()
        .is_some_and(|(from, to)| from == first && to >= from && last.is_none_or(|last| to <= last))
}

#[cfg(test)]
mod tests;
