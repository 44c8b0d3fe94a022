//! The daemon: all its rooms, opened in order, under one lock.
//!
//! ```text
//!  lock ─► store ─► templates (cut-off creations go on) ─► runs (live workers are followed, dead ones settled) ─► Daemon
//! ```
//! INVARIANT: one process owns the store: it holds `server/lock`. A second one is told who has it.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kiln_host::lock::FileLock;

use crate::access::{Access, AccessError};
use crate::config::{Config, Environment, EnvironmentError};
use crate::store::{ResourceGroupRecord, Store, StoreError};

/// Where a daemon keeps what; all below one data folder.
#[derive(Debug, Clone)]
pub struct Paths {
    data: PathBuf,
}

impl Paths {
    pub fn new(data: PathBuf) -> Self {
        Self { data }
    }
    pub fn data(&self) -> &Path {
        &self.data
    }
    pub fn library(&self) -> PathBuf {
        self.data.join("library")
    }
    /// A run directory for each run.
    pub fn runs(&self) -> PathBuf {
        self.data.join("runs")
    }
    /// A folder for each run: what it distributed.
    pub fn artifacts(&self) -> PathBuf {
        self.data.join("artifacts")
    }
    /// The daemon's own: private to its user.
    pub fn server(&self) -> PathBuf {
        self.data.join("server")
    }
    pub fn lock(&self) -> PathBuf {
        self.server().join("lock")
    }
    pub fn database(&self) -> PathBuf {
        self.server().join("kiln.db")
    }
}

/// All the rooms of a server. The lock on its data is held as long as this lives.
pub struct Daemon {
    pub config: Config,
    pub paths: Paths,
    pub environment: Environment,
    pub access: Access,
    pub store: Store,
    /// For how long it is up.
    pub opened_at: Instant,
    _lock: FileLock,
}

/// What a daemon is opened with.
#[derive(Debug, Clone)]
pub struct DaemonSettings {
    pub paths: Paths,
    pub config: Config,
}

/// The daemon cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another process serves {}: stop it, or talk to it", .0.display())]
    Held(PathBuf),
    #[error("cannot make the folder {}", .path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("cannot lock {}", .path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the program is shutting down")]
    Closed,
}

impl Daemon {
    /// Opens all rooms in order; makes what is missing.
    ///
    /// # Errors
    /// [`OpenError::Held`] where another process has the data; nothing was touched then.
    pub async fn open(settings: DaemonSettings) -> Result<Arc<Self>, OpenError> {
        let DaemonSettings { paths, config } = settings;
        let opening = tokio::task::spawn_blocking(move || Self::open_files(paths, config));
        let daemon = opening.await.map_err(|_| OpenError::Closed)??;
        daemon.ensure_resource_groups().await?;
        Ok(Arc::new(daemon))
    }

    fn open_files(paths: Paths, config: Config) -> Result<Self, OpenError> {
        let server = paths.server();
        let folder = |path: &Path, mode| {
            let made = DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(|source| OpenError::Folder { path: path.to_owned(), source })
        };
        folder(paths.data(), 0o755)?;
        folder(&server, 0o700)?;
        let lock = FileLock::try_exclusive(paths.lock())
            .map_err(|source| OpenError::Lock { path: paths.lock(), source })?
            .ok_or_else(|| OpenError::Held(paths.data().to_owned()))?;
        let environment = Environment::open(&server, &config)?;
        let access = Access::open(&server, &config, &environment)?;
        let store = Store::open(&paths.database())?;
        Ok(Self { config, paths, environment, access, store, opened_at: Instant::now(), _lock: lock })
    }

    /// The resource groups of the configuration are there, in every subscription.
    async fn ensure_resource_groups(&self) -> Result<(), StoreError> {
        let wanted: Vec<ResourceGroupRecord> = self
            .environment
            .subscriptions
            .iter()
            .flat_map(|subscription| {
                self.environment.resource_groups.iter().map(|name| ResourceGroupRecord {
                    subscription: subscription.id.clone(),
                    name: name.clone(),
                    location: self.environment.location.clone(),
                    tags: serde_json::Map::new(),
                })
            })
            .collect();
        self.store
            .write(move |store| {
                for group in &wanted {
                    if store.resource_group(&group.subscription, &group.name)?.is_none() {
                        store.put_resource_group(group)?;
                    }
                }
                Ok(())
            })
            .await
    }
}
