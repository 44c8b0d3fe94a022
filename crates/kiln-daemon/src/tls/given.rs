//! A certificate and key that were given in the configuration, read again when their files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::TlsError;

/// How often the files are looked at, when connections come in crowds.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

pub(super) struct Given {
    certificate: PathBuf,
    key: PathBuf,
    /// Of both files, when they were last read: successfully or not.
    stamps: Stamps,
    looked_at: Instant,
    certified: Arc<CertifiedKey>,
}

type Stamps = [Option<(SystemTime, u64)>; 2];

impl Given {
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        // Before the reading: what changes meanwhile is read once more.
        let stamps = stamps(certificate, key);
        Ok(Self {
            certified: Arc::new(certified(certificate, key)?),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            stamps,
            looked_at: Instant::now(),
        })
    }

    pub(super) fn current(&mut self) -> Arc<CertifiedKey> {
        if self.looked_at.elapsed() >= LOOK_AGAIN {
            self.looked_at = Instant::now();
            self.refresh();
        }
        Arc::clone(&self.certified)
    }

    pub(super) fn refresh(&mut self) {
        let stamps = stamps(&self.certificate, &self.key);
        if stamps == self.stamps {
            return;
        }
        self.stamps = stamps;
        match certified(&self.certificate, &self.key) {
            Ok(certified) => {
                tracing::info!("the certificate {} was read again", self.certificate.display());
                self.certified = Arc::new(certified);
            }
            // Two files cannot change at once: the next look is likely to find both.
            Err(error) => tracing::warn!("the old certificate stays in use: {error}"),
        }
    }
}

fn stamps(certificate: &Path, key: &Path) -> Stamps {
    [certificate, key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn certified(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let read = |path: &Path| {
        std::fs::read(path).map(Zeroizing::new).map_err(|source| TlsError::File {
            act: "read",
            path: path.to_owned(),
            source,
        })
    };
    let no = |what, path: &Path| TlsError::Pem { what, path: path.to_owned() };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|_| no("certificate", certificate))?;
    if chain.is_empty() {
        return Err(no("certificate", certificate));
    }
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| no("private key", key))?;
    let pair = |source| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source };
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map_err(pair)
}
