//! Rows about runs, made again from directories.

use kiln_build::run_dir::{REQUEST_FORMAT, RunDir, RunRequest};
use kiln_model::event::{EVENTS_FORMAT, Failure, RunEvent, RunEventKind};
use kiln_model::run::{Fault, Phase, RunState};

use super::*;

struct Runs {
    dir: tempfile::TempDir,
}

impl Runs {
    fn runs(&self) -> PathBuf {
        self.dir.path().join("runs")
    }

    /// A directory with these events; an origin makes it a daemon's.
    fn add(&self, record: &RunRecord, origin: bool, events: Vec<RunEventKind>) -> RunDir {
        let dir = RunDir::create(&self.runs(), &record.id).unwrap();
        dir.write_request(&RunRequest {
            format: REQUEST_FORMAT,
            run_id: record.id.clone(),
            output_dir: self.dir.path().join("artifacts").join(record.id.as_str()),
            keep_on_error: false,
            library: "/nowhere".into(),
            operation: None,
            transcript: false,
            checkpoints: None,
        })
        .unwrap();
        if origin {
            let op = OperationRecord { id: record.operation.clone(), ..operation("x") };
            RunOrigin::new(record, &op).write(&dir).unwrap();
        }
        let started = RunEventKind::RunStarted {
            format: EVENTS_FORMAT,
            run_id: record.id.to_string(),
            template_name: "t".into(),
            template_sha256: Sha256::from_bytes([0; 32]),
            source: "debian-12 1".into(),
            kiln_version: "0".into(),
            attempt: 1,
        };
        let events = std::iter::once(started).chain(events).enumerate().map(|(n, event)| {
            let seq = n as u64;
            RunEvent { seq, time: at(100 + n as i64), elapsed_ms: seq, event }.to_line()
        });
        std::fs::write(dir.events(), events.collect::<String>()).unwrap();
        dir
    }
}

fn end(state: RunState, fault: Option<Fault>) -> RunEventKind {
    let failure = fault.map(|fault| Failure {
        fault,
        phase: Phase::Customizing,
        step: None,
        cause: "c".into(),
        chain: Vec::new(),
        log_tail: Vec::new(),
        console_tail: Vec::new(),
    });
    RunEventKind::RunEnded { state, message: "over".into(), failure, ms: 1 }
}

#[tokio::test]
async fn rows_come_from_directories() {
    let runs = Runs { dir: tempfile::tempdir().unwrap() };
    let t = id("t");
    let published =
        |name: &str, n| RunEventKind::OutputPublished { output: output(&t, name, &run_id(n)).output };
    let phase = |phase| RunEventKind::PhaseStarted { phase };
    let building = || phase(Phase::Building);
    runs.add(
        &run(&t, 1, 1),
        true,
        vec![building(), published("out", 1), published("gone", 1), end(RunState::Succeeded, None)],
    );
    runs.add(
        &run(&t, 2, 2),
        true,
        vec![building(), published("out", 2), end(RunState::Failed, Some(Fault::Guest))],
    );
    runs.add(&run(&t, 3, 3), true, vec![building(), phase(Phase::Customizing)]);
    runs.add(&run(&t, 4, 4), false, vec![end(RunState::Succeeded, None)]);
    let torn = runs.add(&run(&t, 5, 5), true, vec![]);
    std::fs::write(torn.events(), "nonsense\nnonsense\n").unwrap();
    let newer = runs.add(&run(&t, 6, 6), true, vec![]);
    std::fs::write(newer.path().join("origin.json"), "{\"format\": 2}").unwrap();
    runs.add(&run(&t, 7, 7), true, vec![building()]);
    std::fs::create_dir(runs.runs().join("not a run")).unwrap();
    for (n, name) in [(1, "out"), (2, "out")] {
        let folder = runs.dir.path().join("artifacts").join(run_id(n).as_str());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.vhd")), "x").unwrap();
    }

    let store = Store::open(&runs.dir.path().join("kiln.db")).unwrap();
    store.write(|w| w.insert_template(&template("t"))).await.unwrap();
    let done = store.reindex(&runs.runs()).await.unwrap();
    let skipped: Vec<_> =
        done.skipped.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(done.runs, 3, "{:?}", done.skipped);
    // 7 cannot be active beside 3.
    assert_eq!(skipped, [run_id(5), run_id(6), run_id(7)].map(|id| id.to_string()));

    let found = store.read(|r| r.runs(&RunFilter::default(), None, 10)).await.unwrap().items;
    assert_eq!(found.iter().map(|run| run.id.clone()).collect::<Vec<_>>(), [run_id(3), run_id(2), run_id(1)]);
    let first = ended(run(&t, 1, 1), RunState::Succeeded, 104);
    let first = RunRecord { phase: Some(Phase::Building), started_at: Some(at(100)), attempt: 1, ..first };
    assert_eq!(found[2], first);
    assert_eq!((found[1].fault, found[1].state), (Some(Fault::Guest), RunState::Failed));
    assert_eq!((found[0].phase, found[0].state), (Some(Phase::Customizing), RunState::Running));
    let last = store.read(|r| r.template(&id("t"))).await.unwrap().unwrap().last_run.unwrap();
    assert_eq!(last.run, run_id(3));
    let operations = store.read(|r| r.unfinished_operations()).await.unwrap();
    assert_eq!(operations.len(), 1);
    assert_eq!((operations[0].id.as_str(), operations[0].location.as_str()), ("op-3", "westus2"));
    let outputs = store.read(|r| r.outputs(&id("t"))).await.unwrap();
    assert_eq!(
        outputs.iter().map(|o| (o.name.as_str(), o.run.clone())).collect::<Vec<_>>(),
        [("out", run_id(2))]
    );
    assert_eq!(store.read(|r| r.artifacts(&id("t"))).await.unwrap().len(), 2);

    let again = store.reindex(&runs.runs()).await.unwrap();
    assert_eq!(again.runs, 0);
}

#[tokio::test]
async fn no_directories_no_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("kiln.db")).unwrap();
    assert_eq!(store.reindex(&dir.path().join("runs")).await.unwrap(), Reindexed::default());
}

#[test]
fn an_origin_is_golden() {
    let dir = tempfile::tempdir().unwrap();
    let record = RunRecord { memory_mib: 2048, cpus: 2, ..run(&id("t"), 1, 1) };
    let run_dir = RunDir::create(dir.path(), &record.id).unwrap();
    RunOrigin::new(&record, &operation("op-1")).write(&run_dir).unwrap();
    expect_test::expect![[r#"
        {
          "format": 1,
          "subscription": "Sub-1",
          "resourceGroup": "Group",
          "template": "t",
          "operation": "op-1",
          "location": "westus2",
          "queuedAt": "2026-01-01T00:01:00Z",
          "startedBy": "me",
          "memoryMib": 2048,
          "cpus": 2
        }
    "#]]
    .assert_eq(&std::fs::read_to_string(run_dir.path().join("origin.json")).unwrap());
}
