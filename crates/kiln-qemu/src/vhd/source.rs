//! An image as files that have its bytes, each of them opened once and only read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use kiln_host::wait::Control;

use crate::disk::{DiskFormat, Image};
use crate::qemu_img::{Extent, ImageInfo, QemuImg, QemuImgError};

/// Bytes that are copied at once. Small enough that of scattered data little is copied that is not there, and a whole
/// number of the extent digest's blocks.
pub(super) const BLOCK: u64 = 256 << 10;
const _: () = assert!(BLOCK.is_multiple_of(kiln_host::extents::BLOCK));

/// The files of a chain, and where in them the image's bytes lie.
#[derive(Debug)]
pub(super) struct Source {
    /// By layer; only those that something is read from.
    files: Vec<Option<(PathBuf, File)>>,
    extents: Vec<Extent>,
}

/// [`BLOCK`] bytes of the image that are not known to be zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// From 0.
    pub number: u64,
    /// Those of the source's extents that lie in it, at least in part.
    extents: Range<usize>,
}

impl Block {
    /// Where it begins in the image.
    pub fn offset(&self) -> u64 {
        self.number * BLOCK
    }
}

/// A file of the chain could not be read.
#[derive(Debug)]
pub(super) struct ReadError {
    pub path: PathBuf,
    pub source: io::Error,
}

impl Source {
    /// `None` for an image that only QEMU can read: one with compressed or encrypted clusters, or with a layer that is
    /// neither qcow2 nor raw, or no plain file.
    pub async fn open(
        qemu_img: &QemuImg,
        image: &Image,
        control: &Control,
    ) -> Result<Option<Self>, QemuImgError> {
        let (path, format) = (image.path(), image.format());
        let asked = (qemu_img.map(path, format, control), qemu_img.info_of_chain(path, format, control));
        let (map, chain) = tokio::try_join!(asked.0, asked.1)?;
        if map.indirect || map.length != image.virtual_size() {
            return Ok(None);
        }
        let mut files: Vec<Option<(PathBuf, File)>> = Vec::new();
        files.resize_with(chain.len(), || None);
        for extent in &map.extents {
            let (Some(layer), Some(file)) = (chain.get(extent.layer), files.get_mut(extent.layer)) else {
                return Ok(None);
            };
            if file.is_none() {
                let path = match extent.layer {
                    0 => Some(path),
                    _ => plain_path(layer),
                };
                *file = path.filter(|_| has_plain_clusters(layer)).and_then(open_regular);
            }
            if file.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(Self { files, extents: map.extents }))
    }

    /// One file with everything.
    #[cfg(test)]
    pub fn of(path: &Path, extents: Vec<Extent>) -> Self {
        Self { files: vec![open_regular(path)], extents }
    }

    /// All blocks that have something, in order.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        for (index, extent) in self.extents.iter().enumerate() {
            for number in extent.start / BLOCK..extent.end().div_ceil(BLOCK) {
                match blocks.last_mut() {
                    Some(last) if last.number == number => last.extents.end = index + 1,
                    _ => blocks.push(Block { number, extents: index..index + 1 }),
                }
            }
        }
        blocks
    }

    /// Fills `buffer`, which is as long as a block, with what the image has there.
    pub fn read(&self, block: &Block, buffer: &mut [u8]) -> Result<(), ReadError> {
        let within = |at: u64| usize::try_from(at.saturating_sub(block.offset())).unwrap_or(usize::MAX);
        let mut filled = 0;
        for extent in &self.extents[block.extents.clone()] {
            let begin = extent.start.max(block.offset());
            let end = extent.end().min(block.offset() + BLOCK);
            buffer[filled..within(begin)].fill(0);
            filled = within(end);
            let Some((path, file)) = &self.files[extent.layer] else { continue };
            read_or_zeros(file, &mut buffer[within(begin)..filled], extent.offset + (begin - extent.start))
                .map_err(|source| ReadError { path: path.clone(), source })?;
        }
        buffer[filled..].fill(0);
        Ok(())
    }
}

/// Only with these do the map's offsets count in the very file that the chain names.
fn has_plain_clusters(layer: &ImageInfo) -> bool {
    match DiskFormat::from_name(&layer.format) {
        Some(DiskFormat::Qcow2) => layer.data_file().is_none() && !layer.encrypted,
        Some(DiskFormat::Raw) => true,
        Some(DiskFormat::Vpc | DiskFormat::Vhdx | DiskFormat::Vmdk) | None => false,
    }
}

/// What lies below is recorded by its absolute path. Everything else is an address (`json:`, `nbd:`), or a name that
/// JSON could not carry.
fn plain_path(layer: &ImageInfo) -> Option<&Path> {
    let path = layer.filename.as_path();
    let carried = path.to_str().is_some_and(|text| !text.contains(char::REPLACEMENT_CHARACTER));
    (path.is_absolute() && carried).then_some(path)
}

/// `None` for what is no regular file, or cannot be opened: QEMU has the words for that.
fn open_regular(path: &Path) -> Option<(PathBuf, File)> {
    // Looked at before it is opened: opening a pipe would wait for its other end.
    if !path.metadata().ok()?.is_file() {
        return None;
    }
    Some((path.to_owned(), File::open(path).ok()?))
}

/// The last cluster of a file may be there in part; QEMU reads zeros behind it, too.
fn read_or_zeros(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
