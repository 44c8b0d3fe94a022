//! Disks, by what may be done with them.
//!
//! ```text
//!   BaseImage   a file that is only read; many may share it
//!      │ Overlay::create
//!      ▼
//!   Overlay     what one machine writes; one owner, not Clone
//!      │ moved into a Machine, run, shut down cleanly
//!      ▼
//!   StoppedMachine ── into_image ──► Image   the finished disk; read to make artifacts
//! ```
//!
//! INVARIANT: a base image is never written; a disk has one owner; only a guest that shut down cleanly yields an image.
//! Guarded here: nothing in this crate opens a [`BaseImage`] for writing, [`Overlay`] is not `Clone`, and an [`Image`] can
//! only be made of a [`StoppedMachine`], which only [`crate::vm::Vm`] makes, or be one that was kept ([`Image::kept`]).

use std::io;
use std::path::{Path, PathBuf};

use crate::qemu_img::{QemuImg, QemuImgError};
use crate::vhd::{MIB, round_up_mib};

/// The formats Kiln reads, by qemu-img's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    Qcow2,
    Raw,
    /// VHD, fixed or dynamic.
    Vpc,
    Vhdx,
    Vmdk,
}

impl DiskFormat {
    pub const ALL: [Self; 5] = [Self::Qcow2, Self::Raw, Self::Vpc, Self::Vhdx, Self::Vmdk];

    /// As qemu-img calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot open the base image {}", .path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot read the image {} as {}", .path.display(), .format.name())]
    Inspect { path: PathBuf, format: DiskFormat, source: QemuImgError },
    #[error(
        "the image {} takes its contents from another file, {}; make it whole with `qemu-img convert` first",
        .path.display(), .other.display()
    )]
    NotWhole { path: PathBuf, other: PathBuf },
    #[error("the image {} is encrypted", .path.display())]
    Encrypted { path: PathBuf },
    #[error(
        "a disk of {wanted} bytes is smaller than its base image {}, which has {has}; a disk can only grow",
        .path.display()
    )]
    Shrinks { path: PathBuf, wanted: u64, has: u64 },
    #[error("a disk of {wanted} bytes is larger than any disk can be")]
    TooLarge { wanted: u64 },
    #[error("cannot make the overlay {}", .path.display())]
    Create { path: PathBuf, source: QemuImgError },
}

/// A disk image that is only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    path: PathBuf,
    format: DiskFormat,
    virtual_size: u64,
}

impl BaseImage {
    /// Looks at an image of a known format. One that takes its contents from other files is refused: opening it would
    /// read whatever it names, and a checked digest would cover only a part of it.
    pub fn open(qemu_img: &QemuImg, path: impl AsRef<Path>, format: DiskFormat) -> Result<Self, DiskError> {
        let path = path.as_ref();
        let open = |source| DiskError::Open { path: path.to_owned(), source };
        // An overlay records this path, and may lie elsewhere.
        let path = std::fs::canonicalize(path).map_err(open)?;
        std::fs::File::open(&path).map_err(open)?;
        let info = qemu_img.info(&path, format).map_err(|source| DiskError::Inspect {
            path: path.clone(),
            format,
            source,
        })?;
        if let Some(other) = info.other_file() {
            return Err(DiskError::NotWhole { other: other.to_owned(), path });
        }
        if info.is_split() {
            return Err(DiskError::NotWhole { other: "its other extents".into(), path });
        }
        if info.encrypted {
            return Err(DiskError::Encrypted { path });
        }
        Ok(Self { path, format, virtual_size: info.virtual_size })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn format(&self) -> DiskFormat {
        self.format
    }

    /// Bytes, as a guest sees it.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }
}

/// A machine's writable layer: a qcow2 file over something that is only read.
#[derive(Debug, PartialEq, Eq)]
pub struct Overlay {
    path: PathBuf,
    virtual_size: u64,
}

impl Overlay {
    /// Makes an empty layer over `base`, replacing what is at `path`.
    ///
    /// It is as large as the base or `grow_to_bytes`, rounded up to whole MiB: so the guest already sees the size that
    /// the finished VHD will have, and puts the end of its partition table there.
    pub fn create(
        qemu_img: &QemuImg,
        base: &BaseImage,
        path: impl AsRef<Path>,
        grow_to_bytes: Option<u64>,
    ) -> Result<Self, DiskError> {
        let wanted = grow_to_bytes.unwrap_or(base.virtual_size);
        if wanted < base.virtual_size {
            return Err(DiskError::Shrinks { path: base.path.clone(), wanted, has: base.virtual_size });
        }
        let virtual_size = round_up_mib(wanted).ok_or(DiskError::TooLarge { wanted })?;
        let path = path.as_ref();
        let create = |source| DiskError::Create { path: path.to_owned(), source };
        qemu_img.create_overlay(path, &base.path, base.format, virtual_size).map_err(create)?;
        Ok(Self { path: path.to_owned(), virtual_size })
    }

