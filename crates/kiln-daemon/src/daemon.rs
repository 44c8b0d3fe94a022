//! The daemon: all its rooms, opened in order, under one lock.
//!
//! ```text
//!  lock ─► store ─► templates (cut-off creations go on) ─► runs (live workers are followed, dead ones settled) ─► Daemon
//! ```
//! INVARIANT: one process owns the store: it holds `server/lock`. A second one is told who has it.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_build::run_dir::CheckpointWishes;
use kiln_host::lock::FileLock;
use kiln_library::{FetchSettings, Library, LibraryError};
use kiln_model::policy::CachePolicy;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::access::{Access, AccessError};
use crate::config::{CheckpointsConfig, Config, Environment, EnvironmentError};
use crate::executor::WorkerCommand;
use crate::gc::{self, Places, Retention};
use crate::runs::{HostBudget, Runs, RunsError, RunsSettings};
use crate::shelves::ShelvesSettings;
use crate::store::{ResourceGroupRecord, Store, StoreError};
use crate::templates::{Templates, TemplatesSettings};

/// Between a forced cancel and the end of a worker that does not heed it: as long as a guest has for its own end.
const KILL_AFTER: Duration = Duration::from_secs(10);

/// Where a daemon keeps what; all below one data folder.
#[derive(Debug, Clone)]
pub struct Paths {
    data: PathBuf,
    library: PathBuf,
}

