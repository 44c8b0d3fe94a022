//! What there is: the shelf, read once.
//!
//! A manifest never changes, so whoever has many questions reads them all and looks for the answers there. What is listed
//! may be gone when it is wanted: only a lease keeps it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use super::manifest::{Manifest, read_manifest};
use super::{KEYS, MANIFEST, is_gone, is_id};
use crate::library::read_record;
use crate::{Library, LibraryError};

/// `st_blocks` counts these, whatever the file system's own are: stat(3type).
const BLOCK: u64 = 512;

/// A checkpoint on the shelf, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShelvedCheckpoint {
    pub manifest: Manifest,
    /// What its files take, holes not counted; without its ancestors.
    pub bytes_on_disk: u64,
    /// When it, or one that lies on it, was last leased or published.
    pub last_used: SystemTime,
    /// Whether somebody leases it, or one that lies on it. It may look so while another process asks the same.
    pub in_use: bool,
}

impl Library {
    /// Every checkpoint on the shelf, newest first. A damaged one does not hide the others: it is left out, with a
    /// warning in the log.
    ///
    /// # Errors
    /// The shelf cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<ShelvedCheckpoint>, LibraryError> {
        let mut found = Vec::new();
        for entry in self.read_shelf()? {
            let Content::Known(manifest) = entry.content else { continue };
            let Some(bytes_on_disk) = allocated(&entry.folder)? else { continue };
            let in_use = is_in_use(&entry.folder);
            let last_used = entry.last_used;
            found.push(ShelvedCheckpoint { manifest: *manifest, bytes_on_disk, last_used, in_use });
        }
        found.sort_by_cached_key(|one| Reverse((one.manifest.created(), one.manifest.id.clone())));
        Ok(found)
    }

    fn read_shelf(&self) -> Result<Vec<Entry>, LibraryError> {
        let ids = self.checkpoint_ids()?;
        ids.iter().filter_map(|id| self.read_entry(id).transpose()).collect()
    }

    /// Names of the folders on the shelf. What is named otherwise is not ours.
    pub(super) fn checkpoint_ids(&self) -> Result<BTreeSet<String>, LibraryError> {
        let shelf = self.checkpoints_dir();
        let failed = |source| LibraryError::disk("list", &shelf)(source);
        let mut ids = BTreeSet::new();
        for entry in std::fs::read_dir(&shelf).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                ids.extend(entry.file_name().into_string().ok().filter(|name| is_id(name)));
            }
        }
        Ok(ids)
    }

    /// What is known of one; `None` when it is gone.
    pub(super) fn read_entry(&self, id: &str) -> Result<Option<Entry>, LibraryError> {
        let folder = self.checkpoint_home(id);
        let record = folder.join(MANIFEST);
        let read = read_manifest(&record, id);
        // Folders come and go whole: one that is there without its manifest has lost it.
        let last_used = match record.metadata().and_then(|metadata| metadata.modified()) {
            Ok(time) => time,
            Err(error) if is_gone(&error) && !folder.exists() => return Ok(None),
            Err(error) if is_gone(&error) => SystemTime::UNIX_EPOCH,
            Err(error) => return Err(LibraryError::disk("read", record)(error)),
        };
        let content = match read {
            Ok(manifest) => Content::Known(Box::new(manifest)),
            Err(error) => {
                tracing::warn!(checkpoint = id, error = &error as &dyn std::error::Error, "left out");
                match error {
                    LibraryError::Unreadable { .. } | LibraryError::Contradiction { .. } => Content::Damaged,
                    LibraryError::Disk { source, .. } if is_gone(&source) => Content::Damaged,
                    _ => {
                        let lying = read_record::<Lying>(&record, u32::MAX).ok();
                        Content::Unknown { parent: lying.and_then(|lying| lying.parent) }
                    }
                }
            }
        };
        Ok(Some(Entry { id: id.to_owned(), folder, content, last_used }))
    }
}

/// A folder on the shelf.
#[derive(Debug)]
pub(super) struct Entry {
    pub id: String,
    pub folder: PathBuf,
    pub content: Content,
    /// Of one that lost its manifest: long ago.
    pub last_used: SystemTime,
}

#[derive(Debug)]
pub(super) enum Content {
    Known(Box<Manifest>),
    /// Its manifest is torn or contradicts itself: nobody can use it.
    Damaged,
    /// Of a newer format, or not to be read at the moment: somebody else's business. What it lies on is its too, as far
    /// as it can be told.
    Unknown {
        parent: Option<String>,
    },
}

impl Content {
    pub fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Known(manifest) => Some(manifest),
            Self::Damaged | Self::Unknown { .. } => None,
        }
    }

    pub fn parent(&self) -> Option<&str> {
        match self {
            Self::Known(manifest) => manifest.parent.as_deref(),
            Self::Unknown { parent } => parent.as_deref(),
            Self::Damaged => None,
        }
    }
}

/// The one word of a manifest that matters in every format.
#[derive(Deserialize)]
struct Lying {
    parent: Option<String>,
}

/// Bytes that the files of a folder take on the disk; `None` when it is gone.
pub(super) fn allocated(folder: &Path) -> Result<Option<u64>, LibraryError> {
    let sum = || -> io::Result<u64> {
        let mut blocks = 0;
        for entry in std::fs::read_dir(folder)? {
            blocks += entry?.metadata()?.blocks();
        }
        Ok(blocks * BLOCK)
    };
    match sum() {
        Ok(bytes) => Ok(Some(bytes)),
        // Nothing is ever taken out of a folder: it is all of it that went.
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(LibraryError::disk("measure", folder)(error)),
    }
}

/// Asks without standing in the way of anybody who begins to use it: see the table in the module's header.
pub(super) fn is_in_use(folder: &Path) -> bool {
    let Ok(file) = File::open(folder.join(KEYS)) else { return false };
    let asked = file.try_lock();
    // At once, and not only by closing it: see `Hold`.
    let _ = file.unlock();
    matches!(asked, Err(TryLockError::WouldBlock))
}
