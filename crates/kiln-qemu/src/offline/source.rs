//! Where bytes come from, and what is said when they make no sense.
//!
//! Every layer of a disk is a [`ReadAt`]: the disk as QEMU serves it, a partition of it, a file of the partition's file
//! system. The bytes are a guest's, so untrusted: numbers are taken out of them only by functions that can say no.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

/// Why a disk's contents could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("cannot read {length} bytes at {offset} of the disk")]
    Disk { offset: u64, length: usize, source: io::Error },
    /// The bytes are there, and are not what their kind of structure allows.
    #[error("{what} is damaged: {how}")]
    Damaged { what: &'static str, how: String },
    /// Sound, as far as can be told, but of a kind that is not read here.
    #[error("{what} cannot be read: {how}")]
    Unsupported { what: &'static str, how: &'static str },
}

pub(super) fn damaged(what: &'static str, how: impl Into<String>) -> Fault {
    Fault::Damaged { what, how: how.into() }
}

/// Something of a known size that can be read anywhere. A read is all or an error.
pub(super) trait ReadAt {
    /// Bytes.
    fn size(&self) -> u64;

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault>;

    fn read_vec(&self, offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
        // Before memory is taken: the length may be a guest's idea.
        within(self.size(), offset, length)?;
        let mut bytes = vec![0; length];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// Refuses what reaches beyond `size`.
pub(super) fn within(size: u64, offset: u64, length: usize) -> Result<(), Fault> {
    let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
    match end {
        Some(end) if end <= size => Ok(()),
        _ => Err(Fault::Disk {
            offset,
            length,
            source: io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends at {size}")),
        }),
    }
}

/// A stretch of something larger, such as a partition.
pub(super) struct Part<'d> {
    pub whole: &'d dyn ReadAt,
    pub start: u64,
    pub length: u64,
}

impl ReadAt for Part<'_> {
    fn size(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        within(self.length, offset, buffer.len())?;
        let offset =
            self.start.checked_add(offset).ok_or_else(|| damaged("a partition", "it ends nowhere"))?;
        self.whole.read_at(offset, buffer)
    }
}

/// Small reads of one neighbourhood cost one large read.
pub(super) struct Cached<R> {
    inner: R,
    blocks: RefCell<HashMap<u64, Vec<u8>>>,
}

/// Bytes fetched at once.
const BLOCK: u64 = 64 << 10;
/// 16 MiB of blocks. A directory of a few thousand names fits; a hive is never read whole.
const BLOCKS: usize = 256;

impl<R: ReadAt> Cached<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, blocks: RefCell::default() }
    }
}

impl<R: ReadAt> ReadAt for Cached<R> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        within(self.size(), offset, buffer.len())?;
        let mut blocks = self.blocks.borrow_mut();
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (number, inside) = (at / BLOCK, usize::try_from(at % BLOCK).unwrap_or(0));
            if !blocks.contains_key(&number) {
                if blocks.len() >= BLOCKS {
                    blocks.clear();
                }
                let start = number * BLOCK;
                let length = usize::try_from(BLOCK.min(self.size() - start)).unwrap_or(0);
                blocks.insert(number, self.inner.read_vec(start, length)?);
            }
            let block = blocks.get(&number).and_then(|block| block.get(inside..)).unwrap_or_default();
            let count = block.len().min(rest.len());
            if count == 0 {
                return Err(damaged("the disk", "it is shorter than it says"));
            }
            rest[..count].copy_from_slice(&block[..count]);
            rest = &mut rest[count..];
            at += u64::try_from(count).unwrap_or(0);
        }
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        within(self.size(), offset, buffer.len())?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        buffer.copy_from_slice(bytes_at(self, start, buffer.len()).unwrap_or_default());
        Ok(())
    }
}

pub(super) fn bytes_at(bytes: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(length)?)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes_at(bytes, at, 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes_at(bytes, at, 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes_at(bytes, at, 8)?.try_into().ok()?))
}

/// Little-endian UTF-16, as Windows writes text; what is none becomes U+FFFD.
pub(super) fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// Whether two names are one to Windows, which upper-cases both by a table. Letter by letter, as that table does.
pub(super) fn same_name(one: &str, other: &str) -> bool {
    let upper = |letter: char| {
        let mut upper = letter.to_uppercase();
        match (upper.next(), upper.next()) {
            (Some(only), None) => only,
            _ => letter,
        }
    };
    one.chars().map(upper).eq(other.chars().map(upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_disk_reads_as_the_disk_does() {
        let bytes: Vec<u8> = (0..200_001_u32).map(|number| number.to_le_bytes()[1]).collect();
        let cached = Cached::new(bytes.clone());
        for (offset, length) in [(0, 1), (65_535, 2), (0, 200_001), (200_000, 1), (131_071, 65_538)] {
            let start = usize::try_from(offset).unwrap();
            assert_eq!(cached.read_vec(offset, length).unwrap(), bytes[start..start + length]);
        }
        for (offset, length) in [(200_001, 1), (0, 200_002), (u64::MAX, 2)] {
            assert!(matches!(cached.read_vec(offset, length), Err(Fault::Disk { .. })), "{offset} {length}");
        }
    }

    #[test]
    fn names_are_compared_as_windows_does() {
        assert!(same_name("System32", "SYSTEM32"));
        assert!(same_name("Ärger", "ärger"));
        assert!(!same_name("straße", "STRASSE"));
        assert!(!same_name("a", "ab"));
    }
}
