//! The listener: HTTP/1.1 with bounded connections and headers, and an end that lets requests finish.

mod connections;
mod patient;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::Service as _;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connections::Connections;
use self::connections::Place;
use self::patient::Patient;

/// Connections at the same time. Who comes later takes the place of one that rests between requests;
/// where none does, it waits in the listener's backlog.
const MAX_CONNECTIONS: usize = 25_000;
/// How long a client may take for its headers, and how long a connection may rest between requests.
const HEADER_TIME: Duration = Duration::from_secs(75);
/// What hyper reads before it refuses by itself. `limits` refuses earlier, and in the API's form.
const MAX_HEADERS: usize = 200;
/// The buffer of a connection, and so the limit of its headers all together.
const BUFFER: usize = 64 * 1024;
/// How long to rest when no connection can be accepted, as when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection that is told to close may go on without a request being under way.
const PARTING: Duration = Duration::from_secs(2);

/// Lets this process have as many files and sockets open as it ever may.
pub fn take_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(error = %error, "could not raise the limit of open files");
    }
}

/// Connections at the same time, by what may be open: a quarter of that is left for blobs, the
/// database and the providers.
pub fn max_connections() -> usize {
    let open = getrlimit(Resource::Nofile).current;
    let open = open.and_then(|open| usize::try_from(open).ok()).unwrap_or(usize::MAX);
    (open / 4 * 3).clamp(1, MAX_CONNECTIONS)
}

/// Serves until `shutdown`, then lets running requests end, for `drain` at most.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) {
    let closing = CancellationToken::new();
    let connections = Connections::new(max_connections(), closing.clone());
    let tasks = TaskTracker::new();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(BUFFER);
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, place)) => {
                tasks.spawn(attend(builder.clone(), stream, router.clone(), place));
            }
            Err(error) => {
                tracing::warn!(error = %error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    closing.cancel();
    tasks.close();
    if timeout(drain, tasks.wait()).await.is_err() {
        tracing::warn!("some requests had not ended when the time to drain was over");
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Connections,
) -> std::io::Result<(TcpStream, Place)> {
    let place = connections.take().await;
    let (stream, _) = listener.accept().await?;
    // Small answers go at once; a socket that does not take the option is no worse for it.
    drop(stream.set_nodelay(true));
    Ok((stream, place))
}

/// Serves one connection to its end.
async fn attend(builder: http1::Builder, stream: TcpStream, router: Router, place: Place) {
    let router = TowerToHyperService::new(router);
    let requests = place.requests();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (busy, answer) = (requests.begin(), router.call(request));
        async move { Ok::<Response<_>, Infallible>(busy.until_sent(answer.await?)) }
    });
    let io = TokioIo::new(Patient::new(stream));
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = place.told_to_close() => None,
    };
    if ended.is_none() {
        connection.as_mut().graceful_shutdown();
    }
    while ended.is_none() {
        let rest = place.rest();
        ended = match timeout(PARTING, connection.as_mut()).await {
            Ok(ended) => Some(ended),
            // No request is under way, and none was: it is some bytes of a head, or nothing.
            Err(_) if rest.is_some() && place.rest() == rest => Some(Ok(())),
            Err(_) => None,
        };
    }
    if let Some(Err(error)) = ended {
        tracing::debug!(error = %error, "a connection ended early");
    }
}
