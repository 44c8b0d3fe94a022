//! One run, from where it is found to its end.
//!
//! Whatever happens, a course ends in one of two ways: the run's end is stored, or this process
//! lets go of it ([`Halt::Stopped`]) and the next one begins where the run then is.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_build::run_dir::{CheckpointWishes, REQUEST_FORMAT, RunDir, RunRequest};
use kiln_model::event::read_events;
use kiln_model::plan::BuildPlan;
use kiln_model::run::{Fault, RunState};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::admission::{Need, OVERHEAD_MIB, Place};
use super::ledger::{self, End, Note};
use super::{Inner, OVERDUE, messages};
use crate::executor::{self, StartError, Worker};
use crate::follow::{Followed, News, follow_events};
use crate::settle::{SettleError, end_unstarted, read_own, settle_request};
use crate::store::{RunOrigin, RunRecord};

/// A plan that waited longer than this is made anew: a newer image may have come.
const PLAN_KEEPS: Duration = Duration::from_secs(2);
/// Notes written in one transaction: all that a followed run has said before anybody followed it.
const NOTES_AT_ONCE: usize = 256;
/// Between attempts to store an end; the store is on a disk that may be full.
const STORE_AGAIN: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// What is wanted of a run from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wish {
    None,
    Cancel,
    /// Cancel, and do not wait long.
    Kill,
}

/// Where a run is when its course begins.
pub(super) enum Beginning {
    Queued,
    /// It has its directory, and nobody has worked on it.
    Prepared(RunDir),
    Working(RunDir, Worker),
    /// No worker any more, and perhaps no end; how it went, as far as that is known.
    Silent(RunDir, String),
    /// It was started, and its directory is gone.
    Lost,
}

impl fmt::Display for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Prepared(_) => "prepared, without a worker yet",
            Self::Working(..) => "its worker lives",
            Self::Silent(..) => "its worker is gone",
            Self::Lost => "its directory is gone",
        })
    }
}

/// Why a course does not go on.
enum Halt {
    Ended(End),
    /// The server lets go of it.
    Stopped,
}

pub(super) struct Course {
    inner: Arc<Inner>,
    run: RunRecord,
    wish: watch::Receiver<Wish>,
    ticks: watch::Sender<u64>,
    /// A cancel that was stored before this course could hear of it.
    canceled_before: bool,
}

impl Course {
    pub fn new(
        inner: Arc<Inner>,
        run: RunRecord,
        wish: watch::Receiver<Wish>,
        ticks: watch::Sender<u64>,
    ) -> Self {
        Self { inner, run, wish, ticks, canceled_before: false }
    }

    /// Follows the run to its end. `place` is its share of the host, given back after the end is stored.
    pub async fn take(mut self, mut place: Place, beginning: Beginning) {
        let halt = match self.goes(&mut place, beginning).await {
            Ok(end) => Halt::Ended(end),
            Err(halt) => halt,
        };
        if let Halt::Ended(end) = halt {
            self.keep(end).await;
        }
        self.inner.courses().remove(&self.run.id);
    }

    async fn goes(&mut self, place: &mut Place, beginning: Beginning) -> Result<End, Halt> {
        let id = self.run.id.clone();
        // Asked after the wish could be heard: a cancel stored before that is seen here, a later one heard.
        match self.inner.store.read(move |r| r.run(&id)).await {
            Ok(Some(run)) => self.canceled_before = run.state == RunState::Canceling,
            Ok(None) => return Err(Halt::Stopped),
            Err(error) => tracing::warn!(run = %self.run.id, %error, "a run's row could not be read"),
        }
        let (dir, worker) = match beginning {
            Beginning::Queued => {
                let plan = self.wait_for_room(place).await?;
                let dir = self.prepare(Prepare::Anew(Box::new(plan))).await?;
                let worker = self.start(&dir).await?;
                (dir, worker)
            }
            Beginning::Prepared(dir) => {
                let plan = match self.read_plan(&dir).await {
                    Ok(plan) => plan,
                    Err(why) => {
                        let end =
                            End::failed(format!("its plan cannot be used any more: {why}"), Fault::Host);
                        return Err(self.never_started(end).await);
                    }
                };
                self.admitted(place, &plan).await?;
                let dir = self.prepare(Prepare::Rest(dir)).await?;
                let worker = self.start(&dir).await?;
                (dir, worker)
            }
            Beginning::Working(dir, worker) => (dir, worker),
            Beginning::Silent(dir, how) => match self.settle(&dir, how).await {
                Settled::Ended(end) => return Ok(end),
                Settled::Alive(worker) => (dir, worker),
            },
            Beginning::Lost => {
                return Ok(End::failed(
                    "the run's directory is gone, and with it what its worker did".to_owned(),
                    Fault::Host,
                ));
            }
        };
        self.follow(dir, worker).await
    }

