//! `kiln serve`: the daemon, in the foreground.
//!
//! ```text
//!  flags, environment, file ─► open (lock, store, runs found again) ─► bind ─► READY
//!                                                                      │ SIGHUP: the configuration is read again
//!                                                                      │ SIGTERM, Ctrl-C
//!                                                                      ▼
//!                                     STOPPING ─ answer what is under way ─ let go; workers go on
//! ```
//! What is said at the start is for people and for the journal; no secret is in it.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use kiln_daemon::config::{Config, Listen, Overrides};
use kiln_daemon::daemon::Daemon;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use super::{End, Surroundings};
use crate::args::ServeArgs;
use crate::exit::{ExitStatus, Failure};
use crate::notify::Notifier;
use crate::server::{Listening, Opened, ServerError};
use crate::settings::{self, Folders, ServeSettings, notify_socket};

/// Longer secrets are none.
const SECRET_BYTES: u64 = 4096;

pub async fn run(around: &Surroundings<'_>, args: ServeArgs) -> End {
    if args.example_config {
        around.printer.raw_data(Config::example().as_bytes());
        return Ok(ExitStatus::Done);
    }
    if args.hash_secret {
        return hash_secret(around);
    }
    let settings = ServeSettings::resolve(args, around.environment).map_err(Failure::input)?;
    serve(around, &settings).await
}

/// Reads a secret from standard input: on the command line everybody on the host could see it.
fn hash_secret(around: &Surroundings<'_>) -> End {
    let mut secret = Zeroizing::new(String::new());
    std::io::stdin()
        .lock()
        .take(SECRET_BYTES + 1)
        .read_to_string(&mut secret)
        .context("cannot read the secret from standard input")
        .map_err(Failure::input)?;
    let secret = secret.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err(Failure::input(anyhow!("there is no secret on standard input"))
            .hint("printf %s \"$SECRET\" | kiln serve --hash-secret"));
    }
    if secret.len() as u64 > SECRET_BYTES {
        return Err(Failure::input(anyhow!("a secret has at most {SECRET_BYTES} bytes")));
    }
    let hash = kiln_daemon::access::hash_secret(secret).map_err(Failure::host)?;
    around.printer.data(&hash);
    Ok(ExitStatus::Done)
}

async fn serve(around: &Surroundings<'_>, settings: &ServeSettings) -> End {
    let config = configuration(settings)?;
    let folders = Folders::with_data(around.environment, config.data.as_deref()).map_err(Failure::host)?;
    settings::ensure_private(&folders.runtime).map_err(Failure::host)?;
    let notifier = Notifier::new(notify_socket(around.environment));
    // Before anything is open, so that a request to end that comes early is not lost.
    let signal = |kind| signal(kind).context("cannot listen for signals");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;

    // A file that is made on the way tells whether this was the first start.
    let credential = folders.data.join("server/operator.secret");
    let first = !credential.exists();
    let opened = Opened::open(around.environment, config, &folders).await.map_err(failure)?;
    let listening = opened.listen(&folders, true).await.map_err(failure)?;
    let status = announce(&listening, &folders, first.then_some(credential.as_path()));
    let mut server = listening.serve();
    notifier.ready(&status);

    let why = loop {
        tokio::select! {
            ended = server.ended() => {
                ended.map_err(failure)?;
                return Err(anyhow!("the server ended without being asked to").into());
            }
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "Ctrl-C",
            _ = hang_up.recv() => {
                notifier.reloading();
                reload(&server.daemon, settings);
                notifier.ready(&status);
            }
        }
    };
    notifier.stopping();
    tracing::info!("{why}: shutting down; runs under way go on, the next start finds them");
    server.end().await;
    tracing::info!("shut down");
    Ok(ExitStatus::Done)
}

/// Flags over environment over file.
fn configuration(settings: &ServeSettings) -> Result<Config, Failure> {
    let ServeSettings { config, data, listen, socket } = settings;
    let file = match config {
        None => Config::default(),
        Some(path) => Config::read(path).map_err(Failure::input)?,
    };
    let listen = listen
        .iter()
        .map(|given| given.parse::<Listen>().map_err(|error| anyhow!("--listen {given}: {error}")))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Failure::input)?;
    Ok(file.overridden(Overrides {
        data: data.clone(),
        listen: (!listen.is_empty()).then_some(listen),
        socket: socket.clone(),
    }))
}

/// Takes the principals and the names of the file as it is now; everything else needs a restart.
fn reload(daemon: &Daemon, settings: &ServeSettings) {
    match configuration(settings) {
        Ok(config) => {
            daemon.access.reload(&config);
            daemon.environment.names.reload(&config);
            tracing::info!("principals and names were read again; other changes need a restart");
        }
        // The server goes on with what it has.
        Err(failure) => tracing::error!("the configuration was not read again: {:#}", failure.error),
    }
}

/// Says what is served, where, and to whom; gives one line of it.
fn announce(listening: &Listening, folders: &Folders, made: Option<&Path>) -> String {
    let Listening { daemon, listeners } = listening;
    let url = daemon.environment.names.url();
    tracing::info!("kiln {} serves {}", env!("CARGO_PKG_VERSION"), folders.data.display());
    for address in listeners.addresses() {
        tracing::info!("listening on https://{address}, for clients {url}");
        if !address.ip().is_loopback() {
            tracing::warn!("{address} can be reached from the network");
        }
    }
    if let Some(socket) = listeners.socket() {
        tracing::info!("listening on unix:{}, for commands on this host", socket.display());
    }
    if let Some(ca) = listeners.ca_file() {
        tracing::info!("clients trust the certificate authority {}", ca.display());
    }
    if let Some(credential) = made {
        tracing::info!("made an operator's credential; its secret lies in {}", credential.display());
    }
    if !listeners.addresses().is_empty() {
        tracing::info!("`kiln az-setup` prints how to connect az and the SDKs");
    }
    format!("serving {url}")
}

fn failure(error: ServerError) -> Failure {
    match error {
        ServerError::Held { lock } => {
            let folder = lock.parent().and_then(Path::parent).unwrap_or(&lock).to_owned();
            Failure::host(anyhow!("another process serves {} already", folder.display())).hint(
                "a server has to be stopped first; a command that works without one is done when it ends; \
                 or give this server a folder of its own with --data",
            )
        }
        error => Failure::host(error),
    }
}
