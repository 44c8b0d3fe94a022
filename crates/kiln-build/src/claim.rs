//! Claiming a run: from the lock on, this process is its one owner.

use std::io;
use std::time::Duration;

use kiln_host::lock::FileLock;
use kiln_host::process::ProcessMark;
use kiln_host::wait::Control;
use kiln_library::Library;
use kiln_model::event::{EVENTS_FORMAT, RunEventKind};
use kiln_model::plan::BuildPlan;
use kiln_qemu::host::Qemu;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::{Run, WorkerSettings};
use crate::error::BuildError;
use crate::journal::{Journal, now};
use crate::log::CustomizationLog;
use crate::resume;
use crate::run_dir::{CLAIM_FORMAT, Claim, Request, RunDir, RunDirError, RunRequest};
use crate::transcript::Transcript;
use crate::watch::FolderWatch;
use crate::workspace::{self, Workspace};

/// A run that this process could not make its own.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("another worker holds the run {}", .0.display())]
    Held(std::path::PathBuf),
    #[error("the run {} was started before; a run is not run twice", .0.display())]
    Started(std::path::PathBuf),
    #[error("could not {act} {}", path.display())]
    Io { act: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error("the plan of the run cannot be used")]
    Plan(#[source] kiln_model::FormatError),
}

/// A claimed run, before anything was made for it.
#[derive(Debug)]
pub struct Claimed {
    pub dir: RunDir,
    pub request: RunRequest,
    pub plan: BuildPlan,
    pub journal: Journal,
    pub log: CustomizationLog,
    /// Where one was asked for.
    pub transcript: Option<Transcript>,
    pub control: Control,
    cancel: CancellationToken,
    /// INVARIANT: one writer. Released by the kernel when this process ends.
    _lock: FileLock,
}

pub fn claim(
    dir: RunDir,
    settings: &WorkerSettings,
    cancel: CancellationToken,
) -> Result<Claimed, ClaimError> {
    let io = |act, path: std::path::PathBuf| move |source| ClaimError::Io { act, path, source };
    // A second worker comes just after the first one died.
    let again = dir.events().exists();
    let lock = if again {
        FileLock::try_exclusive_of_the_dead(dir.lock())
    } else {
        FileLock::try_exclusive(dir.lock())
    };
    let lock =
        lock.map_err(io("lock", dir.lock()))?.ok_or_else(|| ClaimError::Held(dir.path().to_owned()))?;
    if dir.events().exists() && !resume::may_go_on(&dir) {
        return Err(ClaimError::Started(dir.path().to_owned()));
    }
    let request = dir.read_request()?;
    let text = std::fs::read_to_string(dir.plan()).map_err(io("read", dir.plan()))?;
    let plan = BuildPlan::from_json(&text).map_err(ClaimError::Plan)?;
    let mark = ProcessMark::own().map_err(io("read the start of this process from", "/proc".into()))?;
    let attempt = dir.read_claim()?.map_or(1, |claim| claim.attempt + 1);
    dir.write_claim(&Claim {
        format: CLAIM_FORMAT,
        executor: "local".to_owned(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        boot_id: mark.boot_id,
        pid: mark.pid,
        start_ticks: mark.start_ticks,
        start_time: now(),
        attempt,
        sockets: workspace::sockets(&settings.runtime_dir, &request.run_id),
    })?;

    // A server's operation, so that its id finds these lines; a run of the command line has one of its own.
    let operation_id = request.operation.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let log = CustomizationLog::open(&dir.customization_log(), &operation_id)
        .map_err(io("create", dir.customization_log()))?;
    let journal =
        Journal::open(&dir.events()).map_err(io("create", dir.events()))?.canceled_by(cancel.clone());
    if attempt > 1 {
        let left = kiln_host::publish::remove_leftovers(&request.output_dir);
        if let Err(error) = left
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(ClaimError::Io { act: "clean", path: request.output_dir.clone(), source: error });
        }
    }
    journal.append(started(&request, &plan, &settings.kiln_version, attempt));
    if attempt > 1 {
        journal.warn("the run's worker died; it goes on from what was kept last, for the last time");
    }
    for warning in plan.warnings.iter().filter(|_| attempt == 1) {
        journal.warn(warning.clone());
    }
    // All attempts together have the time that the template gives.
    let timeout = Duration::from_secs(60 * u64::from(plan.timeout_minutes));
    let deadline = Instant::now() + timeout.saturating_sub(journal.elapsed());
    let control = Control::new(cancel.clone(), Some(deadline));
    let transcript = request.transcript.then(Transcript::default);
    Ok(Claimed { dir, request, plan, journal, log, transcript, control, cancel, _lock: lock })
}

