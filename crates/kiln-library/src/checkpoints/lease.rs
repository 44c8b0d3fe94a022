//! Using a checkpoint: while a lease lives, it and everything it lies on stays.
//!
//! A lease also is the use that eviction goes by: taking it writes the time to the manifest's file, of the checkpoint
//! and of its parents. Nothing else of a published checkpoint ever changes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use kiln_host::extents::extent_digest;
use kiln_host::wait::Control;
use kiln_model::Sha256;
use zeroize::Zeroizing;

use super::manifest::{Manifest, StoredFile, read_manifest};
use super::{KEYS, MANIFEST, is_gone, is_id};
use crate::background;
use crate::hold::{Share, try_hold};
use crate::library::LARGEST_RECORD;
use crate::{Library, LibraryError};

/// A lock that ends here. Closing the file alone would leave it with a program that is being started in this moment:
/// until its `exec` that one has the file too.
#[derive(Debug)]
pub(super) struct Hold(pub File);

impl Drop for Hold {
    fn drop(&mut self) {
        // Closing it is the second chance.
        let _ = self.0.unlock();
    }
}

/// One checkpoint of a lease's chain.
#[derive(Debug)]
pub struct ChainLink {
    pub(super) folder: PathBuf,
    manifest: Manifest,
    held: Hold,
    /// `None` when somebody asked in that moment whether it is in use; it is the other one that counts.
    _seen: Option<Hold>,
}

/// While it lives, a checkpoint and its ancestors stay on the shelf. Held across processes; gone with the process that
/// holds it.
#[derive(Debug)]
pub struct CheckpointLease {
    /// Itself first, then its parent, and so on; never empty.
    chain: Vec<ChainLink>,
}

/// How much of a checkpoint to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// What a start from its disks needs: all but the memory.
    DisksOnly,
    All,
}

impl ChainLink {
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where one of its files lies.
    pub fn path_of(&self, file: &StoredFile) -> PathBuf {
        self.folder.join(&file.file)
    }

    /// Holds what lies in `folder` together with others; `None` while somebody holds it alone.
    pub(super) fn take(folder: &Path, manifest: Manifest) -> Result<Option<ChainLink>, LibraryError> {
        hold_together(folder)?.map(|held| Self::new(folder, manifest, held)).transpose()
    }

    fn new(folder: &Path, manifest: Manifest, held: Hold) -> Result<ChainLink, LibraryError> {
        let keys = folder.join(KEYS);
        let seen = match try_hold(&keys, Share::Together) {
            Ok(seen) => seen.map(Hold),
            Err(error) if is_gone(&error) => {
                let what = format!("it has no {KEYS}");
                return Err(LibraryError::Contradiction { path: folder.to_owned(), what });
            }
            Err(error) => return Err(LibraryError::disk("hold", keys)(error)),
        };
        Ok(ChainLink { folder: folder.to_owned(), manifest, held, _seen: seen })
    }
}

/// `None` for what is not there, or being removed.
fn hold_together(folder: &Path) -> Result<Option<Hold>, LibraryError> {
    let record = folder.join(MANIFEST);
    match try_hold(&record, Share::Together) {
        Ok(held) => Ok(held.map(Hold)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(LibraryError::disk("hold", record)(error)),
    }
}

impl CheckpointLease {
    pub(super) fn new(link: ChainLink, parents: Vec<ChainLink>) -> Self {
        let chain = std::iter::once(link).chain(parents).collect();
        Self { chain }
    }

    /// Writes down that all of it was used now.
    pub(super) fn touch(&self) {
        let now = SystemTime::now();
        for link in &self.chain {
            // It only goes earlier than it could have stayed.
            if let Err(error) = link.held.0.set_modified(now) {
                tracing::warn!(checkpoint = link.manifest.id, %error, "cannot remember that it was used");
            }
        }
    }

    /// Itself, then the one its disks lie on, and so on down to the one that lies on the base.
    pub fn chain(&self) -> &[ChainLink] {
        &self.chain
    }

    pub fn manifest(&self) -> &Manifest {
        &self.chain[0].manifest
    }

    /// Where one of its own files lies.
    pub fn path_of(&self, file: &StoredFile) -> PathBuf {
        self.chain[0].path_of(file)
    }

    /// The bytes it was published with.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn keys(&self) -> Result<Zeroizing<Vec<u8>>, LibraryError> {
        let path = self.chain[0].folder.join(KEYS);
        let read = || -> io::Result<Zeroizing<Vec<u8>>> {
            let file = File::open(&path)?;
            let length = file.metadata()?.len().min(LARGEST_RECORD);
            // With room for all of it: a vector that grows leaves copies behind.
            let room = usize::try_from(length).map_err(io::Error::other)? + 1;
            let mut keys = Zeroizing::new(Vec::with_capacity(room));
            file.take(length).read_to_end(&mut keys)?;
            Ok(keys)
        };
        read().map_err(LibraryError::disk("read", &path))
    }

    /// What has to be as it was.
    fn to_verify(&self, what: Verify) -> Vec<(String, PathBuf, StoredFile)> {
        let mut files = Vec::new();
        for (depth, link) in self.chain.iter().enumerate() {
            let Manifest { id, disks, memory, more, .. } = &link.manifest;
            let mut add = |file: &StoredFile| files.push((id.clone(), link.path_of(file), file.clone()));
            disks.iter().for_each(&mut add);
            if depth == 0 {
                more.iter().for_each(&mut add);
                memory.iter().filter(|_| what == Verify::All).for_each(&mut add);
            }
        }
        files
    }
}

