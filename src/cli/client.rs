//! The HTTP client of a running server: where it is, with which key, and for how long to wait.

pub mod failure;
mod repeat;

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use reqwest::{
    Method, RequestBuilder, Response, Url,
    header::{AUTHORIZATION, HeaderValue},
    redirect,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use failure::Failure;
pub use repeat::Repeats;

const DEFAULT_URL: &str = "http://127.0.0.1:4700";
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a call that moves no file may take, beyond the time it asked the server to wait.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How long nothing at all may move during a transfer. The transfer itself may take for ever.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// The largest JSON answer that is read: a full page of files, each sent to dozens of models.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// The longest time that the server may be asked to hold an answer back (`?wait=`).
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// A client of one running server. It is cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// Ends with `/v1`, without a slash after it.
    base: Url,
    key: Option<HeaderValue>,
    /// The unit of every pause: a second, but for tests.
    unit: Duration,
    silence: Duration,
}

/// What the server answered: read as far as this program needs it, and whole for scripts.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    pub value: T,
    pub json: Value,
}

impl Client {
    /// A client for the values of `LONGSHORE_URL` and `LONGSHORE_API_KEY`.
    ///
    /// Without a URL it is the address that `longshore up` listens on; `/v1` is appended where it is
    /// missing. An empty value counts as absent.
    ///
    /// # Errors
    /// The URL is not one of a server, or the key cannot be sent in a header.
    pub fn from_env(url: Option<String>, api_key: Option<SecretString>) -> anyhow::Result<Self> {
        let base = base_url(url.as_deref().unwrap_or_default())?;
        let key = api_key.as_ref().map(authorization).transpose()?.flatten();
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            // A redirect would lose the body of an upload; the failure names the right address.
            .redirect(redirect::Policy::none())
            // Repeating is decided here, where it is known what may be repeated.
            .retry(reqwest::retry::never());
        if is_loopback(&base) {
            // A proxy would look for the server on its own machine.
            http = http.no_proxy();
        }
        let http = http.build().context("cannot set up the HTTP client")?;
        Ok(Self { http, base, key, unit: Duration::from_secs(1), silence: SILENCE_LIMIT })
    }

    /// The same client with another unit of pauses and another limit of silence.
    #[cfg(test)]
    pub(crate) fn paced(self, unit: Duration, silence: Duration) -> Self {
        Self { unit, silence, ..self }
    }

    /// The unit of every pause that this client makes.
    pub(crate) fn unit(&self) -> Duration {
        self.unit
    }

