//! Rows about runs, made again from run directories.
//!
//! A run directory tells everything about a run but whose it is; that stands in its `origin.json`, written when a daemon
//! prepares it. Directories without one belong to no template (a `kiln build` of its own), and get no row.
//!
//! Only missing rows are made. A run whose events have no end gets a running one, for recovery to follow or to settle.

use std::io;
use std::path::{Path, PathBuf};

use kiln_build::run_dir::{RunDir, RunId, RunRequest};
use kiln_model::RunView;
use kiln_model::event::read_events;
use kiln_model::run::RunState;
use serde::{Deserialize, Serialize};

use super::rows::is_plain_name;
use super::*;
use crate::settle::read_own;

/// The newest format of `origin.json` this build reads and the one it writes.
pub const ORIGIN_FORMAT: u32 = 1;

/// Rows written in one transaction: writers of the daemon wait no longer than for these.
const AT_A_TIME: usize = 200;

/// `origin.json` of a run directory: whose run it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunOrigin {
    pub format: u32,
    pub subscription: String,
    pub resource_group: String,
    pub template: String,
    /// The operation whose end is the run's end, and its location.
    pub operation: String,
    pub location: String,
    /// RFC 3339, UTC.
    pub queued_at: String,
    pub started_by: String,
    pub memory_mib: u64,
    pub cpus: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds_since: Option<String>,
}

impl RunOrigin {
    pub fn new(run: &RunRecord, operation: &OperationRecord) -> Self {
        Self {
            format: ORIGIN_FORMAT,
            subscription: run.template.subscription.clone(),
            resource_group: run.template.resource_group.clone(),
            template: run.template.name.clone(),
            operation: run.operation.clone(),
            location: operation.location.clone(),
            queued_at: run.queued_at.clone(),
            started_by: run.started_by.clone(),
            memory_mib: run.memory_mib,
            cpus: run.cpus,
            holds_since: run.holds_since.clone(),
        }
    }

    /// Puts it into the run's directory.
    pub fn write(&self, dir: &RunDir) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        kiln_host::publish::write_file(path(dir), &text, 0o600)
    }

    /// `None` where there is none.
    fn read(dir: &RunDir) -> Result<Option<Self>, Skip> {
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let bytes = match read_own(&path(dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(Skip::Io)?,
        };
        let head: Head = serde_json::from_slice(&bytes).map_err(Skip::Json)?;
        if head.format > u64::from(ORIGIN_FORMAT) {
            return Err(Skip::Newer(head.format));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(Skip::Json)
    }
}

fn path(dir: &RunDir) -> PathBuf {
    dir.path().join("origin.json")
}

/// Why a run directory gets no row.
#[derive(Debug, thiserror::Error)]
enum Skip {
    #[error("cannot read it: {0}")]
    Io(io::Error),
    #[error("its origin.json is not what this program writes: {0}")]
    Json(serde_json::Error),
    #[error("its origin.json has format {0}; this program reads formats up to {ORIGIN_FORMAT}")]
    Newer(u64),
    #[error("{0}")]
    Events(kiln_model::FormatError),
    #[error("its events contradict each other: {0}")]
    View(kiln_model::IllegalEvent),
}

/// What [`Store::reindex`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reindexed {
    /// Rows made.
    pub runs: usize,
    /// Directories that cannot be read, and why; each is also in the log.
    pub skipped: Vec<(PathBuf, String)>,
}

/// Everything the store is to know about one run.
struct Known {
    run: RunRecord,
    /// Of a run that has not ended.
    operation: Option<OperationRecord>,
    outputs: Vec<OutputRecord>,
}

impl Store {
    /// Makes rows for run directories that have none.
    ///
    /// # Errors
    /// The store cannot be written, or `runs_root` not listed. A directory that cannot be read is skipped.
    pub async fn reindex(&self, runs_root: &Path) -> Result<Reindexed, StoreError> {
        let mut done = Reindexed::default();
        let root = runs_root.to_owned();
        let mut ids = blocking(move || list(&root)).await?;
        // Sorted by time: of several with one run output, the last one stays.
        ids.sort();
        for chunk in ids.chunks(AT_A_TIME) {
            let (root, chunk) = (runs_root.to_owned(), chunk.to_vec());
            let (runs, skipped) = self.write(move |w| add(w, &root, &chunk)).await?;
            done.runs += runs;
            for (path, why) in skipped {
                tracing::warn!(path = %path.display(), why, "a run directory was left out of the index");
                done.skipped.push((path, why));
            }
        }
        Ok(done)
    }
}

