//! The server of the data folder when nobody else is it: this process.
//!
//! ```text
//!  somebody listens at the folder's socket? ── yes ─► talk to them
//!        │ no
//!        ▼
//!  take the folder's lock ── held ─► they are about to listen, or to end: look again
//!        │ taken
//!        ▼
//!  open the daemon, listen at that socket, talk to it through it
//! ```
//! Two commands at once meet at the socket; when the one that serves it ends, the other takes
//! over. Workers belong to neither: they go on, and the next owner of the lock follows them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_daemon::config::Config;
use tokio::sync::Mutex;

use super::find::reachable;
use crate::server::{Opened, Server, ServerError};
use crate::settings::{Environment, Folders};

/// A daemon starts in under a second; a loaded host takes longer.
const LIMIT: Duration = Duration::from_secs(10);
/// Nothing tells when a lock is let go by a process that ends, or a socket begins to listen.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("another process holds {} and does not listen at {}: name its address with --server", .lock.display(), .socket.display())]
    Held { lock: PathBuf, socket: PathBuf },
    #[error(transparent)]
    Server(#[from] ServerError),
}

pub struct Local {
    environment: Environment,
    config: Config,
    folders: Folders,
    /// The server, while it is this process.
    own: Mutex<Option<Server>>,
}

impl Local {
    pub fn new(environment: &Environment, config: Config, folders: Folders) -> Self {
        Self { environment: environment.clone(), config, folders, own: Mutex::new(None) }
    }

    /// Makes sure that somebody listens at the socket.
    pub async fn ensure_served(&self) -> Result<(), LocalError> {
        let mut own = self.own.lock().await;
        let socket = crate::server::socket(&self.config, &self.folders);
        let give_up = Instant::now() + LIMIT;
        loop {
            if reachable(&socket).await {
                return Ok(());
            }
            // Ours listens until it is ended: one that does not was cut down, and is ended first.
            if let Some(dead) = own.take() {
                dead.end().await;
            }
            match Opened::open(&self.environment, self.config.clone(), &self.folders).await {
                Ok(opened) => {
                    *own = Some(opened.serve_socket_only(&self.folders).await?);
                    tracing::info!(socket = %socket.display(), "no server runs: this command is it for now");
                    return Ok(());
                }
                Err(ServerError::Held { lock }) if Instant::now() >= give_up => {
                    return Err(LocalError::Held { lock, socket });
                }
                Err(ServerError::Held { .. }) => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ends what this process serves. Workers go on.
    pub async fn end(&self) {
        if let Some(server) = self.own.lock().await.take() {
            server.end().await;
        }
    }
}
