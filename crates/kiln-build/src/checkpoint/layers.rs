//! The folders of a machine's layers: `work/layers/<id>/disk0.qcow2`, each over the one before it by a relative path.
//!
//! A run that keeps names the present layer's folder as its next checkpoint will be named; one that does not has one layer
//! of its own. Whatever a layer lies on is beside it, so that a folder with all of them can be moved.

use std::io;
use std::path::{Path, PathBuf};

use kiln_qemu::disk::Overlay;

use super::earlier::Earlier;
use super::lineage::{Begin, Lineage};
use crate::context::Run;
use crate::error::BuildError;

/// The folder of the one layer of a run that keeps nothing.
const ALONE: &str = "os";
/// The folder of the layer that is left for a look.
const LAST: &str = "last";
/// The name of a layer's file in its folder.
pub(super) const DISK: &str = "disk0.qcow2";

impl Lineage {
    /// Where the machine's first layer is made.
    pub fn first_layer(&self, run: &Run) -> Result<PathBuf, BuildError> {
        match &self.keeping {
            Some(keeping) => make_layer_folder(run, keeping.layer_id()),
            // Beside what it may lie on.
            None => match self.begins_with() {
                Begin::Base => Ok(run.workspace.overlay()),
                _ => make_layer_folder(run, ALONE),
            },
        }
    }

    /// The machine's first layer over a state that was kept.
    pub fn layer_over(&self, run: &Run, earlier: &Earlier) -> Result<Overlay, BuildError> {
        let below = Path::new("..").join(earlier.id()).join(DISK);
        let path = self.first_layer(run)?;
        Overlay::above(run.qemu.img(), &below, run.plan.machine.disk_bytes, path)
            .map_err(|source| BuildError::Disk { act: "create the run's disk", source })
    }

    /// For a look at a run that failed: the machine's disk by a name that does not change, beside the layers below it.
    pub fn leave_for_a_look(&self, run: &Run) -> Result<(), BuildError> {
        let present = match (&self.keeping, &self.last_layer, self.begins_with()) {
            (Some(keeping), ..) => run.workspace.layer(keeping.layer_id()).join(DISK),
            (None, Some(last), _) => last.clone(),
            (None, None, Begin::Warm(_) | Begin::Cold(_)) => run.workspace.layer(ALONE).join(DISK),
            (None, None, Begin::Base | Begin::Image(_)) => return Ok(()),
        };
        if !present.exists() {
            return Ok(());
        }
        let path = make_layer_folder(run, LAST)?;
        std::fs::hard_link(&present, &path).map_err(BuildError::io("link", path.clone()))?;
        run.journal.info(format!("the guest's disk: {}", path.display()));
        Ok(())
    }
}

/// Where the layer `id` is to be made: its folder is there then.
pub(super) fn make_layer_folder(run: &Run, id: &str) -> Result<PathBuf, BuildError> {
    let folder = run.workspace.layer(id);
    make_folder(&folder)?;
    Ok(folder.join(DISK))
}

pub(super) fn make_folder(folder: &Path) -> Result<(), BuildError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(BuildError::io("create", folder))
}

/// Whether files of one folder can be linked into the other.
pub(super) fn one_file_system(one: &Path, other: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(one.metadata()?.dev() == other.metadata()?.dev())
}
