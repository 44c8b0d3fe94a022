//! What lets a run into a machine that another run kept: its keys, and what cloud-init knows that boot as.
//!
//! INVARIANT: they lie in one file of mode 0600, and go no further than the first command after the machine goes on.

use kiln_guest::keys::{KeyError, KeyPair};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

const FORMAT: u32 = 1;

/// The keys of whoever was logged in last.
#[derive(Debug, Clone)]
pub(crate) struct LineageKeys {
    /// cloud-init's name for the first boot: with another one it would begin anew at the next.
    pub instance_id: String,
    pub login: KeyPair,
    pub host: KeyPair,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    format: u32,
    instance_id: String,
    login: String,
    host: String,
}

impl Drop for Written {
    fn drop(&mut self) {
        self.login.zeroize();
        self.host.zeroize();
    }
}

impl LineageKeys {
    pub fn generate(instance_id: &str) -> Result<Self, KeyError> {
        Ok(Self {
            instance_id: instance_id.to_owned(),
            login: KeyPair::generate()?,
            host: KeyPair::generate()?,
        })
    }

    /// The content of the file.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let text = |key: &KeyPair| Ok(key.private_openssh()?.expose().to_owned());
        let written = Written {
            format: FORMAT,
            instance_id: self.instance_id.clone(),
            login: text(&self.login)?,
            host: text(&self.host)?,
        };
        Ok(Zeroizing::new(serde_json::to_vec(&written).unwrap_or_default()))
    }

    /// # Errors
    /// In words that repeat nothing of it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let written: Written =
            serde_json::from_slice(bytes).map_err(|_| "its keys cannot be read".to_owned())?;
        if written.format > FORMAT {
            return Err("its keys are of a newer kiln".to_owned());
        }
        let key = |text: &str| KeyPair::from_private_openssh(text).map_err(|error| error.to_string());
        Ok(Self {
            instance_id: written.instance_id.clone(),
            login: key(&written.login)?,
            host: key(&written.host)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_survive_their_file_and_show_nothing() {
        let keys = LineageKeys::generate("run-1").unwrap();
        let bytes = keys.to_bytes().unwrap();
        let again = LineageKeys::from_bytes(&bytes).unwrap();
        assert_eq!(again.instance_id, "run-1");
        assert_eq!(again.login.public(), keys.login.public());
        assert_eq!(again.host.public(), keys.host.public());
        assert!(!format!("{keys:?}").contains("PRIVATE"));
        let newer = String::from_utf8(bytes.to_vec()).unwrap().replace("\"format\":1", "\"format\":2");
        assert!(LineageKeys::from_bytes(newer.as_bytes()).unwrap_err().contains("newer"));
        assert_eq!(LineageKeys::from_bytes(b"hunter2").unwrap_err(), "its keys cannot be read");
    }
}
