//! Taking a disk image in.
//!
//! ```text
//!  file ─ format by its bytes ─► refuse, or
//!           qcow2, fixed VHD, raw ─► copied, holes kept ─┐
//!           dynamic VHD, VHDX, VMDK ─► qcow2 ────────────┴─► partitions ─► digest ─► images/<name>/<version>
//! ```
//!
//! What cannot be one self-contained disk is refused: an image that names other files would be read with our rights.
//! The file is only read; it must stay the same meanwhile.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_host::digest::sha256_file;
use kiln_host::space::{allocated_bytes, ensure_room};
use kiln_host::wait::Control;
use kiln_model::Sha256;
use kiln_model::catalog::{Arch, DiskFormat, Generation, Login, Os, ServedName, StoredImage};
use kiln_qemu::disk::DiskFormat as QemuFormat;
use kiln_qemu::qemu_img::QemuImg;
use rustix::fs::SeekFrom;
use serde::Deserialize;
use tokio::sync::watch;

use crate::background;
use crate::fetch::open_regular;
use crate::images::{PROVENANCE, check_name, check_version};
use crate::library::Making;
use crate::probe::{self, DiskProbe, Format, HEAD};
use crate::{FetchError, ImageError, ImageOrigin, ImageRecord, Library, LibraryError};

/// Azure's largest OS disk is 4,095 GiB; below a MiB nothing boots.
const DISK_SIZES: std::ops::RangeInclusive<u64> = 1 << 20..=4095 << 30;

/// A disk image to be taken in, and what is known about it.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    pub path: PathBuf,
    pub name: String,
    /// Numbers separated by dots.
    pub version: String,
    /// The Marketplace names it is to answer to.
    pub platform: Vec<ServedName>,
    pub os: Os,
    /// Preferred first. Empty: what the disk's partitions say.
    pub generations: Vec<Generation>,
    pub arch: Arch,
    pub login: Login,
    /// What the file, as it is given, must be.
    pub sha256: Option<Sha256>,
}

/// A base image made by a recipe.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    pub image: ImportRequest,
    /// The recipe's record of what went in; it gives the image's digest as `imageSha256`. Kept beside the image.
    pub provenance: PathBuf,
}

/// News of an image on its way in. Bytes; a few times a second.
#[derive(Debug, Clone)]
pub enum ImageProgress {
    Downloading {
        done: u64,
        total: Option<u64>,
    },
    Retrying {
        attempt: u32,
        attempts: u32,
        after: Duration,
        message: String,
    },
    /// For its digest.
    Reading {
        done: u64,
        total: u64,
    },
    Copying {
        done: u64,
        total: u64,
    },
    /// Hundredths of a percent.
    Converting {
        done: u16,
    },
}

/// An image that is on the shelf now.
#[derive(Debug, Clone)]
pub struct Imported {
    pub image: StoredImage,
    /// What the disk's partitions say; `None` where it was there already.
    pub probe: Option<DiskProbe>,
}

impl Imported {
    /// The library had it already, with the same contents.
    pub fn was_there(&self) -> bool {
        self.probe.is_none()
    }
}

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Somebody else's: it is copied.
    Other,
    /// Ours, in the library's own file system: it is moved.
    Library,
}

pub(crate) type Progress<'a> = &'a (dyn Fn(ImageProgress) + Send + Sync);

impl Library {
    /// Puts a disk image on the shelf. Repeating it with the same file is fine.
    pub async fn import(
        &self,
        request: &ImportRequest,
        qemu_img: &QemuImg,
        progress: Progress<'_>,
        control: &Control,
    ) -> Result<Imported, ImageError> {
        let origin = |sha256| ImageOrigin::Imported { sha256 };
        Taking { library: self, request, qemu_img, progress, control, provenance: None }
            .take(Owner::Other, None, origin)
            .await
    }

