//! Who logs in where, and whom we expect there.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use kiln_host::digest::hex;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::recorder::Recorder;

/// A login over WinRM. `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct WinrmLogin {
    pub addr: SocketAddr,
    pub transport: Transport,
    /// A local account's name, or `DOMAIN\name`.
    pub user: String,
    pub password: Password,
    /// Takes down all that is said to the guest, and what it answers.
    pub recorder: Option<Recorder>,
}

/// How the messages travel. That Basic authentication goes over plain HTTP cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS, to the one certificate that fits the pin. Port 5986.
    ///
    /// INVARIANT: the guest's WinRM certificate is known before a word is said to it and is checked on each connection:
    /// nobody sits in the middle. Guarded by `tls::connect`, the only way to a TLS connection that carries anything.
    Https { pin: CertificatePin, authentication: Authentication },
    /// Plain HTTP with every message sealed by NTLM. Port 5985. The guest is known by its password only.
    Http,
}

/// How the account proves itself over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// NTLMv2, bound to the TLS channel: the password does not leave this host.
    Negotiate,
    /// The password inside TLS. Off on a Windows unless somebody allowed it; local accounts only.
    Basic,
}

/// A password that is wiped from memory and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    pub fn new(password: impl Into<String>) -> Self {
        Self(Zeroizing::new(password.into()))
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// Which certificate the guest must show: by the digest of its DER form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificatePin {
    Sha256([u8; 32]),
    /// What Windows prints as the thumbprint. Enough to know a certificate again: nobody makes a second one with the
    /// same SHA-1 digest as a given one.
    Sha1([u8; 20]),
}

/// A fingerprint that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {kind} of a certificate; it has {digits} hexadecimal digits")]
pub struct PinError {
    pub text: String,
    pub kind: &'static str,
    pub digits: usize,
}

impl CertificatePin {
    /// From 64 hexadecimal digits; spaces and colons between them do not matter.
    pub fn from_sha256(text: &str) -> Result<Self, PinError> {
        digits(text).map(Self::Sha256).ok_or_else(|| PinError {
            text: text.to_owned(),
            kind: "SHA-256 fingerprint",
            digits: 64,
        })
    }

    /// From the 40 hexadecimal digits that Windows prints as the thumbprint.
    pub fn from_thumbprint(text: &str) -> Result<Self, PinError> {
        digits(text).map(Self::Sha1).ok_or_else(|| PinError {
            text: text.to_owned(),
            kind: "thumbprint",
            digits: 40,
        })
    }

    pub(crate) fn fits(&self, certificate: &[u8]) -> bool {
        self.of_same_kind(certificate) == *self
    }

    /// What this pin would have to be for `certificate`.
    pub(crate) fn of_same_kind(&self, certificate: &[u8]) -> Self {
        match self {
            Self::Sha256(_) => Self::Sha256(Sha256::digest(certificate).into()),
            Self::Sha1(_) => Self::Sha1(Sha1::digest(certificate).into()),
        }
    }
}

impl fmt::Display for CertificatePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => write!(f, "sha256 {}", hex(digest)),
            Self::Sha1(digest) => write!(f, "sha1 {}", hex(digest)),
        }
    }
}

fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    // A thumbprint copied from Windows' certificate window begins with an invisible mark.
    let text: Vec<u8> =
        text.bytes().filter(|byte| byte.is_ascii() && !byte.is_ascii_whitespace() && *byte != b':').collect();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}

/// How long what may take, and how much at once. The defaults are those of a build; all are real time.
#[derive(Clone, Debug)]
pub struct WinrmLimits {
    /// For TCP, and again for the TLS handshake, and again for each leg of a login: user-mode networking accepts
    /// connections for a guest that is down, and an emulated guest needs seconds for a handshake.
    pub silence: Duration,
    /// How long a wrong certificate is met with another attempt: a listener may show an older one until the
    /// bootstrap has put ours in place. Nothing secret is sent meanwhile.
    pub wrong_certificate: Duration,
    /// How long a refused login is met with another attempt: WinRM may answer before the account is set up. Few
    /// attempts fit in, so that no account is locked.
    pub refused_login: Duration,
    /// How many more times a refused login is tried meanwhile. A Windows of somebody else's making may lock an account
    /// after few wrong passwords.
    pub login_retries: u32,
    /// How long a server waits for output before it answers a Receive without any. At most 60 s on a Windows
    /// (`MaxTimeoutms`).
    pub operation_timeout: Duration,
    /// How much longer than the operation's own time-out an answer may take.
    pub answer_grace: Duration,
    /// How long a guest that was lost in mid-command may stay away.
    pub reconnect: Duration,
    /// How long a guest that says it is busy is asked again.
    pub busy: Duration,
    /// Commands started in one shell before it is replaced. A text shell does not give back what a finished command
    /// held, and old servers allow 15 operations.
    pub commands_per_shell: u32,
    /// The largest envelope that is sent, in bytes: `MaxEnvelopeSizekb` is 500 since Windows 8. A guest that takes
    /// less says so, and is sent less.
    pub max_envelope: usize,
}

impl Default for WinrmLimits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(10),
            wrong_certificate: Duration::from_secs(30),
            refused_login: Duration::from_secs(180),
            login_retries: 8,
            operation_timeout: Duration::from_secs(20),
            answer_grace: Duration::from_secs(30),
            reconnect: Duration::from_secs(5 * 60),
            busy: Duration::from_secs(5 * 60),
            commands_per_shell: 12,
            max_envelope: 500 * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_shows_no_password() {
        let login = WinrmLogin {
            addr: SocketAddr::from(([127, 0, 0, 1], 5986)),
            transport: Transport::Http,
            user: "kiln".to_owned(),
            password: Password::new("correct horse"),
            recorder: Some(Recorder::new(std::io::sink())),
        };
        let shown = format!("{login:?} {login:#?}");
        assert!(!shown.contains("horse"), "{shown}");
        assert!(shown.contains("kiln"), "{shown}");
    }

    #[test]
    fn fingerprints_are_read_as_they_are_printed() {
        let certificate = b"not really DER";
        let pin = CertificatePin::Sha256(Sha256::digest(certificate).into());
        let text = hex(&Sha256::digest(certificate));
        let with_colons: Vec<String> =
            text.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase()).collect();
        for text in [text.clone(), text.to_uppercase(), with_colons.join(":"), format!(" {text}\r\n")] {
            assert_eq!(CertificatePin::from_sha256(&text).as_ref(), Ok(&pin), "{text}");
        }
        assert!(pin.fits(certificate));
        assert!(!pin.fits(b"another"));
        let thumbprint = hex(&Sha1::digest(certificate));
        let pin = CertificatePin::from_thumbprint(&format!("\u{200e}{thumbprint}")).unwrap();
        assert!(pin.fits(certificate));
        assert_eq!(pin.to_string(), format!("sha1 {thumbprint}"));
    }

    #[test]
    fn what_is_no_fingerprint_is_refused() {
        for text in ["", "abc", &"0".repeat(40), &"g".repeat(64), &"+f".repeat(32)] {
            assert!(CertificatePin::from_sha256(text).is_err(), "{text}");
        }
        let error = CertificatePin::from_thumbprint(&"0".repeat(64)).unwrap_err().to_string();
        assert!(error.contains("40 hexadecimal digits"), "{error}");
    }
}
