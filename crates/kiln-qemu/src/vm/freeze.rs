//! Keeping a machine as it is at this moment, and going on.
//!
//! ```text
//!   stop ─► a fresh overlay over each disk ─► memory into a file (mapped-ram) ─► cont
//!           └ what lies below is written by nobody any more
//! ```
//! What was the machine's disk and the memory file belong together: a [`Machine`](crate::machine::Machine) with a new
//! overlay on the first and the second as its `incoming` goes on where this one was stopped. The disk alone boots, and has
//! what the guest had flushed: whoever calls has seen to that, and to an empty drive.
//!
//! How it fails: memory that cannot be written, or not in time, is not kept; nothing of its file stays, and the machine
//! goes on. A run whose own end comes meanwhile wants no machine any more: it is left as it stands, for whoever ends it.
//! QEMU is not told to stop writing then, as it does not always survive that: 10.0 lets go of what its writers look at
//! before they have ended, and crashed in one of twelve tries while they looked for pages of zeros. A machine that is to
//! go on is worth that risk, after minutes in which its writers waited for a disk.
//!
//! Sources: QEMU's docs/devel/migration/mapped-ram.rst; docs/interop/live-block-operations.rst.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_host::wait::Control;
use serde_json::{Value, json};

use super::{Vm, VmError};
use crate::disk::Overlay;

/// A memory file of many GiB on a slow disk; nothing else waits that long for QEMU.
pub const MEMORY_LIMIT: Duration = Duration::from_secs(10 * 60);
/// QEMU stops writing as soon as what it has begun to write is written.
const CALL_OFF_LIMIT: Duration = Duration::from_secs(30);
/// Bytes a second, which QEMU wants to know: the disk is to be the limit.
const UNLIMITED: u64 = 1 << 40;
/// It is a matter of a lock in QEMU that changes hands.
const FINALIZED_AGAIN: Duration = Duration::from_millis(1);

/// Where a machine is kept.
#[derive(Debug)]
pub struct FreezeTo<'a> {
    /// With what it goes on: one for each of its disks, made by [`Overlay::above`].
    pub layers: Vec<Overlay>,
    /// A file to be made for its memory (mode 0600, sparse); none: its disks only.
    pub memory: Option<&'a Path>,
    /// How long the guest may stand still for it at most; see [`MEMORY_LIMIT`].
    pub memory_limit: Duration,
    /// Files that belong to its state, such as its UEFI variables, and what their copies are to be named.
    pub copies: Vec<(PathBuf, PathBuf)>,
}

/// What a machine was at one moment.
#[derive(Debug)]
pub struct Frozen {
    /// Its disks, the system's first. Nobody writes them any more, this machine reads them.
    pub disks: Vec<Overlay>,
    /// Why there is no memory file although one was wanted; whatever was written of it is gone.
    pub no_memory: Option<VmError>,
    /// How long the guest stood still.
    pub pause: Duration,
}

fn copy(files: &[(PathBuf, PathBuf)]) -> Result<(), VmError> {
    files.iter().try_for_each(|(from, to)| {
        let copied = std::fs::copy(from, to);
        copied.map(drop).map_err(|source| VmError::Prepare { path: to.clone(), source })
    })
}

impl Vm {
    /// Keeps the machine as it is: its disks become `Frozen::disks`, and it goes on with new ones.
    ///
    /// # Errors
    /// The machine goes on with the disks it had, or is lost. Where `control` ended, it may stand still, and all that is
    /// to be done with it is to end it.
    pub async fn freeze(&mut self, to: FreezeTo<'_>, control: &Control) -> Result<Frozen, VmError> {
        let FreezeTo { layers, memory, memory_limit, copies } = to;
        let with_memory = match memory {
            Some(path) => self.can_keep_memory(control).await?.then_some(path),
            None => None,
        };
        let begun = Instant::now();
        self.answered(control, self.qmp.execute("stop", json!({}))).await?;
        let kept = match copy(&copies) {
            Ok(()) => self.put_layers(&layers, control).await,
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            self.answered(control, self.qmp.execute("cont", json!({}))).await?;
            return Err(error);
        }
        let disks = std::mem::replace(&mut self.disks, layers);
        let no_memory = match (memory, with_memory) {
            (_, Some(path)) => self.write_memory(path, memory_limit, control).await.err(),
            (Some(_), None) => Some(VmError::NoMemoryFiles),
            (None, None) => None,
        };
        control.check()?;
        self.until_finalized(control).await?;
        self.answered(control, self.qmp.execute("cont", json!({}))).await?;
        Ok(Frozen { disks, no_memory, pause: begun.elapsed() })
    }

    /// Whether this QEMU writes memory files that can be read from any place (since 9.0).
    pub async fn can_keep_memory(&self, control: &Control) -> Result<bool, VmError> {
        let known = self.answered(control, self.qmp.execute("query-migrate-capabilities", json!({}))).await?;
        let known: Vec<&str> =
            known.as_array().into_iter().flatten().filter_map(|it| it["capability"].as_str()).collect();
        Ok(known.contains(&"mapped-ram") && known.contains(&"multifd"))
    }

