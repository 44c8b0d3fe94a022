//! Certificates: the server's own authority and leaf, or a pair that was given.
//!
//! ```text
//!  server/tls/ca.pem, ca.key     made at first start, for 20 years; clients are told to trust ca.pem
//!        │ signs
//!        ▼
//!  leaf                          made at each start, for every name of ours; anew when a third of its year is left or
//!                                the names have changed. Its key is in memory only; server.pem is a copy to look at
//! ```
//! A given certificate and key are read again when a file of theirs has changed; while the new ones cannot be used,
//! the old ones stay, and the log says why.
//!
//! Both happen when a connection asks for the certificate: there is no timer to miss. TLS 1.2 and 1.3, by ring.
//!
//! The certificates satisfy `openssl verify -x509_strict` and Python's `VERIFY_X509_STRICT` (on by itself since 3.13):
//! RFC 5280 wants key identifiers on both, a critical basicConstraints and keyUsage on the authority.

mod authority;
mod given;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use self::authority::{Authority, Leaf};
use self::given::Given;
use crate::config::{Config, Names};

/// What listeners need to speak TLS. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    server: Arc<ServerConfig>,
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
    #[error("{} holds no {what} in PEM form", .path.display())]
    Pem { what: &'static str, path: PathBuf },
    #[error("the certificate {} and the key {} do not belong together, or are of a kind that TLS does not use", .certificate.display(), .key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("the own certificate authority in {} is damaged or half there: restore ca.pem and ca.key, or remove both and clients must trust the new one", .dir.display())]
    Authority { dir: PathBuf },
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
}

impl Tls {
    /// Reads the configured certificate, or reads or makes our own authority in `server_dir/tls`. Blocking.
    ///
    /// # Errors
    /// Files that cannot be read, written or used.
    pub fn open(server_dir: &Path, config: &Config, names: &Names) -> Result<Self, TlsError> {
        let (source, ca) = match (&config.tls.certificate, &config.tls.key) {
            (Some(certificate), Some(key)) => {
                (Source::Given(Box::new(Mutex::new(Given::read(certificate, key)?))), None)
            }
            _ => {
                let authority = Authority::open(&server_dir.join("tls"))?;
                let leaf = authority.leaf(names)?;
                let ca = authority.certificate_file().to_owned();
                let own = Own { authority, names: names.clone(), leaf };
                (Source::Own(Box::new(Mutex::new(own))), Some(ca))
            }
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver(source)));
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { server: Arc::new(server), ca })
    }

    /// Our own authority's certificate, for clients to trust; none where a certificate was configured.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

struct Resolver(Source);

enum Source {
    Own(Box<Mutex<Own>>),
    Given(Box<Mutex<Given>>),
}

struct Own {
    authority: Authority,
    names: Names,
    leaf: Leaf,
}

impl Own {
    fn current(&mut self) -> Arc<CertifiedKey> {
        if self.leaf.is_stale(&self.names) {
            match self.authority.leaf(&self.names) {
                Ok(leaf) => {
                    tracing::info!("the server's certificate was renewed");
                    self.leaf = leaf;
                }
                Err(error) => tracing::error!("the server's certificate could not be renewed: {error}"),
            }
        }
        Arc::clone(&self.leaf.certified)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // What is done under these locks takes milliseconds, and that rarely: a key of P-256, or small files.
        Some(match &self.0 {
            Source::Own(own) => own.lock().unwrap_or_else(PoisonError::into_inner).current(),
            Source::Given(given) => given.lock().unwrap_or_else(PoisonError::into_inner).current(),
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

/// The authority's certificate, where a server of this folder has made it.
pub(crate) fn own_ca_file(server_dir: &Path) -> PathBuf {
    server_dir.join("tls").join(authority::CERTIFICATE)
}

#[cfg(test)]
mod tests;
