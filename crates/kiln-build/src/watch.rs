//! Waiting for a folder to change, without polling.
//!
//! The kernel reports names that appear and files that grow (inotify(7)). What is
//! in them is read by the caller: a report only says "look again". Where inotify
//! does not reach (a network file system that another host writes to), the caller's
//! own bound is what makes it look again.

use std::io;
use std::path::Path;
use std::pin::Pin;

use inotify::{EventStream, Inotify, WatchMask};
use tokio_stream::StreamExt as _;

/// Room for the reports of one look; what does not fit is reported by the next.
const BUFFER: usize = 4096;

/// A watch on one folder: its entries, and the contents of the files directly in it.
pub struct FolderWatch {
    events: Pin<Box<EventStream<Vec<u8>>>>,
}

impl FolderWatch {
    /// Starts watching. Changes from here on are reported, so: watch first, then look.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watched = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MODIFY | WatchMask::CLOSE_WRITE;
        inotify.watches().add(folder, watched)?;
        Ok(Self { events: Box::pin(inotify.into_event_stream(vec![0; BUFFER])?) })
    }

    /// Ends when something changed since the last call (or since [`FolderWatch::new`]).
    pub async fn changed(&mut self) -> io::Result<()> {
        match self.events.next().await {
            Some(event) => event.map(|_| ()),
            None => Err(io::Error::other("the kernel reports no more changes")),
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
