//! Certificates: the server's own CA and leaf.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Config, Names};

/// What listeners need to speak TLS. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    server: Arc<rustls::ServerConfig>,
    ca: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot {act} {}", .path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Tls {
    /// Reads the configured certificate, or reads or makes our own in `server_dir/tls`. Blocking.
    pub fn open(server_dir: &Path, config: &Config, names: &Names) -> Result<Self, TlsError> {
        let _ = (server_dir, config, names);
        todo!()
    }

    /// Our own authority's certificate, for clients to trust; none where a certificate was configured.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    pub(crate) fn server(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.server)
    }
}
