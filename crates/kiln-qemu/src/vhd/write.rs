//! From an image to a fixed VHD.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use kiln_host::digest;
use kiln_host::publish::Aside;
use kiln_host::space::{self, SpaceError};
use kiln_host::wait::{Control, Interrupted};
use uuid::Uuid;

use super::{FOOTER_LENGTH, Footer, FooterError, round_up_mib};
use crate::disk::{DiskFormat, Image};
use crate::qemu_img::{QemuImg, QemuImgError};

/// What a footer says beyond the size. With the same values the same disk makes the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterOptions {
    pub created: SystemTime,
    pub unique_id: Uuid,
}

/// A finished file, not yet published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VhdWritten {
    /// Bytes of the disk; whole MiB.
    pub virtual_size: u64,
    /// Bytes of the file: the disk and its footer.
    pub file_size: u64,
    /// Of the whole file, as `sha256sum` gives it.
    pub sha256: [u8; 32],
}

/// How far it is. Copying comes first; hashing takes longer, for zeros are hashed too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Copying { percent: u8 },
    Hashing { percent: u8 },
}

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
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the VHD was not finished")]
    Interrupted(#[from] Interrupted),
}

/// Writes `image`, with everything below it, as a fixed VHD into `dest`. Holes and zeros of the image take no room; the
/// size is rounded up to whole MiB. The caller publishes `dest`.
///
/// The reading is qemu-img's; the footer is ours, so that equal images give equal files.
pub async fn write_fixed(
    qemu_img: &QemuImg,
    image: &Image,
    dest: &Aside,
    footer: FooterOptions,
    progress: Arc<dyn Fn(Progress) + Send + Sync>,
    control: &Control,
) -> Result<VhdWritten, VhdError> {
    let virtual_size =
        round_up_mib(image.virtual_size()).ok_or(VhdError::TooLarge { size: image.virtual_size() })?;
    let footer = Footer::fixed(virtual_size, footer.created, footer.unique_id)?;
    let file_size = virtual_size + FOOTER_LENGTH as u64;
    let path = dest.path().to_owned();
    let failed = |source| VhdError::Write { path: path.clone(), source };

    ensure_room(dest, file_size)?;
    // The copy is told to rely on zeros, whatever an earlier attempt may have left.
    dest.file().set_len(0).and_then(|()| dest.file().set_len(virtual_size)).map_err(failed)?;
    let told = Arc::clone(&progress);
    let copying = move |hundredths: u16| {
        told(Progress::Copying { percent: u8::try_from(hundredths / 100).unwrap_or(100).min(100) });
    };
    qemu_img.convert_into_zeros((image.path(), DiskFormat::Qcow2), &path, copying, control).await.map_err(
        |source| match source.interrupted() {
            Some(why) => VhdError::Interrupted(why),
            None if source.is_full() => VhdError::Full { dir: folder_of(dest) },
            None => VhdError::Copy { path: path.clone(), source },
        },
    )?;
    dest.file().write_all_at(&footer.to_bytes(), virtual_size).map_err(failed)?;

    // Publishing has to wait for the disk; it works while the processor hashes.
    let file = dest.file().try_clone().map_err(failed)?;
    let syncing = tokio::task::spawn_blocking(move || file.sync_all());
    let hashing = tokio::task::spawn_blocking({
        let (path, control) = (path.clone(), control.clone());
        move || hash(path, file_size, &*progress, &control)
    });
    let sha256 = hashing.await.map_err(|gone| failed(gone.into())).and_then(|hashed| hashed);
    // Waited for in any case: a caller that gives up removes the file.
    syncing.await.map_err(|gone| failed(gone.into()))?.map_err(failed)?;
    Ok(VhdWritten { virtual_size, file_size, sha256: sha256? })
}

fn hash(
    path: PathBuf,
    file_size: u64,
    progress: &(dyn Fn(Progress) + Send + Sync),
    control: &Control,
) -> Result<[u8; 32], VhdError> {
    let mut told = None;
    let mut on_chunk = |done: u64| {
        let percent = u8::try_from(u128::from(done) * 100 / u128::from(file_size)).unwrap_or(100);
        if told.replace(percent) != Some(percent) {
            progress(Progress::Hashing { percent });
        }
        control.check().map_err(io::Error::other)
    };
    let hashed = digest::sha256_file(&path, &mut on_chunk);
    hashed.map_err(|source| match control.check() {
        Err(why) => VhdError::Interrupted(why),
        Ok(()) => VhdError::Write { path, source },
    })
}

/// A sparse file needs what its image holds, which the copy finds out; a file without holes needs everything at once.
fn ensure_room(dest: &Aside, file_size: u64) -> Result<(), VhdError> {
    let dir = folder_of(dest);
    match space::supports_sparse(&dir) {
        Ok(true) => Ok(()),
        Ok(false) => space::ensure_room(&dir, file_size).map_err(|source| VhdError::Space { dir, source }),
        Err(source) => Err(VhdError::Write { path: dir, source }),
    }
}

fn folder_of(dest: &Aside) -> PathBuf {
    let path = dest.path();
    path.parent().unwrap_or(path).to_owned()
}
