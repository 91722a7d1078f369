//! Sets up the connection to a provider, or says why no call with these settings could succeed.

use std::time::Duration;

use reqwest::{Client, Url};

const CONNECT: Duration = Duration::from_secs(10);
/// Shorter than most servers allow, so that an idle connection is rarely closed under a request.
const IDLE: Duration = Duration::from_secs(30);
const MAX_IDLE: usize = 32;

/// A provider that cannot be called with these settings.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    // The text is not quoted: what is wrong with it may be a password inside.
    #[error(
        "`base_url` of provider `{provider}` must be an http or https URL without user, query and fragment, \
         such as `https://api.openai.com/v1`"
    )]
    BaseUrl { provider: String },
    #[error("`api_key` of provider `{provider}` must be visible ASCII characters without spaces")]
    ApiKey { provider: String },
    #[error("`timeout` of provider `{provider}` must be more than zero, such as `120s`")]
    Timeout { provider: String },
    #[error(
        "cannot set up TLS for provider `{provider}`: are the system's root certificates installed?"
    )]
    Tls {
        provider: String,
        #[source]
        source: reqwest::Error,
    },
}

/// A client for calls below `base`.
pub(super) fn build(provider: &str, base: &Url) -> Result<Client, BuildError> {
    let builder = Client::builder()
        .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        .tcp_nodelay(true)
        // One request at a time on a connection: what it takes, and its loss, are about that request alone.
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy();
    let builder = match base.scheme() {
        "https" => builder.https_only(true),
        // The system's certificates are not needed, and may not be there.
        _ => builder.tls_certs_only([]),
    };
    builder.build().map_err(|source| BuildError::Tls {
        provider: provider.to_owned(),
        source: source.without_url(),
    })
}

/// The base URL as it was configured for `provider`.
pub(super) fn base_url(provider: &str, text: &str) -> Result<Url, BuildError> {
    Url::parse(text)
        .ok()
        .filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        })
        .ok_or_else(|| BuildError::BaseUrl { provider: provider.to_owned() })
}