fn started(request: &RunRequest, plan: &BuildPlan, kiln_version: &str, attempt: u32) -> RunEventKind {
    RunEventKind::RunStarted {
        format: EVENTS_FORMAT,
        run_id: request.run_id.to_string(),
        template_name: plan.template_name.clone(),
        template_sha256: plan.template_sha256,
        source: format!("{} {}", plan.source.name, plan.source.version),
        kiln_version: kiln_version.to_owned(),
        attempt,
    }
}

impl Claimed {
    /// Begins the next attempt within this worker, where QEMU's end is what ended the last one and something was kept.
    /// Returns whether there is one.
    pub fn goes_on_after(&self, error: &BuildError, kiln_version: &str) -> bool {
        let Ok(Some(claim)) = self.dir.read_claim() else { return false };
        let attempt = claim.attempt + 1;
        let may = attempt <= resume::ATTEMPTS
            && resume::was_qemus_end(error)
            && resume::reuses(&self.request)
            && self.control.check().is_ok()
            && std::fs::read(self.dir.events()).is_ok_and(|events| resume::kept_something(&events));
        if !may {
            return false;
        }
        let counted = self.dir.write_claim(&Claim { attempt, ..claim }).is_ok();
        if counted {
            self.journal.append(started(&self.request, &self.plan, kiln_version, attempt));
            let why = error.sentence();
            self.journal.warn(format!("{why}; the run goes on from what was kept last, for the last time"));
            self.log.error(&why);
        }
        counted
    }

    /// Turns a request file into a cancel, for as long as the returned task lives.
    pub fn watch_requests(&self) -> tokio::task::JoinHandle<()> {
        let (dir, cancel, journal) = (self.dir.clone(), self.cancel.clone(), self.journal.clone());
        tokio::spawn(async move {
            let mut watch = match FolderWatch::new(&dir.requests()) {
                Ok(watch) => watch,
                Err(error) => {
                    journal.warn(format!("requests to this run are not seen: {error}"));
                    return;
                }
            };
            while !dir.is_asked(Request::Cancel) {
                if watch.changed().await.is_err() {
                    return;
                }
            }
            cancel.cancel();
        })
    }

    /// Opens what the run works with.
    pub fn prepare(&self, settings: WorkerSettings) -> Result<Run, BuildError> {
        let qemu = Qemu::find(&settings.search_path)?;
        let library = Library::open(&self.request.library)?;
        let workspace = Workspace::prepare(&self.dir, &self.request.run_id, &settings.runtime_dir)
            .map_err(BuildError::io("create the run's folders in", self.dir.path()))?;
        if let Some(transcript) = &self.transcript {
            let exchanges = workspace.exchanges();
            transcript.open(&exchanges, qemu.version()).map_err(BuildError::io("create", exchanges))?;
        }
        Ok(Run {
            dir: self.dir.clone(),
            request: self.request.clone(),
            plan: self.plan.clone(),
            settings,
            workspace,
            library,
            qemu,
            accelerator: tokio::sync::OnceCell::new(),
            drivers: tokio::sync::OnceCell::new(),
            journal: self.journal.clone(),
            log: self.log.clone(),
            transcript: self.transcript.clone(),
            control: self.control.clone(),
        })
    }
}
