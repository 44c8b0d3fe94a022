//! What lets a run into a machine that another run kept.
//!
//! | guest | kept | not kept |
//! |--|--|--|
//! | Linux | login and host key; what cloud-init knows that boot as; what the guest said of itself | |
//! | Windows, account made by a build | account and its password, the administrator's, the certificate's digest | the nonce: each run has its own |
//! | Windows, account of the image's own | account, the certificate's digest | the password: it is read from its file again |
//!
//! INVARIANT: they lie in one file of mode 0600, and keys and passwords go no further than the first command after the
//! machine goes on.

use kiln_guest::GuestFacts;
use kiln_guest::keys::{KeyError, KeyPair};
use kiln_guest::os::windows::renew::Passwords;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

const FORMAT: u32 = 1;

/// The keys of whoever was logged in last.
#[derive(Debug, Clone)]
pub(crate) enum LineageKeys {
    Linux(LinuxKeys),
    Windows(WindowsKeys),
}

#[derive(Debug, Clone)]
pub(crate) struct LinuxKeys {
    /// cloud-init's name for the first boot: with another one it would begin anew at the next.
    pub instance_id: String,
    pub login: KeyPair,
    pub host: KeyPair,
    /// What the guest said after its first boot: a run that goes on works by that, as one from the start does. None:
    /// written before they were kept.
    pub facts: Option<GuestFacts>,
}

#[derive(Clone)]
pub(crate) struct WindowsKeys {
    pub user: String,
    /// None: the account is the image's own.
    made: Option<MadePasswords>,
    /// The digest of the listener's certificate; none where it speaks plain HTTP.
    pub certificate: Option<[u8; 32]>,
}

#[derive(Clone)]
struct MadePasswords {
    own: Zeroizing<String>,
    administrator: Zeroizing<String>,
}

#[derive(Deserialize)]
struct Written {
    format: u32,
    /// None: Linux.
    #[serde(default)]
    system: Option<System>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum System {
    Windows,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenLinux {
    format: u32,
    instance_id: String,
    login: String,
    host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    facts: Option<GuestFacts>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenWindows {
    format: u32,
    system: System,
    user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    administrator_password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate_sha256: Option<kiln_model::Sha256>,
}

impl Drop for WrittenLinux {
    fn drop(&mut self) {
        self.login.zeroize();
        self.host.zeroize();
    }
}

impl Drop for WrittenWindows {
    fn drop(&mut self) {
        self.password.zeroize();
        self.administrator_password.zeroize();
    }
}

impl LinuxKeys {
    pub fn generate(instance_id: &str) -> Result<Self, KeyError> {
        Ok(Self {
            instance_id: instance_id.to_owned(),
            login: KeyPair::generate()?,
            host: KeyPair::generate()?,
            facts: None,
        })
    }
}

impl WindowsKeys {
    /// `made`: the passwords, where a build made the account.
    pub fn new(user: &str, made: Option<Passwords<'_>>, certificate: Option<[u8; 32]>) -> Self {
        let made = made.map(|Passwords { own, administrator }| MadePasswords {
            own: Zeroizing::new(own.to_owned()),
            administrator: Zeroizing::new(administrator.to_owned()),
        });
        Self { user: user.to_owned(), made, certificate }
    }

    pub fn made(&self) -> Option<Passwords<'_>> {
        let MadePasswords { own, administrator } = self.made.as_ref()?;
        Some(Passwords { own, administrator })
    }
}

impl std::fmt::Debug for WindowsKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WindowsKeys").field("user", &self.user).finish_non_exhaustive()
    }
}

impl LineageKeys {
    /// The content of the file.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        match self {
            Self::Linux(keys) => {
                let text = |key: &KeyPair| Ok(key.private_openssh()?.expose().to_owned());
                Ok(written(&WrittenLinux {
                    format: FORMAT,
                    instance_id: keys.instance_id.clone(),
                    login: text(&keys.login)?,
                    host: text(&keys.host)?,
                    facts: keys.facts.clone(),
                }))
            }
            Self::Windows(keys) => {
                let made = keys.made();
                Ok(written(&WrittenWindows {
                    format: FORMAT,
                    system: System::Windows,
                    user: keys.user.clone(),
                    password: made.map(|made| made.own.to_owned()),
                    administrator_password: made.map(|made| made.administrator.to_owned()),
                    certificate_sha256: keys.certificate.map(kiln_model::Sha256::from_bytes),
                }))
            }
        }
    }

    /// # Errors
    /// In words that repeat nothing of it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let head: Written = read(bytes)?;
        if head.format > FORMAT {
            return Err("its keys are of a newer kiln".to_owned());
        }
        match head.system {
            None => {
                let mut written: WrittenLinux = read(bytes)?;
                let key = |text: &str| KeyPair::from_private_openssh(text).map_err(|error| error.to_string());
                Ok(Self::Linux(LinuxKeys {
                    instance_id: written.instance_id.clone(),
                    login: key(&written.login)?,
                    host: key(&written.host)?,
                    facts: written.facts.take(),
                }))
            }
            Some(System::Windows) => {
                let written: WrittenWindows = read(bytes)?;
                let made = match (&written.password, &written.administrator_password) {
                    (Some(own), Some(administrator)) => Some(Passwords { own, administrator }),
                    (None, None) => None,
                    _ => return Err("its keys cannot be read".to_owned()),
                };
                let certificate = written.certificate_sha256.map(|digest| *digest.as_bytes());
                Ok(Self::Windows(WindowsKeys::new(&written.user, made, certificate)))
            }
        }
    }

    pub fn linux(&self) -> Option<&LinuxKeys> {
        match self {
            Self::Linux(keys) => Some(keys),
            Self::Windows(_) => None,
        }
    }

    pub fn windows(&self) -> Option<&WindowsKeys> {
        match self {
            Self::Windows(keys) => Some(keys),
            Self::Linux(_) => None,
        }
    }
}

