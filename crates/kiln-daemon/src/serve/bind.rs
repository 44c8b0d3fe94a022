//! Sockets that are bound, and the file that says where.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kiln_host::publish;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket};

use super::ServeError;
use super::socket::SocketFile;
use crate::config::{Config, Environment, Listen, Names};
use crate::daemon::Paths;
use crate::tls::Tls;

/// Connections the kernel keeps for us until there is room.
const BACKLOG: u32 = 256;
/// Of `endpoint.json`.
const FORMAT: u32 = 1;

/// What to listen on, beside the configuration.
#[derive(Debug, Clone)]
pub struct ListenSettings {
    /// Where the Unix socket goes when `socket.path` does not say; none for no Unix socket then.
    pub default_socket: Option<PathBuf>,
    /// false: the Unix socket alone (a command that embeds the daemon).
    pub tcp: bool,
}

/// Sockets that are bound and not served yet.
pub struct Listeners {
    pub(super) tcp: Vec<TcpListener>,
    pub(super) identity: Option<TcpListener>,
    pub(super) unix: Option<SocketFile>,
    pub(super) tls: Option<Tls>,
    pub(super) endpoint: PathBuf,
    pub(super) names: Names,
}

/// `server/endpoint.json`: where a server serves by TCP, while it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    format: u32,
    pub url: String,
    pub pid: u32,
}

impl Listeners {
    /// Binds all that the configuration asks for; what cannot be bound ends it. The folder of the Unix socket must
    /// exist. Makes the certificate authority where TCP needs it.
    ///
    /// # Errors
    /// Each says what to do.
    pub async fn bind(
        config: &Config,
        paths: &Paths,
        environment: &Environment,
        settings: ListenSettings,
    ) -> Result<Self, ServeError> {
        let names = environment.names.clone();
        let mut tcp = Vec::new();
        if settings.tcp {
            for listen in &config.listen {
                tcp.extend(bind_all(listen).await?);
            }
        }
        let http = config.access.managed_identity.http.filter(|_| settings.tcp);
        let identity = match http {
            Some(port) => Some(bind_one(SocketAddr::from(([127, 0, 0, 1], port)))?),
            None => None,
        };
        let tls = if tcp.is_empty() {
            None
        } else {
            let (server, config, names) = (paths.server(), config.clone(), names.clone());
            let opened = tokio::task::spawn_blocking(move || Tls::open(&server, &config, &names)).await;
            Some(opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
        };
        let path = config.socket.path.clone().or(settings.default_socket);
        let unix = match path {
            Some(path) => {
                Some(SocketFile::bind(&path, config.socket.permissions(), config.socket.group.as_deref())?)
            }
            None => None,
        };
        if let Some(address) = tcp.first().and_then(|listener| listener.local_addr().ok()) {
            names.listening_on(address.port());
        }
        Ok(Self { tcp, identity, unix, tls, endpoint: endpoint_path(&paths.server()), names })
    }

    /// Addresses of the TCP listeners, as bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Where the plain http port of the managed identity is.
    pub fn identity_address(&self) -> Option<SocketAddr> {
        self.identity.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    pub fn socket(&self) -> Option<&Path> {
        self.unix.as_ref().map(SocketFile::path)
    }

    /// Our own authority's certificate, where TCP uses it.
    pub fn ca_file(&self) -> Option<&Path> {
        self.tls.as_ref().and_then(Tls::ca_file)
    }

    pub(super) fn write_endpoint(&self) -> Result<(), ServeError> {
        if self.tcp.is_empty() {
            return Ok(());
        }
        let endpoint = Endpoint { format: FORMAT, url: self.names.url(), pid: std::process::id() };
        let failed = |source| ServeError::Endpoint { path: self.endpoint.clone(), source };
        let text =
            serde_json::to_string_pretty(&endpoint).map_err(|error| failed(io::Error::other(error)))?;
        publish::write_file(&self.endpoint, format!("{text}\n").as_bytes(), 0o644).map_err(failed)
    }
}

fn endpoint_path(server_dir: &Path) -> PathBuf {
    server_dir.join("endpoint.json")
}

/// Where a server of this folder said that it serves; nothing where none does, or by a newer file.
pub fn read_endpoint(server_dir: &Path) -> Option<Endpoint> {
    let bytes = std::fs::read(endpoint_path(server_dir)).ok()?;
    let endpoint: Endpoint = serde_json::from_slice(&bytes).ok()?;
    (endpoint.format <= FORMAT).then_some(endpoint)
}

/// A name may have several addresses (localhost has two): all of those that this host really has.
async fn bind_all(listen: &Listen) -> Result<Vec<TcpListener>, ServeError> {
    let failed = |source| ServeError::Bind { address: listen.to_string(), source };
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((listen.host.as_str(), listen.port)).await.map_err(failed)?.collect();
    let mut bound: Vec<TcpListener> = Vec::new();
    let mut missing = None;
    for mut address in addresses {
        if listen.port == 0
            && let Some(Ok(first)) = bound.first().map(TcpListener::local_addr)
        {
            address.set_port(first.port());
        }
        match bind_one(address) {
            Ok(listener) => bound.push(listener),
            Err(ServeError::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrNotAvailable => {
                missing = Some(source);
            }
            Err(error) => return Err(error),
        }
    }
    match (bound.is_empty(), missing) {
        (true, missing) => Err(failed(missing.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))),
        _ => Ok(bound),
    }
}

fn bind_one(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for the connections of its predecessor to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| ServeError::Bind { address: address.to_string(), source })
}

/// Removes the file of a server that ends, not that of its successor.
pub(super) fn remove_endpoint(path: &Path) {
    let ours =
        path.parent().and_then(read_endpoint).is_some_and(|endpoint| endpoint.pid == std::process::id());
    if ours && let Err(error) = std::fs::remove_file(path) {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}
