//! A look at a machine whose customizer failed: it is left as it was, and opened as often as somebody wants.
//!
//! ```text
//!   customizer fails ─► leave   rest, freeze: RUN_DIR/work/machine/{machine.json, memory, …}, layers as they lie
//!                                          │                                                ╲ never written again
//!   kiln debug RUN ──► Session::open   a layer of its own, the memory read ─► SSH, console, screen
//!                                          └─► RUN_DIR/debug-<pid>/, gone with the session
//! ```
//! INVARIANT: what was left is only read: each session has a layer, keys' copies and sockets of its own.
//! How it fails: a machine that cannot be left is said so, and ends nothing (the run has failed already); one whose memory
//! does not go on is booted from its disk.

mod leave;
mod session;

use std::path::PathBuf;

use kiln_guest::Login;
use kiln_guest::keys::{KeyPair, PublicKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

pub(crate) use leave::{Stuck, leave};
pub use session::{OpenError, Session};

use crate::run_dir::RunDir;

/// The newest format of `machine.json` this build reads and the one it writes.
pub const MACHINE_FORMAT: u32 = 1;

/// `machine.json`: a machine that was left, and how to log in to it. Holds a private key: mode 0600, no `Debug`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LeftMachine {
    format: u32,
    /// What ended the run, in one sentence.
    cause: String,
    /// RFC 3339, UTC.
    left_at: String,
    /// Absolute; its layers name each other.
    disk: PathBuf,
    /// Bytes, as the guest sees it.
    disk_bytes: u64,
    /// Whether its memory was kept, too.
    memory: bool,
    user: String,
    /// In OpenSSH's form.
    login_key: String,
    host_key: String,
}

impl Drop for LeftMachine {
    fn drop(&mut self) {
        self.login_key.zeroize();
    }
}

impl LeftMachine {
    /// By whom and as whom somebody is logged in.
    fn login(&self, addr: std::net::SocketAddr) -> Result<Login, kiln_guest::keys::KeyError> {
        Ok(Login {
            user: self.user.clone(),
            key: KeyPair::from_private_openssh(&self.login_key)?,
            host_key: PublicKey::from_openssh(&self.host_key)?,
            addr,
        })
    }

    fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(serde_json::to_vec_pretty(self).unwrap_or_default())
    }
}

/// Where a left machine's files are, in a run's directory.
struct Places {
    folder: PathBuf,
}

impl Places {
    fn of(dir: &RunDir) -> Self {
        Self { folder: dir.work().join("machine") }
    }
    fn record(&self) -> PathBuf {
        self.folder.join("machine.json")
    }
    fn memory(&self) -> PathBuf {
        self.folder.join("memory")
    }
    fn uefi_vars(&self) -> PathBuf {
        self.folder.join("uefi-vars.fd")
    }
    /// With what the machine goes on for the moment until it is ended.
    fn rest(&self) -> PathBuf {
        self.folder.join("rest.qcow2")
    }
}

/// Whether the run left a machine that [`Session::open`] opens.
pub fn is_left(dir: &RunDir) -> bool {
    Places::of(dir).record().exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn the_record_of_a_left_machine() {
        let left = LeftMachine {
            format: MACHINE_FORMAT,
            cause: "Shell #1: exit status 3".to_owned(),
            left_at: "2026-01-02T03:04:05Z".to_owned(),
            disk: "/runs/r/work/os.qcow2".into(),
            disk_bytes: 1 << 30,
            memory: true,
            user: "packer".to_owned(),
            login_key: "secret".to_owned(),
            host_key: "ssh-ed25519 AAAA".to_owned(),
        };
        let text = String::from_utf8(left.to_bytes().to_vec()).unwrap();
        expect![[r#"
            {
              "format": 1,
              "cause": "Shell #1: exit status 3",
              "leftAt": "2026-01-02T03:04:05Z",
              "disk": "/runs/r/work/os.qcow2",
              "diskBytes": 1073741824,
              "memory": true,
              "user": "packer",
              "loginKey": "secret",
              "hostKey": "ssh-ed25519 AAAA"
            }"#]]
        .assert_eq(&text);
        let again: LeftMachine = serde_json::from_str(&text).unwrap();
        assert_eq!(again.disk, left.disk);
        assert!(again.login("127.0.0.1:22".parse().unwrap()).is_err(), "it is no key");
    }
}
