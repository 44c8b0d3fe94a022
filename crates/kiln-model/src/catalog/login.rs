//! How a build gets into a guest for the first time.
//!
//! ```text
//!  login: cloud-init              Linux: account and keys on NoCloud media
//!  login: answer-file             a generalized Windows: account and listener by an answer file
//!  login:                         an installed Windows: what it has already
//!    credentials: {user: …, passwordFile: …}
//! ```
//! A password itself is never part of a catalog, a record or a plan: they name the file that holds it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Os;
use crate::Sha256;

/// Where WinRM listens over HTTPS, and where over HTTP (MS-WSMV; `winrm quickconfig`).
const HTTPS_PORT: u16 = 5986;
const HTTP_PORT: u16 = 5985;

/// How a build gets into the guest for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Login {
    /// cloud-init reads the build's account and keys from NoCloud media.
    CloudInit,
    /// A generalized Windows reads an answer file from a removable medium and opens WinRM.
    AnswerFile,
    /// An installed Windows is told nothing: it has this account, and a WinRM listener, already.
    Credentials(Credentials),
}

impl Login {
    /// Why a guest of this system cannot be got into so.
    pub fn trouble(&self, os: Os) -> Option<&'static str> {
        match (self, os) {
            (Login::Credentials(_), Os::Linux) => Some(
                "login: credentials are for an installed Windows; a build gets into a Linux through cloud-init: \
                 write \"cloud-init\", or \"os: windows\"",
            ),
            _ => None,
        }
    }
}

/// For people: goes on after "login by".
impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::CloudInit => f.write_str("cloud-init"),
            Login::AnswerFile => f.write_str("an answer file"),
            Login::Credentials(credentials) => credentials.fmt(f),
        }
    }
}

/// An account that a Windows has already, and the listener through which it is reached.
///
/// INVARIANT: whoever has one can try it. [`Credentials::new`] is the only way to one, also out of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Credentials {
    user: String,
    password_file: PathBuf,
    listener: Listener,
    port: Option<u16>,
}

/// How the WinRM of an installed Windows is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// TLS. Without a certificate the first one that is shown counts for the run.
    Https { certificate: Option<Sha256> },
    /// Plain HTTP with every message sealed by NTLM.
    Http,
}

/// What credentials cannot be made of. Each begins with the field it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    #[error("user: it is empty; give the name of an account that the Windows has")]
    NoUser,
    #[error("user: {user:?} has a control character, and no account's name has one")]
    ControlCharacter { user: String },
    #[error("passwordFile: {path:?} is no absolute path; write the whole one, from the first /")]
    NotAbsolute { path: PathBuf },
    #[error("port: 0 is none; leave it out for {HTTPS_PORT} over HTTPS and {HTTP_PORT} over HTTP")]
    NoPort,
    #[error(
        "certificateSha256: {text:?} is no digest of a certificate; it has 64 hexadecimal digits, as `openssl x509 \
         -noout -fingerprint -sha256` prints them"
    )]
    NoDigest { text: String },
    #[error(
        "certificateSha256: over plain HTTP no certificate is shown; take it out, or \"transport: http\""
    )]
    CertificateOverHttp,
}

impl Credentials {
    /// `port` absent: the transport's own.
    ///
    /// # Errors
    /// [`CredentialsError`]: what cannot be tried at all. Whether the password is right only the guest knows.
    pub fn new(
        user: String,
        password_file: PathBuf,
        listener: Listener,
        port: Option<u16>,
    ) -> Result<Self, CredentialsError> {
        if user.trim().is_empty() {
            return Err(CredentialsError::NoUser);
        }
        if user.chars().any(char::is_control) {
            return Err(CredentialsError::ControlCharacter { user });
        }
        // A plan is text: a path that is none could not be written into it.
        if !password_file.is_absolute() || password_file.to_str().is_none() {
            return Err(CredentialsError::NotAbsolute { path: password_file });
        }
        if port == Some(0) {
            return Err(CredentialsError::NoPort);
        }
        Ok(Self { user, password_file, listener, port })
    }

    /// The account: a local one's name, or `DOMAIN\name`.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Where on this host the password lies; absolute.
    pub fn password_file(&self) -> &Path {
        &self.password_file
    }

    pub fn listener(&self) -> Listener {
        self.listener
    }

    /// The guest's port.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.listener {
            Listener::Https { .. } => HTTPS_PORT,
            Listener::Http => HTTP_PORT,
        })
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, file, port) = (&self.user, self.password_file.display(), self.port());
        write!(f, "its own account {user}, password in {file}, WinRM over ")?;
        match self.listener {
            Listener::Https { certificate: Some(certificate) } => {
                write!(f, "HTTPS on port {port}, certificate {certificate}")
            }
            Listener::Https { certificate: None } => write!(f, "HTTPS on port {port}, any certificate"),
            Listener::Http => write!(f, "HTTP on port {port}"),
        }
    }
}

/// 64 hexadecimal digits as the digest of a certificate; colons between them, as openssl prints them, do not matter.
///
/// # Errors
/// [`CredentialsError::NoDigest`].
pub fn certificate_digest(text: &str) -> Result<Sha256, CredentialsError> {
    let digits: String = text.trim().chars().filter(|c| *c != ':').collect();
    digits.parse().map_err(|_| CredentialsError::NoDigest { text: text.to_owned() })
}

/// As it stands in a file. A person writes it: what is not known is refused.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    user: String,
    password_file: PathBuf,
    #[serde(default, skip_serializing_if = "Transport::is_default")]
    transport: Transport,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate_sha256: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    #[default]
    Https,
    Http,
}

impl Transport {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl TryFrom<Written> for Credentials {
    type Error = CredentialsError;

    fn try_from(written: Written) -> Result<Self, CredentialsError> {
        let Written { user, password_file, transport, port, certificate_sha256 } = written;
        let certificate = certificate_sha256.as_deref().map(certificate_digest).transpose()?;
        let listener = match (transport, certificate) {
            (Transport::Https, certificate) => Listener::Https { certificate },
            (Transport::Http, None) => Listener::Http,
            (Transport::Http, Some(_)) => return Err(CredentialsError::CertificateOverHttp),
        };
        Self::new(user, password_file, listener, port)
    }
}

impl From<Credentials> for Written {
    fn from(credentials: Credentials) -> Self {
        let Credentials { user, password_file, listener, port } = credentials;
        let (transport, certificate) = match listener {
            Listener::Https { certificate } => (Transport::Https, certificate),
            Listener::Http => (Transport::Http, None),
        };
        let certificate_sha256 = certificate.map(|digest| digest.to_string());
        Self { user, password_file, transport, port, certificate_sha256 }
    }
}