    /// Makes an empty layer over `below`, the disk of a machine that was frozen or will be; it need not lie there yet, and
    /// may have others below it.
    pub fn above(
        qemu_img: &QemuImg,
        below: &Path,
        virtual_size: u64,
        path: impl AsRef<Path>,
    ) -> Result<Self, DiskError> {
        let path = path.as_ref();
        let create = |source| DiskError::Create { path: path.to_owned(), source };
        qemu_img.create_layer(path, below, DiskFormat::Qcow2, virtual_size).map_err(create)?;
        Ok(Self { path: path.to_owned(), virtual_size })
    }

    /// Takes over a layer that another process made, such as one left by a run that is resumed. The caller vouches that
    /// nobody else uses it.
    pub fn reopen(qemu_img: &QemuImg, path: impl AsRef<Path>) -> Result<Self, DiskError> {
        let (path, format) = (path.as_ref().to_owned(), DiskFormat::Qcow2);
        match qemu_img.info(&path, format) {
            Ok(info) => Ok(Self { path, virtual_size: info.virtual_size }),
            Err(source) => Err(DiskError::Inspect { path, format, source }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes, as a guest sees it; whole MiB.
    pub fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    /// A name and a size for a machine's portrait; there is no such file.
    pub(crate) fn named(path: PathBuf, virtual_size: u64) -> Self {
        Self { path, virtual_size }
    }

    #[cfg(test)]
    pub(crate) fn at(path: &str, virtual_size: u64) -> Self {
        Self { path: path.into(), virtual_size }
    }
}

/// What is left of a machine whose guest shut down cleanly.
#[derive(Debug)]
pub struct StoppedMachine {
    os: Overlay,
    data: Vec<Overlay>,
}

impl StoppedMachine {
    /// `None` for a machine that had no disk.
    pub(crate) fn new(disks: Vec<Overlay>) -> Option<Self> {
        let mut disks = disks.into_iter();
        Some(Self { os: disks.next()?, data: disks.collect() })
    }

    pub fn os_disk(&self) -> &Overlay {
        &self.os
    }

    pub fn data_disks(&self) -> &[Overlay] {
        &self.data
    }

    /// The disks again, the system's first, to start another machine with.
    pub fn into_disks(self) -> Vec<Overlay> {
        std::iter::once(self.os).chain(self.data).collect()
    }

    /// The finished system disk.
    pub fn into_image(self) -> Image {
        Image { overlay: self.os }
    }
}

/// A finished disk, as a qcow2 file with whatever lies below it. Only read from now on.
#[derive(Debug)]
pub struct Image {
    overlay: Overlay,
}

impl Image {
    /// A disk that was an image already, kept on a shelf since. The caller vouches for that, and for its bytes.
    pub fn kept(overlay: Overlay) -> Self {
        Self { overlay }
    }

    pub fn path(&self) -> &Path {
        &self.overlay.path
    }

    pub fn format(&self) -> DiskFormat {
        DiskFormat::Qcow2
    }

    /// Bytes; whole MiB, unless the overlay was made elsewhere.
    pub fn virtual_size(&self) -> u64 {
        self.overlay.virtual_size
    }

    /// The image as the ground of other machines, such as a throw-away one that looks whether it boots.
    pub fn as_base(&self) -> BaseImage {
        BaseImage {
            path: self.overlay.path.clone(),
            format: DiskFormat::Qcow2,
            virtual_size: self.overlay.virtual_size,
        }
    }
}

const _: () = assert!(MIB == 1 << 20);
