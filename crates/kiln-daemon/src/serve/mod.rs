//! Listeners, limits, connections.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::config::{Config, Environment};
use crate::daemon::Paths;
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

/// Sockets that are bound and not served yet.
pub struct Listeners {}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {address}: {advice}")]
    Bind {
        address: String,
        advice: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What to listen on, beside the configuration.
#[derive(Debug, Clone)]
pub struct ListenSettings {
    /// Where the Unix socket goes when `socket.path` does not say; none for no Unix socket then.
    pub default_socket: Option<PathBuf>,
    /// false: the Unix socket alone (a command that embeds the daemon).
    pub tcp: bool,
}

impl Listeners {
    /// Binds all; what cannot be bound ends it.
    pub async fn bind(
        config: &Config,
        paths: &Paths,
        environment: &Environment,
        settings: ListenSettings,
    ) -> Result<Self, ServeError> {
        let _ = (config, paths, environment, settings);
        todo!()
    }

    /// Addresses of the TCP listeners, as bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        todo!()
    }

    pub fn socket(&self) -> Option<&Path> {
        todo!()
    }

    /// Our own authority's certificate, where TCP uses it.
    pub fn ca_file(&self) -> Option<&Path> {
        todo!()
    }
}

/// Serves until `shutdown`; then requests in flight get ten seconds. Writes `server/endpoint.json` for as long.
pub async fn run(
    listeners: Listeners,
    router: axum::Router,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let _ = (listeners, router, shutdown);
    todo!()
}
