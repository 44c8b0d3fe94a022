//! RETENTION: what goes when, and its dry run.
//!
//! ```text
//!  store ──┐
//!  disk  ──┴─► find ─► Found ─► decide (pure) ─► GcPlan ─► carry_out: each item looked at again, then removed
//! ```
//!
//! A run that has ended goes with its directory and artifacts when it is older than [`Retention::days`], when its template
//! has [`Retention::per_template`] newer ones, or, oldest first, when all runs together are larger than
//! [`Retention::size_gib`]. What stays whatever its age: runs that have not ended, artifacts that are a template's run
//! output, and inputs that a template, a run or a living worker needs. Removing a template makes its artifacts ordinary
//! ones: they go with their runs.
//!
//! INVARIANT: an item is one thing, and its row goes before its file. Whoever is killed half-way leaves files without
//! rows, never rows without files; they are found the next time, by being old.
//!
//! Not removed: base images (people import them), what is not named like a run, and anything a lock is held on.

mod carry_out;
mod decide;
mod find;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use kiln_build::run_dir::RunId;
use kiln_library::{Library, LibraryError};
use kiln_model::Sha256;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError};

pub use carry_out::{GcDone, GcFailure, carry_out, remove_artifacts};

/// Operations can be read this long after their end.
const OPERATION_DAYS: i64 = 7;
/// Recovery comes first.
const FIRST: Duration = Duration::from_secs(10 * 60);
const EVERY: Duration = Duration::from_secs(24 * 3600);
/// As long as Azure keeps its activity log.
const ACTIVITY_DAYS: i64 = 90;
/// Removed folders get this before their name first: what still has it is nobody's.
const REMOVED: &str = ".removed-";

/// Where things lie.
#[derive(Debug, Clone)]
pub struct Places {
    /// Run directories.
    pub runs: PathBuf,
    /// A folder of artifacts for each run.
    pub artifacts: PathBuf,
    pub library: Library,
}

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Runs that ended longer ago go, and inputs nobody wanted for as long (a day at least).
    pub days: u32,
    /// Runs of each template that stay.
    pub per_template: u32,
    /// What run directories and artifacts may take together on the disk.
    pub size_gib: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { days: 30, per_template: 100, size_gib: None }
    }
}

/// What would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GcPlan {
    pub items: Vec<GcItem>,
    /// Bytes on the disk that run directories and artifacts have now.
    pub bytes_used: u64,
    /// Bytes by which what has to stay is larger than the quota.
    pub bytes_over_quota: u64,
    #[serde(skip)]
    now: Timestamp,
    #[serde(skip)]
    retention: Retention,
}

impl GcPlan {
    /// Bytes that would be free.
    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }
}

/// One thing that would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GcItem {
    #[serde(flatten)]
    pub what: GcWhat,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// On the disk.
    pub bytes: u64,
    /// `ended 31 days ago; runs are kept for 30 days`.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum GcWhat {
    /// A run that has ended: its row and its directory.
    Run {
        run: RunId,
    },
    /// A run directory that the store does not know, such as that of a `kiln build` of its own.
    RunDirectory {
        run: RunId,
    },
    /// The work folder that a run left.
    WorkFolder {
        run: RunId,
    },
    /// An artifact that is no run output any more: its row and its files.
    Artifact {
        run: RunId,
        file: String,
    },
    /// A file among the artifacts that the store does not know.
    ArtifactFile {
        run: RunId,
        file: String,
    },
    /// What an earlier removal did not finish.
    Leftover,
    Input {
        sha256: Sha256,
    },
    /// Operations that ended a while ago.
    Operations {
        count: u64,
    },
    /// Old entries of the activity log.
    Activity {
        count: u64,
    },
}

/// Retention cannot look at what there is.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: std::io::Error },
    #[error("cannot remove {}", path.display())]
    Remove { path: PathBuf, source: std::io::Error },
    #[error("retention was stopped")]
    Stopped,
}

/// Removes what is to go, soon after a start and then every day, until `shutdown`.
pub async fn every_day(store: Store, places: Places, retention: Retention, shutdown: CancellationToken) {
    again_and_again(store, places, retention, FIRST, shutdown).await;
}

async fn again_and_again(
    store: Store,
    places: Places,
    retention: Retention,
    first: Duration,
    shutdown: CancellationToken,
) {
    let mut wait = first;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            // Retention counts days; nothing else tells it that one has passed.
            () = tokio::time::sleep(wait) => {}
        }
        wait = EVERY;
        match plan(&store, &places, &retention, Timestamp::now()).await {
            Ok(plan) => {
                // Each item is whole by itself: the rest goes another day.
                let done = tokio::select! {
                    () = shutdown.cancelled() => return,
                    done = carry_out(&store, &places, &plan) => done,
                };
                let bytes: u64 = done.removed.iter().map(|item| item.bytes).sum();
                tracing::info!(removed = done.removed.len(), failed = done.failed.len(), bytes, "retention");
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "retention could not look at what there is"
                );
            }
        }
    }
}

/// Says what would go now. Changes nothing.
pub async fn plan(
    store: &Store,
    places: &Places,
    retention: &Retention,
    now: Timestamp,
) -> Result<GcPlan, GcError> {
    let before = find::Before::new(now);
    let rows = store.read(move |r| find::rows(r, before)).await?;
    let looked_at = places.clone();
    let found = tokio::task::spawn_blocking(move || find::found(rows, &looked_at))
        .await
        .map_err(|_| GcError::Stopped)??;
    Ok(decide::decide(&found, places, retention, now))
}
