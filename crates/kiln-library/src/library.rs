use std::path::{Path, PathBuf};

use crate::LibraryError;

/// The newest format of a library this build reads and the one it writes.
pub const LIBRARY_FORMAT: u32 = 1;

/// A library on this host's disk. Cheap to clone; clones, threads and processes may share one.
#[derive(Debug, Clone)]
pub struct Library {
    root: PathBuf,
}

impl Library {
    /// Opens the library at `root`, making it where there is none.
    pub fn open(root: impl AsRef<Path>) -> Result<Library, LibraryError> {
        Ok(Self { root: root.as_ref().to_owned() })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}
