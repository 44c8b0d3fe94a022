//! Upkeep: retention is applied from time to time, as `kiln gc` applies it at once.

use std::time::Duration;

use jiff::Timestamp;
use kiln_library::Library;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::RetentionConfig;
use crate::daemon::Paths;
use crate::gc::{self, Places, Retention};
use crate::store::Store;

/// After the start: a server that was down for long should not begin with this.
const FIRST: Duration = Duration::from_secs(10 * 60);
/// Retention counts days.
const EVERY: Duration = Duration::from_secs(6 * 60 * 60);

/// Ends with its owner.
pub struct Upkeep(DropGuard);

impl Upkeep {
    /// Needs a runtime.
    pub fn begin(store: Store, paths: &Paths, kept: &RetentionConfig) -> Self {
        let stop = CancellationToken::new();
        let ended = stop.clone();
        let retention =
            Retention { days: kept.days, per_template: kept.per_template, size_gib: kept.size_gib };
        let paths = paths.clone();
        tokio::spawn(async move {
            let mut pause = FIRST;
            // The clock is the event: what is kept gets old by itself.
            while ended.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
                // Once begun it is carried through: each item is whole or untouched.
                once(&store, &paths, &retention).await;
                pause = EVERY;
            }
        });
        Self(stop.drop_guard())
    }

    /// None is begun after this.
    pub fn end(&self) {
        self.0.token().cancel();
    }
}

async fn once(store: &Store, paths: &Paths, retention: &Retention) {
    let shelf = paths.library();
    let library = match tokio::task::spawn_blocking(move || Library::open(shelf)).await {
        Ok(Ok(library)) => library,
        Ok(Err(error)) => return tracing::warn!("retention: {error}"),
        Err(_) => return,
    };
    let places = Places { runs: paths.runs(), artifacts: paths.artifacts(), library };
    let plan = match gc::plan(store, &places, retention, Timestamp::now()).await {
        Ok(plan) => plan,
        Err(error) => return tracing::warn!("retention: {error}"),
    };
    let done = gc::carry_out(store, &places, &plan).await;
    if !done.removed.is_empty() || !done.failed.is_empty() {
        let bytes: u64 = done.removed.iter().map(|item| item.bytes).sum();
        tracing::info!(
            removed = done.removed.len(),
            failed = done.failed.len(),
            bytes,
            "retention was applied"
        );
    }
}
