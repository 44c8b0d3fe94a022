//! Listeners, limits, connections.
//!
//! ```text
//!  TCP ─► a place (240 of 256) ─► TLS handshake, 10 s ─┐
//!  Unix socket ─► a place (of 256) ────────────────────┼─► HTTP/1.1 or 2 ─► router, with who is there as an extension
//!  127.0.0.1, plain http (a setting) ─► a place ───────┘        │
//!                                                               └─ a watch over it: headers within 10 s, 90 s idle,
//!                                                                  30 s without a byte of a body, 60 s of not reading
//! ```
//! TCP is always TLS, but for the one port that gives tokens to this host's own clients ([`IdentityOnly`]). Some places
//! are kept for the Unix socket, so that the local command gets in whatever the network does. When there is none left,
//! idle connections are closed, and new ones wait in the kernel's queue.
//!
//! Shutting down: no new connections, requests in flight get ten seconds, endless answers are told by [`Closing`].
//! What then still runs is cut off.

mod accept;
mod bind;
mod body;
mod connection;
mod socket;
mod stream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

pub use self::accept::run;
pub use self::bind::{Endpoint, ListenSettings, Listeners, read_endpoint};
use crate::tls::TlsError;

/// Who is at the other end; an extension of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix { uid: u32, pid: Option<u32> },
}

impl Peer {
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip()),
            Self::Unix { .. } => None,
        }
    }
}

/// An extension of requests that came to the plain http port of `access.managedIdentity.http`: nothing but
/// `/msi/token` may be answered there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentityOnly;

/// An extension of every request: cancelled when the server shuts down. An answer without an end ends itself then, in
/// its own way, before it is cut off.
#[derive(Debug, Clone)]
pub struct Closing(pub CancellationToken);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {}", advice(.source))]
    Bind {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot make the socket {}: another server answers on it. Stop that one, or choose another path with --socket",
        .path.display()
    )]
    SocketInUse { path: PathBuf },
    #[error("cannot make the socket {}: something else is there. Remove it, or choose another path with --socket", .path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot {act} the socket {}", .path.display())]
    Socket {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no group {group:?} on this host (socket.group): create it, or write its number")]
    NoGroup { group: String },
    #[error("cannot write {}", .path.display())]
    Endpoint {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program has this port. Stop it, or choose another with --listen HOST:PORT"
        }
        io::ErrorKind::AddrNotAvailable => "this host has no such address. Name one that it has",
        io::ErrorKind::PermissionDenied => "ports below 1024 are for root. Choose a higher one",
        _ => "see below; --listen HOST:PORT chooses another address",
    }
}

#[cfg(test)]
mod tests;
