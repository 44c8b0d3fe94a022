//! A daemon in this process: what `kiln serve` and a command without a server share.
//!
//! ```text
//!  configuration ─► Opened (holds the data's lock) ─ listen ─► Server ─ end ─► lock let go
//!                                                                │
//!                                                     workers: processes of their own; they go on
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use kiln_daemon::config::{Config, ConfigError};
use kiln_daemon::daemon::{Daemon, DaemonSettings, OpenError, Paths};
use kiln_daemon::executor::WorkerCommand;
use kiln_daemon::http;
use kiln_daemon::serve::{self, ListenSettings, Listeners, ServeError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;
use crate::settings::{Environment, Folders};

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process has the data.
    #[error("another process holds {}", .lock.display())]
    Held { lock: PathBuf },
    #[error(transparent)]
    Open(OpenError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("the environment cannot be used")]
    Settings(#[source] anyhow::Error),
    #[error("cannot tell where this program lies")]
    Program(#[source] std::io::Error),
    #[error("the server broke down")]
    Broken(#[source] tokio::task::JoinError),
}

/// The configuration file of the environment, or the defaults.
pub fn read_config(environment: &Environment) -> Result<Config, Failure> {
    match environment.config_file() {
        None => Ok(Config::default()),
        Some(path) => {
            let path = std::path::absolute(&path).context("KILN_CONFIG").map_err(Failure::input)?;
            Config::read(&path).map_err(|error: ConfigError| Failure::input(error))
        }
    }
}

/// Where the data lies: `KILN_DATA` over the configuration, over the user's own folder.
pub fn folders(environment: &Environment, config: &Config) -> Result<Folders, Failure> {
    let configured = config.data.as_deref().filter(|_| environment.data_folder().is_none());
    Folders::with_data(environment, configured).map_err(Failure::host)
}

/// The socket of whoever serves these folders.
pub fn socket(config: &Config, folders: &Folders) -> PathBuf {
    config.socket.path.clone().unwrap_or_else(|| folders.socket())
}

/// A daemon that nobody talks to yet.
pub struct Opened {
    pub daemon: Arc<Daemon>,
}

impl Opened {
    /// Takes the data folder's lock and opens everything in it.
    ///
    /// # Errors
    /// [`ServerError::Held`] where another process has it.
    pub async fn open(
        environment: &Environment,
        config: Config,
        folders: &Folders,
    ) -> Result<Self, ServerError> {
        let config = crate::settings::serving(config, environment).map_err(ServerError::Settings)?;
        let program = std::env::current_exe().map_err(ServerError::Program)?;
        let worker = environment
            .for_worker(folders, config.runs.memory_mib)
            .into_iter()
            .fold(WorkerCommand::new(program).arg("worker"), |worker, (name, value)| worker.env(name, value));
        let paths = Paths::new(folders.data.clone()).library_at(folders.library.clone());
        let lock = paths.lock();
        let fetch = crate::settings::fetch(environment).map_err(ServerError::Settings)?;
        let settings = DaemonSettings { paths, config, shelves: folders.shelves(), fetch, worker };
        match Daemon::open(settings).await {
            Ok(daemon) => Ok(Self { daemon }),
            Err(OpenError::Held(_)) => Err(ServerError::Held { lock }),
            Err(error) => Err(ServerError::Open(error)),
        }
    }

    /// Listens where the configuration says; `tcp` is false for a command that serves itself.
    pub async fn listen(self, folders: &Folders, tcp: bool) -> Result<Listening, ServerError> {
        let default_socket = Some(folders.socket());
        let Self { daemon } = self;
        let settings = ListenSettings { default_socket, tcp };
        let listeners = Listeners::bind(&daemon.config, &daemon.paths, &daemon.environment, settings).await?;
        Ok(Listening { daemon, listeners })
    }

    /// For this process and others of this user: nothing but the data folder's socket.
    pub async fn serve_socket_only(self, folders: &Folders) -> Result<Server, ServerError> {
        Ok(self.listen(folders, false).await?.serve())
    }
}

/// A daemon with its sockets bound.
pub struct Listening {
    pub daemon: Arc<Daemon>,
    pub listeners: Listeners,
}

impl Listening {
    pub fn serve(self) -> Server {
        let Self { daemon, listeners } = self;
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve::run(listeners, http::router(Arc::clone(&daemon)), shutdown.clone()));
        Server { daemon, shutdown, task }
    }
}

/// A daemon that serves.
pub struct Server {
    pub daemon: Arc<Daemon>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    /// Ends when serving does: by its own failure, unless [`Server::end`] was called.
    pub async fn ended(&mut self) -> Result<(), ServerError> {
        match (&mut self.task).await {
            Ok(result) => Ok(result?),
            Err(error) => Err(ServerError::Broken(error)),
        }
    }

    /// Answers what is under way and lets the data go. Workers go on.
    pub async fn end(self) {
        self.shutdown.cancel();
        let Self { daemon, task, .. } = self;
        if let Ok(Err(error)) = task.await {
            tracing::warn!("while shutting down: {error}");
        }
        daemon.shutdown().await;
    }
}
