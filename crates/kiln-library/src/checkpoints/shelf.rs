//! What lies on the shelf of checkpoints: listing, leasing, verifying, removing.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::SystemTime;

use kiln_host::extents::extent_digest;
use kiln_host::publish;
use kiln_host::wait::Control;
use kiln_model::Sha256;

use super::{CHECKPOINT_FORMAT, CheckpointKind, CheckpointLease, CheckpointManifest, MANIFEST, check};
use crate::hold::{Share, try_hold};
use crate::library::read_record;
use crate::{Library, LibraryError};

/// Longer chains are none: a template has fewer customizers.
const LONGEST_CHAIN: usize = 10_000;

/// A checkpoint as it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShelvedCheckpoint {
    pub manifest: CheckpointManifest,
    /// Allocated on the disk; what it shares with others it has, too.
    pub bytes_on_disk: u64,
    pub last_used: SystemTime,
    pub in_use: bool,
}

/// How much of a checkpoint is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Its disks, and those that they lie on.
    DisksOnly,
    /// Its memory, too.
    All,
}

/// What became of a checkpoint that was to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// With all that lay on it.
    Gone { ids: Vec<String>, bytes: u64 },
    /// It, or something that lies on it, is in use; nothing was removed.
    InUse,
    /// There is none of that name.
    Absent,
}

/// What was evicted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evicted {
    pub ids: Vec<String>,
    pub bytes: u64,
}

