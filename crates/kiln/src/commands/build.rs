//! `kiln build`: makes a run, starts its worker and follows it to the end.
//!
//! ```text
//!  template ─ prepare ─► plan ─► run directory ─► kiln worker RUN_DIR   (a session of its own)
//!                                      │                │
//!                    events, log ◄─ follow ◄────────────┘
//!                                      │ worker gone without an end: settle
//!                                      ▼
//!                            report on stderr; artifacts' paths on stdout
//! ```
//! Where a server runs, all of it happens there: see [`build_there`](super::build_there).
//!
//! The worker does not notice Ctrl-C: the first one leaves a request that it answers
//! by ending and cleaning up, the second kills it and cleans up here.

use std::cell::RefCell;
use std::path::Path;

use anyhow::Context as _;
use kiln_build::run_dir::{CheckpointWishes, REQUEST_FORMAT, RunDir, RunId, RunRequest};
use kiln_daemon::executor::{self, Executor, Local, Worker, WorkerCommand};
use kiln_daemon::{Followed, News, follow, settle};
use kiln_model::event::RunEvent;
use kiln_model::plan::BuildPlan;

use super::prepare::{Prepared, prepare};
use super::shelves::Shelves;
use super::signals::{Signals, Stop};
use super::{End, Surroundings};
use crate::client::{Embed, find};
use crate::exit::{ExitStatus, Failure};
use crate::progress::report::{Place, Report};
use crate::progress::{Outcome, Show, final_object, refusal};
use crate::settings::{self, BuildSettings, Folders, ReuseSettings};

pub async fn run(around: &Surroundings<'_>, settings: BuildSettings) -> End {
    let ended = build_somewhere(around, &settings).await;
    told_in_json(around, settings.json, ended)
}

/// Whoever reads stdout learns there, too, why nothing was begun.
pub(super) fn told_in_json(around: &Surroundings<'_>, json: bool, ended: End) -> End {
    if let (true, Err(failure)) = (json, &ended) {
        around.printer.data(&refusal(&format!("{:#}", failure.error), &[], failure.status()));
    }
    ended
}

async fn build_somewhere(around: &Surroundings<'_>, settings: &BuildSettings) -> End {
    let found = match &settings.server {
        Some(server) => find(around, server, Embed::No).await?,
        None => None,
    };
    match found {
        None => build(around, settings).await,
        Some((client, local)) => {
            let end = super::build_there::build(around, settings, &client).await;
            super::session::leave(client, local).await;
            end
        }
    }
}

async fn build(around: &Surroundings<'_>, settings: &BuildSettings) -> End {
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    settings::ensure_private(&folders.runtime).map_err(Failure::host)?;
    let shelves = Shelves::open(&folders)?;
    let file = settings.template.shown();
    let plan = match prepare(around, &settings.template, &shelves) {
        Ok(Prepared { plan, problems }) => {
            super::show_problems(around, &file, &problems);
            plan
        }
        Err(why) => return super::refused(around, &file, settings.json, why),
    };

    // From here on a signal is a request to the run, not the end of this process.
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let wanted = Wanted {
        output: &settings.output,
        keep_on_error: settings.keep_on_error,
        transcript: false,
        checkpoints: settings.reuse.as_ref().map(|reuse| wishes(reuse, &plan)).transpose()?,
        json: settings.json,
    };
    let run_dir = make_run(&wanted, &folders.runs, &folders.library, &plan)?;
    see_through(around, &wanted, &run_dir, &mut signals).await
}

/// Carries out a prepared run and tells how it ended.
pub(super) async fn see_through(
    around: &Surroundings<'_>,
    wanted: &Wanted<'_>,
    run_dir: &RunDir,
    signals: &mut Signals,
) -> End {
    let printer = around.printer;
    let outcome = carry_out(around, wanted, run_dir, signals).await?;
    let status = status_of(&outcome);
    let report = Report {
        outcome: &outcome,
        place: Place::Here(run_dir),
        output_dir: Some(wanted.output),
        kept_on_error: wanted.keep_on_error,
        paint: printer.err,
    };
    report.lines().iter().for_each(|line| printer.talk(line));
    if wanted.json {
        printer.data(&final_object(&outcome, Place::Here(run_dir), Some(wanted.output), status));
    } else {
        for output in &outcome.run.outputs {
            printer.data(&wanted.output.join(&output.file).display().to_string());
        }
    }
    Ok(status)
}

/// What a run on this host is made for, beside its plan.
pub(super) struct Wanted<'a> {
    /// Absolute.
    pub output: &'a Path,
    pub keep_on_error: bool,
    pub transcript: bool,
    pub checkpoints: Option<CheckpointWishes>,
    pub json: bool,
}

fn wishes(settings: &ReuseSettings, plan: &BuildPlan) -> Result<CheckpointWishes, Failure> {
    let ReuseSettings { reuse, keep, room, policy } = settings;
    let policy = super::prepare::policy(policy.as_deref(), plan)?;
    Ok(CheckpointWishes { reuse: *reuse, keep: *keep, size_limit: *room, policy, holds_since: None })
}