fn list(root: &Path) -> Result<Vec<RunId>, StoreError> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(StoreError::disk("list", root))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(StoreError::disk("list", root))?.file_name();
        ids.extend(name.to_str().and_then(|name| name.parse::<RunId>().ok()));
    }
    Ok(ids)
}

type Added = (usize, Vec<(PathBuf, String)>);

fn add(w: &Writer<'_>, root: &Path, ids: &[RunId]) -> Result<Added, StoreError> {
    let (mut runs, mut skipped) = (0, Vec::new());
    for id in ids {
        if w.run(id)?.is_some() {
            continue;
        }
        let path = root.join(id.as_str());
        let known = match known(&path, id) {
            Ok(Some(known)) => known,
            Ok(None) => continue,
            Err(why) => {
                skipped.push((path, why.to_string()));
                continue;
            }
        };
        match w.insert_run(&known.run) {
            Ok(()) => {}
            // Two runs of one template without an end: the directories lie.
            Err(error @ (StoreError::Exists { .. } | StoreError::Unstorable { .. })) => {
                skipped.push((path, error.to_string()));
                continue;
            }
            Err(error) => return Err(error),
        }
        if let Some(operation) = &known.operation
            && w.operation(&operation.id)?.is_none()
        {
            w.insert_operation(operation)?;
        }
        for output in &known.outputs {
            match w.put_output(output) {
                Err(error @ StoreError::Unstorable { .. }) => skipped.push((path.clone(), error.to_string())),
                stored => stored?,
            }
        }
        runs += 1;
    }
    Ok((runs, skipped))
}

/// What a run directory tells; nothing where it is nobody's.
fn known(path: &Path, id: &RunId) -> Result<Option<Known>, Skip> {
    let dir = RunDir::open(path).map_err(|error| Skip::Io(io::Error::other(error)))?;
    let Some(origin) = RunOrigin::read(&dir)? else { return Ok(None) };
    let bytes = match read_own(&dir.events()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read.map_err(Skip::Io)?,
    };
    let events = read_events(&bytes).map_err(Skip::Events)?.events;
    let view = RunView::of(&events).map_err(Skip::View)?;
    let state = view.state.unwrap_or(RunState::Running);
    let started_at = events.first().map(|event| event.time.clone());
    let template = TemplateId {
        subscription: origin.subscription.clone(),
        resource_group: origin.resource_group,
        name: origin.template,
    };
    let operation = (!state.is_final()).then(|| OperationRecord {
        id: origin.operation.clone(),
        kind: OperationKind::Run,
        subscription: origin.subscription,
        location: origin.location,
        resource: template.arm_id(),
        status: OperationStatus::InProgress,
        started_at: origin.queued_at.clone(),
        ended_at: None,
        error: None,
        run: Some(id.clone()),
    });
    // One that was removed since is not there to be offered.
    let request = read_own(&dir.request()).ok();
    let request = request.and_then(|bytes| serde_json::from_slice::<RunRequest>(&bytes).ok());
    let is_there = |file: &str| {
        let path = request.as_ref().map(|request| request.output_dir.join(file));
        is_plain_name(file)
            && path.and_then(|path| path.symlink_metadata().ok()).is_some_and(|it| it.is_file())
    };
    let outputs = view.outputs.iter().filter(|output| is_there(&output.file)).map(|output| OutputRecord {
        template: template.clone(),
        name: output.name.clone(),
        run: id.clone(),
        output: output.clone(),
        created_at: output.created_at.clone(),
    });
    let outputs = outputs.collect();
    let run = RunRecord {
        id: id.clone(),
        template,
        operation: origin.operation,
        state,
        phase: Some(view.phase()),
        message: view.message,
        fault: view.failure.map(|failure| failure.fault),
        queued_at: origin.queued_at,
        started_at,
        ended_at: if state.is_final() { events.last().map(|event| event.time.clone()) } else { None },
        memory_mib: origin.memory_mib,
        cpus: origin.cpus,
        attempt: view.attempt,
        started_by: origin.started_by,
        holds_since: origin.holds_since,
    };
    Ok(Some(Known { run, operation, outputs }))
}
