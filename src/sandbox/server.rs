//! Accepting connections and serving HTTP/1.1 on them.
//!
//! The connections are our own, rather than a framework's, since a fault may have to end one
//! without an answer: a service that returns an error has its connection closed.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::account::Accounts;
use super::answer::{Answer, AnswerBody, Closed, Pace};
use super::routes::Route;
use super::{call, control, openai};

/// Connections open at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 16_384;

const MAX_HEADERS: usize = 100;

/// Bounds the head of a request, and what is read of its body at a time.
const MAX_BUFFER_BYTES: usize = 256 << 10;

/// Until the head of the next request must have arrived. Longer than clients keep an idle
/// connection, so that it is theirs to close.
const MAX_IDLE: Duration = Duration::from_mins(5);

/// The wait after a connection could not be accepted, mostly for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Serves until `stop`. The connections end with it and are counted in `tasks`.
pub(super) async fn accept(
    listener: TcpListener,
    accounts: Arc<Accounts>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accepting = async {
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = serve_connection(stream, Arc::clone(&accounts));
                    let stopped = stop.clone().cancelled_owned();
                    tasks.spawn(async move {
                        tokio::select! {
                            () = connection => {}
                            () = stopped => {}
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
}

async fn serve_connection(stream: TcpStream, accounts: Arc<Accounts>) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "the client hung up at once");
        return;
    }
    let service = service_fn(move |request| serve(Arc::clone(&accounts), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(MAX_IDLE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "a connection ended early");
    }
}

async fn serve(
    accounts: Arc<Accounts>,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Closed> {
    let (parts, body) = request.into_parts();
    let answer = match Route::of(&parts.method, parts.uri.path()) {
        Route::Provider { account, target } => match accounts.named_by_client(account) {
            Some(account) => return call::answer(account, target, &parts, body).await,
            None => too_many_accounts(),
        },
        Route::Control { account, rest } => match accounts.named_by_client(account) {
            Some(account) => control::answer(account, &parts.method, rest, body).await?,
            None => too_many_accounts(),
        },
        Route::Nowhere => openai::unknown_path(parts.uri.path()),
    };
    Ok(answer.into_response(Pace::AtOnce))
}

fn too_many_accounts() -> Answer {
    let message = "there are too many accounts, use one of those";
    Answer::refusal(StatusCode::NOT_FOUND, message, None, None)
}
