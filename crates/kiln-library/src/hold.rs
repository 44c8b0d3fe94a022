//! Holding a file or folder by its name, against other processes.
//!
//! The lock lies on the thing itself, so nothing is left over when its holder dies, and no lock files pile up. The price:
//! what was opened may have been renamed or removed before the lock was had. So after locking, the name is looked up
//! again; only if it still means the opened file is the hold real.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use kiln_host::wait::{Control, Interrupted};

/// `flock` has no event to wait for beside a cancellation.
const ASK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Nobody else holds it.
    Alone,
    /// Others may hold it too, but nobody alone.
    Together,
}

/// Holds what exists at `path`, a file or a folder, until the answer is closed. `None` while somebody else's hold is in
/// the way. An error of kind `NotFound` when there is nothing of that name (any more).
pub(crate) fn try_hold(path: &Path, share: Share) -> io::Result<Option<File>> {
    loop {
        let file = File::open(path)?;
        if !lock(&file, share)? {
            return Ok(None);
        }
        if still_named(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// Makes the file where it is missing (mode 0600) and holds it alone, open for reading and writing; `None` while somebody
/// holds it.
pub(crate) fn try_hold_file(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        if !lock(&file, Share::Alone)? {
            return Ok(None);
        }
        match still_named(&file, path) {
            Ok(true) => return Ok(Some(file)),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// As [`try_hold_file`], but waits for the holder.
pub(crate) async fn hold_file(path: &Path, control: &Control) -> Result<io::Result<File>, Interrupted> {
    loop {
        match try_hold_file(path) {
            Ok(Some(file)) => return Ok(Ok(file)),
            Ok(None) => control.sleep(ASK_AGAIN).await?,
            Err(error) => return Ok(Err(error)),
        }
    }
}

fn lock(file: &File, share: Share) -> io::Result<bool> {
    let locked = match share {
        Share::Alone => file.try_lock(),
        Share::Together => file.try_lock_shared(),
    };
    match locked {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn still_named(file: &File, path: &Path) -> io::Result<bool> {
    let (opened, named) = (file.metadata()?, std::fs::metadata(path)?);
    Ok(opened.ino() == named.ino() && opened.dev() == named.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_or_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let held = try_hold_file(&path).unwrap().unwrap();
        assert!(try_hold_file(&path).unwrap().is_none());
        assert!(try_hold(&path, Share::Together).unwrap().is_none());
        drop(held);
        let shared = try_hold(&path, Share::Together).unwrap().unwrap();
        assert!(try_hold(&path, Share::Together).unwrap().is_some());
        assert!(try_hold(&path, Share::Alone).unwrap().is_none());
        drop(shared);
        assert!(try_hold(dir.path(), Share::Alone).unwrap().is_some(), "folders too");
        let missing = try_hold(&dir.path().join("y"), Share::Alone).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    /// The first holder publishes the file under another name; the second must not think it holds that one.
    #[tokio::test]
    async fn a_name_that_moved_on_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        let first = try_hold_file(&path).unwrap().unwrap();
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { hold_file(&path, &Control::ending_in(Duration::from_secs(10))).await }
        });
        // Long enough for the second to have asked.
        tokio::time::sleep(ASK_AGAIN).await;
        std::fs::rename(&path, dir.path().join("published")).unwrap();
        drop(first);
        let second = waiting.await.unwrap().unwrap().unwrap();
        assert!(still_named(&second, &path).unwrap());
        assert!(!still_named(&second, &dir.path().join("published")).unwrap());
    }
}
