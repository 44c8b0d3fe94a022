//! Locks that say whether their holder lives.
//!
//! A [`FileLock`] is a `flock` on an open file: the kernel drops it when its holder ends, however it ends, so a held
//! lock means a living holder. Lock files are never removed, for a removed file can be locked by one process while
//! another locks its successor of the same name.
//!
//! Locks are advisory, per open file, and local to a host unless the file system carries them further (NFS does).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::wait::{Control, Interrupted};

/// `flock` has no event to select on, and a thread blocked in it cannot be called back: so it is asked at this
/// distance, short against the work that locks are held for.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// [`is_held`] takes a shared lock for the moment of its question. Whoever wants the lock in that moment asks again, this
/// often, a millisecond apart, before it takes no for an answer: one who asks may lose the processor meanwhile.
const PROBES_OUTLASTED: u32 = 1000;
/// So often, [`ASK_AGAIN`] apart, a dead holder's lock is asked for: two seconds.
const DEAD_OUTLASTED: u32 = 40;

/// An exclusive lock, held until dropped.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    path: PathBuf,
}

impl Drop for FileLock {
    /// Closing would do, were it not for a child that another thread forks just now: it shares the open file until it
    /// becomes its program, and the lock with it.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// Why a lock could not be had in time.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot lock {}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("waiting for the lock {}, which another process holds", .path.display())]
    Interrupted { path: PathBuf, source: Interrupted },
}

impl FileLock {
    /// Takes the lock if it is free, making the file (mode 0600) where it is missing; `None` when somebody holds it,
    /// be it this process by another [`FileLock`].
    pub fn try_exclusive(path: impl AsRef<Path>) -> io::Result<Option<Self>> {
        let path = path.as_ref();
        let file = open(path, Access::Lock)?;
        for attempt in 0..PROBES_OUTLASTED {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(Self { file, path: path.to_owned() })),
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error.into()),
            }
            // A real holder holds exclusively; only a probe shares.
            if attempt + 1 == PROBES_OUTLASTED || !shared_by_a_probe(&file)? {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }

    /// As [`FileLock::try_exclusive`], for who has seen the holder die: a child that was just being forked has the lock
    /// for a moment longer, until it becomes its program or dies, too.
    pub fn try_exclusive_of_the_dead(path: impl AsRef<Path>) -> io::Result<Option<Self>> {
        let path = path.as_ref();
        for _ in 0..DEAD_OUTLASTED {
            if let Some(lock) = Self::try_exclusive(path)? {
                return Ok(Some(lock));
            }
            std::thread::sleep(ASK_AGAIN);
        }
        Self::try_exclusive(path)
    }

    /// Waits for the lock.
    pub async fn exclusive(path: impl AsRef<Path>, control: &Control) -> Result<Self, LockError> {
        let path = path.as_ref();
        loop {
            match Self::try_exclusive(path) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                Err(source) => return Err(LockError::Io { path: path.to_owned(), source }),
            }
            control
                .sleep(ASK_AGAIN)
                .await
                .map_err(|source| LockError::Interrupted { path: path.to_owned(), source })?;
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether somebody holds the lock, without taking it from anyone who wants it. A missing file is not held.
pub fn is_held(path: impl AsRef<Path>) -> io::Result<bool> {
    // To read only: whoever watches the folder (inotify(7)) is told of files that were open for writing and are closed.
    let file = match open(path.as_ref(), Access::Ask) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    shared_by_a_probe(&file).map(|shared| !shared)
}

/// Whether the file can be shared, that is: nobody holds it exclusively.
fn shared_by_a_probe(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            rustix::fs::flock(file, FlockOperation::Unlock)?;
            Ok(true)
        }
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Makes the file where it is missing.
    Lock,
    Ask,
}

fn open(path: &Path, access: Access) -> io::Result<File> {
    // Writable, because NFS grants an exclusive lock only on a file open for writing; a shared one needs reading.
    // No link is followed and no pipe waited for: its folder may be another user's than the one who locks.
    let no_traps = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .write(access == Access::Lock)
        .create(access == Access::Lock)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_traps.bits().cast_signed())
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Invocation, SpawnOptions};

    /// A holder that died in the middle of a fork: its child has the lock until it is gone, too.
    #[test]
    fn a_dead_holders_child_is_outlasted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_exclusive(&path).unwrap().unwrap();
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(held);
        });
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        assert!(FileLock::try_exclusive_of_the_dead(&path).unwrap().is_some());
        ending.join().unwrap();
    }

    #[test]
    fn one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_held(&path).unwrap());
        assert!(!path.exists(), "asking makes no file");
        let lock = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        assert!(is_held(&path).unwrap());
        drop(lock);
        assert!(!is_held(&path).unwrap());
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, outside) = (dir.path().join("lock"), dir.path().join("outside"));
        std::os::unix::fs::symlink(&outside, &path).unwrap();
        assert!(FileLock::try_exclusive(&path).is_err() && is_held(&path).is_err());
        assert!(!outside.exists());
    }

    #[tokio::test]
    async fn waiting_ends_with_the_lock_or_with_the_control() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = FileLock::try_exclusive(&path).unwrap().unwrap();
        let soon = Control::ending_in(Duration::from_millis(120));
        let error = FileLock::exclusive(&path, &soon).await.unwrap_err();
        assert!(matches!(error, LockError::Interrupted { source: Interrupted::DeadlinePassed, .. }));
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { FileLock::exclusive(&path, &Control::ending_in(Duration::from_secs(10))).await }
        });
        drop(lock);
        waiting.await.unwrap().unwrap();
    }

    /// Questions must not turn a free lock into a taken one.
    #[test]
    fn asking_disturbs_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "").unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        is_held(&path).unwrap();
                        // Far more often than anybody asks; without any pause the lock would never be free.
                        std::thread::sleep(Duration::from_micros(100));
                    }
                });
            }
            let refused = (0..20_000).filter(|_| FileLock::try_exclusive(&path).unwrap().is_none()).count();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(refused, 0);
        });
    }

    /// What recovery relies on: a killed holder's lock is free.
    #[tokio::test]
    async fn a_killed_holder_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let holder = Invocation::new("flock")
            .arg(&path)
            .args(["sh", "-c", "echo held; sleep 60"])
            .spawn(SpawnOptions { stdout: crate::process::Sink::Pipe, ..SpawnOptions::default() });
        let mut holder = holder.unwrap();
        let mut said = [0; 5];
        std::io::Read::read_exact(&mut holder.take_stdout().unwrap(), &mut said).unwrap();
        assert!(is_held(&path).unwrap());
        holder.kill_group();
        holder.wait().await.unwrap();
        FileLock::exclusive(&path, &Control::ending_in(Duration::from_secs(5))).await.unwrap();
    }
}
