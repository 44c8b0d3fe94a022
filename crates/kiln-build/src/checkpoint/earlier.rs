//! A state that an earlier run kept, in this run's hands: leased, looked at byte by byte, its disks linked into the work
//! folder.
//!
//! How it fails: what is gone, damaged or not readable is an error, upon which the run looks for something else.

use std::io;
use std::path::PathBuf;

use kiln_library::{CheckpointLease, Manifest, Verify};

use super::keys::LineageKeys;
use super::layers::{DISK, make_folder};
use crate::context::Run;
use crate::error::BuildError;

/// A state that was kept, its disks linked into the run's work folder.
#[derive(Debug)]
pub(crate) struct Earlier {
    lease: CheckpointLease,
    /// So many customizers are behind it.
    pub after: usize,
    pub keys: LineageKeys,
}

impl Earlier {
    /// Leases, verifies, and links the disks.
    pub(super) async fn take(run: &Run, id: &str, whole: Verify, after: usize) -> Result<Self, BuildError> {
        let gone = || BuildError::Checkpoint { detail: format!("{id} was removed at this moment") };
        let lease = run.library.lease_checkpoint(id)?.ok_or_else(gone)?;
        run.library.verify_checkpoint(&lease, whole, &run.control).await?;
        let keys = lease.keys()?;
        let keys = LineageKeys::from_bytes(&keys).map_err(|detail| BuildError::Checkpoint { detail })?;
        for link in lease.chain() {
            let folder = run.workspace.layer(&link.manifest().id);
            make_folder(&folder)?;
            for disk in &link.manifest().disks {
                let from = link.path_of(disk);
                let to = folder.join(&disk.file);
                match std::fs::hard_link(&from, &to) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    linked => linked.map_err(BuildError::io("link", to))?,
                }
            }
        }
        Ok(Self { lease, after, keys })
    }

    pub fn manifest(&self) -> &Manifest {
        self.lease.manifest()
    }

    /// The machine's memory.
    pub fn memory(&self) -> Option<PathBuf> {
        self.manifest().memory.as_ref().map(|file| self.lease.path_of(file))
    }

    /// A file that belongs to the machine's state, by its name.
    pub fn other(&self, name: &str) -> Option<PathBuf> {
        self.manifest().more.iter().find(|file| file.file == name).map(|file| self.lease.path_of(file))
    }

    /// Its disk, as it is linked in the run's work folder.
    pub fn disk(&self, run: &Run) -> PathBuf {
        run.workspace.layer(self.id()).join(DISK)
    }

    pub fn id(&self) -> &str {
        &self.manifest().id
    }

    /// Whether its disk alone saves anything.
    pub(super) fn boots(&self) -> bool {
        // What a Windows does in its first boot stays; cloud-init does it again.
        self.after > 0 || self.keys.windows().is_some()
    }
}