impl Library {
    /// Every checkpoint on the shelf, newest first. A damaged one does not hide the others: it is left out, with a warning
    /// in the log.
    pub fn checkpoints(&self) -> Result<Vec<ShelvedCheckpoint>, LibraryError> {
        let shelf = self.checkpoints_dir();
        let entries = match std::fs::read_dir(&shelf) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(LibraryError::disk("list", shelf)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(LibraryError::disk("list", &shelf))?;
            let Ok(id) = entry.file_name().into_string() else { continue };
            match self.shelved(&id) {
                Ok(shelved) => found.push(shelved),
                // Removed since it was listed.
                Err(LibraryError::Disk { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(checkpoint = id, error = &error as &dyn std::error::Error, "left out");
                }
            }
        }
        let made =
            |shelved: &ShelvedCheckpoint| (shelved.manifest.created_at.clone(), shelved.manifest.id.clone());
        found.sort_by_cached_key(|shelved| std::cmp::Reverse(made(shelved)));
        Ok(found)
    }

    fn shelved(&self, id: &str) -> Result<ShelvedCheckpoint, LibraryError> {
        let folder = self.checkpoints_dir().join(id);
        let record = folder.join(MANIFEST);
        let manifest = self.manifest(id)?;
        let read = |source| LibraryError::disk("read", &record)(source);
        let last_used = record.metadata().and_then(|metadata| metadata.modified()).map_err(read)?;
        // Who holds it together with others leaves nobody alone with it.
        let in_use = try_hold(&record, Share::Alone).map_err(read)?.is_none();
        Ok(ShelvedCheckpoint {
            bytes_on_disk: allocated(&folder).map_err(read)?,
            manifest,
            last_used,
            in_use,
        })
    }

    fn manifest(&self, id: &str) -> Result<CheckpointManifest, LibraryError> {
        let record = self.checkpoints_dir().join(id).join(MANIFEST);
        let manifest: CheckpointManifest = read_record(&record, CHECKPOINT_FORMAT)?;
        check(&manifest, id, &record)?;
        Ok(manifest)
    }

    /// Keeps a checkpoint, and all that it lies on, from being removed while the lease lives; `None` where one of them is
    /// missing, or is being removed at this moment. They count as used now.
    pub fn lease_checkpoint(&self, id: &str) -> Result<Option<CheckpointLease>, LibraryError> {
        let (mut chain, mut held) = (Vec::new(), Vec::new());
        let mut next = Some(id.to_owned());
        while let Some(id) = next {
            let record = self.checkpoints_dir().join(&id).join(MANIFEST);
            let file = match try_hold(&record, Share::Together) {
                Ok(Some(file)) => file,
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(LibraryError::disk("hold", record)(error)),
            };
            let manifest = self.manifest(&id)?;
            next = manifest.parent.clone();
            chain.push(manifest);
            held.push(file);
            if chain.len() > LONGEST_CHAIN {
                let what = "it lies on itself".to_owned();
                return Err(LibraryError::Contradiction { path: record, what });
            }
        }
        let now = SystemTime::now();
        for file in &held {
            // Only its owner may; another user's shelf keeps its own times.
            if let Err(error) = file.set_modified(now) {
                tracing::debug!(%error, "cannot remember that a checkpoint was used");
            }
        }
        let Some(manifest) = chain.first().cloned() else { return Ok(None) };
        chain.reverse();
        Ok(Some(CheckpointLease { library: self.clone(), chain, manifest, _held: held }))
    }

    /// Makes sure that a checkpoint's files, and the disks that its own lie on, are what was put there.
    ///
    /// # Errors
    /// [`LibraryError::Torn`] names the file that is not.
    pub async fn verify_checkpoint(
        &self,
        lease: &CheckpointLease,
        what: Verify,
        control: &Control,
    ) -> Result<(), LibraryError> {
        control.check()?;
        let mut files = Vec::new();
        for manifest in lease.chain() {
            let folder = self.checkpoints_dir().join(&manifest.id);
            files.extend(manifest.disks.iter().map(|file| (folder.join(&file.file), file.clone())));
        }
        let own = self.checkpoints_dir().join(&lease.manifest.id);
        let more = lease.manifest.more.iter();
        let memory = lease.manifest.memory.iter().filter(|_| what == Verify::All);
        files.extend(more.chain(memory).map(|file| (own.join(&file.file), file.clone())));
        let asked = control.clone();
        let verifying = tokio::task::spawn_blocking(move || {
            for (path, file) in files {
                let torn = || LibraryError::Torn { path: path.clone() };
                let read = |source| LibraryError::disk("read", &path)(source);
                match path.metadata() {
                    Ok(metadata) if metadata.len() == file.size => {}
                    Ok(_) => return Err(torn()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(torn()),
                    Err(error) => return Err(read(error)),
                }
                let digest = extent_digest(&path, &|_| asked.check().map_err(io::Error::other));
                asked.check()?;
                if Sha256::from_bytes(digest.map_err(read)?) != file.extents {
                    return Err(torn());
                }
            }
            Ok(())
        });
        verifying.await.unwrap_or_else(|gone| {
            Err(LibraryError::disk("read", self.checkpoints_dir())(io::Error::other(gone)))
        })
    }

    /// Removes a checkpoint with all that lies on it, unless one of them is in use.
    pub fn remove_checkpoint(&self, id: &str) -> Result<Removed, LibraryError> {
        let kept: Vec<CheckpointManifest> =
            self.checkpoints()?.into_iter().map(|shelved| shelved.manifest).collect();
        if !self.checkpoints_dir().join(id).join(MANIFEST).exists() {
            return Ok(Removed::Absent);
        }
        // Whoever lies on somebody comes behind them.
        let mut ids = vec![id.to_owned()];
        let mut at = 0;
        while let Some(below) = ids.get(at).cloned() {
            let above = kept.iter().filter(|kept| kept.parent.as_ref() == Some(&below));
            ids.extend(above.map(|kept| kept.id.clone()));
            at += 1;
        }
        let mut held = Vec::new();
        for id in &ids {
            match self.hold_alone(id)? {
                Held::Ours(file) => held.push(file),
                Held::Used => return Ok(Removed::InUse),
                Held::Gone => {}
            }
        }
        let mut bytes = 0;
        for id in ids.iter().rev() {
            bytes += self.take_away(id)?;
        }
        drop(held);
        Ok(Removed::Gone { ids, bytes })
    }

    /// Brings the shelf under a size, bytes on the disk: what was used longest ago goes first, of those that nothing lies
    /// on; what is in use stays.
    pub fn evict_checkpoints(&self, limit: u64) -> Result<Evicted, LibraryError> {
        let mut kept = self.checkpoints()?;
        let mut total: u64 = kept.iter().map(|kept| kept.bytes_on_disk).sum();
        let mut evicted = Evicted::default();
        if total <= limit {
            return Ok(evicted);
        }
        kept.sort_by_key(|kept| kept.last_used);
        let mut above: HashMap<String, usize> = HashMap::new();
        for parent in kept.iter().filter_map(|kept| kept.manifest.parent.clone()) {
            *above.entry(parent).or_default() += 1;
        }
        let mut tried: HashSet<String> = HashSet::new();
        while total > limit {
            let leaf = kept.iter().find(|kept| {
                let id = &kept.manifest.id;
                !tried.contains(id) && above.get(id).is_none_or(|above| *above == 0)
            });
            let Some(leaf) = leaf else { break };
            let id = leaf.manifest.id.clone();
            tried.insert(id.clone());
            let Held::Ours(_held) = self.hold_alone(&id)? else { continue };
            // Somebody may have put one on it since it was listed.
            if leaf.manifest.kind == CheckpointKind::Checkpoint && self.has_children(&id)? {
                continue;
            }
            let bytes = self.take_away(&id)?;
            total = total.saturating_sub(leaf.bytes_on_disk);
            evicted.bytes += bytes;
            evicted.ids.push(id);
            if let Some(parent) = &leaf.manifest.parent
                && let Some(above) = above.get_mut(parent)
            {
                *above -= 1;
            }
        }
        Ok(evicted)
    }

    fn has_children(&self, id: &str) -> Result<bool, LibraryError> {
        let shelf = self.checkpoints_dir();
        for entry in std::fs::read_dir(&shelf).map_err(LibraryError::disk("list", &shelf))? {
            let entry = entry.map_err(LibraryError::disk("list", &shelf))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if self.manifest(&name).is_ok_and(|manifest| manifest.parent.as_deref() == Some(id)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn hold_alone(&self, id: &str) -> Result<Held, LibraryError> {
        let record = self.checkpoints_dir().join(id).join(MANIFEST);
        match try_hold(&record, Share::Alone) {
            Ok(Some(file)) => Ok(Held::Ours(file)),
            Ok(None) => Ok(Held::Used),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Held::Gone),
            Err(error) => Err(LibraryError::disk("hold", record)(error)),
        }
    }

    /// Off the shelf by a rename, then deleted. Returns the bytes that it had.
    fn take_away(&self, id: &str) -> Result<u64, LibraryError> {
        let folder = self.checkpoints_dir().join(id);
        let bytes = match allocated(&folder) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(LibraryError::disk("read", folder)(error)),
        };
        let aside = self.make_image_folder().map_err(LibraryError::disk("write", self.tmp()))?;
        std::fs::rename(&folder, aside.path().join("removed"))
            .map_err(LibraryError::disk("remove", &folder))?;
        let shelf = self.checkpoints_dir();
        publish::sync_dir(&shelf).map_err(LibraryError::disk("sync", &shelf))?;
        std::fs::remove_dir_all(aside.path()).map_err(LibraryError::disk("remove", aside.path()))?;
        Ok(bytes)
    }
}

enum Held {
    Ours(File),
    Used,
    Gone,
}

/// Bytes that a folder's files have on the disk.
fn allocated(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}
