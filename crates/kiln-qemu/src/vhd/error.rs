//! Why there is no VHD.

use std::io;
use std::path::{Path, PathBuf};

use kiln_host::space::SpaceError;
use kiln_host::wait::Interrupted;

use super::FooterError;
use crate::qemu_img::QemuImgError;

#[derive(Debug, thiserror::Error)]
pub enum VhdError {
    #[error("cannot write a VHD of {size} bytes: no disk is that large")]
    TooLarge { size: u64 },
    #[error(transparent)]
    Footer(#[from] FooterError),
    #[error("files in {} cannot have holes, so the whole disk must fit", .dir.display())]
    Space { dir: PathBuf, source: SpaceError },
    #[error("no room left in {} for the VHD; make room there and build again", .dir.display())]
    Full { dir: PathBuf },
    #[error("cannot copy the disk to {}", .path.display())]
    Copy { path: PathBuf, source: QemuImgError },
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("lost the thread that works on the VHD")]
    Lost(#[from] tokio::task::JoinError),
    #[error("the VHD was not finished")]
    Interrupted(#[from] Interrupted),
}

impl VhdError {
    /// Writing `path` failed, maybe for want of room.
    pub(super) fn of_write(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { dir: folder_of(path).to_owned() }
            }
            _ => Self::Write { path: path.to_owned(), source },
        }
    }

    /// qemu-img failed on the way to `path`.
    pub(super) fn of_qemu_img(path: &Path, source: QemuImgError) -> Self {
        match source.interrupted() {
            Some(why) => Self::Interrupted(why),
            None if source.is_full() => Self::Full { dir: folder_of(path).to_owned() },
            None => Self::Copy { path: path.to_owned(), source },
        }
    }
}

pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
