//! The shelf of checkpoints: machines as they stood after a step, kept so that a later run goes on from there.
//!
//! ```text
//!   draft ──► tmp/checkpoint-<id>/ ── the machine's files are written there, by whoever has the machine
//!     │ publish(manifest, keys)        dropped or killed: nothing appears, the rest is swept
//!     ▼
//!   checkpoints/<id>/                  one rename; 0700
//!     checkpoint.json                  what it is; its time is that of the last use
//!     keys.json                        how to log in to it; opaque here, secret
//!     disk0.qcow2, memory, …           what the manifest lists; 0400
//!     │
//!     ├─► checkpoints, find            what there is, newest first
//!     ├─► lease                        it and all it lies on stay; keys, paths; verify
//!     └─► remove, evict                into tmp by a rename, then deleted
//!
//!   base image ◄── A ◄── B ◄── C       a disk is an overlay on the disk of its parent,
//!                   ▲                   which it names by a path beside its own
//!                   └──── D            so A goes after B, C and D, never before
//! ```
//!
//! The id is random and known from the draft on, since overlays name the place before anything is there. It is not the
//! key: two runs may publish the same key, each with its own further overlays on top, and then both lie here.
//!
//! What is in the files, whether two keys are the same machine, and how old is too old is for others to say.
//!
//! Who holds what, by locks on the files themselves, so nothing is left over when a process dies:
//!
//! | lock              | shared                          | alone                                                    |
//! |-------------------|---------------------------------|----------------------------------------------------------|
//! | `checkpoint.json` | by each lease, of all the chain | by who takes it off the shelf, and means it              |
//! | `keys.json`       | by each lease, of all the chain | for a moment, by who only wants to know if it is in use  |
//!
//! Asking must not look like removing: a lease that comes in that moment would think the checkpoint gone. Nobody waits
//! for a lock. A lease goes from the child to its parents, and so does a removal; who comes second gives way.
//!
//! INVARIANT: a checkpoint is written by nobody after it was published; it appears whole, and goes only when nobody
//! uses it or lies on it. Publishing under a parent needs a lease of the parent, and a removal holds alone what it
//! removes *before* it looks for children a last time: so none can come unseen.
//!
//! Big files are not synced when they are published: that costs more than they are worth. What a crash of the host
//! tears is found by [`Library::verify_checkpoint`], and then is one checkpoint less.

mod draft;
mod lease;
mod leave;
mod making;
mod manifest;
mod shelf;

use std::io;
use std::path::PathBuf;

pub use draft::CheckpointDraft;
pub use lease::{ChainLink, CheckpointLease, Verify};
pub use leave::{Evicted, Removed};
pub use making::Making;
pub use manifest::{
    BaseMark, CHECKPOINT_FORMAT, CheckpointKind, MachineMark, Manifest, StepInput, StepMark, StoredFile,
};
pub use shelf::ShelvedCheckpoint;

use crate::Library;

const MANIFEST: &str = "checkpoint.json";
const KEYS: &str = "keys.json";

impl Library {
    /// The folder of a published checkpoint. Only for ids that [`is_id`].
    fn checkpoint_home(&self, id: &str) -> PathBuf {
        self.checkpoints_dir().join(id)
    }
}

/// Whether a checkpoint may have this id. It is a folder's name, and stands in other checkpoints' manifests.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Nothing of that name (any more).
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
