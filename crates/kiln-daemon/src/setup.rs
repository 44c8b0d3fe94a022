//! What a client needs to know to connect to this server, read from its data folder.
//!
//! Reads what a first start has made; makes nothing. It is for whoever may read the server's private files.

use std::path::{Path, PathBuf};

use crate::access::{self, AccessError, IDENTITY_SECRET, OPERATOR, OPERATOR_SECRET};
use crate::config::{Config, Environment, EnvironmentError};
use crate::daemon::Paths;
use crate::{serve, tls};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSetup {
    /// Of the server that serves now; of the configuration where none does.
    pub url: String,
    /// Whether a server has said that it serves there, and not that it ended.
    pub serving: bool,
    /// Our own authority; none where a certificate was configured.
    pub ca_file: Option<PathBuf>,
    pub tenant: String,
    pub subscription: String,
    pub resource_group: String,
    pub location: String,
    /// The operator made at first start.
    pub client_id: String,
    /// Its secret; whoever runs the server may have moved it away.
    pub secret_file: PathBuf,
    pub identity: Option<IdentitySetup>,
}

/// Sign-in as managed identity, where it is switched on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentitySetup {
    /// `IDENTITY_ENDPOINT`
    pub endpoint: String,
    /// Holds the value of `IDENTITY_HEADER`.
    pub secret_file: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("there is no {} yet: start the server once with `kiln serve`", .path.display())]
    NeverServed { path: PathBuf },
    #[error("the server listens on no TCP address (listen: []), which Azure's clients need")]
    NoTcp,
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
}

impl ClientSetup {
    /// Blocking. `data` is the data folder.
    ///
    /// # Errors
    /// No server has started there yet, or its files cannot be read.
    pub fn read(data: &Path, config: &Config) -> Result<Self, SetupError> {
        let server = Paths::new(data.to_owned()).server();
        let Some(operator) = access::read_operator(&server)? else {
            return Err(SetupError::NeverServed { path: server.join(OPERATOR) });
        };
        if config.listen.is_empty() {
            return Err(SetupError::NoTcp);
        }
        let endpoint = serve::read_endpoint(&server).filter(|endpoint| is_alive(endpoint.pid));
        let environment = Environment::read(&server, config)?;
        let url = endpoint.as_ref().map_or_else(|| environment.names.url(), |endpoint| endpoint.url.clone());
        let managed = &config.access.managed_identity;
        let identity = managed.enabled.then(|| IdentitySetup {
            endpoint: match managed.http {
                Some(port) => format!("http://127.0.0.1:{port}/msi/token"),
                None => format!("{url}/msi/token"),
            },
            secret_file: server.join(IDENTITY_SECRET),
        });
        Ok(Self {
            serving: endpoint.is_some(),
            ca_file: config.tls.certificate.is_none().then(|| tls::own_ca_file(&server)),
            tenant: environment.tenant,
            // Both are never empty.
            subscription: environment.subscriptions[0].id.clone(),
            resource_group: environment.resource_groups[0].clone(),
            location: environment.location,
            client_id: operator.client_id,
            secret_file: server.join(OPERATOR_SECRET),
            url,
            identity,
        })
    }
}

/// A server (not a command that is one for a while) serves the folder over TCP, or did until it was killed just now.
pub fn is_serving(data: &Path) -> bool {
    serve::read_endpoint(&Paths::new(data.to_owned()).server()).is_some_and(|endpoint| is_alive(endpoint.pid))
}

/// Of a server that was killed the file stays behind.
fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    // Another user's process (EPERM) is one, too.
    pid.is_some_and(|pid| {
        !matches!(rustix::process::test_kill_process(pid), Err(error) if error == rustix::io::Errno::SRCH)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;

    #[test]
    fn a_folder_that_was_never_served_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = ClientSetup::read(dir.path(), &Config::default()).unwrap_err();
        assert!(error.to_string().contains("kiln serve"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_first_start_made_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        let server = dir.path().join("server");
        std::fs::create_dir(&server).unwrap();
        let environment = Environment::open(&server, &config).unwrap();
        Access::open(&server, &config, &environment).unwrap();
        let setup = ClientSetup::read(dir.path(), &config).unwrap();
        assert_eq!(setup.url, "https://localhost:8441");
        assert!(!setup.serving);
        assert_eq!(setup.tenant, environment.tenant);
        assert_eq!(setup.subscription, environment.subscriptions[0].id);
        assert_eq!(setup.resource_group, "kiln");
        assert!(setup.secret_file.is_file());
        let identity = setup.identity.unwrap();
        assert_eq!(identity.endpoint, "https://localhost:8441/msi/token");
        assert!(identity.secret_file.is_file());

        std::fs::write(
            server.join("endpoint.json"),
            r#"{"format":1,"url":"https://localhost:1","pid":4194305}"#,
        )
        .unwrap();
        let setup = ClientSetup::read(dir.path(), &config).unwrap();
        assert!(!setup.serving, "no process can have this id");
        assert_eq!(setup.url, "https://localhost:8441");
    }
}
