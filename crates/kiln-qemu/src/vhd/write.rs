//! From an image to a fixed VHD.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use kiln_host::publish::Aside;
use kiln_host::space;
use kiln_host::wait::Control;
use uuid::Uuid;

use super::copy::{CopyError, Copying, Digests};
use super::error::folder_of;
use super::read::{self, blocking};
use super::source::Source;
use super::{FOOTER_LENGTH, Footer, VhdError, round_up_mib};
use crate::disk::Image;
use crate::qemu_img::QemuImg;

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
    /// Of the whole file: its `kiln-extents-2` ([`kiln_host::extents`]).
    pub extents: [u8; 32],
    /// Of the whole file, as `sha256sum` gives it.
    pub sha256: [u8; 32],
}

/// A finished file, not yet published, that nobody has the SHA-256 of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VhdCopied {
    /// Bytes of the disk; whole MiB.
    pub virtual_size: u64,
    /// Bytes of the file: the disk and its footer.
    pub file_size: u64,
    /// Of the whole file: its `kiln-extents-2` ([`kiln_host::extents`]).
    pub extents: [u8; 32],
}

/// Told how far it is: each percent once, in order, and 100 at the end. Called on any thread.
pub type OnPercent = Arc<dyn Fn(u8) + Send + Sync>;

/// Writes `image`, with everything below it, as a fixed VHD into `dest`. Holes and zeros of the image take no room; the
/// size is rounded up to whole MiB. The caller publishes `dest`.
///
/// Equal images give equal files: bytes come from the image, and the footer is ours. The SHA-256 of the file takes as
/// long as its size wants, zeros included; everything else happens beside it.
///
/// # Errors
/// An image that cannot be read, no room at the destination, and an interruption, within the time of a block of 1 MiB.
pub async fn write_fixed(
    qemu_img: &QemuImg,
    image: &Image,
    dest: &Aside,
    footer: FooterOptions,
    progress: OnPercent,
    control: &Control,
) -> Result<VhdWritten, VhdError> {
    let (copied, sha256) = write(qemu_img, image, dest, footer, progress, control, true).await?;
    let VhdCopied { virtual_size, file_size, extents } = copied;
    let Some(sha256) = sha256 else {
        let source = std::io::Error::other("no SHA-256 was made of it");
        return Err(VhdError::Read { path: dest.path().to_owned(), source });
    };
    Ok(VhdWritten { virtual_size, file_size, extents, sha256 })
}

/// Like [`write_fixed`], but without the file's SHA-256: costs what the data costs, whatever the disk's size.
///
/// No run calls it, as each artifact has a SHA-256. `scripts/bench-vhd` does, which cannot tell what the copying costs as
/// long as the hashing hides it; and so do tests, which need the same bytes by the shorter way.
///
/// # Errors
/// As [`write_fixed`].
pub async fn copy_fixed(
    qemu_img: &QemuImg,
    image: &Image,
    dest: &Aside,
    footer: FooterOptions,
    progress: OnPercent,
    control: &Control,
) -> Result<VhdCopied, VhdError> {
    Ok(write(qemu_img, image, dest, footer, progress, control, false).await?.0)
}

async fn write(
    qemu_img: &QemuImg,
    image: &Image,
    dest: &Aside,
    footer: FooterOptions,
    progress: OnPercent,
    control: &Control,
    with_sha256: bool,
) -> Result<(VhdCopied, Option<[u8; 32]>), VhdError> {
    let virtual_size =
        round_up_mib(image.virtual_size()).ok_or(VhdError::TooLarge { size: image.virtual_size() })?;
    let footer = Footer::fixed(virtual_size, footer.created, footer.unique_id)?;
    let file_size = virtual_size + FOOTER_LENGTH as u64;
    let path = dest.path();
    let meter = Meter { progress, told: Mutex::new(0) };

    let room = tokio::task::spawn_blocking({
        let path = path.to_owned();
        move || ensure_room(&path, file_size)
    });
    let (room, source) = tokio::join!(room, Source::open(qemu_img, image, control));
    room??;
    let source = source.map_err(|error| VhdError::of_qemu_img(path, error))?;
    // Writers rely on zeros, whatever an earlier attempt may have left.
    let prepared = dest.file().set_len(0).and_then(|()| dest.file().set_len(virtual_size));
    prepared.map_err(|error| VhdError::of_write(path, error))?;
    let digests = match source {
        Some(source) => by_blocks(source, dest, footer, meter, control, with_sha256).await?,
        None => by_qemu_img(qemu_img, image, dest, &footer, meter, control, with_sha256).await?,
    };
    Ok((VhdCopied { virtual_size, file_size, extents: digests.extents }, digests.sha256))
}