    /// Puts an image that a recipe made on the shelf, with its provenance.
    ///
    /// # Errors
    /// Also when the provenance is of another file.
    pub async fn adopt_built(
        &self,
        built: &BuiltImage,
        qemu_img: &QemuImg,
        progress: Progress<'_>,
        control: &Control,
    ) -> Result<Imported, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Provenance {
            image_sha256: Sha256,
        }
        let path = &built.provenance;
        let text = std::fs::read(path).map_err(LibraryError::disk("read", path))?;
        let provenance: Provenance = serde_json::from_slice(&text)
            .map_err(|source| LibraryError::Unreadable { path: path.clone(), source })?;
        let mut request = built.image.clone();
        request.sha256.get_or_insert(provenance.image_sha256);
        if request.sha256 != Some(provenance.image_sha256) {
            let reason = "its provenance is of an image with another digest".to_owned();
            return Err(ImageError::Refused { path: request.path, reason });
        }
        let origin = |sha256| ImageOrigin::Built { sha256 };
        Taking { library: self, request: &request, qemu_img, progress, control, provenance: Some(&text) }
            .take(Owner::Other, None, origin)
            .await
    }

    /// The stored image of that name and version, if it came from a file with that digest.
    pub(crate) fn stored_from(
        &self,
        name: &str,
        version: &str,
        sha256: Sha256,
    ) -> Result<Option<StoredImage>, LibraryError> {
        match self.record(name, version) {
            Ok(record) if record.origin.sha256() == sha256 => Ok(Some(record.image)),
            Ok(_) => Err(LibraryError::AlreadyStored { name: name.to_owned(), version: version.to_owned() }),
            Err(LibraryError::NoSuchImage { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// One image on its way in.
pub(crate) struct Taking<'a> {
    pub library: &'a Library,
    pub request: &'a ImportRequest,
    pub qemu_img: &'a QemuImg,
    pub progress: Progress<'a>,
    pub control: &'a Control,
    pub provenance: Option<&'a [u8]>,
}

impl Taking<'_> {
    /// `known` is the file's digest where it has been taken already.
    pub async fn take(
        &self,
        owner: Owner,
        known: Option<Sha256>,
        origin: impl FnOnce(Sha256) -> ImageOrigin,
    ) -> Result<Imported, ImageError> {
        let request = self.request;
        check_name(&request.name)?;
        check_version(&request.version)?;
        if let Some(trouble) = request.login.trouble(request.os) {
            return Err(self.refused(trouble.to_owned()));
        }
        let source = Source::open(&request.path)?;
        let format = probe::format_of(&source.file, source.length)
            .map_err(LibraryError::disk("read", &request.path))?
            .map_err(|reason| self.refused(reason))?;
        let given = match known {
            Some(digest) => digest,
            None => self.digest(&request.path, source.length).await?,
        };
        if let Some(expected) = request.sha256.filter(|expected| *expected != given) {
            return Err(ImageError::WrongDigest { path: request.path.clone(), expected, actual: given });
        }
        if let Some(image) = self.library.stored_from(&request.name, &request.version, given)? {
            return Ok(Imported { image, probe: None });
        }
        let shape = self.shape(format, source.length).await?;
        if !DISK_SIZES.contains(&shape.virtual_size) || !shape.virtual_size.is_multiple_of(512) {
            return Err(self.refused(format!(
                "its disk has {} bytes; a base image has 1 MiB to 4095 GiB, in whole sectors",
                shape.virtual_size
            )));
        }
        let folder = self
            .library
            .make_folder_aside(Making::Image)
            .map_err(LibraryError::disk("write", self.library.tmp()))?;
        let disk = folder.path().join(shape.kept.file_name());
        let moved = owner == Owner::Library && !shape.converted && shape.length == source.length;
        if !moved {
            let size = allocated_bytes(&request.path).map_err(LibraryError::disk("read", &request.path))?;
            ensure_room(folder.path(), size)?;
        }
        if moved {
            // It keeps its name in `tmp` until all is done: whoever wants the same waits for that.
            std::fs::hard_link(&request.path, &disk)
                .or_else(|_| std::fs::rename(&request.path, &disk))
                .map_err(LibraryError::disk("move", &request.path))?;
        } else if shape.converted {
            self.convert((&request.path, qemu_format(format)), (&disk, QemuFormat::Qcow2)).await?;
        } else {
            self.copy(&source, &disk, shape.length).await?;
        }
        if !moved && !source.is_unchanged()? {
            return Err(self.refused("it changed while it was read".to_owned()));
        }
        let length = disk.metadata().map_err(LibraryError::disk("read", &disk))?.len();
        let sha256 = if moved { given } else { self.digest(&disk, length).await? };
        if !shape.converted && shape.length == source.length && sha256 != given {
            return Err(self.refused("it changed while it was read".to_owned()));
        }
        let probe = self.probe(&disk, shape.kept, folder.path()).await?;
        let generations =
            if request.generations.is_empty() { probe.generations() } else { request.generations.clone() };
        let Some(&generation) = generations.first() else {
            return Err(self.refused(format!(
                "nothing was found that a machine could boot ({probe}); if it does boot, say as which generation"
            )));
        };
        if let Some(text) = self.provenance {
            let path = folder.path().join(PROVENANCE);
            kiln_host::publish::write_file(&path, text, 0o644).map_err(LibraryError::disk("write", &path))?;
        }
        self.control.check().map_err(LibraryError::from)?;
        let image = StoredImage {
            name: request.name.clone(),
            version: request.version.clone(),
            platform: request.platform.clone(),
            os: request.os,
            generation,
            generations,
            arch: request.arch,
            login: request.login.clone(),
            format: shape.kept.format(),
            sha256,
            virtual_size: shape.virtual_size,
            path: disk,
            stored_at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        };
        let record = ImageRecord { image, origin: origin(given) };
        match self.library.shelve(folder.path(), record) {
            Ok(image) => Ok(Imported { image, probe: Some(probe) }),
            // Another process was quicker with, as it may be, the same.
            Err(LibraryError::AlreadyStored { name, version }) => {
                match self.library.stored_from(&name, &version, given)? {
                    Some(image) => Ok(Imported { image, probe: None }),
                    None => Err(LibraryError::AlreadyStored { name, version }.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn refused(&self, reason: String) -> ImageError {
        ImageError::Refused { path: self.request.path.clone(), reason }
    }

    /// How the disk will lie on the shelf.
    async fn shape(&self, format: Format, length: u64) -> Result<Shape, ImageError> {
        let kept = |kept, virtual_size, length| Shape { kept, converted: false, virtual_size, length };
        if format == Format::Raw {
            return Ok(kept(Kept::Raw, length, length));
        }
        let info = self.info(&self.request.path, qemu_format(format)).await?;
        if info.other_file().is_some() || info.is_split() || info.encrypted {
            return Err(self.refused(
                "it is not the whole disk: it is encrypted, or part of it lies in other files".to_owned(),
            ));
        }
        let footer = length.saturating_sub(512);
        Ok(match format {
            Format::Raw => kept(Kept::Raw, length, length),
            Format::Qcow2 => kept(Kept::Qcow2, info.virtual_size, length),
            // QEMU believes some makers' cylinders more than the size: then the footer is left out, and all is kept.
            Format::FixedVhd if info.virtual_size != footer => kept(Kept::Raw, footer, footer),
            Format::FixedVhd => kept(Kept::Vhd, info.virtual_size, length),
            Format::DynamicVhd { size } if size != info.virtual_size => {
                return Err(self.refused(format!(
                    "it is a dynamic VHD that names two sizes ({size} and, by its cylinders, {} bytes); convert it first: qemu-img convert --image-opts driver=vpc,force_size_calc=current_size,file.filename=FILE -O qcow2 WHOLE",
                    info.virtual_size
                )));
            }
            Format::DynamicVhd { .. } | Format::Vhdx | Format::Vmdk => {
                Shape { kept: Kept::Qcow2, converted: true, virtual_size: info.virtual_size, length }
            }
        })
    }

    async fn info(
        &self,
        path: &Path,
        format: QemuFormat,
    ) -> Result<kiln_qemu::qemu_img::ImageInfo, ImageError> {
        let (qemu_img, file) = (self.qemu_img.clone(), path.to_owned());
        let asked = background::run(self.control, &|_| (), move |_| Ok(qemu_img.info(&file, format)));
        asked.await.map_err(LibraryError::ended("read", path))?.map_err(|source| ImageError::QemuImg {
            act: "read",
            path: path.to_owned(),
            source,
        })
    }

    async fn digest(&self, path: &Path, total: u64) -> Result<Sha256, ImageError> {
        let file = path.to_owned();
        let progress = |done| (self.progress)(ImageProgress::Reading { done, total });
        let digest = background::run(self.control, &progress, move |line| {
            sha256_file(file, &mut |done| line.report(done))
        });
        Ok(Sha256::from_bytes(digest.await.map_err(LibraryError::ended("read", path))?))
    }

    async fn copy(&self, source: &Source, disk: &Path, length: u64) -> Result<(), ImageError> {
        let from = source.file.try_clone().map_err(LibraryError::disk("read", &self.request.path))?;
        let path = disk.to_owned();
        let progress = |done| (self.progress)(ImageProgress::Copying { done, total: length });
        let copied = background::run(self.control, &progress, move |line| {
            copy_with_holes(&from, &File::create_new(path)?, length, &mut |done| line.report(done))
        });
        Ok(copied.await.map_err(LibraryError::ended("write", disk))?)
    }

    async fn convert(&self, from: (&Path, QemuFormat), to: (&Path, QemuFormat)) -> Result<(), ImageError> {
        let (told, mut news) = watch::channel(0);
        let progress = move |done| {
            told.send_replace(done);
        };
        let mut converting = std::pin::pin!(self.qemu_img.convert(from, to, progress, self.control));
        loop {
            tokio::select! {
                converted = &mut converting => {
                    return converted.map_err(|source| ImageError::QemuImg { act: "convert", path: from.0.to_owned(), source });
                }
                Ok(()) = news.changed() => {
                    let done = *news.borrow_and_update();
                    (self.progress)(ImageProgress::Converting { done });
                }
            }
        }
    }

    /// Looks at the partitions of the disk inside.
    async fn probe(&self, disk: &Path, kept: Kept, folder: &Path) -> Result<DiskProbe, ImageError> {
        let mut head = disk.to_owned();
        if kept == Kept::Qcow2 {
            // A window on the first bytes: an overlay that ends early, made flat.
            let window = folder.join("window.qcow2");
            head = folder.join("head.raw");
            let (qemu_img, made, base) = (self.qemu_img.clone(), window.clone(), disk.to_owned());
            let create = background::run(self.control, &|_| (), move |_| {
                Ok(qemu_img.create_overlay(&made, &base, QemuFormat::Qcow2, HEAD as u64))
            });
            create
                .await
                .map_err(LibraryError::ended("write", &window))?
                .map_err(|source| ImageError::QemuImg { act: "look into", path: disk.to_owned(), source })?;
            self.convert((&window, QemuFormat::Qcow2), (&head, QemuFormat::Raw)).await?;
            std::fs::remove_file(&window).map_err(LibraryError::disk("remove", &window))?;
        }
        let read = || -> io::Result<Vec<u8>> {
            let file = File::open(&head)?;
            let length = HEAD.min(usize::try_from(file.metadata()?.len()).unwrap_or(HEAD));
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = read().map_err(LibraryError::disk("read", &head))?;
        if kept == Kept::Qcow2 {
            std::fs::remove_file(&head).map_err(LibraryError::disk("remove", &head))?;
        }
        Ok(DiskProbe::of(&bytes))
    }
}

/// What a disk will be on the shelf.
struct Shape {
    kept: Kept,
    converted: bool,
    virtual_size: u64,
    /// Of the file's bytes, how many are copied.
    length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Raw,
    Qcow2,
    Vhd,
}

impl Kept {
    fn file_name(self) -> &'static str {
        match self {
            Self::Raw => "disk.raw",
            Self::Qcow2 => "disk.qcow2",
            Self::Vhd => "disk.vhd",
        }
    }

    fn format(self) -> DiskFormat {
        match self {
            Self::Raw => DiskFormat::Raw,
            Self::Qcow2 => DiskFormat::Qcow2,
            Self::Vhd => DiskFormat::Vhd,
        }
    }
}

fn qemu_format(format: Format) -> QemuFormat {
    match format {
        Format::Raw => QemuFormat::Raw,
        Format::Qcow2 => QemuFormat::Qcow2,
        Format::FixedVhd | Format::DynamicVhd { .. } => QemuFormat::Vpc,
        Format::Vhdx => QemuFormat::Vhdx,
        Format::Vmdk => QemuFormat::Vmdk,
    }
}

/// A file that is being taken in.
struct Source {
    path: PathBuf,
    file: File,
    length: u64,
    /// Device, inode, seconds and nanoseconds of its last change.
    identity: (u64, u64, i64, i64),
}

impl Source {
    fn open(path: &Path) -> Result<Self, ImageError> {
        let refused = |reason: &str| ImageError::Refused { path: path.to_owned(), reason: reason.to_owned() };
        let (file, length) = open_regular(path).map_err(|error| match error {
            FetchError::IsDirectory { .. } => refused("it is a directory"),
            FetchError::NotRegular { .. } => refused("it is not a regular file"),
            FetchError::Unreadable { path, source } => {
                LibraryError::Disk { act: "read", path, source }.into()
            }
            other => refused(&other.to_string()),
        })?;
        let identity = identity(&file).map_err(LibraryError::disk("read", path))?;
        Ok(Self { path: path.to_owned(), file, length, identity })
    }

    /// The file itself, and the one of that name: conversion reads by name.
    fn is_unchanged(&self) -> Result<bool, LibraryError> {
        let same = || -> io::Result<bool> {
            let named = File::open(&self.path)?;
            Ok(identity(&self.file)? == self.identity
                && identity(&named)? == self.identity
                && named.metadata()?.len() == self.length)
        };
        same().map_err(LibraryError::disk("read", &self.path))
    }
}

fn identity(file: &File) -> io::Result<(u64, u64, i64, i64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Copies the first `length` bytes into an empty file; what is a hole stays one, and file systems that can share the
/// bytes do.
fn copy_with_holes(
    from: &File,
    to: &File,
    length: u64,
    report: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    if from.metadata()?.len() == length && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return report(length);
    }
    to.set_len(length)?;
    let mut buffer = vec![0; CHUNK as usize];
    let mut offset = 0;
    while offset < length {
        let data = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
            Ok(data) => data.min(length),
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => length,
            // A file system that does not know its holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => offset,
            Err(error) => return Err(error.into()),
        };
        offset = data;
        let hole = match rustix::fs::seek(from, SeekFrom::Hole(offset)) {
            Ok(hole) => hole.min(length),
            Err(_) => length,
        };
        while offset < hole {
            let count = CHUNK.min(hole - offset);
            let chunk = &mut buffer[..usize::try_from(count).unwrap_or(0)];
            from.read_exact_at(chunk, offset)?;
            to.write_all_at(chunk, offset)?;
            offset += count;
            report(offset)?;
        }
    }
    report(length)
}