    /// Asks for one thing or a list, within the limit of a call.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Answer<T>, Failure> {
        self.call(self.request(Method::GET, path).query(query).timeout(CALL_LIMIT)).await
    }

    /// Asks for one thing, letting the server hold its answer back until the thing is in a final
    /// state or `wait` is over. It is cut to whole seconds and to [`MAX_WAIT`].
    pub async fn look<T: DeserializeOwned>(
        &self,
        path: &[&str],
        wait: Duration,
    ) -> Result<Answer<T>, Failure> {
        let wait = wait.min(MAX_WAIT);
        let request = self.request(Method::GET, path).query(&[("wait", wait.as_secs())]);
        self.call(request.timeout(wait + CALL_LIMIT)).await
    }

    /// Calls for an action that takes no body. It is sent once, since nothing says whether an action
    /// whose answer was lost was done.
    pub async fn act<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Answer<T>, Failure> {
        self.call(self.request(Method::POST, path).timeout(CALL_LIMIT)).await
    }

    /// Deletes one thing. A repeat after a lost answer finds it gone, and is refused as if it had never been.
    pub async fn delete<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Answer<T>, Failure> {
        self.call(self.request(Method::DELETE, path).query(query).timeout(CALL_LIMIT)).await
    }

    /// Makes something of a JSON body. With the same idempotency key and body, it is made once however
    /// often it is asked for.
    pub async fn create<T: DeserializeOwned>(
        &self,
        path: &[&str],
        idempotency_key: &str,
        body: &impl Serialize,
    ) -> Result<Answer<T>, Failure> {
        let request = self.request(Method::POST, path).header("idempotency-key", idempotency_key);
        self.call(request.json(body).timeout(CALL_LIMIT)).await
    }

    /// A request whose body the caller streams: see [`Client::transfer`].
    pub(crate) fn upload(&self, path: &[&str]) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// Sends a body for as long as it moves, and reads the answer.
    ///
    /// `moved` tells how many bytes have left so far: when it stands still for the limit of silence,
    /// before or after the end of the body, the transfer is given up.
    pub(crate) async fn transfer<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        moved: impl Fn() -> u64,
    ) -> Result<Answer<T>, Failure> {
        let stalled = async {
            let mut before = moved();
            loop {
                tokio::time::sleep(self.silence).await;
                let now = moved();
                if now == before {
                    return;
                }
                before = now;
            }
        };
        tokio::select! {
            answer = self.call(request) => answer,
            () = stalled => Err(self.silent()),
        }
    }

    /// Starts a download. Its chunks come from [`Client::chunk`].
    pub async fn download(&self, path: &[&str]) -> Result<Response, Failure> {
        let sent = self.request(Method::GET, path).send();
        let response = tokio::time::timeout(self.silence, sent)
            .await
            .map_err(|_| self.silent())?
            .map_err(|error| self.not_answered(error))?;
        self.accepted(response).await
    }

    /// The next chunk of a download, or `None` at its end.
    pub async fn chunk(&self, response: &mut Response) -> Result<Option<bytes::Bytes>, Failure> {
        tokio::time::timeout(self.silence, response.chunk())
            .await
            .map_err(|_| self.silent())?
            .map_err(|error| self.not_answered(error))
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http URL has a path").extend(path);
        let request = self.http.request(method, url);
        match &self.key {
            Some(key) => request.header(AUTHORIZATION, key.clone()),
            None => request,
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<Answer<T>, Failure> {
        let response = request.send().await.map_err(|error| self.not_answered(error))?;
        let response = self.accepted(response).await?;
        let body = self.body(response).await?;
        let nonsense = |cause: serde_json::Error| Failure::Nonsense {
            base: self.base.to_string(),
            cause: cause.to_string(),
        };
        let json: Value = serde_json::from_slice(&body).map_err(nonsense)?;
        let value = T::deserialize(&json).map_err(nonsense)?;
        Ok(Answer { value, json })
    }

    /// The response if it is a success, else what its status, headers and body say.
    async fn accepted(&self, response: Response) -> Result<Response, Failure> {
        if response.status().is_success() {
            return Ok(response);
        }
        let (status, headers) = (response.status(), response.headers().clone());
        // A connection that breaks off after the status still leaves the status to report.
        let body = self.body(response).await.unwrap_or_default();
        Err(Failure::refusal(status, &headers, &body, &self.base, self.key.is_some()))
    }

    async fn body(&self, response: Response) -> Result<Vec<u8>, Failure> {
        let mut stream = response.bytes_stream();
        let mut body = Vec::new();
        while let Some(chunk) =
            tokio::time::timeout(self.silence, stream.next()).await.map_err(|_| self.silent())?
        {
            let chunk = chunk.map_err(|error| self.not_answered(error))?;
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(Failure::Nonsense {
                    base: self.base.to_string(),
                    cause: format!("it is longer than {} MiB", MAX_ANSWER_BYTES >> 20),
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn not_answered(&self, error: reqwest::Error) -> Failure {
        Failure::from_transport(&error, &self.base)
    }

    fn silent(&self) -> Failure {
        Failure::Silent { base: self.base.to_string(), limit: self.silence }
    }
}

fn base_url(given: &str) -> anyhow::Result<Url> {
    let given = given.trim();
    let text = if given.is_empty() { DEFAULT_URL } else { given };
    // The value is not repeated where it cannot be read: it may hold a password.
    let Ok(mut url) = Url::parse(text) else {
        bail!("LONGSHORE_URL (or `--url`) is not a URL: it should look like `http://host:4700`");
    };
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        bail!("LONGSHORE_URL should look like `http://host:4700` or `https://host`");
    }
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "LONGSHORE_URL holds a name or a password: the key belongs into LONGSHORE_API_KEY"
    );
    ensure!(
        url.query().is_none() && url.fragment().is_none(),
        "LONGSHORE_URL ends in a query or a fragment: it should look like `http://host:4700`"
    );
    let path = url.path().trim_end_matches('/');
    let path = if path.ends_with("/v1") { path.to_owned() } else { format!("{path}/v1") };
    url.set_path(&path);
    Ok(url)
}

fn authorization(key: &SecretString) -> anyhow::Result<Option<HeaderValue>> {
    let key = key.expose_secret().trim();
    if key.is_empty() {
        return Ok(None);
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
        .map_err(|_| anyhow::anyhow!("LONGSHORE_API_KEY holds a character that no key has"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
