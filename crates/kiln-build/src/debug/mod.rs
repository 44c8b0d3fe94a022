//! A look at a machine whose customizer failed: it is left as it was, and opened as often as somebody wants.
//!
//! ```text
//!   customizer fails ─► leave   rest, freeze: RUN_DIR/work/machine/{machine.json, keys.json, memory, …}, layers as they lie
//!                                          │                                                ╲ never written again
//!   kiln debug RUN ──► Session::open   a layer of its own, the memory read ─► SSH or WinRM, console, screen
//!                                          └─► RUN_DIR/debug-<pid>/, gone with the session
//! ```
//! INVARIANT: what was left is only read: each session has a layer, keys' copies and sockets of its own.
//! How it fails: a machine that cannot be left is said so, and ends nothing (the run has failed already); one whose memory
//! does not go on is booted from its disk.

mod leave;
mod session;

use std::path::PathBuf;

use kiln_qemu::machine::Drivers;
use serde::{Deserialize, Serialize};

pub use kiln_guest::Stream;
pub(crate) use leave::{Stuck, leave};
pub use session::{OpenError, Session, system_of};

use crate::checkpoint::UEFI_VARS;
use crate::run_dir::RunDir;

/// The newest format of `machine.json` this build reads and the one it writes.
pub const MACHINE_FORMAT: u32 = 1;

/// `machine.json`: a machine that was left. How to get in lies beside it, in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Of a Windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drivers: Option<WrittenDrivers>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum WrittenDrivers {
    Inbox,
    Virtio,
}

impl From<Drivers> for WrittenDrivers {
    fn from(drivers: Drivers) -> Self {
        match drivers {
            Drivers::Inbox => Self::Inbox,
            Drivers::Virtio => Self::Virtio,
        }
    }
}

impl From<WrittenDrivers> for Drivers {
    fn from(drivers: WrittenDrivers) -> Self {
        match drivers {
            WrittenDrivers::Inbox => Self::Inbox,
            WrittenDrivers::Virtio => Self::Virtio,
        }
    }
}

impl LeftMachine {
    fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
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
    /// A private file: who opens it may log in.
    fn keys(&self) -> PathBuf {
        self.folder.join("keys.json")
    }
    /// What belongs to its state beside disk and memory, by the names that checkpoints have for it.
    fn state(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
    fn uefi_vars(&self) -> PathBuf {
        self.state(UEFI_VARS)
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
            drivers: Some(WrittenDrivers::Inbox),
        };
        let text = String::from_utf8(left.to_bytes()).unwrap();
        expect![[r#"
            {
              "format": 1,
              "cause": "Shell #1: exit status 3",
              "leftAt": "2026-01-02T03:04:05Z",
              "disk": "/runs/r/work/os.qcow2",
              "diskBytes": 1073741824,
              "memory": true,
              "drivers": "inbox"
            }"#]]
        .assert_eq(&text);
        assert_eq!(serde_json::from_str::<LeftMachine>(&text).unwrap(), left);
    }
}
