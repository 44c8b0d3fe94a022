//! The supervisor, with real worker processes that make no machines.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says so by panicking"
)]

mod fake;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_build::run_dir::{CheckpointWishes, REQUEST_FORMAT, Request, RunDir, RunId, RunRequest};
use kiln_daemon::executor::{Placement, WorkerCommand};
use kiln_daemon::runs::{
    CancelError, EnqueueError, HostBudget, Planner, Runs, RunsSettings, Unplannable, log_location,
};
use kiln_daemon::store::{
    OperationRecord, OperationStatus, ProvisioningState, RunRecord, Store, StoreError, TemplateId,
    TemplateRecord,
};
use kiln_model::RunView;
use kiln_model::event::{RunEventKind, read_events};
use kiln_model::plan::BuildPlan;
use kiln_model::run::{Fault, Phase, RunState};

/// No test waits longer for what should come at once.
const SOON: Duration = Duration::from_secs(20);
/// Of the plan's machine, and of QEMU itself.
const RUN_MIB: u64 = 1000 + 256;

/// Not a test: what a worker does. See [`fake`].
#[test]
#[ignore = "a worker's part, started by the tests"]
fn worker_process() {
    let dir = std::env::args().next_back().unwrap();
    fake::work(&RunDir::open(Path::new(&dir)).unwrap());
}

struct Place {
    root: tempfile::TempDir,
    store: Store,
    /// What a planned machine gets, MiB.
    memory: Arc<AtomicU64>,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("kiln.db")).unwrap();
        Self { root, store, memory: Arc::new(AtomicU64::new(1000)) }
    }

    fn settings(&self, runs_at_once: u64) -> RunsSettings {
        let worker = WorkerCommand::new(std::env::current_exe().unwrap())
            .arg("worker_process")
            .arg("--exact")
            .arg("--ignored")
            .arg("--nocapture")
            // The run's directory comes last, and is a name that no test has.
            .arg("--test-threads=1");
        RunsSettings {
            runs_root: self.root.path().join("runs"),
            checkpoints: None,
            artifacts_root: self.root.path().join("artifacts"),
            library: self.root.path().join("library"),
            worker,
            budget: HostBudget { memory_mib: runs_at_once * RUN_MIB, cpus: 64 },
            placement: Some(Placement::Session { inside_service: None }),
            worker_user: None,
            kill_after: Duration::from_millis(200),
        }
    }

    fn planner(&self) -> Planner {
        let memory = Arc::clone(&self.memory);
        Arc::new(move |template, limits| {
            if template.id.name.starts_with("imageless") {
                let cause = "the base image debian-12 is not in the library".to_owned();
                return Err(Unplannable { fault: Fault::Host, cause });
            }
            let golden = include_str!("../../../../tests/fixtures/golden/plan.json");
            let mut plan = BuildPlan::from_json(golden).unwrap();
            plan.template_name = template.id.name.clone();
            (plan.machine.memory_mib, plan.machine.vcpus) = (memory.load(Ordering::Relaxed), 1);
            assert!(limits.memory_mib + 256 <= 64 * RUN_MIB);
            Ok(plan)
        })
    }

    async fn open(&self, runs_at_once: u64) -> Runs {
        Runs::open(self.store.clone(), self.planner(), self.settings(runs_at_once)).await.unwrap()
    }

    async fn template(&self, name: &str) -> TemplateId {
        let id = TemplateId { subscription: "s".into(), resource_group: "rg".into(), name: name.into() };
        let record = TemplateRecord {
            id: id.clone(),
            location: "local".into(),
            tags: serde_json::Map::new(),
            identity: None,
            properties: serde_json::json!({}),
            api_version: "2022-07-01".into(),
            provisioning: ProvisioningState::Succeeded,
            provisioning_error: None,
            copies: Vec::new(),
            pending: None,
            exact_version: None,
            last_run: None,
            created_at: "2026-01-02T03:04:05Z".into(),
            created_by: "me".into(),
            modified_at: "2026-01-02T03:04:05Z".into(),
            modified_by: "me".into(),
            generation: 1,
        };
        self.store.write::<_, StoreError, _>(move |w| w.insert_template(&record)).await.unwrap();
        id
    }

    async fn run(&self, id: &RunId) -> RunRecord {
        let id = id.clone();
        self.store.read::<_, StoreError, _>(move |r| r.run(&id)).await.unwrap().unwrap()
    }

    async fn stored(&self, id: &TemplateId) -> TemplateRecord {
        let id = id.clone();
        self.store.read::<_, StoreError, _>(move |r| r.template(&id)).await.unwrap().unwrap()
    }

    async fn operation(&self, id: &str) -> OperationRecord {
        let id = id.to_owned();
        self.store.read::<_, StoreError, _>(move |r| r.operation(&id)).await.unwrap().unwrap()
    }

    fn dir(&self, run: &RunId) -> RunDir {
        RunDir::open(&self.root.path().join("runs").join(run.as_str())).unwrap()
    }

    fn artifacts(&self, run: &RunId) -> PathBuf {
        self.root.path().join("artifacts").join(run.as_str())
    }

    fn log(&self, run: &RunId) -> String {
        std::fs::read_to_string(self.dir(run).customization_log()).unwrap()
    }

    /// Lets a waiting worker succeed.
    fn finish(&self, run: &RunId) {
        std::fs::write(self.dir(run).path().join("finish"), "").unwrap();
    }

    fn machine_pid(&self, run: &RunId) -> u32 {
        std::fs::read_to_string(self.dir(run).path().join("machine.pid")).unwrap().parse().unwrap()
    }

    fn worker_pid(&self, run: &RunId) -> u32 {
        self.dir(run).read_claim().unwrap().unwrap().pid
    }
}

