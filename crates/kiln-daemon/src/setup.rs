//! What a client needs to know to connect to this server.

use std::path::{Path, PathBuf};

use crate::config::Config;

/// Read from a data folder, whether its server runs or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSetup {
    pub url: String,
    /// Whether a server says that it serves there now.
    pub serving: bool,
    /// Our own authority; none where a certificate was configured.
    pub ca_file: Option<PathBuf>,
    pub tenant: String,
    pub subscription: String,
    pub resource_group: String,
    pub location: String,
    /// The operator made at first start.
    pub client_id: String,
    pub secret_file: PathBuf,
    /// `https://…/msi/token`, and the file with the value of its header; none where it is switched off.
    pub identity: Option<(String, PathBuf)>,
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("{} does not exist: start the server once with `kiln serve`", .path.display())]
    NeverServed { path: PathBuf },
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is damaged", .path.display())]
    Damaged { path: PathBuf },
}

impl ClientSetup {
    /// Blocking. `data` is the data folder.
    pub fn read(data: &Path, config: &Config) -> Result<Self, SetupError> {
        let _ = (data, config);
        todo!()
    }
}
