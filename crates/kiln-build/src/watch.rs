//! Waiting for a folder to change, without polling.
//!
//! The kernel reports names that appear and files that grow (inotify(7)). What is
//! in them is read by the caller: a report only says "look again". Where inotify
//! does not reach (a network file system that another host writes to), the caller's
//! own bound is what makes it look again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// A watch on one folder: its entries, and the contents of the files directly in it.
#[derive(Debug)]
pub struct FolderWatch {
    fd: AsyncFd<OwnedFd>,
}

impl FolderWatch {
    /// Starts watching. Changes from here on are reported, so: watch first, then look.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let watched = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&fd, folder, watched)?;
        Ok(Self { fd: AsyncFd::new(fd)? })
    }

    /// Ends when something changed since the last call (or since [`FolderWatch::new`]).
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            let mut buffer = [0_u8; 4096];
            match ready.try_io(|fd| rustix::io::read(fd.get_ref(), &mut buffer).map_err(io::Error::from)) {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn reports_new_and_growing_files_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = FolderWatch::new(folder.path()).unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(quiet.is_err(), "nothing happened, and yet: {quiet:?}");

        let file = folder.path().join("cancel");
        std::fs::write(&file, "").unwrap();
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();

        // Drain what the creation itself reported, then grow the file.
        while tokio::time::timeout(Duration::from_millis(50), watch.changed()).await.is_ok() {}
        std::fs::write(&file, "more").unwrap();
        tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
    }
}
