//! Downloading an artifact: written aside, sparse, checked, and only then there.
//!
//! A disk image is mostly zeros. They come over the connection like other bytes, but are not
//! written: where a whole block is zero, the file gets a hole. A connection that breaks is taken
//! up where it broke, if the file is still the same.

use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use kiln_host::publish::Aside;
use kiln_model::Sha256;
use reqwest::header::{CONTENT_RANGE, ETAG, IF_RANGE, RANGE};
use sha2::{Digest as _, Sha256 as Hasher};

use super::link::Ask;
use super::stream::SILENCE;
use super::{Client, ClientError};
use crate::progress::transfer::Transfers;

/// What a hole is made of; file systems have blocks of this size or divide it.
const BLOCK: usize = 64 << 10;
/// Connections that may break one after another without bringing a byte.
const BREAKS: u32 = 5;
/// Before a broken connection is taken up again.
const PAUSE: Duration = Duration::from_millis(500);

/// What to download, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// On the server.
    pub path: String,
    pub to: PathBuf,
    /// Bytes.
    pub size: u64,
    pub sha256: Sha256,
}

/// Downloads one file. It appears whole and checked, or not at all.
pub async fn download(
    client: &Client,
    id: usize,
    wanted: &Download,
    transfers: &Transfers<'_>,
) -> Result<(), ClientError> {
    let name = wanted.to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let here = |act: &'static str| {
        let to = wanted.to.clone();
        move |source: io::Error| ClientError::Here { what: format!("cannot {act} {}", to.display()), source }
    };
    let aside = Aside::create(&wanted.to, 0o644).map_err(here("make"))?;
    let mut sparse = Sparse::new(aside);
    let mut tag: Option<String> = None;
    let mut breaks = 0;
    transfers.advance(id, &name, 0, Some(wanted.size));
    while sparse.length < wanted.size {
        let before = sparse.length;
        let mut ask = Ask::get(wanted.path.clone());
        if let (true, Some(tag)) = (before > 0, &tag) {
            ask = ask.header(RANGE, &format!("bytes={before}-")).header(IF_RANGE, tag);
        }
        let mut response = client.link.send(&ask).await?;
        if before > 0 && !response.headers().contains_key(CONTENT_RANGE) {
            // Not the file that it was: from its beginning then.
            sparse.restart().map_err(here("write"))?;
        }
        tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let broke = loop {
            match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    if sparse.length + chunk.len() as u64 > wanted.size {
                        return Err(client.link.strange(format!("{name} is longer than its record says")));
                    }
                    sparse.write(&chunk).map_err(here("write"))?;
                    transfers.advance(id, &name, sparse.length, Some(wanted.size));
                }
                Ok(Ok(None)) => break None,
                Ok(Err(error)) => break Some(client.link.transport(error)),
                Err(_) => {
                    let server = client.link.shown().to_owned();
                    break Some(ClientError::Silent { server, seconds: SILENCE.as_secs() });
                }
            }
        };
        if sparse.length >= wanted.size {
            break;
        }
        breaks = if sparse.length > before { 0 } else { breaks + 1 };
        if breaks >= BREAKS || tag.is_none() {
            let short = || client.link.strange(format!("{name} is shorter than its record says"));
            return Err(broke.unwrap_or_else(short));
        }
        // Whoever broke it gets a moment.
        tokio::time::sleep(PAUSE).await;
    }
    let (aside, digest) = sparse.finish().map_err(here("write"))?;
    if digest != wanted.sha256 {
        return Err(client.link.strange(format!(
            "{name} has the digest {digest}, its record says {}: it was not kept",
            wanted.sha256
        )));
    }
    tokio::task::spawn_blocking(move || aside.publish())
        .await
        .map_err(|error| here("write")(io::Error::other(error)))?
        .map_err(here("write"))?;
    transfers.end(id);
    Ok(())
}

/// A file that gets holes where whole blocks are zero.
struct Sparse {
    aside: Aside,
    hasher: Hasher,
    /// Bytes of the file so far.
    length: u64,
    /// Less than a block, not written yet.
    pending: Vec<u8>,
}

impl Sparse {
    fn new(aside: Aside) -> Self {
        Self { aside, hasher: Hasher::new(), length: 0, pending: Vec::with_capacity(BLOCK) }
    }

    fn restart(&mut self) -> io::Result<()> {
        self.hasher = Hasher::new();
        self.length = 0;
        self.pending.clear();
        let file = self.aside.file_mut();
        file.set_len(0)?;
        file.rewind()
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.pending.len()));
            if self.pending.is_empty() && now.len() == BLOCK {
                put(&mut self.aside, now)?;
            } else {
                self.pending.extend_from_slice(now);
                if self.pending.len() == BLOCK {
                    put(&mut self.aside, &self.pending)?;
                    self.pending.clear();
                }
            }
            bytes = later;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<(Aside, Sha256)> {
        put(&mut self.aside, &self.pending)?;
        // A hole at the end is there by the length alone.
        self.aside.file().set_len(self.length)?;
        Ok((self.aside, Sha256::from_bytes(self.hasher.finalize().into())))
    }
}

fn put(aside: &mut Aside, block: &[u8]) -> io::Result<()> {
    let file = aside.file_mut();
    if block.iter().all(|&byte| byte == 0) {
        let ahead = i64::try_from(block.len()).map_err(io::Error::other)?;
        file.seek(SeekFrom::Current(ahead)).map(drop)
    } else {
        file.write_all(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file that comes of `bytes`, written in pieces of `size`.
    fn written(bytes: &[u8], size: usize) -> (Vec<u8>, u64) {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("f");
        let mut sparse = Sparse::new(Aside::create(&to, 0o600).unwrap());
        bytes.chunks(size).for_each(|chunk| sparse.write(chunk).unwrap());
        let (aside, digest) = sparse.finish().unwrap();
        assert_eq!(digest, Sha256::from_bytes(kiln_host::digest::sha256(bytes)));
        aside.publish().unwrap();
        (std::fs::read(&to).unwrap(), kiln_host::space::allocated_bytes(&to).unwrap())
    }

    #[test]
    fn the_bytes_are_the_same_and_zeros_are_holes() {
        let mut disk = vec![0_u8; 4 << 20];
        disk[..512].fill(7);
        disk[(2 << 20) - 3..(2 << 20) + 5].fill(9);
        for tail in [0, 1, 511, BLOCK] {
            let mut bytes = disk.clone();
            bytes.resize(disk.len() + tail, 0);
            for size in [1 << 20, BLOCK, 4097] {
                let (same, allocated) = written(&bytes, size);
                assert!(same == bytes, "tail {tail}, pieces of {size}");
                assert!(allocated <= 4 * BLOCK as u64, "{allocated} bytes on the disk");
            }
        }
        assert_eq!(written(b"", 1).0, b"");
    }

    #[test]
    fn a_new_start_leaves_nothing_of_the_old() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("f");
        let mut sparse = Sparse::new(Aside::create(&to, 0o600).unwrap());
        sparse.write(&vec![1; 3 * BLOCK + 1]).unwrap();
        sparse.restart().unwrap();
        sparse.write(b"new").unwrap();
        sparse.finish().unwrap().0.publish().unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"new");
    }
}