async fn ended(runs: &Runs, run: &RunId) -> RunRecord {
    tokio::time::timeout(SOON, runs.wait(run)).await.unwrap().unwrap().unwrap()
}

/// Asks again until it is so; these are changes of other processes' making.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn in_phase(place: &Place, run: &RunId, phase: Phase) {
    until(&format!("{run} in {phase}"), async || place.run(run).await.phase == Some(phase)).await;
}

fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'))
}

fn kill_9(pid: u32) {
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[tokio::test]
async fn a_run_from_its_request_to_its_artifact() {
    let place = Place::new();
    let runs = place.open(2).await;
    let template = place.template("wait").await;
    let queued = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
    assert_eq!((queued.state, queued.phase), (RunState::Running, Some(Phase::Queued)));
    assert_eq!(place.stored(&template).await.last_run.unwrap().run, queued.id);
    assert_eq!(place.operation(&queued.operation).await.status, OperationStatus::InProgress);
    let mut ticks = runs.subscribe(&queued.id).unwrap();

    in_phase(&place, &queued.id, Phase::Customizing).await;
    let running = place.run(&queued.id).await;
    assert_eq!((running.attempt, running.memory_mib, running.cpus), (1, RUN_MIB, 1));
    assert!(running.started_at.is_some());
    assert_eq!(runs.counts().active, 1);
    assert_eq!(place.stored(&template).await.last_run.unwrap().phase, Some(Phase::Customizing));

    // Whoever streams the log hears of what is new in the directory.
    ticks.mark_unchanged();
    std::fs::write(place.dir(&queued.id).customization_log(), "more").unwrap();
    tokio::time::timeout(SOON, ticks.changed()).await.unwrap().unwrap();

    place.finish(&queued.id);
    let run = ended(&runs, &queued.id).await;
    assert_eq!((run.state, run.phase, run.fault), (RunState::Succeeded, Some(Phase::Distributing), None));
    assert_eq!(run.message, "");
    assert!(runs.subscribe(&queued.id).is_none());
    assert_eq!(runs.counts().active + runs.counts().queued, 0);
    let operation = place.operation(&queued.operation).await;
    assert_eq!((operation.status, operation.error), (OperationStatus::Succeeded, None));
    assert_eq!(operation.ended_at, run.ended_at);
    let id = template.clone();
    let output = place.store.read::<_, StoreError, _>(move |r| r.output(&id, "d")).await.unwrap().unwrap();
    assert_eq!((output.run, output.output.file.as_str()), (queued.id.clone(), "d.vhd"));
    assert!(place.artifacts(&queued.id).join("d.vhd").exists());
    // It can be run again.
    let again = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
    runs.cancel(&template, "me", "2022-07-01", false).await.unwrap();
    assert_eq!(ended(&runs, &again.id).await.state, RunState::Canceled);
}

/// A run in the place of one that failed: what was good for the first of them is good for the last.
#[tokio::test]
async fn a_failed_run_is_retried_with_what_was_good_for_it() {
    let place = Place::new();
    let wishes = CheckpointWishes {
        reuse: true,
        keep: true,
        size_limit: 1 << 30,
        policy: Default::default(),
        holds_since: None,
    };
    let settings = RunsSettings { checkpoints: Some(wishes), ..place.settings(2) };
    let runs = Runs::open(place.store.clone(), place.planner(), settings).await.unwrap();
    let template = place.template("fail").await;
    let first = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
    let first = ended(&runs, &first.id).await;
    let request = |run: &RunId| place.dir(run).read_request().unwrap().checkpoints.unwrap();
    assert_eq!((first.state, request(&first.id).holds_since), (RunState::Failed, None));

    let second = runs.retry(&template, &first.id, "me").await.unwrap();
    assert_eq!(second.holds_since, first.started_at);
    assert_eq!(place.operation(&second.operation).await.status, OperationStatus::InProgress);
    assert_eq!(ended(&runs, &second.id).await.state, RunState::Failed);
    assert_eq!(request(&second.id).holds_since, first.started_at);
    let third = runs.retry(&template, &second.id, "me").await.unwrap();
    assert_eq!(ended(&runs, &third.id).await.holds_since, first.started_at, "the first one's start");

    let other = place.template("wait").await;
    let theirs = runs.retry(&other, &first.id, "me").await.unwrap_err();
    assert!(matches!(theirs, EnqueueError::NoRun(_)), "{theirs:?}");
    let running = runs.enqueue(&other, "me", "2022-07-01").await.unwrap();
    let early = runs.retry(&other, &running.id, "me").await.unwrap_err();
    assert!(matches!(early, EnqueueError::NotFailed { state: RunState::Running, .. }), "{early:?}");
    in_phase(&place, &running.id, Phase::Customizing).await;
    place.finish(&running.id);
    assert_eq!(ended(&runs, &running.id).await.state, RunState::Succeeded);
    let good = runs.retry(&other, &running.id, "me").await.unwrap_err();
    assert!(matches!(good, EnqueueError::NotFailed { state: RunState::Succeeded, .. }), "{good:?}");
}

#[tokio::test]
async fn runs_wait_for_room_in_their_order_and_one_template_runs_once() {
    let place = Place::new();
    let runs = place.open(1).await;
    let mut queued = Vec::new();
    for name in ["wait-1", "wait-2", "wait-3"] {
        let template = place.template(name).await;
        queued.push(runs.enqueue(&template, "me", "2022-07-01").await.unwrap());
        let again = runs.enqueue(&template, "me", "2022-07-01").await.unwrap_err();
        let allowed = matches!(
            again,
            EnqueueError::NotAllowed {
                provisioning: ProvisioningState::Succeeded,
                run: Some(RunState::Running)
            }
        );
        assert!(allowed, "{again:?}");
    }
    for (position, run) in queued.iter().enumerate() {
        in_phase(&place, &run.id, Phase::Customizing).await;
        for behind in &queued[position + 1..] {
            let behind = place.run(&behind.id).await;
            assert_eq!((behind.phase, behind.started_at), (Some(Phase::Queued), None));
        }
        until("the others wait", async || runs.counts().queued == 2 - position).await;
        assert_eq!((runs.counts().active, runs.counts().memory_mib), (1, RUN_MIB));
        place.finish(&run.id);
        assert_eq!(ended(&runs, &run.id).await.state, RunState::Succeeded);
    }
    let unknown = TemplateId { subscription: "s".into(), resource_group: "rg".into(), name: "x".into() };
    let error = runs.enqueue(&unknown, "me", "2022-07-01").await.unwrap_err();
    assert!(matches!(error, EnqueueError::NotFound(_)), "{error:?}");
}

#[tokio::test]
async fn what_cannot_run_fails_at_once_and_its_log_says_why() {
    let place = Place::new();
    let runs = place.open(1).await;
    for (name, memory, program, fault, expected) in [
        ("imageless", 1000, None, Fault::Host, "the base image debian-12 is not in the library"),
        ("large", 1001, None, Fault::Template, "the run needs 1257 MiB of memory"),
        ("lost", 1000, Some("/nonexistent/kiln"), Fault::Host, "/nonexistent/kiln: no such program"),
    ] {
        let mut settings = place.settings(1);
        if let Some(program) = program {
            settings.worker.program = program.into();
        }
        let runs = Runs::open(place.store.clone(), place.planner(), settings).await.unwrap();
        place.memory.store(memory, Ordering::Relaxed);
        let template = place.template(name).await;
        let run = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
        let run = ended(&runs, &run.id).await;
        assert_eq!((run.state, run.fault), (RunState::Failed, Some(fault)), "{name}");
        let begin = "Failed while waiting for packerizer: Microservice has failed: Failed to run packer build command: ";
        assert!(run.message.starts_with(begin) && run.message.contains(expected), "{}", run.message);
        assert!(run.message.contains(&log_location(&template, &run.id)), "{}", run.message);
        assert!(run.message.contains(&format!("OperationId: {}.", run.operation)), "{}", run.message);
        let operation = place.operation(&run.operation).await;
        let error = operation.error.unwrap();
        assert_eq!((operation.status, error.code.as_str()), (OperationStatus::Failed, "PackerBuildFailed"));
        assert!(error.message.to_lowercase().contains(&expected.to_lowercase()), "{}", error.message);
        let log = place.log(&run.id);
        assert!(
            log.starts_with(&format!("[{}] PACKER ERR ", run.operation)) && log.contains(expected),
            "{log}"
        );
        assert!(log.contains("No virtual machine was started."), "{log}");
        assert!(!place.artifacts(&run.id).exists());
        // History and index read it as they read any other.
        let events = read_events(&std::fs::read(place.dir(&run.id).events()).unwrap()).unwrap().events;
        assert_eq!(RunView::of(&events).unwrap().state, Some(RunState::Failed));
        assert_eq!(runs.counts().queued, 0);
    }
    drop(runs);
}

#[tokio::test]
async fn a_run_is_canceled_in_the_queue_and_at_work() {
    let place = Place::new();
    let runs = place.open(1).await;
    let first = place.template("wait-1").await;
    let second = place.template("wait-2").await;
    let nothing = runs.cancel(&first, "me", "2022-07-01", false).await.unwrap_err();
    assert!(matches!(nothing, CancelError::NotRunning { run: None, .. }), "{nothing:?}");
    let working = runs.enqueue(&first, "me", "2022-07-01").await.unwrap();
    let waiting = runs.enqueue(&second, "me", "2022-07-01").await.unwrap();
    in_phase(&place, &working.id, Phase::Customizing).await;

    let cancel = runs.cancel(&second, "me", "2022-07-01", false).await.unwrap();
    assert_eq!(cancel.status, OperationStatus::InProgress);
    let run = ended(&runs, &waiting.id).await;
    assert_eq!((run.state, run.started_at, run.attempt), (RunState::Canceled, None, 0));
    assert!(run.message.starts_with("The image build was canceled."), "{}", run.message);
    assert!(place.log(&waiting.id).contains("canceled while it was queued"));
    assert_eq!(place.operation(&cancel.id).await.status, OperationStatus::Succeeded);
    assert_eq!(place.operation(&waiting.operation).await.status, OperationStatus::Canceled);
    assert_eq!(place.run(&working.id).await.state, RunState::Running, "the other goes on");

    let cancel = runs.cancel(&first, "me", "2022-07-01", false).await.unwrap();
    let stored = place.run(&working.id).await.state;
    assert!(matches!(stored, RunState::Canceling | RunState::Canceled), "{stored:?}");
    assert_eq!(ended(&runs, &working.id).await.state, RunState::Canceled);
    assert_eq!(place.operation(&cancel.id).await.status, OperationStatus::Succeeded);
    let late = runs.cancel(&first, "me", "2022-07-01", true).await.unwrap_err();
    assert!(matches!(late, CancelError::NotRunning { run: Some(RunState::Canceled), .. }), "{late:?}");
}

#[tokio::test]
async fn a_worker_that_does_not_heed_a_cancel_is_killed_when_that_is_asked_for() {
    let place = Place::new();
    let runs = place.open(1).await;
    let template = place.template("deaf").await;
    let run = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
    in_phase(&place, &run.id, Phase::Customizing).await;
    let (worker, machine) = (place.worker_pid(&run.id), place.machine_pid(&run.id));
    let polite = runs.cancel(&template, "me", "2022-07-01", false).await.unwrap();
    let twice = runs.cancel(&template, "me", "2022-07-01", false).await.unwrap_err();
    assert!(matches!(twice, CancelError::AlreadyCanceling { .. }), "{twice:?}");
    until("the request", async || place.dir(&run.id).is_asked(Request::Cancel)).await;
    // Longer than `kill_after`: nobody asked to kill it.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(is_running(worker));
    let forced = runs.cancel(&template, "me", "2022-07-01", true).await.unwrap();
    assert_eq!(ended(&runs, &run.id).await.state, RunState::Canceled);
    assert!(!is_running(worker));
    until("the machine's end", async || !is_running(machine)).await;
    assert!(!place.dir(&run.id).work().exists());
    for operation in [polite, forced] {
        assert_eq!(place.operation(&operation.id).await.status, OperationStatus::Succeeded);
    }
}

#[tokio::test]
async fn a_dead_worker_is_settled_and_leaves_nothing() {
    let place = Place::new();
    let runs = place.open(3).await;
    for (name, expected) in [
        ("self-killed", "the worker ended without finishing the run (signal 9 (SIGKILL))"),
        ("never", "without finishing the run (exit status 3; it said: "),
        ("fail", "Shell \"x\": exit status 1"),
    ] {
        let template = place.template(name).await;
        let run = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
        let run = ended(&runs, &run.id).await;
        assert_eq!(run.state, RunState::Failed);
        assert!(run.message.contains(expected), "{}", run.message);
        let dir = place.dir(&run.id);
        assert!(!dir.work().exists());
        assert_eq!(
            std::fs::read_dir(place.artifacts(&run.id)).unwrap().count(),
            0,
            "nothing half-made stays"
        );
        if name != "never" {
            let machine = place.machine_pid(&run.id);
            until("the machine's end", async || !is_running(machine)).await;
        } else {
            let events = std::fs::read(dir.events()).unwrap();
            let last = read_events(&events).unwrap().events.pop().unwrap();
            let RunEventKind::RunEnded { failure: Some(failure), .. } = last.event else {
                panic!("{last:?}")
            };
            let said = |line: &String| line.ends_with("this worker cannot work");
            assert!(
                failure.log_tail.iter().any(said) && failure.cause.contains("this worker cannot work"),
                "{failure:?}"
            );
        }
    }
}

/// The server goes in every state a run can be in, and the next one brings it to its end.
#[tokio::test]
async fn a_new_server_takes_over_what_the_old_one_left() {
    let place = Place::new();
    let runs = place.open(4).await;
    let mut started = Vec::new();
    for name in ["wait-living", "wait-ending", "wait-dying", "wait-vanishing"] {
        let template = place.template(name).await;
        let run = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
        in_phase(&place, &run.id, Phase::Customizing).await;
        started.push(run);
    }
    let [living, ending, dying, vanishing] = &started[..] else { unreachable!() };
    let queued = runs.enqueue(&place.template("quick-queued").await, "me", "2022-07-01").await.unwrap();
    let canceled = place.template("wait-canceled").await;
    let canceled_run = runs.enqueue(&canceled, "me", "2022-07-01").await.unwrap();
    until("both wait", async || runs.counts().queued == 2).await;
    runs.shutdown().await;

    // A run that was being prepared, and one that was prepared and not claimed.
    let torn = template_and_row(&place, "quick-torn").await;
    RunDir::create(&place.root.path().join("runs"), &torn).unwrap();
    let prepared = template_and_row(&place, "quick-prepared").await;
    let plan = {
        let prepared = place.run(&prepared).await;
        (place.planner())(&place.stored(&prepared.template).await, limits()).unwrap_or_else(|_| panic!())
    };
    let request = RunRequest {
        format: REQUEST_FORMAT,
        run_id: prepared.clone(),
        output_dir: place.artifacts(&prepared),
        keep_on_error: false,
        library: place.root.path().join("library"),
        operation: Some(place.run(&prepared).await.operation),
        transcript: false,
        checkpoints: None,
    };
    kiln_daemon::executor::prepare(&place.root.path().join("runs"), &plan, &request).unwrap();
    std::fs::create_dir_all(place.artifacts(&prepared)).unwrap();
    // What happens while no server is there.
    place.finish(&ending.id);
    until("its end", async || !is_running(place.worker_pid(&ending.id))).await;
    kill_9(place.worker_pid(&dying.id));
    kill_9(place.worker_pid(&vanishing.id));
    until("both deaths", async || {
        !is_running(place.worker_pid(&dying.id)) && !is_running(place.worker_pid(&vanishing.id))
    })
    .await;
    std::fs::remove_dir_all(place.dir(&vanishing.id).path()).unwrap();
    let id = canceled_run.id.clone();
    place
        .store
        .write::<_, StoreError, _>(move |w| {
            let run = w.run(&id)?.unwrap();
            w.update_run(&RunRecord { state: RunState::Canceling, ..run })
        })
        .await
        .unwrap();

    // Less room than before: who runs, runs.
    let runs = place.open(1).await;
    let lost = ended(&runs, &vanishing.id).await;
    assert_eq!(lost.state, RunState::Failed);
    assert!(lost.message.contains("the run's directory is gone"), "{}", lost.message);
    let dead = ended(&runs, &dying.id).await;
    assert_eq!(dead.state, RunState::Failed);
    assert!(dead.message.contains("it was gone when the server looked for it"), "{}", dead.message);
    assert!(!place.dir(&dying.id).work().exists());
    let done = ended(&runs, &ending.id).await;
    assert_eq!((done.state, done.phase), (RunState::Succeeded, Some(Phase::Distributing)));
    let output = ending.id.clone();
    let outputs = place.store.read::<_, StoreError, _>(move |r| r.outputs_of_run(&output)).await.unwrap();
    assert_eq!(outputs.len(), 1);
    assert_eq!(ended(&runs, &canceled_run.id).await.state, RunState::Canceled);

    assert_eq!(place.run(&living.id).await.state, RunState::Running);
    assert_eq!((runs.counts().active, runs.counts().memory_mib), (1, RUN_MIB));
    assert_eq!(place.run(&queued.id).await.phase, Some(Phase::Queued), "the living one has the room");
    place.finish(&living.id);
    for run in [&living.id, &queued.id, &torn, &prepared] {
        assert_eq!(ended(&runs, run).await.state, RunState::Succeeded, "{run}");
    }
    // All of it once more: nothing is left to do.
    runs.shutdown().await;
    let runs = place.open(1).await;
    assert_eq!((runs.counts().active, runs.counts().queued), (0, 0));
}

/// A cancel reaches a worker that an earlier server started, and so does a kill.
#[tokio::test]
async fn a_worker_taken_over_can_be_canceled_and_killed() {
    for (name, force) in [("wait", false), ("deaf", true)] {
        let place = Place::new();
        let runs = place.open(1).await;
        let template = place.template(name).await;
        let run = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
        in_phase(&place, &run.id, Phase::Customizing).await;
        let machine = place.machine_pid(&run.id);
        runs.shutdown().await;
        let runs = place.open(1).await;
        assert!(is_running(machine));
        runs.cancel(&template, "me", "2022-07-01", force).await.unwrap();
        assert_eq!(ended(&runs, &run.id).await.state, RunState::Canceled);
        until("the machine's end", async || !is_running(machine)).await;
    }
}

/// A worker that neither ends itself nor is asked to is not waited for without end.
#[tokio::test]
async fn a_worker_past_its_time_is_killed_and_that_is_a_timeout() {
    let place = Place::new();
    let runs = place.open(1).await;
    let template = place.template("deaf").await;
    let run = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
    in_phase(&place, &run.id, Phase::Customizing).await;
    runs.shutdown().await;
    // The plan gives it an hour; it has had a year.
    let (id, began) = (run.id.clone(), Some("2026-01-02T03:04:06Z".to_owned()));
    let began_long_ago = place.store.write::<_, StoreError, _>(move |w| {
        let run = w.run(&id)?.unwrap();
        w.update_run(&RunRecord { started_at: began, ..run })
    });
    began_long_ago.await.unwrap();
    let runs = place.open(1).await;
    let ended = ended(&runs, &run.id).await;
    let timeout = "Failed in building/customizing image: Failed while waiting for packerizer: Timeout waiting for \
                   microservice to complete: 'context deadline exceeded' (buildTimeoutInMinutes is 60; ";
    assert!(ended.message.starts_with(timeout), "{}", ended.message);
    assert!(place.log(&run.id).contains("context deadline exceeded"));
}

/// A worker was killed while it distributed: what was finished stays and is known, the rest leaves nothing.
#[tokio::test]
async fn finished_targets_of_a_dead_worker_stay() {
    let place = Place::new();
    let runs = place.open(1).await;
    let template = place.template("deaf").await;
    let run = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
    in_phase(&place, &run.id, Phase::Customizing).await;
    let folder = place.artifacts(&run.id);
    // Published whole, record and all; its event was not written any more. Another was half-way.
    std::fs::write(folder.join("d.vhd"), "bytes").unwrap();
    std::fs::write(folder.join("d.json"), fake::output(run.id.as_str()).to_json()).unwrap();
    std::fs::write(folder.join(".e.vhd.abc123.kiln-aside"), "half").unwrap();
    runs.cancel(&template, "me", "2022-07-01", false).await.unwrap();
    until("the request", async || place.dir(&run.id).is_asked(Request::Cancel)).await;
    kill_9(place.worker_pid(&run.id));
    assert_eq!(ended(&runs, &run.id).await.state, RunState::Canceled);
    let id = run.id.clone();
    let outputs = place.store.read::<_, StoreError, _>(move |r| r.outputs_of_run(&id)).await.unwrap();
    assert_eq!(outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(), ["d"]);
    let mut left: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["d.json", "d.vhd"]);
}