/// Makes the directory of a new run below `runs`; it uses the library.
pub(super) fn make_run(
    wanted: &Wanted<'_>,
    runs: &Path,
    library: &Path,
    plan: &BuildPlan,
) -> Result<RunDir, Failure> {
    // Before anything is started: a folder that cannot be made is not worth an hour.
    std::fs::create_dir_all(wanted.output)
        .with_context(|| format!("cannot make the output directory {}", wanted.output.display()))
        .map_err(Failure::host)?;
    let request = RunRequest {
        format: REQUEST_FORMAT,
        run_id: RunId::new(&plan.template_name),
        output_dir: wanted.output.to_owned(),
        keep_on_error: wanted.keep_on_error,
        library: library.to_owned(),
        operation: None,
        transcript: wanted.transcript,
        checkpoints: wanted.checkpoints.clone(),
    };
    executor::prepare(runs, plan, &request).map_err(Failure::host)
}

/// Starts the worker of a prepared run and follows it to its end.
pub(super) async fn carry_out(
    around: &Surroundings<'_>,
    wanted: &Wanted<'_>,
    run_dir: &RunDir,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    let worker = start_worker(around, run_dir).await.inspect_err(|failure| {
        // A run that never began ends here; what is in its folder tells why.
        if let Err(error) = settle(run_dir, &format!("{:#}", failure.error)) {
            around.printer.warning(&format!("{}: {error}", run_dir.path().display()));
        }
    })?;
    watch(around, wanted.json, run_dir, worker, signals).await
}

pub(super) fn status_of(outcome: &Outcome) -> ExitStatus {
    outcome.end.as_ref().map_or(ExitStatus::Unexpected, |end| {
        ExitStatus::of_run(end.state, end.failure.as_ref().map(|failure| failure.fault))
    })
}

async fn start_worker(around: &Surroundings<'_>, run_dir: &RunDir) -> Result<Worker, Failure> {
    let exe = std::env::current_exe().context("cannot tell where this program lies")?;
    let mut worker = WorkerCommand::new(exe);
    if around.verbose > 0 {
        worker = worker.arg(format!("-{}", "v".repeat(usize::from(around.verbose))));
    }
    Executor::Local(Local::plain(worker.arg("worker"))).start(run_dir).await.map_err(Failure::host)
}

/// Shows the run until it has ended, and answers requests to stop.
async fn watch(
    around: &Surroundings<'_>,
    json: bool,
    run_dir: &RunDir,
    mut worker: Worker,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    // One task, two branches that both show things: never at the same time.
    let show = RefCell::new(Show::new(around.printer, json, around.verbose > 0));
    let mut shown = Shown::default();
    let mut stopping = false;
    let followed = loop {
        let followed = {
            shown.begin_again();
            let following = follow(run_dir, &worker, |news| match news {
                News::Event(event) => {
                    if shown.is_new(event) {
                        show.borrow_mut().event(event);
                    }
                }
                News::Log(bytes) => show.borrow_mut().log(shown.new_part(bytes)),
                News::Changed => {}
            });
            tokio::pin!(following);
            loop {
                tokio::select! {
                    followed = &mut following => break followed,
                    stop = signals.next() => {
                        stopping = true;
                        heed(around, stop, run_dir, &worker, &show);
                    }
                }
            }
        };
        let gone = matches!(followed, Ok(Followed::WorkerGone(_)));
        if gone && !stopping && kiln_build::resume::may_go_on(run_dir) {
            show.borrow_mut().talk(
                &around
                    .printer
                    .format_warning("the build's worker died; another one goes on from what was kept"),
            );
            worker = start_worker(around, run_dir).await?;
            continue;
        }
        break followed;
    };
    if let Followed::WorkerGone(how) =
        followed.context("cannot follow the run; it goes on without this command")?
    {
        settle(run_dir, &how).context("the build's worker is gone and its run cannot be ended")?;
        let last = last_event(run_dir).context("cannot read how the run ended")?;
        show.borrow_mut().event(&last);
    }
    Ok(show.into_inner().finish())
}

/// What was shown of a run: whoever follows its second worker reads it from the beginning.
#[derive(Debug, Default)]
struct Shown {
    next_seq: u64,
    log_bytes: usize,
    log_read: usize,
}

impl Shown {
    fn begin_again(&mut self) {
        self.log_read = 0;
    }

    fn is_new(&mut self, event: &RunEvent) -> bool {
        let new = event.seq >= self.next_seq;
        self.next_seq = self.next_seq.max(event.seq + 1);
        new
    }

    fn new_part<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let old = self.log_bytes.saturating_sub(self.log_read).min(bytes.len());
        self.log_read += bytes.len();
        self.log_bytes = self.log_bytes.max(self.log_read);
        &bytes[old..]
    }
}

/// Answers a request to stop.
fn heed(around: &Surroundings<'_>, stop: Stop, run_dir: &RunDir, worker: &Worker, show: &RefCell<Show<'_>>) {
    match stop {
        Stop::CleanUp => {
            let line = "stopping: the build ends and cleans up; Ctrl-C again kills it";
            show.borrow_mut().talk(&around.printer.format_warning(line));
            if let Err(error) = executor::cancel(run_dir) {
                show.borrow_mut().talk(&format!("cannot ask the build to stop: {error}"));
            }
        }
        Stop::AtOnce => {
            show.borrow_mut().talk(&around.printer.format_warning("killing the build"));
            worker.kill();
        }
    }
}

/// The end that settling wrote.
fn last_event(run_dir: &RunDir) -> anyhow::Result<RunEvent> {
    let text = std::fs::read_to_string(run_dir.events())?;
    let line = text.lines().next_back().unwrap_or_default();
    Ok(serde_json::from_str(line)?)
}