/// With room for all of it: a vector that grows leaves copies behind.
fn written(keys: &impl Serialize) -> Zeroizing<Vec<u8>> {
    const ROOM: usize = 16 << 10;
    let mut bytes = Zeroizing::new(Vec::with_capacity(ROOM));
    // Into memory, of what has only texts: it cannot fail; and nothing at all is read as no keys.
    if serde_json::to_writer(&mut *bytes, keys).is_err() {
        bytes.clear();
    }
    bytes
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|_| "its keys cannot be read".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_survive_their_file_and_show_nothing() {
        let facts = GuestFacts {
            boot_id: "6f0c0d9e".into(),
            os_name: "Debian".into(),
            sudo: kiln_guest::Sudo::Passwordless,
            script_dir: None,
        };
        let keys = LinuxKeys { facts: Some(facts), ..LinuxKeys::generate("run-1").unwrap() };
        let bytes = LineageKeys::Linux(keys.clone()).to_bytes().unwrap();
        let again = LineageKeys::from_bytes(&bytes).unwrap();
        assert!(again.windows().is_none());
        let again = again.linux().unwrap();
        assert_eq!(again.instance_id, "run-1");
        assert_eq!(again.login.public(), keys.login.public());
        assert_eq!(again.host.public(), keys.host.public());
        assert_eq!(again.facts, keys.facts);
        assert!(!format!("{keys:?}").contains("PRIVATE"));
        let older = LinuxKeys { facts: None, ..keys.clone() };
        let older = LineageKeys::Linux(older).to_bytes().unwrap();
        assert_eq!(LineageKeys::from_bytes(&older).unwrap().linux().unwrap().facts, None);
        let newer = String::from_utf8(bytes.to_vec()).unwrap().replace("\"format\":1", "\"format\":2");
        assert!(LineageKeys::from_bytes(newer.as_bytes()).unwrap_err().contains("newer"));
        assert_eq!(LineageKeys::from_bytes(b"hunter2").unwrap_err(), "its keys cannot be read");
    }

    #[test]
    fn passwords_and_a_certificate_do_too() {
        let made = Passwords { own: "canary 1", administrator: "canary 2" };
        let keys = LineageKeys::Windows(WindowsKeys::new("packer", Some(made), Some([7; 32])));
        assert!(!format!("{keys:?} {keys:#?}").contains("canary"));
        let bytes = keys.to_bytes().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert_eq!(
            text,
            format!(
                "{{\"format\":1,\"system\":\"windows\",\"user\":\"packer\",\"password\":\"canary 1\",\
                 \"administratorPassword\":\"canary 2\",\"certificateSha256\":\"{}\"}}",
                "07".repeat(32)
            )
        );
        let again = LineageKeys::from_bytes(&bytes).unwrap();
        let again = again.windows().unwrap();
        let passwords = again.made().unwrap();
        assert_eq!((passwords.own, passwords.administrator), ("canary 1", "canary 2"));
        assert_eq!((again.user.as_str(), again.certificate), ("packer", Some([7; 32])));
        for (from, to, said) in [
            ("\"format\":1", "\"format\":2", "its keys are of a newer kiln"),
            ("\"password\":\"canary 1\",", "", "its keys cannot be read"),
            ("\"windows\"", "\"canary\"", "its keys cannot be read"),
        ] {
            assert_eq!(LineageKeys::from_bytes(text.replace(from, to).as_bytes()).unwrap_err(), said);
        }
    }

    /// The image's own account: its password is in its file, and nowhere else.
    #[test]
    fn a_password_that_is_the_images_own_is_not_kept() {
        let bytes = LineageKeys::Windows(WindowsKeys::new("golden", None, None)).to_bytes().unwrap();
        assert_eq!(&bytes[..], br#"{"format":1,"system":"windows","user":"golden"}"#);
        assert!(LineageKeys::from_bytes(&bytes).unwrap().windows().unwrap().made().is_none());
    }
}
