//! Settling: bringing a run to its end that no worker will bring there.
//!
//! The lock is the proof that nobody works on it any more. Then the work folder and
//! half-made artifacts go, and the end is written: by the one function and the one
//! writer that every end goes through. What was published stays, with its record.
//!
//! A server that runs as root settles the runs of workers that do not, and the run's
//! directory is the worker's: where things lie is told by the server's own request,
//! not by the copy in there; names from there are names and nothing else; no link is followed.

use std::io;
use std::path::{Path, PathBuf};

use kiln_build::journal::Journal;
use kiln_build::log::CustomizationLog;
use kiln_build::run_dir::{Request, RunDir, RunDirError, RunRequest};
use kiln_host::lock::FileLock;
use kiln_model::event::{EVENTS_FORMAT, Failure, RunEventKind, RunOutput, read_events};
use kiln_model::plan::{BuildPlan, Distributor};
use kiln_model::run::{Fault, Phase, RunState};
use kiln_model::{RunView, Sha256};

/// A run could not be settled.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    #[error("a worker still holds the run {}", .0.display())]
    Alive(PathBuf),
    #[error("could not clean up {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("could not clean up the library")]
    Library(#[source] kiln_build::BuildError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
}

impl SettleError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// Ends a run whose worker ended without a last event; `how` says how the worker went.
///
/// A canceled run becomes Canceled, any other Failed. Returns the state
/// the run has, which may have been written before.
pub fn settle(dir: &RunDir, how: &str) -> Result<RunState, SettleError> {
    settle_request(dir, &dir.read_request()?, how)
}

/// [`settle`], for one who knows what the run was asked for.
pub(crate) fn settle_request(dir: &RunDir, request: &RunRequest, how: &str) -> Result<RunState, SettleError> {
    let _lock = lock(dir)?;
    // A worker may have died just after it had left its machine for a look.
    if !request.keep_on_error && !kiln_build::debug::is_left(dir) {
        kiln_build::workspace::remove(dir).map_err(SettleError::io(dir.work()))?;
    }
    if let Some(claim) = dir.read_claim()? {
        kiln_build::workspace::remove_sockets(dir, &request.run_id, &claim)
            .map_err(SettleError::io(claim.sockets.clone()))?;
    }
    kiln_build::workspace::sweep_library(request).map_err(SettleError::Library)?;
    if request.output_dir.is_dir() {
        kiln_host::publish::remove_leftovers(&request.output_dir)
            .map_err(SettleError::io(request.output_dir.clone()))?;
    }
    let journal = Journal::open(&dir.events()).map_err(SettleError::io(dir.events()))?;
    // It may have ended in the moment before its worker did.
    if let Some(state) = journal.ended() {
        return Ok(state);
    }
    if journal.is_empty() {
        journal.append(opening(dir, request));
    }
    settle_outputs(dir, request, &journal)?;
    let canceled = dir.is_asked(Request::Cancel);
    let (state, message) = if canceled {
        (RunState::Canceled, "the run was canceled and its worker killed".to_owned())
    } else {
        (RunState::Failed, format!("the worker ended without finishing the run ({how}{})", last_words(dir)))
    };
    if !canceled && let Ok(log) = open_log(dir, request) {
        log.error(&message);
    }
    let failure = (!canceled).then(|| failure(dir, Fault::Host, &message));
    end(dir, &journal, state, message, failure)
}

/// Ends a run that never had a worker, and never will: canceled while it waited, or impossible to plan or start.
/// `fault` is for those that failed.
pub(crate) fn end_unstarted(
    dir: &RunDir,
    request: &RunRequest,
    cause: &str,
    fault: Option<Fault>,
) -> Result<RunState, SettleError> {
    let _lock = lock(dir)?;
    let journal = Journal::open(&dir.events()).map_err(SettleError::io(dir.events()))?;
    if let Some(state) = journal.ended() {
        return Ok(state);
    }
    let log = open_log(dir, request).map_err(SettleError::io(dir.customization_log()))?;
    match fault {
        Some(_) => log.error(cause),
        None => log.say(cause),
    }
    log.say("No virtual machine was started.");
    if journal.is_empty() {
        journal.append(opening(dir, request));
    }
    let state = if fault.is_some() { RunState::Failed } else { RunState::Canceled };
    end(dir, &journal, state, cause.to_owned(), fault.map(|fault| failure(dir, fault, cause)))
}

fn lock(dir: &RunDir) -> Result<FileLock, SettleError> {
    FileLock::try_exclusive_of_the_dead(dir.lock())
        .map_err(SettleError::io(dir.lock()))?
        .ok_or_else(|| SettleError::Alive(dir.path().to_owned()))
}

