//! THE STORE: SQLite, one writer, many readers.
//!
//! ```text
//!  read(closure) ──► a read-only connection of the pool ── one snapshot ──┐
//!  read(closure) ──► another                             ── one snapshot ──┤► kiln.db, kiln.db-wal
//!  write(closure) ─► the one writer ── one IMMEDIATE transaction ─────────┘
//! ```
//!
//! It owns templates, triggers, the queue, operations, run outputs, resource groups and the activity log. Its rows about
//! runs and artifacts are an index over run directories, and can be made again from them ([`Store::reindex`]).
//!
//! Closures run on blocking threads, to their end even if their caller goes away: a client that hangs up leaves no half
//! of a change. A closure that errs or panics leaves nothing of its transaction.
//!
//! `synchronous` is FULL: what was answered holds after a power cut, for the price of one sync a change; a run makes
//! about ten of them. The file is 0600: addresses in templates may hold secrets.
//!
//! | module    | owns                                                       |
//! |-----------|------------------------------------------------------------|
//! | `records` | what is stored, as plain values                            |
//! | `open`    | which files are taken for ours, and how they are opened    |
//! | `schema`  | tables and their versions                                  |
//! | `rows`    | from rows to records                                       |
//! | `read`    | every question                                             |
//! | `write`   | every change, and what no change may do                    |
//! | `reindex` | rows about runs, made again from run directories           |
//! | `sweep`   | what retention asks and removes                            |

mod error;
mod open;
mod read;
mod records;
mod reindex;
mod rows;
mod schema;
mod sweep;
mod write;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

pub use error::StoreError;
pub use read::{Page, Reader, RunFilter, Scope};
pub use records::*;
pub use reindex::{ORIGIN_FORMAT, Reindexed, RunOrigin};
pub(crate) use sweep::{ArtifactAge, Log, RunAge};
pub use write::Writer;

/// Enough for two cores and a slow disk; each costs up to 2 MiB of cache.
const READERS: usize = 4;

/// The open store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    is_new: bool,
    /// Closed before the writer, who then tidies the log away.
    idle_readers: Mutex<Vec<Connection>>,
    reading: Arc<Semaphore>,
    writer: Arc<tokio::sync::Mutex<Connection>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the database at `path`, makes it where there is none, and brings an older one up to date. Blocks.
    ///
    /// # Errors
    /// What is there is not a database of Kiln, is newer, is damaged or held by another program: it is left untouched.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let (writer, is_new) = open::writer(path)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                is_new,
                idle_readers: Mutex::default(),
                reading: Arc::new(Semaphore::new(READERS)),
                writer: Arc::new(tokio::sync::Mutex::new(writer)),
            }),
        })
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Whether opening made it: then run directories that are there already are not in its index.
    pub fn is_new(&self) -> bool {
        self.inner.is_new
    }

    /// Asks questions of one snapshot.
    pub async fn read<T, E, F>(&self, ask: F) -> Result<T, E>
    where
        F: FnOnce(&Reader<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let permit = Arc::clone(&self.inner.reading).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let idle = inner.idle_readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match idle {
                Some(connection) => connection,
                None => open::reader(&inner.path)?,
            };
            let sqlite = |error| StoreError::sqlite(&inner.path, error);
            let tx = connection.unchecked_transaction().map_err(sqlite)?;
            let answer = ask(&Reader::new(&tx, &inner.path));
            // Nothing was changed; this ends the snapshot.
            drop(tx);
            inner.idle_readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            drop(permit);
            answer
        })
        .await
    }

    /// Changes things in one transaction, which is kept if `change` succeeds.
    pub async fn write<T, E, F>(&self, change: F) -> Result<T, E>
    where
        F: FnOnce(&Writer<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let mut connection = Arc::clone(&self.inner.writer).lock_owned().await;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let sqlite = |error| StoreError::sqlite(&inner.path, error);
            let tx = connection
                .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
                .map_err(sqlite)?;
            let answer = change(&Writer::new(&tx, &inner.path))?;
            tx.commit().map_err(sqlite)?;
            Ok(answer)
        })
        .await
    }
}

async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and the work has not begun.
            Err(_) => Err(StoreError::Closed.into()),
        },
    }
}
