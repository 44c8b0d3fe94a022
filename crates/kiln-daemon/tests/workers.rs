//! Following and settling, with real processes in the worker's place.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::Path;
use std::time::Duration;

use kiln_build::run_dir::{CLAIM_FORMAT, Claim, REQUEST_FORMAT, Request, RunDir, RunId, RunRequest};
use kiln_daemon::executor::{self, Executor, Local, Worker, WorkerCommand, local};
use kiln_daemon::{Followed, News, SettleError, follow, settle};
use kiln_model::event::{RunEvent, RunEventKind};
use kiln_model::run::RunState;

/// No test waits longer for what should come at once.
const SOON: Duration = Duration::from_secs(20);

struct Place {
    _root: tempfile::TempDir,
    dir: RunDir,
    output: std::path::PathBuf,
}

fn place(keep_on_error: bool) -> Place {
    let root = tempfile::tempdir().unwrap();
    let output = root.path().join("out");
    std::fs::create_dir(&output).unwrap();
    let id = RunId::new("test");
    let dir = RunDir::create(&root.path().join("runs"), &id).unwrap();
    let library = root.path().join("library");
    let request = RunRequest {
        format: REQUEST_FORMAT,
        run_id: id,
        output_dir: output.clone(),
        keep_on_error,
        library,
        operation: None,
        transcript: false,
        checkpoints: None,
    };
    dir.write_request(&request).unwrap();
    Place { _root: root, dir, output }
}

fn claim(sockets: &Path) -> Claim {
    Claim {
        format: CLAIM_FORMAT,
        executor: "local".to_owned(),
        host: "here".to_owned(),
        boot_id: String::new(),
        pid: 1,
        start_ticks: 1,
        start_time: "2026-01-02T03:04:05.678Z".to_owned(),
        attempt: 1,
        sockets: sockets.to_owned(),
    }
}

/// A worker that is a shell script; `$1` is the run directory.
async fn worker(dir: &RunDir, script: &str) -> Worker {
    let command = WorkerCommand::new("/bin/sh").arg("-c").arg(script).arg("worker");
    Executor::Local(Local::plain(command)).start(dir).await.unwrap()
}

async fn followed(dir: &RunDir, worker: &Worker) -> (Followed, Vec<u64>, Vec<u8>) {
    let (mut events, mut log) = (Vec::new(), Vec::new());
    let end = follow(dir, worker, |news| match news {
        News::Event(event) => events.push(event.seq),
        News::Log(bytes) => log.extend_from_slice(bytes),
        News::Changed => {}
    });
    let end = tokio::time::timeout(SOON, end).await.unwrap().unwrap();
    (end, events, log)
}