    /// Plans the run and waits until the host has room for it.
    async fn wait_for_room(&mut self, place: &mut Place) -> Result<BuildPlan, Halt> {
        let plan = self.plan().await?;
        let made = Instant::now();
        self.admitted(place, &plan).await?;
        if made.elapsed() < PLAN_KEEPS { Ok(plan) } else { self.plan().await }
    }

    async fn plan(&self) -> Result<BuildPlan, Halt> {
        let template = match ledger::template_of(&self.inner.store, &self.run).await {
            Ok(Some(template)) => template,
            Ok(None) => {
                return Err(self
                    .never_started(End::failed("its template was removed", Fault::Template))
                    .await);
            }
            Err(error) => {
                let cause = format!("its template cannot be read: {error}");
                return Err(self.never_started(End::failed(cause, Fault::Host)).await);
            }
        };
        let inner = Arc::clone(&self.inner);
        let planned = blocking(move || (inner.planner)(&template, inner.limits())).await?;
        match planned {
            Ok(plan) => Ok(plan),
            Err(refused) => Err(self.never_started(End::failed(refused.cause, refused.fault)).await),
        }
    }

    async fn admitted(&mut self, place: &mut Place, plan: &BuildPlan) -> Result<(), Halt> {
        let need = Need { memory_mib: plan.machine.memory_mib + OVERHEAD_MIB, cpus: plan.machine.vcpus };
        if let Err(error) = place.want(need) {
            return Err(self.never_started(End::failed(error.to_string(), Fault::Template)).await);
        }
        (self.run.memory_mib, self.run.cpus) = (need.memory_mib, need.cpus);
        self.change(move |run| (run.memory_mib, run.cpus) = (need.memory_mib, need.cpus)).await;
        self.ticks.send_modify(|tick| *tick += 1);
        let stop = self.inner.stop.clone();
        let canceled = self.canceled_before;
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Halt::Stopped),
            () = wished(&mut self.wish, canceled) => {
                Err(self.never_started(End::canceled("the run was canceled while it was queued")).await)
            }
            () = place.admitted() => Ok(()),
        }
    }

    /// Makes the run's directory and its folder for artifacts.
    async fn prepare(&self, prepared: Prepare) -> Result<RunDir, Halt> {
        let (inner, run) = (Arc::clone(&self.inner), self.run.clone());
        let operation = self.inner.store.read({
            let id = run.operation.clone();
            move |r| r.operation(&id)
        });
        let operation = operation.await.ok().flatten();
        let prepared = blocking(move || -> Result<RunDir, StartError> {
            let request = request(&inner, &run);
            let write = |path: PathBuf| move |source| StartError::Write { path, source };
            super::private_folder(&request.output_dir).map_err(write(request.output_dir.clone()))?;
            let dir = match prepared {
                Prepare::Anew(plan) => executor::prepare(&inner.settings.runs_root, &plan, &request)?,
                // What follows may not have been done before the former server ended.
                Prepare::Rest(dir) => dir,
            };
            if let Some(operation) = &operation {
                RunOrigin::new(&run, operation).write(&dir).map_err(write(dir.path().to_owned()))?;
            }
            inner.executor.hand_over(&dir, &request)?;
            Ok(dir)
        });
        match prepared.await? {
            Ok(dir) => Ok(dir),
            Err(error) => Err(self.never_started(End::failed(sentence(&error), Fault::Host)).await),
        }
    }

    /// Starts the worker, unless the run was canceled meanwhile.
    async fn start(&mut self, dir: &RunDir) -> Result<Worker, Halt> {
        if self.canceled_before || *self.wish.borrow() > Wish::None {
            return Err(self.never_started(End::canceled("the run was canceled before it began")).await);
        }
        let now = ledger::now();
        // Before the worker is there: from here on a missing directory is a loss.
        self.change(move |run| run.started_at = run.started_at.take().or(Some(now))).await;
        match self.inner.executor.start(dir).await {
            Ok(worker) => {
                tracing::info!(run = %self.run.id, pid = worker.pid(), "a worker was started");
                Ok(worker)
            }
            Err(error) => Err(self.never_started(End::failed(sentence(&error), Fault::Host)).await),
        }
    }

    async fn follow(&mut self, dir: RunDir, mut worker: Worker) -> Result<End, Halt> {
        let overdue = self.overdue_at(&dir).await;
        loop {
            let how = match self.follow_worker(&dir, &worker, overdue).await? {
                Gone::Ended(end) => return Ok(end),
                Gone::Without(how) => {
                    if let Some(next) = self.go_on(&dir, &how).await {
                        worker = next;
                        continue;
                    }
                    how
                }
                Gone::Killed(how) => how,
            };
            match self.settle(&dir, how).await {
                Settled::Ended(end) => return Ok(end),
                // Ours came second to an earlier one; that one is the worker.
                Settled::Alive(holder) => worker = holder,
            }
        }
    }

    /// Follows one worker, until the run or the worker ends.
    async fn follow_worker(
        &mut self,
        dir: &RunDir,
        worker: &Worker,
        overdue: Option<(Instant, u32)>,
    ) -> Result<Gone, Halt> {
        let (noting, mut notes) = mpsc::unbounded_channel();
        let ticks = &self.ticks;
        let report = move |news: News<'_>| {
            if let News::Event(event) = news
                && let Some(note) = Note::of(event)
            {
                // Received until this closure is gone.
                let _ = noting.send(note);
            }
            ticks.send_modify(|tick| *tick += 1);
        };
        let run = &self.run.id;
        let following = async {
            match follow_events(dir, worker, report).await {
                Ok(followed) => followed,
                Err(error) => {
                    tracing::error!(%run, error = sentence(&error), "a run's events cannot be followed; its worker is");
                    Followed::WorkerGone(worker.ended().await)
                }
            }
        };
        tokio::pin!(following);
        let (stop, store) = (self.inner.stop.clone(), self.inner.store.clone());
        let mut asked = Wish::None;
        let (mut kill_at, mut killed_for) = (None::<Instant>, None::<String>);
        let followed = loop {
            let wish = (*self.wish.borrow_and_update()).max(if self.canceled_before {
                Wish::Cancel
            } else {
                Wish::None
            });
            if wish > asked {
                if asked == Wish::None
                    && let Err(error) = executor::cancel(dir)
                {
                    tracing::error!(%run, error = sentence(&error), "the worker could not be asked to end");
                }
                if wish == Wish::Kill {
                    kill_at = Some(Instant::now() + self.inner.settings.kill_after);
                }
                asked = wish;
            }
            let mut batch = Vec::new();
            tokio::select! {
                followed = &mut following => break followed,
                _ = notes.recv_many(&mut batch, NOTES_AT_ONCE) => {
                    if let Err(error) = ledger::note(&store, run, batch).await {
                        tracing::error!(%run, error = sentence(&error), "what a run did could not be stored; its directory has it");
                    }
                }
                // Its sender lives as long as this course.
                _ = self.wish.changed() => {}
                () = at(kill_at) => {
                    tracing::warn!(%run, "a worker that was asked to end is killed");
                    (kill_at, killed_for) = (None, Some("it was killed because it did not end when asked".to_owned()));
                    worker.kill();
                }
                () = at(overdue.filter(|_| killed_for.is_none()).map(|(at, _)| at)) => {
                    tracing::warn!(%run, "a worker past its time is killed");
                    killed_for = overdue.map(|(_, minutes)| messages::overdue(minutes));
                    worker.kill();
                }
                () = stop.cancelled() => return Err(Halt::Stopped),
            }
        };
        let mut rest = Vec::new();
        while let Ok(note) = notes.try_recv() {
            rest.push(note);
        }
        if let Err(error) = ledger::note(&store, run, rest).await {
            tracing::error!(%run, error = sentence(&error), "what a run did could not be stored; its directory has it");
        }
        Ok(match followed {
            Followed::Ended(event) => match End::of(&event) {
                Some(end) => Gone::Ended(end),
                None => Gone::Without("it ended without saying how".to_owned()),
            },
            Followed::WorkerGone(how) => killed_for.map_or(Gone::Without(how), Gone::Killed),
        })
    }

    /// Another worker for a run whose own died, where the run may go on from what it kept: once.
    async fn go_on(&self, dir: &RunDir, how: &str) -> Option<Worker> {
        let looked = dir.clone();
        let may = blocking(move || kiln_build::resume::may_go_on(&looked)).await.unwrap_or(false);
        if !may || *self.wish.borrow() > Wish::None {
            return None;
        }
        match self.inner.executor.start(dir).await {
            Ok(worker) => {
                tracing::warn!(run = %self.run.id, how, pid = worker.pid(), "a worker died; another one goes on");
                Some(worker)
            }
            Err(error) => {
                tracing::error!(run = %self.run.id, error = sentence(&error), "a run could not go on");
                None
            }
        }
    }

    /// Brings a run without a worker to its end, as its directory has it then.
    async fn settle(&self, dir: &RunDir, how: String) -> Settled {
        let (path, cause, request) = (dir.clone(), how.clone(), request(&self.inner, &self.run));
        let settled = match blocking(move || settle_request(&path, &request, &cause)).await {
            Ok(settled) => settled,
            Err(_) => return Settled::Ended(End::failed("settling it failed", Fault::Bug)),
        };
        match settled {
            Ok(_) => Settled::Ended(self.end_in(dir).await),
            Err(SettleError::Alive(_)) => match self.inner.executor.find(dir) {
                Ok(Some(worker)) => Settled::Alive(worker),
                // It let go of the lock in between: look again, as at a worker that is gone.
                Ok(None) => Settled::Alive(Worker::Gone(how)),
                Err(error) => {
                    Settled::Ended(End::failed(format!("its lock cannot be looked at: {error}"), Fault::Host))
                }
            },
            Err(error) => {
                tracing::error!(run = %self.run.id, error = sentence(&error), "a run could not be settled");
                let cause =
                    format!("the worker ended without finishing the run ({how}); {}", sentence(&error));
                Settled::Ended(End::failed(cause, Fault::Host))
            }
        }
    }

    /// The end that stands in a run's events, with what was published before.
    async fn end_in(&self, dir: &RunDir) -> End {
        let path = dir.events();
        let read = blocking(move || read_own(&path)).await;
        let events = match read {
            Ok(Ok(bytes)) => read_events(&bytes).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("reading them failed".to_owned()),
        };
        let unreadable = |why: &str| End::failed(format!("its events cannot be read: {why}"), Fault::Host);
        match events {
            Ok(log) => {
                let notes = log.events.iter().filter_map(Note::of).collect();
                if let Err(error) = ledger::note(&self.inner.store, &self.run.id, notes).await {
                    tracing::error!(run = %self.run.id, error = sentence(&error), "what a run did could not be stored");
                }
                log.events.last().and_then(End::of).unwrap_or_else(|| unreadable("they have no end"))
            }
            Err(why) => unreadable(&why),
        }
    }

    /// Writes the end of a run without a worker into its directory, too, so that its log says why.
    async fn never_started(&self, end: End) -> Halt {
        let (inner, run, told) = (Arc::clone(&self.inner), self.run.clone(), end.clone());
        let written = blocking(move || -> Result<(), SettleError> {
            let path = inner.settings.runs_root.join(run.id.as_str());
            let dir = if path.is_dir() {
                RunDir::open(&path)?
            } else {
                RunDir::create(&inner.settings.runs_root, &run.id)?
            };
            let request = request(&inner, &run);
            if !dir.request().exists() {
                dir.write_request(&request)?;
            }
            end_unstarted(&dir, &request, &told.cause, told.fault)?;
            // Nothing was made in it.
            let _ = std::fs::remove_dir(inner.settings.artifacts_root.join(run.id.as_str()));
            Ok(())
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(run = %self.run.id, error = sentence(&error), "a run's log could not be written");
            }
            Err(halt) => return halt,
        }
        Halt::Ended(end)
    }

    /// Stores the end. An end that is not stored would be a run that never ends: so it is tried until it is.
    async fn keep(&self, end: End) {
        let run = &self.run.id;
        tracing::info!(%run, state = ?end.state, cause = end.cause, "a run ended");
        let mut pauses = STORE_AGAIN.iter().chain(std::iter::repeat(&STORE_AGAIN[STORE_AGAIN.len() - 1]));
        while let Err(error) = ledger::end(&self.inner.store, run, end.clone()).await {
            tracing::error!(%run, error = sentence(&error), "a run's end could not be stored; it is tried again");
            let pause = pauses.next().copied().unwrap_or(STORE_AGAIN[0]);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The next server finds the end in the run's directory.
                () = self.inner.stop.cancelled() => return,
            }
        }
    }

    async fn change(&self, change: impl FnOnce(&mut RunRecord) + Send + 'static) {
        if let Err(error) = ledger::change(&self.inner.store, &self.run.id, change).await {
            tracing::error!(run = %self.run.id, error = sentence(&error), "a run's row could not be changed");
        }
    }

    /// When a worker that has not ended itself is past all patience, and the minutes its template gave it.
    async fn overdue_at(&self, dir: &RunDir) -> Option<(Instant, u32)> {
        let minutes = self.read_plan(dir).await.ok()?.timeout_minutes;
        let allowed = Duration::from_secs(60 * u64::from(minutes)) + OVERDUE;
        // Of a worker that an earlier server started; for ours it is nothing.
        let began = self.run.started_at.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
        let gone = began.map_or(Duration::ZERO, |at| {
            Duration::try_from(jiff::Timestamp::now().duration_since(at)).unwrap_or_default()
        });
        Some((Instant::now() + allowed.saturating_sub(gone), minutes))
    }

    async fn read_plan(&self, dir: &RunDir) -> Result<BuildPlan, String> {
        let path = dir.plan();
        match blocking(move || read_own(&path)).await {
            Ok(Ok(bytes)) => {
                BuildPlan::from_json(&String::from_utf8_lossy(&bytes)).map_err(|error| sentence(&error))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("reading it failed".to_owned()),
        }
    }
}

