//! Finding the server to talk to.

use std::path::Path;
use std::sync::Arc;

use kiln_daemon::setup::ClientSetup;

use super::sign_in::SignIn;
use super::{Client, ClientError, Link, Local};
use crate::commands::Surroundings;
use crate::exit::Failure;
use crate::server;
use crate::settings::{self, Address, Credential, ServerChoice, ServerSettings};

/// Where a packaged server listens.
pub const SYSTEM_SOCKET: &str = "/run/kiln/kiln.sock";

/// What to do where no server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embed {
    /// This process becomes it for as long as it lasts.
    Yes,
    No,
}

/// The server to talk to: the one that was given, that of the data folder, or the host's.
/// None where none runs and none shall be made.
///
/// The second value ends what this process serves itself, and must outlive the client.
pub async fn find(
    around: &Surroundings<'_>,
    settings: &ServerSettings,
    embed: Embed,
) -> Result<Option<(Client, Option<Arc<Local>>)>, Failure> {
    let (link, local) = match &settings.choice {
        ServerChoice::Given(Address::Unix(path)) => (Link::socket(path, None)?, None),
        ServerChoice::Given(Address::Https(address)) => (tls(around, settings, address)?, None),
        ServerChoice::Find => {
            let config = server::read_config(around.environment)?;
            let folders = server::folders(around.environment, &config)?;
            let own = server::socket(&config, &folders);
            let local = |folders| Arc::new(Local::new(around.environment, config.clone(), folders));
            if reachable(&own).await && kiln_daemon::setup::is_serving(&folders.data) {
                // A server that goes away comes back: its place is not to be taken.
                (Link::socket(&own, None)?, None)
            } else if reachable(&own).await {
                // Another command, which is the server for as long as it lasts.
                let local = local(folders);
                (Link::socket(&own, Some(Arc::clone(&local)))?, Some(local))
            } else if around.environment.data_folder().is_none()
                // Who names a data folder means its server, not the host's.
                && reachable(Path::new(SYSTEM_SOCKET)).await
            {
                (Link::socket(Path::new(SYSTEM_SOCKET), None)?, None)
            } else if embed == Embed::Yes {
                settings::ensure_private(&folders.runtime).map_err(Failure::host)?;
                let local = local(folders);
                local.ensure_served().await.map_err(ClientError::from)?;
                (Link::socket(&own, Some(Arc::clone(&local)))?, Some(local))
            } else {
                return Ok(None);
            }
        }
    };
    tracing::info!(server = link.shown(), "server found");
    Ok(Some((Client::new(link, settings).await?, local)))
}

/// Somebody listens at a socket, and we may talk to them.
pub async fn reachable(socket: &Path) -> bool {
    tokio::net::UnixStream::connect(socket).await.is_ok()
}

/// With the credential that was given; that of the data folder where the address is its server's.
fn tls(around: &Surroundings<'_>, settings: &ServerSettings, address: &str) -> Result<Link, Failure> {
    let own = own_setup(around, address);
    let credential = match (&settings.credential, &own) {
        (Some(given), _) => given.clone(),
        (None, Some(own)) => {
            Credential { client_id: own.client_id.clone(), secret_file: own.secret_file.clone() }
        }
        (None, None) => {
            return Err(Failure::input(anyhow::anyhow!("nothing says who signs in to {address}"))
                .hint("set KILN_CLIENT_ID, and KILN_CLIENT_SECRET_FILE to a file with the secret"));
        }
    };
    let ca_file = settings.ca_file.clone().or_else(|| own.and_then(|own| own.ca_file));
    Ok(Link::tls(address, ca_file.as_deref(), Some(SignIn::new(credential)))?)
}

/// What the data folder knows about its own server, if that is the one.
fn own_setup(around: &Surroundings<'_>, address: &str) -> Option<ClientSetup> {
    let config = server::read_config(around.environment).ok()?;
    let folders = server::folders(around.environment, &config).ok()?;
    ClientSetup::read(&folders.data, &config).ok().filter(|own| own.url.eq_ignore_ascii_case(address))
}
