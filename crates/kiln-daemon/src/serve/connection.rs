//! One connection: its requests, and the watch over how long it may take for what.
//!
//! ```text
//!          ┌────────── the first byte of the next request ──────────┐
//!          ▼                                                        │
//!  Head (10 s, then cut) ─ request whole ─► Busy (no limit here) ─ answer sent ─► Idle (90 s, then closed)
//! ```
//! hyper's own limit on headers also runs between requests, and clients that poll every ten seconds would meet it: a
//! POST on a connection that closes at that moment is lost.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::body::{Answer, Steady};
use super::stream::Watched;
use super::{Closing, IdentityOnly, Peer};

/// How long a connection may take for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub handshake: Duration,
    pub head: Duration,
    pub idle: Duration,
    /// Between two pieces of a request's body.
    pub body: Duration,
    /// While the other end takes nothing of an answer.
    pub write_stall: Duration,
    /// For requests in flight when the server shuts down.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            // Longer than clients' polling, and than their own idea of idle (urllib3 has none).
            idle: Duration::from_secs(90),
            body: Duration::from_secs(30),
            write_stall: Duration::from_secs(60),
            grace: Duration::from_secs(10),
        }
    }
}

/// Bytes of a request's line and headers. Tokens have 1 KiB; azure-core sends some 20 headers.
const MAX_HEAD: usize = 64 * 1024;
const MAX_STREAMS: u32 = 100;
/// A ping on HTTP/2 finds peers that are gone.
const PING_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// What all connections of a listener have in common.
#[derive(Clone)]
pub(super) struct Common {
    pub router: Router,
    pub limits: Limits,
    pub closing: CancellationToken,
    /// Ticks when places run out: whoever is idle goes.
    pub pressure: watch::Receiver<u64>,
    pub identity_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Busy(usize),
    Idle,
}

/// Where a connection is. Clones are the same one.
#[derive(Clone)]
pub(super) struct Phases {
    phase: Arc<watch::Sender<Phase>>,
    protocol: Protocol,
}

/// A request in flight.
pub(super) struct Busy(Phases);

impl Phases {
    fn new(protocol: Protocol) -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Head)), protocol }
    }

    pub(super) fn bytes_came(&self) {
        // On HTTP/2, bytes are pings and windows, too.
        let begins = self.protocol == Protocol::Http1;
        self.phase.send_if_modified(|phase| {
            let head = begins && *phase == Phase::Idle;
            if head {
                *phase = Phase::Head;
            }
            head
        });
    }

    fn awaits_head(&self) -> bool {
        *self.phase.borrow() == Phase::Head
    }

    fn request(&self) -> Busy {
        self.phase.send_modify(|phase| {
            *phase = match *phase {
                Phase::Busy(others) => Phase::Busy(others + 1),
                Phase::Head | Phase::Idle => Phase::Busy(1),
            };
        });
        Busy(self.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.phase.send_modify(|phase| {
            *phase = match *phase {
                Phase::Busy(requests) if requests > 1 => Phase::Busy(requests - 1),
                _ => Phase::Idle,
            };
        });
    }
}

/// Why the watch ends a connection.
enum Verdict {
    /// It says no more than it has said.
    Cut,
    Close,
}

/// Returns when a phase has lasted too long.
async fn watch_over(mut phase: watch::Receiver<Phase>, limits: Limits) -> Verdict {
    loop {
        let now = *phase.borrow_and_update();
        let (limit, verdict) = match now {
            Phase::Head => (limits.head, Verdict::Cut),
            Phase::Idle => (limits.idle, Verdict::Close),
            Phase::Busy(_) => {
                let _ = phase.changed().await;
                continue;
            }
        };
        // The sender lives as long as the connection does, and this does not outlive it.
        if tokio::time::timeout(limit, phase.changed()).await.is_err() {
            return verdict;
        }
    }
}

/// Serves a connection to its end.
pub(super) async fn serve<S>(stream: S, protocol: Protocol, peer: Peer, common: Common)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Common { router, limits, closing, mut pressure, identity_only } = common;
    // What was wanted of others before is not wanted of this one.
    pressure.mark_unchanged();
    let phases = Phases::new(protocol);
    let current = phases.clone();
    let watch = watch_over(phases.phase.subscribe(), limits);
    let io = TokioIo::new(Watched::new(stream, phases.clone(), limits));
    let inner = closing.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let busy = phases.request();
        let mut request = request.map(|body| Body::new(Steady::new(body, limits.body)));
        let extensions = request.extensions_mut();
        extensions.insert(peer.clone());
        extensions.insert(Closing(inner.clone()));
        if identity_only {
            extensions.insert(IdentityOnly);
        }
        // A router is always ready.
        let answer = router.clone().call(request);
        async move {
            let response = answer.await?;
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, busy)))
        }
    });
    // Two types that differ in nothing but their protocol: the loop below is written once.
    macro_rules! attend {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            let mut watch = std::pin::pin!(watch);
            let (mut told, mut watched) = (false, true);
            loop {
                tokio::select! {
                    ended = connection.as_mut() => {
                        if let Err(error) = ended {
                            tracing::debug!("a connection ended: {error}");
                        }
                        break;
                    }
                    verdict = watch.as_mut(), if watched => match verdict {
                        Verdict::Cut => {
                            tracing::debug!("a connection was cut: its headers did not come");
                            break;
                        }
                        Verdict::Close => {
                            watched = false;
                            connection.as_mut().graceful_shutdown();
                        }
                    },
                    () = closing.cancelled(), if !told => {
                        told = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    _ = pressure.changed(), if !told => {
                        // Whose first request is under way has the limit on headers.
                        if !current.awaits_head() {
                            told = true;
                            connection.as_mut().graceful_shutdown();
                        }
                    }
                }
            }
        }};
    }
    match protocol {
        Protocol::Http1 => attend!(
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .max_header_size(MAX_HEAD)
                .max_buf_size(2 * MAX_HEAD)
                .serve_connection(io, service)
        ),
        Protocol::Http2 => attend!(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(MAX_HEAD as u32)
                .keep_alive_interval(PING_EVERY)
                .serve_connection(io, service)
        ),
    }
}
