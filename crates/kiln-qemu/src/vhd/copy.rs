//! One pass over an image's data: read, hashed and written by all processors, block by block.
//!
//! ```text
//!            a free buffer and the next block, taken together
//!   ┌───────────────────────────────────────────────────────────┐
//!   │                                                           │
//!   ▼  worker (one for each processor)                          │
//!   read from the chain's files ─► extent digest ─► write       │
//!                                                     │         │
//!                                                     ▼         │
//!             in order: zeros and blocks ─► the file's SHA-256 ─┘
//! ```
//!
//! The file's SHA-256 can only be made from front to back, zeros included, and so lags behind. What it lags is bounded
//! by the buffers there are. No two ever wait for each other: a worker takes its block only when it has a buffer, so
//! the blocks that hold buffers are always the first of those not hashed yet, and the very first can go on.
//!
//! Whoever fails, or panics, drops its [`Turn`]. That tells the others, and nobody waits for the block any longer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use kiln_host::extents::ExtentHasher;
use kiln_host::wait::{Control, Interrupted};
use sha2::{Digest as _, Sha256};

use super::source::{BLOCK, Block, ReadError, Source};
use super::{FOOTER_LENGTH, Footer};

/// More than this wait for the disk.
const THREADS_LIMIT: usize = 8;
/// Blocks that may wait for the SHA-256 of the file. The more, the earlier the disk has everything.
const WINDOW: usize = 256;
/// What files have holes in units of.
const PAGE: usize = 4096;
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// What is to be copied, and where to.
pub(super) struct Copying<'a> {
    pub source: &'a Source,
    /// As long as the disk, and nothing but zeros.
    pub dest: &'a File,
    pub footer: &'a Footer,
    /// Told the part that is done, and what it is a part of.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    pub control: &'a Control,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digests {
    pub extents: [u8; 32],
    /// Of the whole file, if it was wanted.
    pub sha256: Option<[u8; 32]>,
}

#[derive(Debug)]
pub(super) enum CopyError {
    Read(ReadError),
    Write(io::Error),
    Interrupted(Interrupted),
}

impl Copying<'_> {
    /// Blocks until the file is complete. With its SHA-256 it is also on the disk then: syncing costs no time of its own
    /// beside the hashing.
    pub fn run(&self, with_sha256: bool) -> Result<Digests, CopyError> {
        let blocks = self.source.blocks();
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = processors.min(THREADS_LIMIT).min(blocks.len().max(1));
        let buffers = if with_sha256 { WINDOW } else { threads }.min(blocks.len());
        let (line, done, free) = Line::new(buffers);
        std::thread::scope(|scope| {
            let spawn = || std::thread::Builder::new().name("vhd".into());
            let consumer = spawn().spawn_scoped(scope, || match with_sha256 {
                true => self.hash_in_order(&blocks, &line, done, free).map(Some),
                false => self.pass_on(blocks.len(), done, free).map(|()| None),
            });
            let consumer = consumer.map_err(CopyError::Write)?;
            // All are started before one is waited for.
            let workers: Vec<_> =
                (0..threads).map(|_| spawn().spawn_scoped(scope, || self.work(&blocks, &line))).collect();
            if workers.iter().any(Result::is_err) {
                line.stop();
            }
            let mut extents = ExtentHasher::new();
            let mut copied = Ok(());
            for worker in workers {
                match worker.map_err(CopyError::Write).and_then(join) {
                    Ok(told) => extents.absorb(told),
                    Err(error) => copied = copied.and(Err(error)),
                }
            }
            let finished = copied.and_then(|()| self.finish(&mut extents, with_sha256));
            if finished.is_err() {
                line.stop();
            }
            let sha256 = join(consumer);
            finished?;
            let length = self.footer.virtual_size() + FOOTER_LENGTH as u64;
            Ok(Digests { extents: extents.finish(length), sha256: sha256? })
        })
    }

    fn work(&self, blocks: &[Block], line: &Line) -> Result<ExtentHasher, CopyError> {
        let mut extents = ExtentHasher::new();
        while let Some(mut turn) = line.next(blocks) {
            self.control.check().map_err(CopyError::Interrupted)?;
            let (block, buffer) = (turn.block, turn.buffer.as_mut_slice());
            self.source.read(block, buffer).map_err(CopyError::Read)?;
            extents.bytes(block.offset(), buffer);
            write_data(self.dest, buffer, block.offset()).map_err(CopyError::Write)?;
            turn.done();
        }
        Ok(extents)
    }

    /// The footer, and the disk's word that it has everything.
    fn finish(&self, extents: &mut ExtentHasher, sync: bool) -> Result<(), CopyError> {
        self.control.check().map_err(CopyError::Interrupted)?;
        let (bytes, at) = (self.footer.to_bytes(), self.footer.virtual_size());
        // The disk is a whole number of MiB, so the footer is a block of its own, the file's last.
        extents.bytes(at, &bytes);
        self.dest.write_all_at(&bytes, at).map_err(CopyError::Write)?;
        match sync {
            true => self.dest.sync_all().map_err(CopyError::Write),
            false => Ok(()),
        }
    }

    /// The file's SHA-256.
    fn hash_in_order(
        &self,
        blocks: &[Block],
        line: &Line,
        done: Receiver<Done>,
        free: Sender<Vec<u8>>,
    ) -> Result<[u8; 32], CopyError> {
        let disk = self.footer.virtual_size();
        let mut whole = Whole { copying: self, line, hasher: Sha256::new(), position: 0 };
        let mut early = BTreeMap::new();
        for (index, block) in blocks.iter().enumerate() {
            whole.zeros_until(block.offset())?;
            let buffer = loop {
                if let Some(buffer) = early.remove(&index) {
                    break buffer;
                }
                let Ok(Done { index, buffer: Some(buffer) }) = done.recv() else { return Err(gone()) };
                early.insert(index, buffer);
            };
            whole.bytes(&buffer)?;
            // The workers have ended when all blocks are taken.
            let _ = free.send(buffer);
        }
        whole.zeros_until(disk)?;
        whole.bytes(&self.footer.to_bytes())?;
        Ok(whole.hasher.finalize().into())
    }

    /// In place of a digest.
    fn pass_on(&self, count: usize, done: Receiver<Done>, free: Sender<Vec<u8>>) -> Result<(), CopyError> {
        for passed in 1..=count {
            let Ok(Done { buffer: Some(buffer), .. }) = done.recv() else { return Err(gone()) };
            let _ = free.send(buffer);
            (self.progress)(passed as u64, count as u64);
        }
        (self.progress)(1, 1);
        Ok(())
    }
}

