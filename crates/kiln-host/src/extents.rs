//! The extent digest: a name for a file's contents that costs what its data costs, and not what its size does.
//!
//! A disk image of 30 GiB with 600 MB in it takes seconds to hash as `sha256sum` does, since zeros are hashed like
//! anything else, one after the other. Here blocks of zeros count for nothing, and the others are hashed on as many
//! processors as there are.
//!
//! Definition, version 2: the SHA-256 of
//!
//! ```text
//!   "kiln-extents-2\n"                           15 bytes
//!   length of the file                           u64, little endian
//!   for each block of 64 KiB that is not all zeros, in order (the last one may be shorter):
//!     its number, from 0                         u64, little endian
//!     BLAKE3 of its bytes                        32 bytes
//! ```
//!
//! BLAKE3 for the bytes, since it works on many of them at once: some four times as fast on one processor as SHA-256
//! with its own instructions, and a guest that is being kept needs the processors itself. (Version 1 had SHA-256 there.)
//!
//! Whether zeros lie in the file as a hole or as bytes makes no difference: the same contents have the same digest on
//! every file system.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use crate::holes::{next_data, next_hole};

/// Bytes of a block.
pub const BLOCK: u64 = 64 << 10;
/// Bytes that are read at once: whole blocks.
const PIECE: u64 = 1 << 20;
const HEAD: &[u8; 15] = b"kiln-extents-2\n";
/// More readers than this wait for the disk.
const THREADS_LIMIT: usize = 8;
/// Compared with whole slices at a time, which is the system's own `memcmp`.
static ZEROS: [u8; 4096] = [0; 4096];

/// Takes block digests in any order and makes the file's of them. For whoever has the bytes in hand already.
#[derive(Debug, Default)]
pub struct ExtentHasher {
    blocks: Vec<(u64, [u8; 32])>,
}

impl ExtentHasher {
    pub fn new() -> Self {
        Self::default()
    }

    /// From `offset`, where a block begins, the file has `bytes`: whole blocks, the file's last apart. Zeros may be told
    /// or left out.
    pub fn bytes(&mut self, offset: u64, bytes: &[u8]) {
        let blocks = bytes.chunks(usize::try_from(BLOCK).unwrap_or(usize::MAX));
        let digests = (offset / BLOCK..).zip(blocks.map(digest_of));
        self.blocks.extend(digests.filter_map(|(number, digest)| Some((number, digest?))));
    }

    /// Takes over the blocks that another was told of: one on each thread, and one at the end.
    pub fn absorb(&mut self, other: Self) {
        self.blocks.extend(other.blocks);
    }

    /// The digest of a file of `length` bytes, each of whose blocks was told at most once.
    pub fn finish(mut self, length: u64) -> [u8; 32] {
        self.blocks.sort_unstable_by_key(|(number, _)| *number);
        let mut whole = Sha256::new();
        whole.update(HEAD);
        whole.update(length.to_le_bytes());
        for (number, digest) in self.blocks {
            whole.update(number.to_le_bytes());
            whole.update(digest);
        }
        whole.finalize().into()
    }
}

/// The extent digest of a file. `progress` is told the bytes done, holes included, now and then; its error ends the work.
pub fn extent_digest(
    path: impl AsRef<Path>,
    progress: &(dyn Fn(u64) -> io::Result<()> + Sync),
) -> io::Result<[u8; 32]> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let pieces = pieces_with_data(&file, length)?;
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let found = Mutex::new(ExtentHasher::new());
    let work = || -> io::Result<()> {
        let mut told = ExtentHasher::new();
        let mut buffer = vec![0; usize::try_from(PIECE).unwrap_or(0)];
        while !stop.load(Ordering::Relaxed) {
            let index = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
            let Some(number) = pieces.get(index).copied() else { break };
            let offset = number * PIECE;
            let count = usize::try_from(PIECE.min(length - offset)).unwrap_or(0);
            file.read_exact_at(&mut buffer[..count], offset)?;
            told.bytes(offset, &buffer[..count]);
            progress((offset + PIECE).min(length))?;
        }
        found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).absorb(told);
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = threads.min(THREADS_LIMIT).min(pieces.len().max(1));
    let ended = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work().inspect_err(|_| stop.store(true, Ordering::Relaxed))))
            .collect();
        let joined = workers.into_iter().map(|worker| {
            worker.join().unwrap_or_else(|_| Err(io::Error::other("a thread that hashes has panicked")))
        });
        joined.collect::<Vec<_>>().into_iter().collect::<io::Result<()>>()
    });
    ended?;
    Ok(found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).finish(length))
}

/// Those that the file system has something of.
fn pieces_with_data(file: &File, length: u64) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    let mut offset = 0;
    while offset < length {
        let data = next_data(file, offset, length)?;
        if data >= length {
            break;
        }
        let hole = next_hole(file, data, length)?;
        let after = numbers.last().map_or(0, |last| last + 1);
        numbers.extend((data / PIECE).max(after)..hole.div_ceil(PIECE));
        offset = hole;
    }
    Ok(numbers)
}

/// `None` for zeros.
fn digest_of(bytes: &[u8]) -> Option<[u8; 32]> {
    let zeros = bytes.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()]);
    (!zeros).then(|| *blake3::hash(bytes).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The definition, written down once more in the plainest way.
    fn plainly(bytes: &[u8]) -> [u8; 32] {
        let mut text = b"kiln-extents-2\n".to_vec();
        text.extend((bytes.len() as u64).to_le_bytes());
        for (number, block) in bytes.chunks(64 << 10).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                text.extend((number as u64).to_le_bytes());
                text.extend(blake3::hash(block).as_bytes());
            }
        }
        Sha256::digest(&text).into()
    }

    #[test]
    fn holes_and_zeros_are_the_same_and_bytes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let cases: &[(u64, &[u64])] = &[
            (0, &[]),
            (1, &[0]),
            (5 * MIB + 512, &[]),
            (4 * MIB, &[0, 4096, 4 * MIB - 4096]),
            (9 * MIB + 512, &[0, MIB - 2048, 3 * MIB + 4096, 9 * MIB]),
        ];
        let mut seen = Vec::new();
        for (number, (length, places)) in cases.iter().enumerate() {
            let path = dir.path().join(number.to_string());
            let file = File::create(&path).unwrap();
            for place in *places {
                file.write_all_at(&[0xa5; 4096], *place).unwrap();
            }
            file.set_len(*length).unwrap();
            let sparse = extent_digest(&path, &|_| Ok(())).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(sparse, extent_digest(&path, &|_| Ok(())).unwrap(), "without holes: case {number}");
            assert_eq!(sparse, plainly(&bytes), "case {number}");
            let mut told = ExtentHasher::new();
            for (number, piece) in bytes.chunks(1 << 20).enumerate().rev() {
                told.bytes(number as u64 * MIB, piece);
            }
            assert_eq!(sparse, told.finish(*length), "told backwards: case {number}");
            let (mut even, mut odd) = (ExtentHasher::new(), ExtentHasher::new());
            for (number, block) in bytes.chunks(64 << 10).enumerate() {
                let hasher = if number % 2 == 0 { &mut even } else { &mut odd };
                hasher.bytes(number as u64 * BLOCK, block);
            }
            odd.absorb(even);
            assert_eq!(sparse, odd.finish(*length), "told to two: case {number}");
            seen.push(sparse);
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), cases.len());
    }

    #[test]
    fn progress_can_end_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1; 3 << 20]).unwrap();
        let error = extent_digest(&path, &|_| Err(io::Error::other("enough"))).unwrap_err();
        assert_eq!(error.to_string(), "enough");
    }
}
