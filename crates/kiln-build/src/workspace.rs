//! The work folder of a run: overlay, media, scripts, firmware variables, keys.
//!
//! Everything in it is named once, here, and goes when the run ends.

use std::io;
use std::path::{Path, PathBuf};

use kiln_library::Library;

use crate::error::BuildError;
use crate::run_dir::{Claim, RunDir, RunId, RunRequest};

/// The files of `RUN_DIR/work` and the run's folder for sockets.
#[derive(Debug)]
pub struct Workspace {
    work: PathBuf,
    sockets: PathBuf,
}

impl Workspace {
    /// Makes both folders, private to the user, empty of anything an earlier worker left.
    pub fn prepare(dir: &RunDir, id: &RunId, runtime_dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        remove(dir)?;
        let workspace = Self { work: dir.work(), sockets: sockets(runtime_dir, id) };
        remove_folder(&workspace.sockets)?;
        std::fs::create_dir_all(runtime_dir)?;
        for folder in [&workspace.work, &workspace.sockets] {
            std::fs::DirBuilder::new().mode(0o700).create(folder)?;
        }
        Ok(workspace)
    }

    /// The run's writable layer over the base image.
    pub fn overlay(&self) -> PathBuf {
        self.work.join("os.qcow2")
    }
    /// The folder of one of the machine's layers, where it keeps several; see [`crate::checkpoint`].
    pub fn layer(&self, id: &str) -> PathBuf {
        self.work.join("layers").join(id)
    }
    /// The medium of the first boot: cloud-init's or an answer file, with the build's host key or passwords.
    pub fn seed(&self) -> PathBuf {
        self.work.join("seed.iso")
    }
    /// The medium with the inputs of a Windows' build.
    pub fn inputs_medium(&self) -> PathBuf {
        self.work.join("inputs.iso")
    }
    /// A large script as the guest is to have it, where that is not as it was fetched.
    pub fn script(&self, position: u32) -> PathBuf {
        self.work.join(format!("script-{position}"))
    }
    /// The UEFI variables of this machine.
    pub fn uefi_vars(&self) -> PathBuf {
        self.work.join("uefi-vars.fd")
    }
    /// What an emulated TPM keeps.
    pub fn tpm_state(&self) -> PathBuf {
        self.work.join("tpm")
    }
    /// What was said to the guest so far, for the transcript.
    pub fn exchanges(&self) -> PathBuf {
        self.work.join("exchanges.jsonl")
    }
    pub fn folder(&self) -> &Path {
        &self.work
    }
    /// Short: a socket's path has 108 bytes at most.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }
}

impl Drop for Workspace {
    /// Sockets serve nobody once the run's owner is gone.
    fn drop(&mut self) {
        let _ = remove_folder(&self.sockets);
    }
}

/// Where a run's sockets lie: named by its id, so that leftovers can be told whose they are.
pub fn sockets(runtime_dir: &Path, id: &RunId) -> PathBuf {
    runtime_dir.join(id.short())
}

/// Removes the work folder of a run, if there is one.
pub fn remove(dir: &RunDir) -> io::Result<()> {
    remove_folder(&dir.work())
}

/// Removes what killed workers left half-made in a library; living ones' work stays.
pub fn sweep_library(request: &RunRequest) -> Result<(), BuildError> {
    // Opening it does that.
    Library::open(&request.library)?;
    Ok(())
}

/// Removes the sockets of a run whose worker is gone.
///
/// Whoever does this may be root where the worker was not, and the claim is the worker's word: only a folder of its own,
/// with the run's name, goes.
pub fn remove_sockets(dir: &RunDir, id: &RunId, claim: &Claim) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let folder = match std::fs::symlink_metadata(&claim.sockets) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        folder => folder?,
    };
    let named = claim.sockets.file_name().is_some_and(|name| name == id.short());
    if !named || folder.uid() != std::fs::symlink_metadata(dir.claim())?.uid() {
        return Err(io::Error::other("it is not the folder of this run's sockets"));
    }
    remove_folder(&claim.sockets)
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
