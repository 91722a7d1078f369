//! The listener: HTTP/1.1 with bounded connections and headers, and an end that lets requests finish.

mod connections;
mod patient;

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
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
use tokio::time::sleep;
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
/// How long nobody must come before the listener is closed: time enough for the kernel to hand over who has connected.
const LAST_CALL: Duration = Duration::from_millis(10);
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

/// How a server ends.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// How long it goes on taking connections, so that whoever sends it requests learns first that it ends.
    pub delay: Duration,
    /// How long requests may take to end after that.
    pub drain: Duration,
}

/// Serves until `shutdown`, and on for `ending.delay`, while it asks clients to come by another connection. Then it
/// takes no more, and lets running requests end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
    ending: Ending,
) {
    let closing = CancellationToken::new();
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(BUFFER);
    let server = Server {
        connections: Connections::new(max_connections(), closing.clone()),
        tasks: TaskTracker::new(),
        is_ending: Arc::default(),
        listener,
        builder,
        router,
    };
    server.accept_until(shutdown).await;
    server.is_ending.store(true, Ordering::Release);
    server.accept_until(sleep(ending.delay)).await;
    server.accept_the_last().await;
    let Server { listener, tasks, .. } = server;
    drop(listener);
    closing.cancel();
    tasks.close();
    if timeout(ending.drain, tasks.wait()).await.is_err() {
        tracing::warn!("some requests had not ended when the time to drain was over");
    }
}

struct Server {
    listener: TcpListener,
    connections: Connections,
    tasks: TaskTracker,
    builder: http1::Builder,
    router: Router,
    /// Whether answers ask to close the connection.
    is_ending: Arc<AtomicBool>,
}

impl Server {
    async fn accept_until(&self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            tokio::select! {
                accepted = accept(&self.listener, &self.connections) => self.take(accepted).await,
                () = end.as_mut() => return,
            }
        }
    }

    /// Takes who has connected already: the kernel would reset them with the listener, in the middle of a request.
    async fn accept_the_last(&self) {
        let accepting = async {
            while let Ok(accepted) =
                timeout(LAST_CALL, accept(&self.listener, &self.connections)).await
            {
                self.take(accepted).await;
            }
        };
        // Who comes without end is not waited for.
        drop(timeout(LAST_CALL * 10, accepting).await);
    }

    async fn take(&self, accepted: std::io::Result<(TcpStream, Place)>) {
        match accepted {
            Ok((stream, place)) => {
                let (builder, router) = (self.builder.clone(), self.router.clone());
                let is_ending = Arc::clone(&self.is_ending);
                self.tasks.spawn(attend(builder, stream, router, place, is_ending));
            }
            Err(error) => {
                tracing::warn!(error = %error, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Connections,
) -> std::io::Result<(TcpStream, Place)> {
    let (stream, _) = listener.accept().await?;
    // Not before somebody has come: whoever is closed to make room may be one who came a moment ago.
    let place = connections.take().await;
    // Small answers go at once; a socket that does not take the option is no worse for it.
    drop(stream.set_nodelay(true));
    Ok((stream, place))
}

/// Serves one connection to its end.
async fn attend(
    builder: http1::Builder,
    stream: TcpStream,
    router: Router,
    place: Place,
    is_ending: Arc<AtomicBool>,
) {
    let router = TowerToHyperService::new(router);
    let requests = place.requests();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (busy, answer) = (requests.begin(), router.call(request));
        let is_ending = Arc::clone(&is_ending);
        async move {
            let mut answer = busy.until_sent(answer.await?);
            if is_ending.load(Ordering::Acquire) {
                // Else a proxy may send the next request just when the connection is closed.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<Response<_>, Infallible>(answer)
        }
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
