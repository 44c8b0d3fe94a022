//! Checkpoints on the shelf: machines as they were after a step of a build, and images that were finished.
//!
//! ```text
//!   draft ─► files linked and written into it ─► publish ─► checkpoints/<id>/  ◄── parent ── checkpoints/<id>/ ◄── …
//!     └ dropped: gone                                        leased by the runs that begin with it
//! ```
//! | file                | what it is                                                          |
//! |---------------------|---------------------------------------------------------------------|
//! | `checkpoint.json`   | the manifest: what led to it, and its files with their digests      |
//! | `keys.json`         | what lets a run in, opaque to the shelf; mode 0600                  |
//! | `disk0.qcow2`, …    | what the manifest lists; a disk lies on its parent's                |
//!
//! A checkpoint's name is random and no key: two runs may publish the same state at once, and the layers of each name
//! their own parent. Who uses one holds its manifest together with others, and those of all that it lies on; who removes
//! it holds it alone, takes its folder off the shelf by a rename, and only then deletes it. Big files are not synced: what
//! a crash of the host tears is found by [`Library::verify_checkpoint`].
//!
//! INVARIANT: a checkpoint is written by nobody after it was published; it appears whole, and goes only when nobody uses
//! it or lies on it. All of it is its owner's alone: memory and disks hold whatever a build held.

mod shelf;

use std::fs::{File, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kiln_host::publish;
use kiln_model::Sha256;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::hold::{Share, try_hold};
use crate::library::ImageFolder;
use crate::{Library, LibraryError};

pub use shelf::{Evicted, Removed, ShelvedCheckpoint, Verify};

/// The newest format of `checkpoint.json` this build reads and the one it writes.
pub const CHECKPOINT_FORMAT: u32 = 1;

pub(crate) const MANIFEST: &str = "checkpoint.json";
const KEYS: &str = "keys.json";
/// Keys are a few lines.
const LARGEST_KEYS: u64 = 64 << 10;

/// `checkpoint.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointManifest {
    pub format: u32,
    /// The name of its folder.
    pub id: String,
    pub kind: CheckpointKind,
    /// Of all that led to it, whatever QEMU it was made with.
    pub key: Sha256,
    pub machine: MachineMark,
    pub base: BaseMark,
    /// The checkpoint whose disks these lie on; none: the base image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The system's first.
    pub disks: Vec<StoredFile>,
    /// None: only the disks were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<StoredFile>,
    /// What else belongs to the machine's state, such as its UEFI variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<StoredFile>,
    /// The first boot and every customizer behind it, in their order.
    pub steps: Vec<StepMark>,
    /// RFC 3339, UTC.
    pub created_at: String,
    pub kiln_version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckpointKind {
    /// A machine between two steps.
    Checkpoint,
    /// A disk whose guest was generalized and shut down cleanly.
    Image,
}

/// The machine that memory fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineMark {
    pub digest: Sha256,
    /// The same for people.
    pub lines: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BaseMark {
    pub name: String,
    pub version: String,
    pub sha256: Sha256,
}

/// A step behind a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepMark {
    /// `Shell "install"`.
    pub title: String,
    /// What went into it, by name.
    pub inputs: Vec<(String, Sha256)>,
    /// Of the state after it.
    pub key: Sha256,
    /// When it ran. RFC 3339, UTC.
    pub made_at: String,
    /// It may have taken something from the network.
    pub networked: bool,
}

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredFile {
    /// A name in the checkpoint's folder.
    pub file: String,
    /// Bytes, holes included.
    pub size: u64,
    /// [`kiln_host::extents`].
    pub extents: Sha256,
}

impl CheckpointManifest {
    /// All that the manifest lists.
    pub fn files(&self) -> impl Iterator<Item = &StoredFile> {
        self.disks.iter().chain(&self.memory).chain(&self.more)
    }
}

/// A checkpoint in the making: a folder that is held while this lives, and removed with what is left in it.
#[derive(Debug)]
pub struct CheckpointDraft {
    library: Library,
    id: String,
    folder: ImageFolder,
}

/// While it lives, the checkpoint and all that it lies on stay. Held across processes; gone with the process that holds it.
#[derive(Debug)]
pub struct CheckpointLease {
    library: Library,
    /// The one it began with first, the leased one last.
    chain: Vec<CheckpointManifest>,
    manifest: CheckpointManifest,
    _held: Vec<File>,
}