impl Library {
    /// Keeps a checkpoint and its ancestors on the shelf; `None` if one of them is missing or being removed. This counts
    /// as their last use.
    ///
    /// # Errors
    /// One of the manifests is damaged, or newer than this build.
    pub fn lease_checkpoint(&self, id: &str) -> Result<Option<CheckpointLease>, LibraryError> {
        let Some(chain) = self.take_chain(id)? else { return Ok(None) };
        let lease = CheckpointLease { chain };
        lease.touch();
        Ok(Some(lease))
    }

    /// Holds it and its ancestors, itself first.
    pub(super) fn take_chain(&self, id: &str) -> Result<Option<Vec<ChainLink>>, LibraryError> {
        let mut chain: Vec<ChainLink> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next = Some(id.to_owned());
        while let Some(id) = next {
            if !is_id(&id) {
                return Ok(None);
            }
            let folder = self.checkpoint_home(&id);
            if !seen.insert(id.clone()) {
                let what = "it lies on itself".to_owned();
                return Err(LibraryError::Contradiction { path: folder, what });
            }
            let Some(held) = hold_together(&folder)? else { return Ok(None) };
            let manifest = read_manifest(&folder.join(MANIFEST), &id)?;
            next = manifest.parent.clone();
            chain.push(ChainLink::new(&folder, manifest, held)?);
        }
        Ok(Some(chain))
    }

    /// Makes sure that a checkpoint is what was published: sizes and digests of its files, and of the disks below them.
    /// That the base still is what the manifest says is not looked at.
    ///
    /// # Errors
    /// [`LibraryError::DamagedCheckpoint`] when it is not; it names the file, and the checkpoint that the file is of.
    pub async fn verify_checkpoint(
        &self,
        lease: &CheckpointLease,
        what: Verify,
        control: &Control,
    ) -> Result<(), LibraryError> {
        let files = lease.to_verify(what);
        // The cheapest first: what a crash tore is mostly shorter.
        for (id, path, file) in &files {
            let found = match path.symlink_metadata() {
                Ok(found) if found.is_file() && found.len() == file.size => continue,
                Ok(found) if found.is_file() => format!("it has {} bytes, not {}", found.len(), file.size),
                Ok(_) => "it is not a regular file".to_owned(),
                Err(error) if is_gone(&error) => "it is gone".to_owned(),
                Err(error) => return Err(LibraryError::disk("read", path)(error)),
            };
            return Err(LibraryError::DamagedCheckpoint { id: id.clone(), path: path.clone(), what: found });
        }
        for (id, path, file) in files {
            let read = path.clone();
            let digest = background::run(control, &|_| (), move |line| {
                let line = Mutex::new(line);
                extent_digest(&read, &|done| line.lock().unwrap_or_else(PoisonError::into_inner).report(done))
            });
            let found = Sha256::from_bytes(digest.await.map_err(LibraryError::ended("read", &path))?);
            if found != file.extents {
                let what = format!("its extent digest is {found}, not {}", file.extents);
                return Err(LibraryError::DamagedCheckpoint { id, path, what });
            }
        }
        Ok(())
    }
}