fn last_event(dir: &RunDir) -> RunEvent {
    let text = std::fs::read_to_string(dir.events()).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

const EVENT: &str = r#"{\"seq\":%d,\"time\":\"t\",\"elapsedMs\":0,\"event\":{\"kind\":\"notice\",\"level\":\"info\",\"text\":\"x\"}}"#;
const END: &str = r#"{\"seq\":%d,\"time\":\"t\",\"elapsedMs\":0,\"event\":{\"kind\":\"runEnded\",\"state\":\"Succeeded\",\"message\":\"\",\"ms\":1}}"#;

#[tokio::test]
async fn a_run_is_followed_from_before_its_first_file_to_its_last_event() {
    let place = place(false);
    // Events in torn pieces, log lines in between, and files that are not there at first.
    let script = format!(
        r#"sleep 0.2; cd "$1"
        for n in 0 1 2; do printf "{EVENT}" $n > piece; head -c 20 piece >> events.jsonl; sleep 0.05
          tail -c +21 piece >> events.jsonl; echo >> events.jsonl; echo "line $n" >> customization.log; done
        printf "{END}\n" 3 >> events.jsonl; sleep 30"#
    );
    let worker = worker(&place.dir, &script).await;
    let (end, events, log) = followed(&place.dir, &worker).await;
    assert!(matches!(end, Followed::Ended(_)), "{end:?}");
    assert_eq!(events, [0, 1, 2, 3]);
    assert_eq!(log, b"line 0\nline 1\nline 2\n");
    worker.kill();
}

#[tokio::test]
async fn a_worker_that_dies_is_noticed_and_its_run_settled_once() {
    let place = place(false);
    std::fs::create_dir(place.dir.work()).unwrap();
    std::fs::write(place.dir.work().join("os.qcow2"), "half").unwrap();
    // Named as the run is, as the real ones are.
    let sockets = place.output.with_file_name(place.dir.read_request().unwrap().run_id.short());
    let download = place.output.with_file_name("library").join("tmp/once-abc.part");
    std::fs::create_dir_all(download.parent().unwrap()).unwrap();
    std::fs::write(&download, "half").unwrap();
    std::fs::create_dir(&sockets).unwrap();
    place.dir.write_claim(&claim(&sockets)).unwrap();
    std::fs::write(place.output.join(".hello.vhd.abc123.kiln-aside"), "half").unwrap();
    let script =
        format!(r#"cd "$1"; printf "{EVENT}\n" 0 >> events.jsonl; printf "{{" >> events.jsonl; kill -9 $$"#);
    let worker = worker(&place.dir, &script).await;
    let (end, events, _) = followed(&place.dir, &worker).await;
    let Followed::WorkerGone(how) = end else { panic!("{end:?}") };
    assert!(how.contains("SIGKILL"), "{how}");
    assert_eq!(events, [0]);

    assert_eq!(settle(&place.dir, &how).unwrap(), RunState::Failed);
    assert_eq!(settle(&place.dir, "again").unwrap(), RunState::Failed);
    let last = last_event(&place.dir);
    assert_eq!(last.seq, 1, "the torn line is cut");
    let RunEventKind::RunEnded { state: RunState::Failed, message, failure: Some(_), .. } = last.event else {
        panic!("{last:?}")
    };
    assert!(message.contains("SIGKILL"), "{message}");
    assert!(!place.dir.work().exists());
    assert!(!sockets.exists());
    assert!(!download.exists());
    assert_eq!(std::fs::read_dir(&place.output).unwrap().count(), 0, "nothing half-made stays");
}

#[tokio::test]
async fn what_was_asked_to_cancel_ends_canceled_and_may_be_kept() {
    let place = place(true);
    std::fs::create_dir(place.dir.work()).unwrap();
    executor::cancel(&place.dir).unwrap();
    executor::cancel(&place.dir).unwrap();
    assert!(place.dir.is_asked(Request::Cancel));
    assert_eq!(settle(&place.dir, "SIGKILL").unwrap(), RunState::Canceled);
    assert!(matches!(
        last_event(&place.dir).event,
        RunEventKind::RunEnded { state: RunState::Canceled, failure: None, .. }
    ));
    assert!(place.dir.work().exists(), "--keep-on-error");
}

/// The template alone asked for it: only what is there tells.
#[tokio::test]
async fn a_machine_that_was_left_outlives_its_worker() {
    let place = place(false);
    std::fs::create_dir_all(place.dir.work().join("machine")).unwrap();
    std::fs::write(place.dir.work().join("machine/machine.json"), "{}").unwrap();
    assert_eq!(settle(&place.dir, "SIGKILL").unwrap(), RunState::Failed);
    assert!(place.dir.work().exists());
}

#[tokio::test]
async fn a_run_with_a_living_worker_is_not_settled() {
    let place = place(false);
    // flock(1) holds the lock as a worker does.
    let worker = worker(&place.dir, r#"exec flock "$1/lock" sh -c 'touch "$0/held"; sleep 30' "$1""#).await;
    wait_for(&place.dir.path().join("held")).await;
    assert!(local::is_alive(&place.dir).unwrap());
    assert!(matches!(settle(&place.dir, "gone?"), Err(SettleError::Alive(_))));
    assert!(!place.dir.events().exists(), "nothing is written without the lock");
    worker.kill();
    worker.ended().await;
}

/// A server may be root and the worker not: its claim is its word, and no reason to remove anything else.
#[tokio::test]
async fn a_claim_names_no_folder_but_its_runs_own() {
    let place = place(false);
    let other = place.output.with_file_name("other");
    std::fs::create_dir(&other).unwrap();
    place.dir.write_claim(&claim(&other)).unwrap();
    let error = settle(&place.dir, "gone").unwrap_err();
    assert!(error.to_string().contains(&other.display().to_string()), "{error}");
    assert!(other.exists());
}

async fn wait_for(path: &Path) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !path.exists() {
        assert!(tokio::time::Instant::now() < deadline, "{} did not appear", path.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