impl Library {
    /// Where checkpoints lie.
    pub fn checkpoints_dir(&self) -> PathBuf {
        self.root().join("checkpoints")
    }

    /// A place for a new checkpoint, and its name.
    pub fn draft_checkpoint(&self) -> Result<CheckpointDraft, LibraryError> {
        let shelf = self.checkpoints_dir();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&shelf)
            .map_err(LibraryError::disk("make", &shelf))?;
        let folder = self.make_image_folder().map_err(LibraryError::disk("write", self.tmp()))?;
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700))
            .map_err(LibraryError::disk("close", folder.path()))?;
        let name = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Random already, and nobody else's.
        let id = kiln_host::digest::hex(&kiln_host::digest::sha256(name.as_bytes())[..12]);
        Ok(CheckpointDraft { library: self.clone(), id, folder })
    }
}

impl CheckpointDraft {
    /// The name that it will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its files are put.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Puts it on the shelf, whole.
    ///
    /// # Errors
    /// Files that are missing, a disk that cannot be written; then it is gone.
    pub fn publish(self, manifest: CheckpointManifest, keys: &[u8]) -> Result<CheckpointLease, LibraryError> {
        let Self { library, id, folder } = self;
        let record = folder.path().join(MANIFEST);
        check(&manifest, &id, &record)?;
        for file in manifest.files() {
            let path = folder.path().join(&file.file);
            std::fs::set_permissions(&path, Permissions::from_mode(0o400))
                .map_err(LibraryError::disk("close", &path))?;
        }
        let secret = folder.path().join(KEYS);
        publish::write_file(&secret, keys, 0o600).map_err(LibraryError::disk("write", &secret))?;
        let mut text = serde_json::to_vec_pretty(&manifest)
            .map_err(|source| LibraryError::Unreadable { path: record.clone(), source })?;
        text.push(b'\n');
        publish::write_file(&record, &text, 0o600).map_err(LibraryError::disk("write", &record))?;
        // Held before anybody else can see it.
        let held = try_hold(&record, Share::Together).map_err(LibraryError::disk("hold", &record))?;
        let home = library.checkpoints_dir().join(&id);
        std::fs::rename(folder.path(), &home).map_err(LibraryError::disk("publish", &home))?;
        let shelf = library.checkpoints_dir();
        publish::sync_dir(&shelf).map_err(LibraryError::disk("sync", &shelf))?;
        let chain = vec![manifest.clone()];
        Ok(CheckpointLease { library, chain, manifest, _held: held.into_iter().collect() })
    }
}

impl CheckpointLease {
    pub fn manifest(&self) -> &CheckpointManifest {
        &self.manifest
    }

    /// All that its disks lie on, the first one first, and itself.
    pub fn chain(&self) -> &[CheckpointManifest] {
        &self.chain
    }

    pub fn path_of(&self, file: &StoredFile) -> PathBuf {
        self.library.checkpoints_dir().join(&self.manifest.id).join(&file.file)
    }

    /// What was given with it, wiped from memory when dropped.
    pub fn keys(&self) -> Result<Zeroizing<Vec<u8>>, LibraryError> {
        use std::io::Read as _;
        let path = self.library.checkpoints_dir().join(&self.manifest.id).join(KEYS);
        let mut bytes = Zeroizing::new(Vec::new());
        let read = File::open(&path).and_then(|file| file.take(LARGEST_KEYS).read_to_end(&mut bytes));
        read.map_err(LibraryError::disk("read", &path))?;
        Ok(bytes)
    }
}

/// Whether a manifest is what it should be in the place where it lies.
fn check(manifest: &CheckpointManifest, id: &str, record: &Path) -> Result<(), LibraryError> {
    let contradiction =
        |what: &str| LibraryError::Contradiction { path: record.to_owned(), what: what.to_owned() };
    if manifest.id != id {
        return Err(contradiction("it is the record of another checkpoint"));
    }
    // A name only: it must not lead out of the folder.
    let named = |file: &str| Path::new(file).file_name() == Some(file.as_ref());
    if !manifest.files().all(|file| named(&file.file)) {
        return Err(contradiction("`file` is not a file name"));
    }
    if !manifest.parent.iter().all(|parent| named(parent)) {
        return Err(contradiction("`parent` is not the name of a checkpoint"));
    }
    if manifest.disks.is_empty() {
        return Err(contradiction("it has no disk"));
    }
    Ok(())
}
