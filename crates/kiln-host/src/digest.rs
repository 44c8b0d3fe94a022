//! SHA-256 of files and streams.
//!
//! Disk images are mostly holes. [`sha256_file`] asks the file system where they are and feeds zeros from memory
//! instead of reading them, so the digest is that of `sha256sum FILE` while only the data is read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::holes::{next_data, next_hole};

/// Large enough that system calls do not count, small enough to stay in the cache while it is hashed.
const CHUNK: usize = 256 << 10;
static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// The SHA-256 of a file's contents. `progress` is told the number of bytes done, holes included, after each chunk;
/// its error ends the work (a cancellation comes in this way).
pub fn sha256_file(
    path: impl AsRef<Path>,
    progress: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<[u8; 32]> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        let data = next_data(&file, offset, length)?;
        while offset < data {
            let count = CHUNK.min(usize::try_from(data - offset).unwrap_or(CHUNK));
            hasher.update(&ZEROS[..count]);
            offset += count as u64;
            progress(offset)?;
        }
        let hole = next_hole(&file, offset, length)?;
        while offset < hole {
            let count = CHUNK.min(usize::try_from(hole - offset).unwrap_or(CHUNK));
            file.read_exact_at(&mut buffer[..count], offset)?;
            hasher.update(&buffer[..count]);
            offset += count as u64;
            progress(offset)?;
        }
    }
    Ok(hasher.finalize().into())
}

/// Hashes what is written through it.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    count: u64,
}

impl<W: Write> HashingWriter<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Bytes written so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn finish(self) -> (W, [u8; 32]) {
        (self.inner, self.hasher.finalize().into())
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes what is read through it.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Bytes read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn finish(self) -> (R, [u8; 32]) {
        (self.inner, self.hasher.finalize().into())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// The SHA-256 of bytes in memory.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
        .collect()
}

/// Reads a SHA-256 written as 64 hexadecimal digits of either case; `None` for anything else.
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Invocation;

    fn sha256sum(path: &Path) -> String {
        let output = Invocation::new("sha256sum").arg(path).run_blocking().unwrap();
        output.stdout_text().split(' ').next().unwrap().trim_start_matches('\\').to_owned()
    }

    #[test]
    fn the_digest_is_that_of_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        let mib: u64 = 1 << 20;
        // (length, places where a page of data lies)
        let cases: &[(u64, &[u64])] = &[
            (0, &[]),
            (1, &[0]),
            (5 * mib + 512, &[]),
            (4 * mib, &[0]),
            (4 * mib, &[4 * mib - 4096]),
            (9 * mib + 512, &[0, 3 * mib + 4096, 9 * mib]),
            (CHUNK as u64 * 3 + 7, &[CHUNK as u64 - 1, CHUNK as u64 * 2]),
        ];
        for (number, (length, places)) in cases.iter().enumerate() {
            let path = dir.path().join(number.to_string());
            let file = File::create(&path).unwrap();
            for place in *places {
                file.write_all_at(&[0xa5; 4096], *place).unwrap();
            }
            file.set_len(*length).unwrap();
            let mut done = 0;
            let digest = sha256_file(&path, &mut |bytes| {
                assert!(bytes > done);
                done = bytes;
                Ok(())
            });
            assert_eq!(hex(&digest.unwrap()), sha256sum(&path), "case {number}");
            assert_eq!(done, *length);
        }
    }

    #[test]
    fn progress_can_end_the_work() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 40).unwrap();
        let error = sha256_file(file.path(), &mut |_| Err(io::Error::other("enough"))).unwrap_err();
        assert_eq!(error.to_string(), "enough");
    }

    #[test]
    fn streams_are_hashed_as_they_pass() {
        let mut reader = HashingReader::new(&b"abc"[..]);
        let mut writer = HashingWriter::new(Vec::new());
        io::copy(&mut reader, &mut writer).unwrap();
        assert_eq!((reader.count(), writer.count()), (3, 3));
        let (bytes, written) = writer.finish();
        let (_, read) = reader.finish();
        assert_eq!(bytes, b"abc");
        assert_eq!(read, written);
        // FIPS 180-4, example A.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&read), expected);
        assert_eq!(parse_sha256(&expected.to_uppercase()), Some(read));
        assert_eq!(sha256(b"abc"), read);
    }

    #[test]
    fn only_digests_are_digests() {
        for text in
            ["", "ba78", &"g".repeat(64), &"a".repeat(65), &format!("+{}", "a".repeat(63)), &"ü".repeat(32)]
        {
            assert_eq!(parse_sha256(text), None, "{text}");
        }
    }
}