    /// All disks in one transaction: at no moment does one belong to the past and another to the present.
    async fn put_layers(&mut self, layers: &[Overlay], control: &Control) -> Result<(), VmError> {
        let number = self.frozen + 1;
        let mut actions = Vec::new();
        let mut tops = Vec::new();
        let below: Vec<String> = self.tops().iter().map(|top| top.node.clone()).collect();
        for (index, (layer, below)) in layers.iter().zip(below).enumerate() {
            let node = format!("disk{index}-{number}");
            let opened = json!({
                "driver": "qcow2", "node-name": node, "backing": Value::Null,
                "cache": { "no-flush": true }, "discard": "unmap", "detect-zeroes": "unmap",
                "file": {
                    "driver": "file", "filename": layer.path(),
                    "cache": { "no-flush": true }, "discard": "unmap",
                },
            });
            self.answered(control, self.qmp.execute("blockdev-add", opened)).await?;
            actions.push(json!({ "type": "blockdev-snapshot", "data": { "node": below, "overlay": node } }));
            tops.push(super::Top { node, path: layer.path().to_owned() });
        }
        self.answered(control, self.qmp.execute("transaction", json!({ "actions": actions }))).await?;
        self.frozen = number;
        *self.tops() = tops;
        Ok(())
    }

    async fn write_memory(&self, path: &Path, limit: Duration, control: &Control) -> Result<(), VmError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        made.map_err(|source| VmError::Prepare { path: path.to_owned(), source })?;
        let in_time = control.within(limit);
        let written = match self.agree_on_memory_files(&in_time).await {
            Ok(()) => self.transfer("migrate", path, &in_time).await,
            Err(error) => Err(error),
        };
        let Err(error) = written else { return Ok(()) };
        // A part is of no use, and may be as large as the guest.
        let _ = std::fs::remove_file(path);
        control.check()?;
        self.call_off().await?;
        match error.interrupted() {
            Some(_) => Err(VmError::MemorySlow { limit }),
            None => Err(error),
        }
    }

    /// Has QEMU write no memory any more. Where it was given up, it is still at it; what has failed has ended already.
    async fn call_off(&self) -> Result<(), VmError> {
        let patience = Control::ending_in(CALL_OFF_LIMIT);
        let called_off = async {
            self.answered(&patience, self.qmp.execute("migrate_cancel", json!({}))).await?;
            self.transferred(&patience).await
        };
        match called_off.await {
            // The guest goes on beside it; the next memory file is refused if it is as slow as that.
            Err(error) if error.interrupted().is_some() => {
                tracing::warn!("QEMU is still writing memory that nobody wants any more");
                Ok(())
            }
            ended => ended.map(drop),
        }
    }

    /// Reads the machine's state from a memory file. The guest stands still after it.
    ///
    /// Its network wants nothing more from us. QEMU's user networking has its leases in the same file, so the address that
    /// the guest has stays good; and as soon as the guest goes on, QEMU announces it, five times within a second, and has a
    /// guest with virtio do so, too: its kernel tells all neighbours and whoever listens to the link (`NETDEV_NOTIFY_PEERS`).
    /// `announce-self` would say the same once more. Taking the link down and up (`set_link`) would renew the lease, but a
    /// guest's network service may drop the address for that, and with it our login, for seconds. What is dead are the
    /// connections of that time, which whoever holds one finds out.
    pub(super) async fn read_memory(&self, path: &Path, control: &Control) -> Result<(), VmError> {
        self.agree_on_memory_files(control).await?;
        self.transfer("migrate-incoming", path, control).await
    }

    /// QEMU tells that the memory is written a moment before it lets the machine go on, and of that moment it tells
    /// nothing.
    async fn until_finalized(&self, control: &Control) -> Result<(), VmError> {
        loop {
            let answer = self.answered(control, self.qmp.execute("query-status", json!({}))).await?;
            if answer["status"] != "finish-migrate" {
                return Ok(());
            }
            // No event to wait for, as said above.
            control.sleep(FINALIZED_AGAIN).await?;
        }
    }

    async fn agree_on_memory_files(&self, control: &Control) -> Result<(), VmError> {
        let on = ["mapped-ram", "multifd", "events"].map(|name| json!({ "capability": name, "state": true }));
        let asked = json!({ "capabilities": on });
        self.answered(control, self.qmp.execute("migrate-set-capabilities", asked)).await?;
        let asked = json!({ "max-bandwidth": UNLIMITED });
        self.answered(control, self.qmp.execute("migrate-set-parameters", asked)).await?;
        Ok(())
    }

    async fn transfer(&self, command: &str, path: &Path, control: &Control) -> Result<(), VmError> {
        let channel = json!({
            "channel-type": "main",
            "addr": { "transport": "file", "filename": path, "offset": 0 },
        });
        self.answered(control, self.qmp.execute(command, json!({ "channels": [channel] }))).await?;
        let told = self.transferred(control).await?;
        let status = told["status"].as_str().unwrap_or("not known");
        if status == "completed" {
            return Ok(());
        }
        let reason = told["error-desc"].as_str().unwrap_or(status).to_owned();
        Err(VmError::Memory { path: path.to_owned(), reason })
    }

    /// Waits until no memory is on its way any more, and returns QEMU's words about the last that was.
    async fn transferred(&self, control: &Control) -> Result<Value, VmError> {
        let mut seen = self.seen.clone();
        loop {
            let before = seen.borrow_and_update().transfers;
            let told = self.answered(control, self.qmp.execute("query-migrate", json!({}))).await?;
            if matches!(told["status"].as_str(), None | Some("none" | "completed" | "failed" | "cancelled")) {
                return Ok(told);
            }
            // An event only has us ask again: it may be a late one, of a transfer before this.
            let ended = async {
                match seen.wait_for(|seen| seen.transfers > before).await {
                    Ok(_) => {}
                    // The connection's end is QEMU's, which the guard tells.
                    Err(_) => std::future::pending().await,
                }
            };
            self.guard(control, ended).await?;
        }
    }
}
