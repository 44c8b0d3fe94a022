//! The keys of one run: ed25519, made for it, injected into the guest, forgotten with it.
//!
//! A run makes two pairs: the one it logs in with, and the guest's host key, so that the guest can be told from
//! anybody else who answers on its port. The secret half leaves a [`KeyPair`] only by [`KeyPair::private_openssh`],
//! shows in no `Debug`, and is wiped from memory when the last clone is dropped.

use std::fmt;
use std::sync::Arc;

use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use zeroize::Zeroizing;

/// A private key in the text form that OpenSSH and cloud-init read; wiped when dropped.
pub struct PrivateText(Zeroizing<String>);

impl PrivateText {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateText(…)")
    }
}

/// A key or its text was not what it should be. Says nothing of the key itself.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} an SSH key")]
pub struct KeyError {
    act: &'static str,
    source: ssh_key::Error,
}

/// An ed25519 key pair. Clones share the secret.
#[derive(Clone)]
pub struct KeyPair {
    private: Arc<PrivateKey>,
}

impl KeyPair {
    /// A new pair from the operating system's randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut rng = russh::keys::key::safe_rng();
        let private = PrivateKey::random(&mut rng, Algorithm::Ed25519)
            .map_err(|source| KeyError { act: "generate", source })?;
        Ok(Self { private: Arc::new(private) })
    }

    /// Reads a pair back from [`KeyPair::private_openssh`]. Other kinds of keys than ed25519 are refused.
    pub fn from_private_openssh(text: &str) -> Result<Self, KeyError> {
        let private = PrivateKey::from_openssh(text)
            .and_then(|key| match key.algorithm() {
                Algorithm::Ed25519 => Ok(key),
                algorithm => Err(ssh_key::Error::AlgorithmUnsupported { algorithm }),
            })
            .map_err(|source| KeyError { act: "read a private", source })?;
        Ok(Self { private: Arc::new(private) })
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.private.public_key().clone())
    }

    /// `ssh-ed25519 AAAA…`: one line without a line end, for `authorized_keys` and cloud-init's `ed25519_public`.
    pub fn public_openssh(&self) -> String {
        self.public().to_string()
    }

    /// The private half as `-----BEGIN OPENSSH PRIVATE KEY-----` text with LF line ends, for cloud-init's
    /// `ed25519_private`.
    pub fn private_openssh(&self) -> Result<PrivateText, KeyError> {
        let text = self.private.to_openssh(LineEnding::LF);
        text.map(PrivateText).map_err(|source| KeyError { act: "write a private", source })
    }

    pub(crate) fn private_key(&self) -> Arc<PrivateKey> {
        Arc::clone(&self.private)
    }
}

/// Shows the public half only.
impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public().fingerprint()).finish_non_exhaustive()
    }
}

/// The public half of a key: what is expected of a guest, or what it showed.
#[derive(Clone)]
pub struct PublicKey(russh::keys::PublicKey);

impl PublicKey {
    /// Reads one line of the form `ssh-ed25519 AAAA… [comment]`.
    pub fn from_openssh(text: &str) -> Result<Self, KeyError> {
        russh::keys::PublicKey::from_openssh(text.trim())
            .map(Self)
            .map_err(|source| KeyError { act: "read a public", source })
    }

    /// `SHA256:…`, as `ssh-keygen -l` and `ssh` print it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.0.algorithm()
    }
}

impl From<russh::keys::PublicKey> for PublicKey {
    fn from(key: russh::keys::PublicKey) -> Self {
        Self(key)
    }
}

/// Equal when the keys are; comments do not count.
impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key_data() == other.0.key_data()
    }
}

impl Eq for PublicKey {}

/// `ssh-ed25519 AAAA…`, without the comment.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bare = russh::keys::PublicKey::new(self.0.key_data().clone(), "");
        f.write_str(bare.to_openssh().map_err(|_| fmt::Error)?.trim_end())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_survives_its_text_form_and_shows_no_secret() {
        let pair = KeyPair::generate().unwrap();
        let text = pair.private_openssh().unwrap();
        assert!(text.expose().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
        assert!(!text.expose().contains('\r'));
        let again = KeyPair::from_private_openssh(text.expose()).unwrap();
        assert_eq!(again.public(), pair.public());

        let line = pair.public_openssh();
        assert!(line.starts_with("ssh-ed25519 AAAA") && !line.contains('\n') && line.split(' ').count() == 2);
        let commented = PublicKey::from_openssh(&format!("{line} somebody@somewhere\n")).unwrap();
        assert_eq!(commented, pair.public());
        assert_eq!(commented.to_string(), line);

        let body: String = text.expose().lines().filter(|line| !line.starts_with('-')).collect();
        let shown = format!("{pair:?} {text:?}");
        assert!(shown.contains("SHA256:") && !shown.contains(&body[80..120]), "{shown}");
    }

    #[test]
    fn two_pairs_differ() {
        let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        assert_ne!(one.public(), two.public());
        assert_ne!(one.public().fingerprint(), two.public().fingerprint());
    }

    #[test]
    fn garbage_is_refused_without_repeating_it() {
        let error = KeyPair::from_private_openssh("hunter2 is not a key").err().unwrap();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert!(PublicKey::from_openssh("ssh-ed25519 !!!").is_err());
    }
}