fn open_log(dir: &RunDir, request: &RunRequest) -> io::Result<CustomizationLog> {
    let operation = request.operation.as_deref().unwrap_or(request.run_id.as_str());
    CustomizationLog::open(&dir.customization_log(), operation)
}

/// The first event of a run that no worker began: every stream has one, with the format's number.
fn opening(dir: &RunDir, request: &RunRequest) -> RunEventKind {
    let plan = read_plan(dir);
    RunEventKind::RunStarted {
        format: EVENTS_FORMAT,
        run_id: request.run_id.to_string(),
        template_name: plan.as_ref().map(|plan| plan.template_name.clone()).unwrap_or_default(),
        // Without a plan nothing was resolved: neither which text nor which base image.
        template_sha256: plan.as_ref().map_or(Sha256::from([0; 32]), |plan| plan.template_sha256),
        source: plan.map(|plan| format!("{} {}", plan.source.name, plan.source.version)).unwrap_or_default(),
        kiln_version: env!("CARGO_PKG_VERSION").to_owned(),
        attempt: 0,
    }
}

/// The whole of a file in a folder that may be another user's.
pub(crate) fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let no_traps = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file =
        std::fs::File::options().read(true).custom_flags(no_traps.bits().cast_signed()).open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_plan(dir: &RunDir) -> Option<BuildPlan> {
    BuildPlan::from_json(&String::from_utf8(read_own(&dir.plan()).ok()?).ok()?).ok()
}

/// An artifact whose record was written is finished, and gets its event if the worker died in between. In a folder
/// of this run's own, one without a record is not, and goes; elsewhere it may be an earlier run's.
fn settle_outputs(dir: &RunDir, request: &RunRequest, journal: &Journal) -> Result<(), SettleError> {
    let Some(plan) = read_plan(dir) else { return Ok(()) };
    let events = read_own(&dir.events()).map_err(SettleError::io(dir.events()))?;
    let events = read_events(&events).map(|log| log.events).unwrap_or_default();
    for distributor in &plan.distributors {
        let Distributor::Vhd { run_output_name: name, .. } = distributor;
        let told = events.iter().any(
            |event| matches!(&event.event, RunEventKind::OutputPublished { output } if output.name == *name),
        );
        // A plan has run output names only; this one may have been changed since.
        if told || name.contains('/') {
            continue;
        }
        match own_output(&request.output_dir.join(format!("{name}.json")), request) {
            Some(output) => journal.append(RunEventKind::OutputPublished { output }),
            None if request.operation.is_some() => {
                let path = request.output_dir.join(format!("{name}.vhd"));
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(SettleError::Io { path, source: error });
                    }
                    _ => {}
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// A worker that never got as far as a claim has said why on its standard error, and nowhere else.
fn last_words(dir: &RunDir) -> String {
    match kiln_build::log::tail(&dir.worker_log(), 1).pop() {
        Some(line) if !dir.claim().exists() => format!("; it said: {}", line.trim()),
        _ => String::new(),
    }
}

fn own_output(record: &Path, request: &RunRequest) -> Option<RunOutput> {
    let output = RunOutput::from_json(&String::from_utf8(read_own(record).ok()?).ok()?).ok()?;
    (output.run_id == request.run_id.as_str()).then_some(output)
}

fn failure(dir: &RunDir, fault: Fault, cause: &str) -> Failure {
    // How far it came, as far as its events can be read.
    let events = read_own(&dir.events()).ok().and_then(|bytes| read_events(&bytes).ok());
    let view = RunView::of(&events.unwrap_or_default().events).unwrap_or_default();
    Failure {
        fault,
        phase: view.phase().max(Phase::Building),
        step: view.running_steps().last().map(|running| running.step.clone()),
        cause: cause.to_owned(),
        chain: Vec::new(),
        log_tail: kiln_build::log::tail(&dir.worker_log(), 10),
        console_tail: Vec::new(),
    }
}

fn end(
    dir: &RunDir,
    journal: &Journal,
    state: RunState,
    message: String,
    failure: Option<Failure>,
) -> Result<RunState, SettleError> {
    let ms = u64::try_from(journal.elapsed().as_millis()).unwrap_or(u64::MAX);
    journal.append(RunEventKind::RunEnded { state, message, failure, ms });
    match journal.take_error() {
        Some(error) => Err(SettleError::Io { path: dir.events(), source: error }),
        None => Ok(state),
    }
}
