//! What a checkpoint says of itself: `checkpoint.json`.
//!
//! Written once, by [`crate::CheckpointDraft::publish`], and then read by every Kiln that opens the library: a golden
//! test holds its form. What was read was also checked, so a [`Manifest`] from the shelf leads nowhere else: its id is
//! the folder's name, its files are names in that folder, and its times are times.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;
use kiln_model::Sha256;
use serde::{Deserialize, Serialize};

use super::{KEYS, MANIFEST, is_id};
use crate::LibraryError;
use crate::library::read_record;

/// The newest format of `checkpoint.json` this build reads and the one it writes.
pub const CHECKPOINT_FORMAT: u32 = 1;

/// A machine after a step, or a finished disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`CHECKPOINT_FORMAT`] of whoever wrote it.
    pub format: u32,
    /// As the draft gave it; the folder's name.
    pub id: String,
    pub kind: CheckpointKind,
    /// Digest of all that led here. Several checkpoints may have the same.
    pub key: Sha256,
    pub machine: MachineMark,
    pub base: BaseMark,
    /// The id of the checkpoint whose disks these lie on; `None` when they lie on the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// In the machine's order; the first one has the system.
    pub disks: Vec<StoredFile>,
    /// `None`: the disk half only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<StoredFile>,
    /// UEFI variables, TPM state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<StoredFile>,
    /// All that were done, from the base on.
    pub steps: Vec<StepMark>,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Of whoever made it.
    pub kiln_version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckpointKind {
    /// A machine between two steps.
    Checkpoint,
    /// A finished disk: the guest was generalized and shut down cleanly. It has no memory.
    Image,
}

/// The hardware, as far as a guest could notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineMark {
    pub digest: Sha256,
    /// What the digest is of, for people.
    pub lines: Vec<String>,
}

/// The base image below it all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseMark {
    pub name: String,
    pub version: String,
    pub sha256: Sha256,
}

/// A file beside the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredFile {
    /// A name, not a path.
    pub file: String,
    /// Bytes, holes included.
    pub size: u64,
    /// As [`kiln_host::extents`] defines it.
    pub extents: Sha256,
}

/// A step that led here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepMark {
    /// For people.
    pub title: String,
    pub inputs: Vec<StepInput>,
    /// Digest of all up to this step.
    pub key: Sha256,
    /// When it was done, which may be long before this checkpoint was made. RFC 3339, UTC.
    pub made_at: String,
    /// Whether it could reach the network, and so what nobody keeps a digest of.
    pub networked: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepInput {
    /// For people.
    pub what: String,
    pub sha256: Sha256,
}

impl Manifest {
    /// Every file it lists.
    pub fn files(&self) -> impl Iterator<Item = &StoredFile> {
        self.disks.iter().chain(&self.memory).chain(&self.more)
    }

    /// When it was made.
    pub(super) fn created(&self) -> Timestamp {
        // It was checked when it was read.
        self.created_at.parse().unwrap_or(Timestamp::MIN)
    }

    /// What is wrong with it, for the checkpoint `id`.
    pub(super) fn trouble(&self, id: &str) -> Option<String> {
        if self.id != id {
            return Some("it is the manifest of another checkpoint".to_owned());
        }
        if let Some(parent) = &self.parent
            && (!is_id(parent) || parent == id)
        {
            return Some("`parent` cannot be a checkpoint's parent".to_owned());
        }
        if self.disks.is_empty() {
            return Some("it has no disk".to_owned());
        }
        if self.kind == CheckpointKind::Image && self.memory.is_some() {
            return Some("it is an image and has memory".to_owned());
        }
        let mut names = BTreeSet::from([MANIFEST, KEYS]);
        for file in self.files() {
            // A name only: it must not lead out of the folder.
            if Path::new(&file.file).file_name() != Some(file.file.as_ref()) || file.file.contains('\0') {
                return Some(format!("{:?} is not a file name", file.file));
            }
            if !names.insert(&file.file) {
                return Some(format!("{:?} is there twice", file.file));
            }
        }
        let times = self.steps.iter().map(|step| &step.made_at).chain([&self.created_at]);
        times
            .into_iter()
            .find(|time| time.parse::<Timestamp>().is_err())
            .map(|time| format!("{time:?} is no time"))
    }
}

/// The manifest in `path`, of the checkpoint `id`.
pub(super) fn read_manifest(path: &Path, id: &str) -> Result<Manifest, LibraryError> {
    let manifest: Manifest = read_record(path, CHECKPOINT_FORMAT)?;
    match manifest.trouble(id) {
        None => Ok(manifest),
        Some(what) => Err(LibraryError::Contradiction { path: path.to_owned(), what }),
    }
}
