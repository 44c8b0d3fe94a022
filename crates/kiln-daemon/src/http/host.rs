//! The host: what this server is, what room it has, what would go, who changed what.

use std::path::Path;
use std::time::Instant;

use axum::http::StatusCode;
use jiff::Timestamp;
use kiln_build::run_dir::{CLAIM_FORMAT, REQUEST_FORMAT};
use kiln_library::{IMAGE_FORMAT, LIBRARY_FORMAT};
use kiln_model::event::{EVENTS_FORMAT, RUN_OUTPUT_FORMAT};
use kiln_model::plan::PLAN_FORMAT;
use serde_json::{Value, json};

use super::answer::{Answer, ArmError, ok};
use super::call::Call;
use super::paging;
use super::runs::{internal, page_size};
use crate::daemon::Daemon;
use crate::gc::{self, GcItem, GcWhat, Places, Retention};
use crate::store::StoreError;

/// GET `/kiln/health`: the process answers, and its store can be read. Says nothing else: it is open to everybody.
pub(super) async fn health(daemon: &Daemon) -> Answer {
    match daemon.store.read(|_| Ok::<_, StoreError>(())).await {
        Ok(()) => Ok(ok(&json!({"status": "ok"}))),
        Err(error) => {
            tracing::error!(%error, "the store cannot be read");
            let text = "The server's store cannot be read.";
            Err(ArmError::new(StatusCode::SERVICE_UNAVAILABLE, "StoreUnavailable", text))
        }
    }
}

/// GET `/kiln/status`.
pub(super) async fn status(daemon: &Daemon) -> Answer {
    let paths = daemon.paths.clone();
    let folders = tokio::task::spawn_blocking(move || {
        [
            ("data", paths.data().to_owned()),
            ("library", paths.library()),
            ("runs", paths.runs()),
            ("artifacts", paths.artifacts()),
        ]
        .map(|(name, path)| json!({"name": name, "path": path, "freeBytes": free(&path)}))
    });
    let folders = folders.await.map_err(|error| ArmError::internal(&error))?;
    let counts = daemon.runs.counts();
    let up = daemon.opened_at.elapsed();
    Ok(ok(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "startedTime": started(daemon.opened_at),
        "uptimeSeconds": up.as_secs(),
        "url": daemon.environment.names.url(),
        "runs": {
            "queued": counts.queued,
            "active": counts.active,
            "memoryMiB": counts.memory_mib,
            "cpus": counts.cpus,
            "budget": {"memoryMiB": counts.budget.memory_mib, "cpus": counts.budget.cpus},
            "workers": daemon.runs.placement(),
        },
        "folders": folders,
        "formats": {
            "plan": PLAN_FORMAT,
            "events": EVENTS_FORMAT,
            "runOutput": RUN_OUTPUT_FORMAT,
            "request": REQUEST_FORMAT,
            "claim": CLAIM_FORMAT,
            "library": LIBRARY_FORMAT,
            "image": IMAGE_FORMAT,
        },
    })))
}

/// POST `/kiln/gc`: removes what retention no longer keeps; with `dryRun` only says what would go.
pub(super) async fn collect(daemon: &Daemon, call: Call) -> Answer {
    let dry_run = call.is_set("dryRun")?;
    let shelf = daemon.paths.library();
    let library = tokio::task::spawn_blocking(move || kiln_library::Library::open(shelf))
        .await
        .map_err(|error| ArmError::internal(&error))?
        .map_err(|error| ArmError::internal(&error))?;
    let places = Places { runs: daemon.paths.runs(), artifacts: daemon.paths.artifacts(), library };
    let kept = &daemon.config.retention;
    let retention = Retention { days: kept.days, per_template: kept.per_template, size_gib: kept.size_gib };
    let plan = gc::plan(&daemon.store, &places, &retention, Timestamp::now())
        .await
        .map_err(|error| ArmError::internal(&error))?;
    if dry_run {
        return Ok(ok(&json!({
            "dryRun": true,
            "bytes": plan.bytes(),
            "items": shown(&plan.items),
            "bytesUsed": plan.bytes_used,
            "bytesOverQuota": plan.bytes_over_quota,
        })));
    }
    let done = gc::carry_out(&daemon.store, &places, &plan).await;
    Ok(ok(&json!({
        "dryRun": false,
        "bytes": done.removed.iter().map(|item| item.bytes).sum::<u64>(),
        "items": shown(&done.removed),
        "kept": shown(&done.kept),
        "failed": done.failed,
        "bytesOverQuota": plan.bytes_over_quota,
    })))
}

/// Items with a name for people beside what they are for programs.
fn shown(items: &[GcItem]) -> Vec<Value> {
    let named = items.iter().map(|item| {
        let what = match &item.what {
            GcWhat::Run { run } => format!("run {run}"),
            GcWhat::RunDirectory { run } => format!("folder of run {run}"),
            GcWhat::WorkFolder { run } => format!("work folder of run {run}"),
            GcWhat::Artifact { run, file } => format!("artifact {file} of run {run}"),
            GcWhat::ArtifactFile { run, file } => format!("file {file} among the artifacts of run {run}"),
            GcWhat::Leftover => "leftover of an earlier removal".to_owned(),
            GcWhat::Input { sha256 } => format!("input {}", sha256.short()),
            GcWhat::Operations { count } => format!("{count} ended operations"),
            GcWhat::Activity { count } => format!("{count} entries of the activity log"),
        };
        let mut item = json!(item);
        item["what"] = json!(what);
        item
    });
    named.collect()
}

/// GET `/kiln/activity`: the newest first.
pub(super) async fn activity(daemon: &Daemon, call: Call) -> Answer {
    let limit = page_size(&call)?;
    let after: Option<u64> = match paging::place(&call)? {
        None => None,
        Some(place) => Some(place.parse().map_err(|_| paging::bad_token())?),
    };
    let page = daemon.store.read(move |store| store.activity(after, limit)).await.map_err(internal)?;
    let rows = page.items.iter().map(|row| {
        json!({
            "seq": row.seq,
            "at": row.at,
            "by": row.by,
            "action": row.action,
            "resource": row.resource,
            "outcome": row.outcome,
        })
    });
    Ok(ok(&paging::page_of(&call, rows.collect(), page.next, &["$top"])?))
}

/// Bytes; `null` where the folder is not made yet, and its parent has none to tell either.
fn free(path: &Path) -> Option<u64> {
    path.ancestors().find_map(|folder| kiln_host::space::free_bytes(folder).ok())
}

fn started(opened_at: Instant) -> Option<String> {
    let ago = jiff::SignedDuration::try_from(opened_at.elapsed()).ok()?;
    let at = Timestamp::now().checked_sub(ago).ok()?;
    Some(at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
