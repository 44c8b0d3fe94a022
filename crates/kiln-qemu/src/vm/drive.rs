//! The machine's one removable drive: changing what lies in it.
//!
//! ```text
//!   open the tray ─► the old medium out, its file closed ─► the new one in ─► close the tray
//! ```
//! The tray opens whether or not the guest has locked it: whoever calls has seen to it that the guest reads nothing.

use std::path::Path;

use kiln_host::wait::Control;
use serde_json::{Value, json};

use super::{Vm, VmError};
use crate::argv::{DRIVE, medium_node};

/// What lies in the drive, as QEMU names it.
#[derive(Debug)]
pub(super) struct Drive {
    medium: Option<String>,
    /// The number of the next one.
    next: u32,
}

impl Drive {
    pub(super) fn started_with(medium: bool) -> Self {
        Self { medium: medium.then(|| medium_node(0)), next: 1 }
    }
}

impl Vm {
    /// Puts a medium into the drive, in place of what is there. The guest notices when it looks next.
    pub async fn insert_medium(&self, path: &Path, control: &Control) -> Result<(), VmError> {
        let mut drive = self.drive.lock().await;
        self.empty(&mut drive, control).await?;
        let node = medium_node(drive.next);
        drive.next += 1;
        let medium = json!({
            "driver": "raw", "node-name": node, "read-only": true,
            "file": { "driver": "file", "filename": path },
        });
        self.act("blockdev-add", medium, control).await?;
        drive.medium = Some(node.clone());
        self.act("blockdev-insert-medium", json!({ "id": DRIVE, "node-name": node }), control).await?;
        self.act("blockdev-close-tray", json!({ "id": DRIVE }), control).await
    }

    /// Takes the medium out of the drive.
    pub async fn eject_medium(&self, control: &Control) -> Result<(), VmError> {
        let mut drive = self.drive.lock().await;
        self.empty(&mut drive, control).await?;
        self.act("blockdev-close-tray", json!({ "id": DRIVE }), control).await
    }

    /// Leaves the tray open, with nothing in it.
    async fn empty(&self, drive: &mut Drive, control: &Control) -> Result<(), VmError> {
        self.act("blockdev-open-tray", json!({ "id": DRIVE, "force": true }), control).await?;
        if let Some(node) = &drive.medium {
            self.act("blockdev-remove-medium", json!({ "id": DRIVE }), control).await?;
            self.act("blockdev-del", json!({ "node-name": node }), control).await?;
            drive.medium = None;
        }
        Ok(())
    }

    async fn act(&self, command: &str, asked: Value, control: &Control) -> Result<(), VmError> {
        self.answered(control, self.qmp.execute(command, asked)).await?;
        Ok(())
    }
}