/// The whole file, as its digest sees it pass.
struct Whole<'a> {
    copying: &'a Copying<'a>,
    line: &'a Line,
    hasher: Sha256,
    position: u64,
}

impl Whole<'_> {
    fn zeros_until(&mut self, end: u64) -> Result<(), CopyError> {
        while self.position < end {
            let count = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(ZEROS.len());
            self.bytes(&ZEROS[..count])?;
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        self.copying.control.check().map_err(CopyError::Interrupted)?;
        if self.line.is_stopped() {
            return Err(gone());
        }
        self.hasher.update(bytes);
        self.position += bytes.len() as u64;
        (self.copying.progress)(self.position, self.copying.footer.virtual_size() + FOOTER_LENGTH as u64);
        Ok(())
    }
}

/// Said by whoever stops because another has: never the reason that is told.
fn gone() -> CopyError {
    CopyError::Write(io::Error::other("a thread that copies has ended"))
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T, CopyError>>) -> Result<T, CopyError> {
    let panicked = |_| CopyError::Write(io::Error::other("a thread that copies has panicked"));
    thread.join().map_err(panicked).flatten()
}

/// Where workers get their blocks, and leave them.
struct Line {
    /// Together, so that blocks are taken in the order in which buffers are.
    next: Mutex<(Receiver<Vec<u8>>, usize)>,
    done: Sender<Done>,
    stopped: AtomicBool,
}

/// A block that is written; without its bytes, the news that one never will be.
struct Done {
    index: usize,
    buffer: Option<Vec<u8>>,
}

impl Line {
    fn new(buffers: usize) -> (Self, Receiver<Done>, Sender<Vec<u8>>) {
        let (free_sender, free) = channel();
        let (done, done_receiver) = channel();
        for _ in 0..buffers {
            // The receiver is right here.
            let _ = free_sender.send(vec![0; usize::try_from(BLOCK).unwrap_or(0)]);
        }
        let line = Self { next: Mutex::new((free, 0)), done, stopped: AtomicBool::new(false) };
        (line, done_receiver, free_sender)
    }

    /// `None` when all blocks are taken, or somebody has failed. Waits for a buffer, which ends when whoever hands them
    /// back does.
    fn next<'a>(&'a self, blocks: &'a [Block]) -> Option<Turn<'a>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (free, index) = &mut *next;
        let block = blocks.get(*index)?;
        let buffer = free.recv().ok()?;
        if self.is_stopped() {
            return None;
        }
        *index += 1;
        Some(Turn { line: self, index: *index - 1, block, buffer, is_done: false })
    }

    /// The one who failed says so, to the workers and to whoever waits for blocks.
    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Who does not listen any more has failed, too.
        let _ = self.done.send(Done { index: usize::MAX, buffer: None });
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// One block in the hands of one worker.
struct Turn<'a> {
    line: &'a Line,
    index: usize,
    block: &'a Block,
    buffer: Vec<u8>,
    is_done: bool,
}

impl Turn<'_> {
    fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_done {
            let buffer = Some(std::mem::take(&mut self.buffer));
            // Nobody listens any more when somebody else has failed.
            let _ = self.line.done.send(Done { index: self.index, buffer });
        } else {
            self.line.stop();
        }
    }
}

/// Writes what is not zeros.
fn write_data(dest: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut at = run_of(true, bytes);
    while at < bytes.len() {
        let length = run_of(false, &bytes[at..]);
        dest.write_all_at(&bytes[at..at + length], offset + at as u64)?;
        at += length;
        at += run_of(true, &bytes[at..]);
    }
    Ok(())
}

/// Bytes of the pages at the beginning that are zeros, or that are not.
fn run_of(zeros: bool, bytes: &[u8]) -> usize {
    let pages = bytes.chunks(PAGE).take_while(|page| (**page == ZEROS[..page.len()]) == zeros);
    pages.map(<[u8]>::len).sum()
}