/// As root, workers run as the user they are given; a data folder that user cannot enter is refused at once.
#[tokio::test]
async fn workers_of_another_user_own_what_they_need_and_no_more() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: workers run as we do");
        return;
    }
    // This binary lies where nobody else may pass: the worker runs a copy.
    let place = Place::new();
    let program = place.root.path().join("worker");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let settings = || {
        let mut settings = place.settings(1);
        (settings.worker.program, settings.worker_user) = (program.clone(), Some("nobody".into()));
        settings
    };
    let mode = |mode| {
        std::fs::set_permissions(place.root.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o700);
    let refused =
        Runs::open(place.store.clone(), place.planner(), settings()).await.err().unwrap().to_string();
    assert!(refused.contains("workers run as nobody") && refused.contains("chmod o+x"), "{refused}");

    mode(0o755);
    let runs = Runs::open(place.store.clone(), place.planner(), settings()).await.unwrap();
    let template = place.template("wait").await;
    let run = runs.enqueue(&template, "me", "2022-07-01").await.unwrap();
    in_phase(&place, &run.id, Phase::Customizing).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", place.worker_pid(&run.id))).unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && !status.contains("Uid:\t0"), "{status}");
    place.finish(&run.id);
    assert_eq!(ended(&runs, &run.id).await.state, RunState::Succeeded);
    let nobody = kiln_host::process::Identity::of("nobody").unwrap().uid();
    assert_eq!(place.artifacts(&run.id).join("d.vhd").metadata().unwrap().uid(), nobody);
    assert_eq!(place.dir(&run.id).path().metadata().unwrap().uid(), nobody);
    assert_eq!(place.root.path().join("runs").metadata().unwrap().uid(), 0);
    assert_eq!(place.root.path().join("kiln.db").metadata().unwrap().uid(), 0);
}

fn limits() -> kiln_model::plan::HostLimits {
    kiln_model::plan::HostLimits { cpus: 1, memory_mib: 1000 }
}

/// A run as `enqueue` stores it, without a server.
async fn template_and_row(place: &Place, name: &str) -> RunId {
    let template = place.template(name).await;
    let id = RunId::new(name);
    let run = RunRecord {
        id: id.clone(),
        template: template.clone(),
        operation: format!("operation-of-{name}"),
        state: RunState::Running,
        phase: Some(Phase::Queued),
        message: String::new(),
        fault: None,
        queued_at: "2026-01-02T03:04:06Z".into(),
        started_at: None,
        ended_at: None,
        memory_mib: 0,
        cpus: 0,
        attempt: 0,
        started_by: "me".into(),
        holds_since: None,
    };
    place.store.write::<_, StoreError, _>(move |w| w.insert_run(&run)).await.unwrap();
    id
}
