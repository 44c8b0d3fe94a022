//! Accepting: a place for each connection, and the end of all of them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::bind::{Listeners, remove_endpoint};
use super::connection::{Common, Limits, Protocol, serve};
use super::socket::SocketFile;
use super::{Peer, ServeError};

/// Connections at a time, and how many of them may come over TCP.
const PLACES: usize = 256;
const TCP_PLACES: usize = 240;
/// Connections become idle without telling who waits for a place: asked again at this distance.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// When a connection cannot be accepted for lack of descriptors, one has to be closed first, of which there is no event.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);
/// How long TCP waits on a silent peer before it asks whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Serves until `shutdown`; then requests in flight get ten seconds. Writes `server/endpoint.json` for as long as TCP is
/// served.
///
/// # Errors
/// Only before the first connection.
pub async fn run(
    listeners: Listeners,
    router: Router,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    run_with(listeners, router, shutdown, Limits::default(), Places::new(PLACES, TCP_PLACES)).await
}

/// Room for connections.
#[derive(Clone)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    tcp: Arc<Semaphore>,
    pressure: Arc<watch::Sender<u64>>,
}

/// A connection's place, until dropped.
struct Place {
    _all: OwnedSemaphorePermit,
    _tcp: Option<OwnedSemaphorePermit>,
}

impl Places {
    pub(super) fn new(all: usize, tcp: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            tcp: Arc::new(Semaphore::new(tcp)),
            pressure: Arc::new(watch::Sender::new(0)),
        }
    }

    async fn take(&self, tcp: bool) -> Place {
        let tcp = if tcp { Some(self.one_of(&self.tcp).await) } else { None };
        Place { _all: self.one_of(&self.all).await, _tcp: tcp }
    }

    async fn one_of(&self, places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
                return permit;
            }
            self.pressure.send_modify(|times| *times += 1);
            // The semaphores are never closed.
            if let Ok(Ok(permit)) = tokio::time::timeout(ASK_AGAIN, Arc::clone(places).acquire_owned()).await
            {
                return permit;
            }
        }
    }
}

pub(super) async fn run_with(
    listeners: Listeners,
    router: Router,
    shutdown: CancellationToken,
    limits: Limits,
    places: Places,
) -> Result<(), ServeError> {
    listeners.write_endpoint()?;
    let Listeners { tcp, identity, unix, tls, endpoint, names: _ } = listeners;
    let served = !tcp.is_empty();
    let common = |identity_only| Common {
        router: router.clone(),
        limits,
        closing: shutdown.clone(),
        pressure: places.pressure.subscribe(),
        identity_only,
    };
    let mut doors = JoinSet::new();
    if let Some(tls) = tls {
        for listener in tcp {
            let acceptor = TlsAcceptor::from(tls.server());
            doors.spawn(attend(Door::Tls(listener, acceptor), common(false), places.clone()));
        }
    }
    if let Some(listener) = identity {
        doors.spawn(attend(Door::Identity(listener), common(true), places.clone()));
    }
    if let Some(socket) = unix {
        doors.spawn(attend(Door::Unix(socket), common(false), places.clone()));
    }
    // With nothing to listen on there is still something to wait for.
    shutdown.cancelled().await;
    if served {
        remove_endpoint(&endpoint);
    }
    while let Some(ended) = doors.join_next().await {
        if let Err(error) = ended {
            tracing::error!("a listener ended badly: {error}");
        }
    }
    Ok(())
}

enum Door {
    Tls(TcpListener, TlsAcceptor),
    Identity(TcpListener),
    Unix(SocketFile),
}

/// One listener, until the shutdown and its connections' end.
async fn attend(door: Door, common: Common, places: Places) {
    let mut connections = JoinSet::new();
    let closing = common.closing.clone();
    let over_tcp = !matches!(door, Door::Unix(_));
    while !closing.is_cancelled() {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            // Ended ones are taken out as they end: the set does not grow with the days.
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                report(ended);
                continue;
            }
            accepted = door.accept() => accepted,
        };
        match accepted {
            Ok(incoming) => {
                // One waits here, the others in the kernel's queue.
                let place = tokio::select! {
                    () = closing.cancelled() => break,
                    place = places.take(over_tcp) => place,
                };
                let common = common.clone();
                connections.spawn(async move {
                    let _place = place;
                    incoming.serve(common).await;
                });
            }
            // The other end has gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
            }
        }
    }
    // No longer to be found, for a successor's sake.
    drop(door);
    let all = async {
        while let Some(ended) = connections.join_next().await {
            report(ended)
        }
    };
    if tokio::time::timeout(common.limits.grace, all).await.is_err() {
        tracing::info!("connections still open were cut off: {}", connections.len());
        connections.shutdown().await;
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection ended badly");
    }
}

enum Incoming {
    Tls(TcpStream, Peer, TlsAcceptor),
    Plain(TcpStream, Peer),
    Unix(tokio::net::UnixStream, Peer),
}

impl Door {
    async fn accept(&self) -> io::Result<Incoming> {
        match self {
            Self::Tls(listener, acceptor) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Incoming::Tls(stream, Peer::Tcp(peer), acceptor.clone()))
            }
            Self::Identity(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Incoming::Plain(stream, Peer::Tcp(peer)))
            }
            Self::Unix(socket) => {
                let stream = socket.accept().await?;
                let credentials = stream.peer_cred()?;
                let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
                Ok(Incoming::Unix(stream, Peer::Unix { uid: credentials.uid(), pid }))
            }
        }
    }
}

impl Incoming {
    async fn serve(self, common: Common) {
        match self {
            Self::Tls(stream, peer, acceptor) => {
                prepare(&stream);
                let limit = common.limits.handshake;
                let stream = match tokio::time::timeout(limit, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return tracing::debug!("a TLS handshake failed: {error}"),
                    Err(_) => return tracing::debug!("a TLS handshake took too long"),
                };
                let protocol = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Protocol::Http2,
                    _ => Protocol::Http1,
                };
                serve(stream, protocol, peer, common).await;
            }
            Self::Plain(stream, peer) => {
                prepare(&stream);
                serve(stream, Protocol::Http1, peer, common).await;
            }
            Self::Unix(stream, peer) => serve(stream, Protocol::Http1, peer, common).await,
        }
    }
}

/// Answers are small and awaited; peers that vanished are found.
fn prepare(stream: &TcpStream) {
    let set = || -> io::Result<()> {
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_keepalive(stream, true)?;
        rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
        Ok(())
    };
    if let Err(error) = set() {
        tracing::debug!("cannot set options of a connection: {error}");
    }
}
