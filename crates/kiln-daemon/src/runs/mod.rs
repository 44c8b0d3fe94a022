//! MANY RUNS: the queue, and every run followed from its request to its end.
//!
//! ```text
//!  enqueue ─► row (Running, Queued) ─► a course of its own, one task a run:
//!
//!    plan ─► place in the queue ─► admitted ─► run directory ─► worker ─► events ─► end
//!      │            │ (admission)                  (executor)     │  (follow)        │
//!      │            │ cancel: ends at once                        │ gone: settle ────┤
//!      └────────────┴── cannot be: Failed, with a log that says so ──────────────────┤
//!                                                                                    ▼
//!                                       run, template.lastRunStatus, operations: one transaction (ledger)
//!  open ─► what became of each run that had not ended (recovery) ─► its course goes on from there
//! ```
//! Who owns what: the run directory is the truth about a run, its worker is the only writer there;
//! the store's rows follow it. A course owns nothing that must survive: when this process ends,
//! workers go on, and the next [`Runs::open`] finds them.
//!
//! `buildTimeoutInMinutes` counts from the moment the worker begins. Time in the queue is this
//! host's business, not the template's; it is bounded by the runs ahead, which have their own limits.
//! A worker that does not end itself in time is killed [`OVERDUE`] later.
//!
//! | module      | owns                                                              |
//! |-------------|-------------------------------------------------------------------|
//! | `admission` | the order of the queue, and what runs may use of this host          |
//! | `course`    | one run, from where it is to its end                                |
//! | `ledger`    | what the store says about a run                                     |
//! | `messages`  | texts of an end, as the service has them                            |
//! | `recovery`  | what is found of a run that a former server left                    |

mod admission;
mod course;
mod ledger;
mod messages;
mod recovery;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_build::run_dir::{CheckpointWishes, RunDirError, RunId};
use kiln_host::process::{Identity, Invocation, SpawnOptions};
use kiln_model::plan::{BuildPlan, HostLimits};
use kiln_model::run::{Fault, Phase, RunState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::executor::{Executor, Local, Placement, StartError, WorkerCommand};
use crate::store::{
    OperationKind, OperationRecord, OperationStatus, ProvisioningState, RunRecord, Store, StoreError,
    TemplateId, TemplateRecord,
};
use admission::{Admission, OVERHEAD_MIB, Place};
use course::{Beginning, Course, Wish};

pub use admission::HostBudget;
pub use messages::log_location;

/// After `buildTimeoutInMinutes`, for a worker that cleans up.
pub const OVERDUE: Duration = Duration::from_secs(5 * 60);
/// Courses only let go at a shutdown; nothing they do then takes longer than a transaction.
const LETTING_GO: Duration = Duration::from_secs(10);

/// Why a template cannot be planned now: its image is gone, or it is not valid any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplannable {
    pub fault: Fault,
    /// One sentence; no secret in it.
    pub cause: String,
}

/// Makes a run's plan; called on a blocking thread, when the run is about to start.
pub type Planner = Arc<dyn Fn(&TemplateRecord, HostLimits) -> Result<BuildPlan, Unplannable> + Send + Sync>;

pub struct RunsSettings {
    pub runs_root: PathBuf,
    /// A folder for each run's artifacts is made below it.
    pub artifacts_root: PathBuf,
    pub library: PathBuf,
    /// What runs take of earlier ones and keep for later ones; none: neither.
    pub checkpoints: Option<CheckpointWishes>,
    pub worker: WorkerCommand,
    pub budget: HostBudget,
    /// Where workers are put; found out by [`Placement::probe`] where it is not given.
    pub placement: Option<Placement>,
    /// Whom workers run as, where we are root.
    pub worker_user: Option<String>,
    /// Between a forced cancel and the end of a worker that does not heed it.
    pub kill_after: Duration,
}

