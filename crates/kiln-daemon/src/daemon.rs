//! The daemon: all its rooms, opened in order, under one lock.
//!
//! ```text
//!  lock ─► store ─► templates (cut-off creations go on) ─► runs (live workers are followed, dead ones settled) ─► Daemon
//! ```
//! INVARIANT: one process owns the store: it holds `server/lock`. A second one is told who has it.

use std::path::{Path, PathBuf};

/// Where a daemon keeps what; all below one data folder.
#[derive(Debug, Clone)]
pub struct Paths {
    data: PathBuf,
}

impl Paths {
    pub fn new(data: PathBuf) -> Self {
        Self { data }
    }
    pub fn data(&self) -> &Path {
        &self.data
    }
    pub fn library(&self) -> PathBuf {
        self.data.join("library")
    }
    /// A run directory for each run.
    pub fn runs(&self) -> PathBuf {
        self.data.join("runs")
    }
    /// A folder for each run: what it distributed.
    pub fn artifacts(&self) -> PathBuf {
        self.data.join("artifacts")
    }
    /// The daemon's own: private to its user.
    pub fn server(&self) -> PathBuf {
        self.data.join("server")
    }
    pub fn lock(&self) -> PathBuf {
        self.server().join("lock")
    }
    pub fn database(&self) -> PathBuf {
        self.server().join("kiln.db")
    }
}

/// All the rooms of a server.
pub struct Daemon {
    pub paths: Paths,
}