async fn by_blocks(
    source: Source,
    dest: &Aside,
    footer: Footer,
    meter: Meter,
    control: &Control,
    with_sha256: bool,
) -> Result<Digests, VhdError> {
    let path = dest.path().to_owned();
    let file = dest.file().try_clone().map_err(|error| VhdError::of_write(&path, error))?;
    let work = move |control: &Control| {
        let progress = |done, total| meter.at(done, total);
        let copying = Copying { source: &source, dest: &file, footer: &footer, progress: &progress, control };
        copying.run(with_sha256).map_err(|error| match error {
            CopyError::Read(failed) => VhdError::Read { path: failed.path, source: failed.source },
            CopyError::Write(error) => VhdError::of_write(&path, error),
            CopyError::Interrupted(why) => VhdError::Interrupted(why),
        })
    };
    blocking(control, work).await
}

/// For what only QEMU can read. The file is read again for its digests.
async fn by_qemu_img(
    qemu_img: &QemuImg,
    image: &Image,
    dest: &Aside,
    footer: &Footer,
    meter: Meter,
    control: &Control,
    with_sha256: bool,
) -> Result<Digests, VhdError> {
    let (path, meter) = (dest.path(), Arc::new(meter));
    // Reading takes about as long as copying.
    let copying = {
        let meter = Arc::clone(&meter);
        move |hundredths: u16| meter.at(hundredths.into(), 20_000)
    };
    qemu_img
        .convert_into_zeros((image.path(), image.format()), path, copying, control)
        .await
        .map_err(|error| VhdError::of_qemu_img(path, error))?;
    dest.file()
        .write_all_at(&footer.to_bytes(), footer.virtual_size())
        .map_err(|error| VhdError::of_write(path, error))?;

    let extents = {
        let path = path.to_owned();
        blocking(control, move |control| read::extents(&path, control))
    };
    let sha256 = async {
        let (path, meter) = (path.to_owned(), Arc::clone(&meter));
        let file_size = footer.virtual_size() + FOOTER_LENGTH as u64;
        let work = move |control: &Control| {
            read::sha256(&path, &|done| meter.at(file_size + done, 2 * file_size), control).map(Some)
        };
        if with_sha256 { blocking(control, work).await } else { Ok(None) }
    };
    // Publishing has to wait for the disk, which works while the processors hash.
    let syncing = async {
        let file = dest.file().try_clone();
        let synced = match with_sha256 {
            true => tokio::task::spawn_blocking(|| file.and_then(|file| file.sync_all())).await?,
            false => Ok(()),
        };
        synced.map_err(|error| VhdError::of_write(path, error))
    };
    // All are waited for in any case: a caller that gives up removes the file.
    let (extents, sha256, synced) = tokio::join!(extents, sha256, syncing);
    synced?;
    let digests = Digests { extents: extents?, sha256: sha256? };
    meter.at(1, 1);
    Ok(digests)
}

/// Tells each percent once, in order.
struct Meter {
    progress: OnPercent,
    told: Mutex<u8>,
}

impl Meter {
    fn at(&self, done: u64, total: u64) {
        let percent = u128::from(done) * 100 / u128::from(total.max(1));
        let percent = u8::try_from(percent).unwrap_or(100).min(100);
        // Held while telling: several threads tell, and the larger number must not come first.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if percent > *told {
            *told = percent;
            (self.progress)(percent);
        }
    }
}

/// A sparse file needs what its image holds, which the copy finds out; a file without holes needs everything at once.
fn ensure_room(path: &Path, file_size: u64) -> Result<(), VhdError> {
    let dir = folder_of(path);
    match space::supports_sparse(dir) {
        Ok(true) => Ok(()),
        Ok(false) => space::ensure_room(dir, file_size)
            .map_err(|source| VhdError::Space { dir: dir.to_owned(), source }),
        Err(source) => Err(VhdError::of_write(path, source)),
    }
}