impl Paths {
    pub fn new(data: PathBuf) -> Self {
        let library = data.join("library");
        Self { data, library }
    }
    /// With a library that lies elsewhere.
    #[must_use]
    pub fn library_at(self, library: PathBuf) -> Self {
        Self { library, ..self }
    }
    pub fn data(&self) -> &Path {
        &self.data
    }
    pub fn library(&self) -> PathBuf {
        self.library.clone()
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
    pub templates: Templates,
    pub runs: Runs,
    /// For how long it is up.
    pub opened_at: Instant,
    /// Ends what comes by itself: retention.
    upkeep: DropGuard,
    _lock: FileLock,
}

/// What a daemon is opened with. A worker's surroundings may hold a proxy's password: no `Debug`.
pub struct DaemonSettings {
    pub paths: Paths,
    pub config: Config,
    /// Where the catalog is looked for. The library is that of `paths`.
    pub shelves: ShelvesSettings,
    /// Proxies and the like; what the configuration says about inputs goes over it.
    pub fetch: FetchSettings,
    /// How `kiln worker` is started.
    pub worker: WorkerCommand,
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
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("cannot tell how much memory this host has; say it in the configuration (runs.memoryMiB)")]
    Memory(#[source] io::Error),
    #[error(transparent)]
    Runs(#[from] RunsError),
    #[error("the program is shutting down")]
    Closed,
}

impl Daemon {
    /// Opens all rooms in order; makes what is missing.
    ///
    /// # Errors
    /// [`OpenError::Held`] where another process has the data; nothing was touched then.
    pub async fn open(settings: DaemonSettings) -> Result<Arc<Self>, OpenError> {
        let DaemonSettings { paths, config, shelves, mut fetch, worker } = settings;
        let budget = budget(&config)?;
        let opening = tokio::task::spawn_blocking(move || Files::open(paths, config));
        let files = opening.await.map_err(|_| OpenError::Closed)??;
        let Files { config, paths, environment, access, store, library, lock } = files;
        ensure_resource_groups(&environment, &store).await?;
        if store.is_new() {
            // Of an older database that is lost: its runs are still there.
            store.reindex(&paths.runs()).await?;
        }
        if config.inputs.ca_file.is_some() {
            fetch.ca_file.clone_from(&config.inputs.ca_file);
        }
        let shelves = ShelvesSettings { library: paths.library(), ..shelves };
        let settings = TemplatesSettings {
            shelves,
            fetch,
            file_roots: config.inputs.file_roots.clone(),
            allow_private: config.inputs.allow_private_addresses,
            replace: config.templates.replace,
        };
        let templates = Templates::open(store.clone(), settings).await?;
        let settings = RunsSettings {
            runs_root: paths.runs(),
            artifacts_root: paths.artifacts(),
            library: paths.library(),
            checkpoints: checkpoints(&config.checkpoints),
            worker,
            budget,
            placement: None,
            worker_user: config.runs.worker_user.clone(),
            kill_after: KILL_AFTER,
        };
        let runs = Runs::open(store.clone(), templates.planner(), settings).await?;
        templates.attach(runs.clone()).await?;
        let stop = CancellationToken::new();
        let kept = &config.retention;
        let retention =
            Retention { days: kept.days, per_template: kept.per_template, size_gib: kept.size_gib };
        let places = Places { runs: paths.runs(), artifacts: paths.artifacts(), library };
        tokio::spawn(gc::every_day(store.clone(), places, retention, stop.clone()));
        let upkeep = stop.drop_guard();
        let opened_at = Instant::now();
        Ok(Arc::new(Self {
            config,
            paths,
            environment,
            access,
            store,
            templates,
            runs,
            opened_at,
            upkeep,
            _lock: lock,
        }))
    }

    /// Lets everything go that the next daemon takes up again. Workers go on.
    pub async fn shutdown(&self) {
        self.upkeep.token().cancel();
        self.templates.shutdown().await;
        self.runs.clone().shutdown().await;
    }
}

fn checkpoints(config: &CheckpointsConfig) -> Option<CheckpointWishes> {
    let policy = CachePolicy { max_age: config.max_age_hours.saturating_mul(3600), ..CachePolicy::default() };
    let size_limit = config.size_gib.saturating_mul(1 << 30);
    config.enabled.then_some(CheckpointWishes {
        reuse: true,
        keep: true,
        size_limit,
        policy,
        holds_since: None,
    })
}

/// What runs together may use: the host's own measure, where the configuration says nothing.
fn budget(config: &Config) -> Result<HostBudget, OpenError> {
    let asked = &config.runs;
    if let (Some(memory_mib), Some(cpus)) = (asked.memory_mib, asked.cpus) {
        return Ok(HostBudget { memory_mib, cpus });
    }
    let host = HostBudget::of_host().map_err(OpenError::Memory)?;
    Ok(HostBudget {
        memory_mib: asked.memory_mib.unwrap_or(host.memory_mib),
        cpus: asked.cpus.unwrap_or(host.cpus),
    })
}

/// What is opened without waiting for anybody.
struct Files {
    config: Config,
    paths: Paths,
    environment: Environment,
    access: Access,
    store: Store,
    library: Library,
    lock: FileLock,
}

impl Files {
    fn open(paths: Paths, config: Config) -> Result<Self, OpenError> {
        let server = paths.server();
        let folder = |path: &Path, mode| {
            let made = DirBuilder::new().recursive(true).mode(mode).create(path);
            made.map_err(|source| OpenError::Folder { path: path.to_owned(), source })
        };
        folder(paths.data(), 0o755)?;
        folder(&server, 0o700)?;
        // It may have been there before, for others to read.
        std::fs::set_permissions(&server, Permissions::from_mode(0o700))
            .map_err(|source| OpenError::Folder { path: server.clone(), source })?;
        let lock = FileLock::try_exclusive(paths.lock())
            .map_err(|source| OpenError::Lock { path: paths.lock(), source })?
            .ok_or_else(|| OpenError::Held(paths.data().to_owned()))?;
        let environment = Environment::open(&server, &config)?;
        let access = Access::open(&server, &config, &environment)?;
        let store = Store::open(&paths.database())?;
        let library = Library::open(paths.library())?;
        Ok(Self { config, paths, environment, access, store, library, lock })
    }
}

/// The resource groups of the configuration are there, in every subscription.
async fn ensure_resource_groups(environment: &Environment, store: &Store) -> Result<(), StoreError> {
    let wanted: Vec<ResourceGroupRecord> = environment
        .subscriptions
        .iter()
        .flat_map(|subscription| {
            environment.resource_groups.iter().map(|name| ResourceGroupRecord {
                subscription: subscription.id.clone(),
                name: name.clone(),
                location: environment.location.clone(),
                tags: serde_json::Map::new(),
            })
        })
        .collect();
    store
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
