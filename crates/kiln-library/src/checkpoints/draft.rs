//! A checkpoint on its way in.
//!
//! The draft is a folder in `tmp` that this process holds. Its files get there by whoever has the machine; until
//! [`CheckpointDraft::publish`] nobody else sees them, and a draft that is dropped takes them with it.

use std::collections::BTreeSet;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kiln_host::publish;

use super::lease::{ChainLink, CheckpointLease};
use super::manifest::{CHECKPOINT_FORMAT, Manifest};
use super::{KEYS, MANIFEST};
use crate::library::{FolderAside, LARGEST_RECORD, Making};
use crate::{Library, LibraryError};

/// A checkpoint that is being made.
#[derive(Debug)]
pub struct CheckpointDraft {
    library: Library,
    id: String,
    aside: FolderAside,
}

impl Library {
    /// A folder to make a checkpoint in, with the name it will have.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn draft_checkpoint(&self) -> Result<CheckpointDraft, LibraryError> {
        let aside =
            self.make_folder_aside(Making::Checkpoint).map_err(LibraryError::disk("write", self.tmp()))?;
        let name = aside.path().file_name().unwrap_or_default().to_string_lossy();
        let id = name.strip_prefix(Making::Checkpoint.prefix()).unwrap_or_default().to_owned();
        Ok(CheckpointDraft { library: self.clone(), id, aside })
    }
}

impl CheckpointDraft {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where its files are to be written.
    pub fn folder(&self) -> &Path {
        self.aside.path()
    }

    /// Where they will lie once they are published.
    pub fn home(&self) -> PathBuf {
        self.library.checkpoint_home(&self.id)
    }

    /// Puts it on the shelf, whole, and keeps it there for the caller. `manifest.id` and `manifest.format` are those
    /// of the draft; `keys` are kept as they are, closed to other users. Nobody may write to the files any more.
    ///
    /// # Errors
    /// The manifest and the folder contradict each other; the parent is not on the shelf (any more); the disk. Nothing
    /// has appeared then, but for a shelf that could not be synced.
    pub fn publish(self, manifest: Manifest, keys: &[u8]) -> Result<CheckpointLease, LibraryError> {
        self.check(&manifest)?;
        let parents = match &manifest.parent {
            None => Vec::new(),
            Some(parent) => match self.library.take_chain(parent)? {
                Some(links) => links,
                None => return Err(LibraryError::NoSuchCheckpoint { id: parent.clone() }),
            },
        };
        let folder = self.folder();
        let record = folder.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(&manifest)
            .map_err(|source| LibraryError::Unreadable { path: record.clone(), source })?;
        text.push(b'\n');
        for file in manifest.files() {
            let path = folder.join(&file.file);
            set_mode(&path, 0o400)?;
        }
        for (path, bytes) in [(&folder.join(KEYS), keys), (&record, &text)] {
            if u64::try_from(bytes.len()).is_ok_and(|length| length >= LARGEST_RECORD) {
                return Err(self.contradiction(format!("{} would be too large to be read", path.display())));
            }
            write_new(path, bytes).map_err(LibraryError::disk("write", path))?;
            set_mode(path, 0o600)?;
        }
        set_mode(folder, 0o700)?;
        publish::sync_dir(folder).map_err(LibraryError::disk("sync", folder))?;

        // Held before it is there for others, so there is no moment in which it could be evicted. The time is written
        // down by the same clock that leases use: that of the file system is coarser.
        let home = self.home();
        let Some(mut link) = ChainLink::take(folder, manifest)? else {
            return Err(self.contradiction("somebody else holds it".to_owned()));
        };
        link.folder = home.clone();
        let lease = CheckpointLease::new(link, parents);
        lease.touch();

        std::fs::rename(folder, &home).map_err(LibraryError::disk("publish", &home))?;
        let shelf = self.library.checkpoints_dir();
        publish::sync_dir(&shelf).map_err(LibraryError::disk("sync", &shelf))?;
        Ok(lease)
    }

    /// What is on the shelf is what its manifest lists, to the last file.
    fn check(&self, manifest: &Manifest) -> Result<(), LibraryError> {
        if manifest.format != CHECKPOINT_FORMAT {
            return Err(self.contradiction(format!("format {} cannot be written", manifest.format)));
        }
        if let Some(trouble) = manifest.trouble(&self.id) {
            return Err(self.contradiction(trouble));
        }
        let folder = self.folder();
        let mut left: BTreeSet<String> = names(folder).map_err(LibraryError::disk("list", folder))?;
        for file in manifest.files() {
            let path = folder.join(&file.file);
            left.remove(&file.file);
            let found = path.symlink_metadata().map_err(LibraryError::disk("read", &path))?;
            if !found.is_file() {
                return Err(self.contradiction(format!("{} is not a regular file", file.file)));
            }
            if found.len() != file.size {
                return Err(self.contradiction(format!(
                    "{} has {} bytes, not {}",
                    file.file,
                    found.len(),
                    file.size
                )));
            }
        }
        match left.first() {
            None => Ok(()),
            Some(name) => Err(self.contradiction(format!("the manifest does not list {name}"))),
        }
    }

    fn contradiction(&self, what: String) -> LibraryError {
        LibraryError::Contradiction { path: self.folder().to_owned(), what }
    }
}

/// Without the lock that `publish::write_file` has on what it writes: these files are about to be held by a lease, and
/// a lock may outlive its file's closing (see `Hold`). Nobody sees them before the folder is renamed.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Whatever the umask says.
fn set_mode(path: &Path, mode: u32) -> Result<(), LibraryError> {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(LibraryError::disk("close", path))
}

fn names(dir: &Path) -> io::Result<BTreeSet<String>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