enum Prepare {
    Anew(Box<BuildPlan>),
    Rest(RunDir),
}

/// How following a worker ended.
enum Gone {
    Ended(End),
    /// It left no end.
    Without(String),
    /// By us.
    Killed(String),
}

enum Settled {
    Ended(End),
    Alive(Worker),
}

/// What a daemon's worker is asked to do beside its plan.
fn request(inner: &Inner, run: &RunRecord) -> RunRequest {
    RunRequest {
        format: REQUEST_FORMAT,
        run_id: run.id.clone(),
        output_dir: inner.settings.artifacts_root.join(run.id.as_str()),
        keep_on_error: false,
        library: inner.settings.library.clone(),
        operation: Some(run.operation.clone()),
        transcript: false,
        checkpoints: inner
            .settings
            .checkpoints
            .clone()
            .map(|wishes| CheckpointWishes { holds_since: run.holds_since.clone(), ..wishes }),
    }
}

async fn wished(wish: &mut watch::Receiver<Wish>, before: bool) {
    if !before {
        // Its sender lives as long as the course.
        let _ = wish.wait_for(|wish| *wish > Wish::None).await;
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Work on files, off the threads that others wait on. It is only ever cut off by the end of the process.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Halt> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        // The message is in the server's log already; the run must not stay as it is for ever.
        Err(ended) if ended.is_panic() => {
            Err(Halt::Ended(End::failed("Kiln itself failed; its log says where", Fault::Bug)))
        }
        Err(_) => Err(Halt::Stopped),
    }
}

/// An error and its causes on one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
