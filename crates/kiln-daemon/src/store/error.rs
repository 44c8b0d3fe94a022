//! What can go wrong with the store, told by what a person can do about it.

use std::io;
use std::path::{Path, PathBuf};

use kiln_model::run::RunState;
use rusqlite::ErrorCode;

/// The store cannot be opened, read or changed. Nothing of the failed call is kept.
///
/// No variant carries a value out of a row: rows hold addresses with secrets.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {act} {}", path.display())]
    Disk { act: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not a database of Kiln ({what}); it was left untouched", path.display())]
    Foreign { path: PathBuf, what: &'static str },
    #[error(
        "{} has schema {found}, this program knows up to {known}; it was left untouched: use the newer kiln that wrote it",
        path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "{} is damaged; stop kiln, move it and its -wal file away and put a backup in their place (runs are read again from their directories, templates are not)",
        path.display()
    )]
    Damaged { path: PathBuf, source: rusqlite::Error },
    #[error(
        "{} is missing or empty, but its log {} is not: put both back from one backup, or move the log away to begin anew",
        path.display(), log.display()
    )]
    LogWithoutDatabase { path: PathBuf, log: PathBuf },
    #[error("another program holds {}; close it and try again", path.display())]
    Busy { path: PathBuf, source: rusqlite::Error },
    #[error("no room on the disk for {}", path.display())]
    NoRoom { path: PathBuf, source: rusqlite::Error },
    #[error("{} cannot be written: its folder or file system is read-only for this user", path.display())]
    ReadOnly { path: PathBuf, source: rusqlite::Error },
    #[error("the database {} failed", path.display())]
    Sqlite { path: PathBuf, source: rusqlite::Error },
    /// `detail` says what is wrong, never what is there.
    #[error("a stored {what} cannot be read: {column}: {detail}")]
    Unreadable { what: &'static str, column: &'static str, detail: String },
    #[error("{name} cannot be stored as a {what}: {detail}")]
    Unstorable { what: &'static str, name: String, detail: String },
    #[error("there is a {what} {name} already")]
    Exists { what: &'static str, name: String },
    #[error("there is no {what} {name}")]
    Missing { what: &'static str, name: String },
    /// INVARIANT: a run ends once.
    #[error("run {run} is {from:?} and cannot become {to:?}")]
    Transition { run: String, from: RunState, to: RunState },
    #[error("operation {0} has ended and cannot change")]
    OperationEnded(String),
    /// The `after` of a list is not one that a list gave.
    #[error("{0:?} is no place in this list")]
    BadPlace(String),
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub(super) fn disk(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { act, path, source }
    }

    /// What SQLite's answer means for the one who runs this.
    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Damaged { path, source },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path, source },
            Some(ErrorCode::DiskFull) => Self::NoRoom { path, source },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path, source },
            _ => Self::Sqlite { path, source },
        }
    }
}