/// The supervisor of all runs. Cheap to clone.
#[derive(Clone)]
pub struct Runs {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    store: Store,
    planner: Planner,
    settings: RunsSettings,
    executor: Executor,
    admission: Admission,
    /// Every run that has not ended.
    courses: Mutex<HashMap<RunId, Handle>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// From outside to a run's course.
struct Handle {
    wish: watch::Sender<Wish>,
    /// Ticks on anything new; closed at the end.
    ticks: watch::Receiver<u64>,
}

/// How busy this host is with runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for room.
    pub queued: usize,
    /// With a worker.
    pub active: usize,
    /// Set aside for them, QEMU's own need included.
    pub memory_mib: u64,
    pub cpus: u32,
    pub budget: HostBudget,
}

/// The supervisor could not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunsError {
    #[error("could not read which runs there are")]
    Store(#[from] StoreError),
    #[error("workers cannot be started")]
    Workers(#[from] StartError),
    #[error("could not look at the run {run}")]
    RunDir { run: RunId, source: RunDirError },
    #[error("could not make {}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error(
        "workers run as {user}, who cannot enter {}: let others pass through the folders above it (chmod o+x), or \
         move the data folder",
        path.display()
    )]
    Unreached { user: String, path: PathBuf },
}

/// A run was not begun.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    #[error("there is no template {0}")]
    NotFound(TemplateId),
    #[error("the template has no run {0}")]
    NoRun(RunId),
    /// Only what has failed is retried.
    #[error("the run {run} is {state:?}, and only a run that has ended without success is retried")]
    NotFailed { run: RunId, state: RunState },
    /// A run is active, or the template is not ready.
    #[error("a run is not allowed while the template is {provisioning:?} and its last run {run:?}")]
    NotAllowed { provisioning: ProvisioningState, run: Option<RunState> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A run was not canceled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    #[error("there is no template {0}")]
    NotFound(TemplateId),
    #[error("no run of the template is active")]
    NotRunning { provisioning: ProvisioningState, run: Option<RunState> },
    #[error("the run is being canceled already")]
    AlreadyCanceling { provisioning: ProvisioningState },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Runs {
    /// Takes over every run that has not ended: live workers are followed on, dead ones settled, queued ones queued again.
    pub async fn open(store: Store, planner: Planner, settings: RunsSettings) -> Result<Self, RunsError> {
        let roots = [&settings.runs_root, &settings.artifacts_root];
        for path in roots {
            private_folder(path).map_err(|source| RunsError::Folder { path: path.clone(), source })?;
        }
        let placement = match settings.placement.clone() {
            Some(given) => given,
            None => Placement::probe().await,
        };
        let (attention, told) = placement.told();
        if attention {
            tracing::warn!("{told}");
        } else {
            tracing::info!("{told}");
        }
        let local = Local::open(settings.worker.clone(), placement, settings.worker_user.as_deref())?;
        match local.identity() {
            Some(identity) => {
                for path in roots {
                    let_through(path).map_err(|source| RunsError::Folder { path: path.clone(), source })?;
                    ensure_reached(identity, path).await?;
                }
            }
            None if rustix::process::geteuid().is_root() => {
                tracing::warn!(
                    "workers and their guests run as root: name a user for them (runs.workerUser)"
                );
            }
            None => {}
        }
        let inner = Arc::new(Inner {
            admission: Admission::new(settings.budget),
            executor: Executor::Local(local),
            store,
            planner,
            settings,
            courses: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let runs = Self { inner };
        for run in runs.inner.store.read(|r| r.unfinished_runs()).await? {
            let beginning = recovery::found(&runs.inner, &run)
                .map_err(|source| RunsError::RunDir { run: run.id.clone(), source })?;
            tracing::info!(run = %run.id, found = %beginning, "taking over a run");
            runs.launch(run, beginning);
        }
        Ok(runs)
    }

    /// Puts a run of the template into the queue.
    pub async fn enqueue(
        &self,
        template: &TemplateId,
        by: &str,
        _api_version: &str,
    ) -> Result<RunRecord, EnqueueError> {
        self.queue(template, by, None).await
    }

    /// The same for a run that takes the place of one which failed: what was good for that one still is.
    pub async fn retry(
        &self,
        template: &TemplateId,
        failed: &RunId,
        by: &str,
    ) -> Result<RunRecord, EnqueueError> {
        self.queue(template, by, Some(failed.clone())).await
    }

    async fn queue(
        &self,
        template: &TemplateId,
        by: &str,
        retries: Option<RunId>,
    ) -> Result<RunRecord, EnqueueError> {
        let (id, by) = (template.clone(), by.to_owned());
        let run = self
            .inner
            .store
            .write(move |w| {
                let holds_since = match retries {
                    Some(retried) => {
                        let failed = w.run(&retried)?.filter(|run| run.template == id);
                        Some(began(failed.ok_or(EnqueueError::NoRun(retried))?)?)
                    }
                    None => None,
                };
                let Some(template) = w.template(&id)? else { return Err(EnqueueError::NotFound(id)) };
                let active = w.active_run(&template.id)?;
                if active.is_some() || template.provisioning != ProvisioningState::Succeeded {
                    let last = template.last_run.map(|last| last.state);
                    return Err(EnqueueError::NotAllowed {
                        provisioning: template.provisioning,
                        run: active.map(|run| run.state).or(last),
                    });
                }
                let now = ledger::now();
                let operation = new_operation(OperationKind::Run, &template, &now);
                let run = RunRecord {
                    id: RunId::new(&template.id.name),
                    template: template.id,
                    operation: operation.id.clone(),
                    state: RunState::Running,
                    phase: Some(Phase::Queued),
                    message: String::new(),
                    fault: None,
                    queued_at: now,
                    started_at: None,
                    ended_at: None,
                    memory_mib: 0,
                    cpus: 0,
                    attempt: 0,
                    started_by: by,
                    holds_since,
                };
                w.insert_run(&run)?;
                w.insert_operation(&OperationRecord { run: Some(run.id.clone()), ..operation })?;
                Ok(run)
            })
            .await?;
        tracing::info!(run = %run.id, template = %run.template, "a run is queued");
        self.launch(run.clone(), Beginning::Queued);
        Ok(run)
    }

    /// Asks the template's active run to end; does not wait for it.
    ///
    /// A run that waits ends at once. A worker is asked by a file in its run's directory, and cleans up; with `force` it
    /// is killed if it has not ended after [`RunsSettings::kill_after`], also where it was asked before.
    pub async fn cancel(
        &self,
        template: &TemplateId,
        by: &str,
        _api_version: &str,
        force: bool,
    ) -> Result<OperationRecord, CancelError> {
        let id = template.clone();
        let (run, operation) = self
            .inner
            .store
            .write(move |w| {
                let Some(template) = w.template(&id)? else { return Err(CancelError::NotFound(id)) };
                let provisioning = template.provisioning;
                let Some(mut run) = w.active_run(&template.id)? else {
                    let run = template.last_run.map(|last| last.state);
                    return Err(CancelError::NotRunning { provisioning, run });
                };
                match run.state {
                    RunState::Canceling if !force => {
                        return Err(CancelError::AlreadyCanceling { provisioning });
                    }
                    RunState::Canceling => {}
                    _ => {
                        run.state = RunState::Canceling;
                        w.update_run(&run)?;
                    }
                }
                let now = ledger::now();
                let operation = OperationRecord {
                    run: Some(run.id.clone()),
                    ..new_operation(OperationKind::Cancel, &template, &now)
                };
                w.insert_operation(&operation)?;
                Ok((run.id, operation))
            })
            .await?;
        tracing::info!(%run, by, force, "a run is to be canceled");
        // A course that begins just now sees it in the store.
        if let Some(handle) = self.inner.courses().get(&run) {
            let wish = if force { Wish::Kill } else { Wish::Cancel };
            handle.wish.send_if_modified(|had| std::mem::replace(had, wish.max(*had)) < wish);
        }
        Ok(operation)
    }

    /// Ticks when something new is in the run's directory, and closes when the run has ended; `None` where it has.
    pub fn subscribe(&self, run: &RunId) -> Option<watch::Receiver<u64>> {
        self.inner.courses().get(run).map(|handle| handle.ticks.clone())
    }

    /// Waits for a run's end; `None` where there is no such run.
    pub async fn wait(&self, run: &RunId) -> Result<Option<RunRecord>, StoreError> {
        if let Some(mut ticks) = self.subscribe(run) {
            while ticks.changed().await.is_ok() {}
        }
        let id = run.clone();
        self.inner.store.read(move |r| r.run(&id)).await
    }

    /// A folder for each run that distributed something.
    pub fn artifacts_root(&self) -> &std::path::Path {
        &self.inner.settings.artifacts_root
    }

    pub fn counts(&self) -> Counts {
        let (queued, active, used) = self.inner.admission.counts();
        let budget = self.inner.admission.budget();
        Counts { queued, active, memory_mib: used.memory_mib, cpus: used.cpus, budget }
    }

    /// Where workers are put, in words for the host's page.
    pub fn placement(&self) -> String {
        match &self.inner.executor {
            Executor::Local(local) => local.placement().told().1,
        }
    }

    /// Stops following. Workers go on; queued runs stay queued.
    pub async fn shutdown(self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(LETTING_GO, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!(
                "some runs are still being written about; they are taken up again at the next start"
            );
        }
    }

    fn launch(&self, run: RunRecord, beginning: Beginning) {
        let (wish, wished) = watch::channel(Wish::None);
        let (ticks, ticking) = watch::channel(0);
        let place = self.inner.admission.enter();
        // Before it starts: its share counts from the first look at the queue.
        let place = occupied(place, &run, &beginning);
        self.inner.courses().insert(run.id.clone(), Handle { wish, ticks: ticking });
        let course = Course::new(Arc::clone(&self.inner), run, wished, ticks);
        self.inner.tasks.spawn(course.take(place, beginning));
    }
}

/// When a run that is to be retried began; the first one, where it retries one itself.
fn began(failed: RunRecord) -> Result<String, EnqueueError> {
    let RunRecord { id, state, queued_at, started_at, holds_since, .. } = failed;
    match state {
        RunState::Failed | RunState::Canceled | RunState::PartiallySucceeded => {
            Ok(holds_since.or(started_at).unwrap_or(queued_at))
        }
        RunState::Running | RunState::Canceling | RunState::Succeeded => {
            Err(EnqueueError::NotFailed { run: id, state })
        }
    }
}

/// A run with a worker needs no admission.
fn occupied(mut place: Place, run: &RunRecord, beginning: &Beginning) -> Place {
    if let Beginning::Working(..) = beginning {
        place.occupy(admission::Need { memory_mib: run.memory_mib, cpus: run.cpus });
    }
    place
}

impl Inner {
    fn courses(&self) -> MutexGuard<'_, HashMap<RunId, Handle>> {
        self.courses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one machine may have at most: everything that runs may use, less QEMU's own need.
    fn limits(&self) -> HostLimits {
        let HostBudget { memory_mib, cpus } = self.settings.budget;
        HostLimits { cpus, memory_mib: memory_mib.saturating_sub(OVERHEAD_MIB) }
    }
}

fn new_operation(kind: OperationKind, template: &TemplateRecord, now: &str) -> OperationRecord {
    OperationRecord {
        id: uuid::Uuid::new_v4().to_string(),
        kind,
        subscription: template.id.subscription.clone(),
        location: template.location.clone(),
        resource: template.id.arm_id(),
        status: OperationStatus::InProgress,
        started_at: now.to_owned(),
        ended_at: None,
        error: None,
        run: None,
    }
}

/// Workers of another user pass through to their own runs; nobody but us may list what there is.
fn let_through(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711))
}

/// Tries it as that user: who may pass which folder is more than its mode.
async fn ensure_reached(identity: &Identity, path: &Path) -> Result<(), RunsError> {
    let start = |source| RunsError::Workers(StartError::Process(source));
    let options = SpawnOptions { identity: Some(identity.clone()), ..SpawnOptions::default() };
    let asked = Invocation::new("test").arg("-x").arg(path).spawn(options).map_err(start)?;
    if asked.wait().await.map_err(start)?.success() {
        return Ok(());
    }
    Err(RunsError::Unreached { user: identity.name().to_owned(), path: path.to_owned() })
}

fn private_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
