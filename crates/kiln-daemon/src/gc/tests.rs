//! Tables of what was found and what goes; and the whole of it on real folders.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use kiln_build::run_dir::{REQUEST_FORMAT, RunDir, RunRequest};
use kiln_host::lock::FileLock;
use kiln_model::event::RunOutput;
use kiln_model::run::RunState;
use serde_json::json;

use super::find::{ArtifactFile, Found, Rows, RunFolder, ago};
use super::*;
use crate::store::*;
use kiln_library::ShelvedInput;

const MIB: u64 = 1 << 20;

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn id(name: &str) -> RunId {
    name.parse().unwrap()
}

/// Runs by name; numbers are days ago.
#[derive(Default)]
struct Case {
    found: Found,
    retention: Retention,
}

impl Case {
    fn new(retention: Retention) -> Self {
        Self { retention, ..Self::default() }
    }

    fn run(mut self, name: &str, template: &str, queued: i64, ended: Option<i64>) -> Self {
        let ended = ended.map(|days| ago(now(), days));
        let queued = ago(now(), queued);
        self.found.rows.runs.push(RunAge { run: id(name), template: template.to_owned(), queued, ended });
        self.found.rows.runs.sort_by_key(|run| run.queued);
        self
    }

    /// A run of `template` that ended so many days ago, with a directory of 1 MiB.
    fn ended(self, name: &str, template: &str, days: i64) -> Self {
        self.run(name, template, days, Some(days)).folder(name, days, 1, |_| ())
    }

    fn folder(mut self, name: &str, days: i64, mib: u64, with: impl FnOnce(&mut RunFolder)) -> Self {
        let mut folder = RunFolder { bytes: mib * MIB, changed: ago(now(), days), ..RunFolder::default() };
        with(&mut folder);
        self.found.directories.insert(id(name), folder);
        self
    }

    /// An artifact with a row and its two files, together of that size.
    fn artifact(mut self, run: &str, name: &str, days: i64, mib: u64, is_output: bool) -> Self {
        let (run, file) = (id(run), format!("{name}.vhd"));
        let created = ago(now(), days);
        self.found.rows.artifacts.push(ArtifactAge { run, file: file.clone(), is_output, created });
        let run = self.found.rows.artifacts.last().unwrap().run.to_string();
        self.file(&run, &file, days, mib).file(&run, &format!("{name}.json"), days, 0)
    }

    fn file(mut self, run: &str, name: &str, days: i64, mib: u64) -> Self {
        let file = ArtifactFile { name: name.to_owned(), bytes: mib * MIB, changed: ago(now(), days) };
        self.found.files.entry(id(run)).or_default().push(file);
        self
    }

    fn plan(&self) -> GcPlan {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            runs: "/d/runs".into(),
            artifacts: "/d/artifacts".into(),
            library: Library::open(dir.path()).unwrap(),
        };
        decide::decide(&self.found, &places, &self.retention, now())
    }

    /// Short names of what goes.
    #[track_caller]
    fn goes(&self, expected: &[&str]) {
        let words: BTreeSet<String> = self.plan().items.iter().map(|item| word(&item.what)).collect();
        assert_eq!(words, expected.iter().map(|word| (*word).to_owned()).collect());
    }
}

fn word(what: &GcWhat) -> String {
    match what {
        GcWhat::Run { run } => format!("run {run}"),
        GcWhat::RunDirectory { run } => format!("directory {run}"),
        GcWhat::WorkFolder { run } => format!("work {run}"),
        GcWhat::Artifact { run, file } => format!("artifact {run}/{file}"),
        GcWhat::ArtifactFile { run, file } => format!("file {run}/{file}"),
        GcWhat::Leftover => "leftover".to_owned(),
        GcWhat::Input { sha256 } => format!("input {}", &sha256.to_string()[..2]),
        GcWhat::Operations { count } => format!("operations {count}"),
        GcWhat::Activity { count } => format!("activity {count}"),
    }
}

fn limits(days: u32, per_template: u32, size_gib: Option<u64>) -> Retention {
    Retention { days, per_template, size_gib }
}

#[test]
fn nothing_goes_where_nothing_is() {
    Case::default().goes(&[]);
}

#[test]
fn runs_go_by_their_end() {
    Case::new(limits(30, 100, None))
        .ended("new", "t", 1)
        .ended("just", "t", 30)
        .ended("old", "t", 31)
        // It waited long, and ended yesterday.
        .run("late", "t", 60, Some(1))
        .run("queued", "u", 60, None)
        .goes(&["run old"]);
    Case::new(limits(0, 100, None)).ended("a", "t", 1).run("b", "t", 2, None).goes(&["run a"]);
}

#[test]
fn each_template_keeps_its_newest() {
    let case = Case::new(limits(30, 2, None))
        .ended("a1", "a", 5)
        .ended("a2", "a", 4)
        .ended("a3", "a", 3)
        .run("a4", "a", 2, None)
        .ended("b1", "b", 6);
    case.goes(&["run a1"]);
    assert_eq!(case.plan().items[0].reason, "its template has newer ones; it keeps 2 runs");
    Case { retention: limits(30, 0, None), ..case }.goes(&["run a1", "run a2", "run a3", "run b1"]);
}

#[test]
fn what_is_held_or_runs_stays() {
    Case::new(limits(1, 0, Some(0)))
        .run("held", "t", 50, Some(40))
        .folder("held", 40, 9000, |folder| {
            folder.is_held = true;
            folder.work = Some(MIB);
        })
        .run("runs", "u", 50, None)
        .folder("runs", 50, 9000, |folder| folder.work = Some(MIB))
        .artifact("runs", "out", 50, 9000, false)
        .file("runs", ".out2.vhd.abc.kiln-aside", 50, 9000)
        .folder("unknown", 50, 9000, |folder| folder.is_held = true)
        .file("unknown", "x.vhd", 50, 9000)
        .goes(&[]);
}

#[test]
fn a_run_output_stays_when_its_run_goes() {
    let case = Case::new(limits(30, 100, None))
        .ended("old", "t", 40)
        .artifact("old", "current", 40, 100, true)
        .artifact("old", "past", 40, 50, false)
        .file("old", "leftover", 40, 7);
    case.goes(&["run old", "artifact old/past.vhd", "file old/leftover"]);
    let plan = case.plan();
    assert_eq!(plan.bytes(), (1 + 50 + 7) * MIB);
    let last = plan.items.last().unwrap();
    assert_eq!(word(&last.what), "run old", "its files go first");
    // Both artifacts of a run that stays, stay.
    Case::new(limits(30, 100, None))
        .ended("young", "t", 4)
        .artifact("young", "past", 40, 50, false)
        .file("young", "leftover", 40, 7)
        .goes(&[]);
}

#[test]
fn artifacts_that_outlived_their_run_go_when_they_are_superseded() {
    Case::new(limits(30, 100, None))
        .artifact("gone", "current", 90, 1, true)
        .artifact("gone", "past", 90, 1, false)
        .artifact("gone", "young", 3, 1, false)
        .file("gone", "old-file", 90, 1)
        .file("gone", "young-file", 3, 1)
        .file("rowless", "out.vhd", 90, 1)
        .goes(&["artifact gone/past.vhd", "file gone/old-file", "file rowless/out.vhd"]);
}

#[test]
fn directories_without_rows_go_by_age() {
    Case::new(limits(30, 0, None))
        .folder("young", 3, 1, |_| ())
        .folder("old", 31, 1, |folder| folder.work = Some(5))
        .file("old", "out.vhd", 31, 1)
        .goes(&["directory old", "file old/out.vhd"]);
}

#[test]
fn a_row_without_a_directory_goes_like_any() {
    let case = Case::new(limits(30, 100, None)).run("old", "t", 40, Some(40)).run("new", "t", 1, Some(1));
    case.goes(&["run old"]);
    assert_eq!(case.plan().items[0].path, None);
}

#[test]
fn work_folders_of_ended_runs_go() {
    Case::new(limits(30, 100, None))
        .run("ended", "t", 2, Some(2))
        .folder("ended", 2, 10, |folder| folder.work = Some(5 * MIB))
        .run("old", "t", 40, Some(40))
        .folder("old", 40, 10, |folder| folder.work = Some(5 * MIB))
        .run("runs", "u", 1, None)
        .folder("runs", 1, 10, |folder| folder.work = Some(5 * MIB))
        .folder("unknown", 1, 10, |folder| folder.work = Some(5 * MIB))
        .goes(&["work ended", "run old"]);
}

#[test]
fn the_oldest_go_until_the_quota_is_met() {
    let case = |quota| {
        Case::new(limits(30, 100, Some(quota)))
            .ended("r1", "t", 40)
            .run("r2", "t", 9, Some(9))
            .folder("r2", 9, 1024, |_| ())
            .artifact("r2", "past", 9, 1024, false)
            .artifact("r2", "current", 9, 512, true)
            .folder("stray", 8, 1024, |_| ())
            .run("r3", "u", 7, Some(7))
            .folder("r3", 7, 1024, |_| ())
            .run("empty", "u", 10, Some(10))
            .run("active", "u", 6, None)
            .folder("active", 6, 512, |_| ())
    };
    case(5).goes(&["run r1"]);
    let two = ["run r1", "run r2", "artifact r2/past.vhd"];
    case(4).goes(&two);
    case(3).goes(&two);
    case(2).goes(&[two.as_slice(), &["directory stray"]].concat());
    let all = [two.as_slice(), &["directory stray", "run r3"]].concat();
    case(1).goes(&all);
    case(0).goes(&all);
    assert_eq!((case(1).plan().bytes_over_quota, case(0).plan().bytes_over_quota), (0, 1024 * MIB));
    assert_eq!(case(5).plan().bytes_used, (1 + 1024 * 4 + 512 * 2) * MIB);
}

#[test]
fn inputs_go_when_nobody_needs_or_wanted_them() {
    let input = |byte: u8, days: i64| ShelvedInput {
        sha256: Sha256::from_bytes([byte; 32]),
        size: 10,
        last_wanted: SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(ago(now(), days)).unwrap()),
    };
    let mut case = Case::new(limits(30, 100, None));
    case.found.inputs = vec![input(1, 31), input(2, 29), input(3, 31), input(4, 31)];
    case.found.rows.copies = [Sha256::from_bytes([3; 32])].into();
    case.found.inputs_of_runs = [Sha256::from_bytes([4; 32])].into();
    case.goes(&["input 01"]);
    // A day at least: a run may be about to use what it just looked for.
    case.retention.days = 0;
    case.found.inputs = vec![input(1, 2), input(2, 0)];
    case.goes(&["input 01"]);
}

#[test]
fn logs_and_leftovers_go() {
    let mut case = Case::default();
    case.found.rows = Rows { old_operations: 3, old_activity: 2, ..Rows::default() };
    case.found.leftovers = vec![("/d/runs/.removed-x".into(), 5)];
    case.goes(&["operations 3", "activity 2", "leftover"]);
}

#[test]
fn a_plan_is_golden() {
    let mut case =
        Case::new(limits(30, 100, Some(1))).ended("old", "t", 31).artifact("old", "out", 31, 2, false);
    case.found.rows.old_operations = 1;
    expect_test::expect![[r#"
        {
          "items": [
            {
              "kind": "artifact",
              "run": "old",
              "file": "out.vhd",
              "path": "/d/artifacts/old/out.vhd",
              "bytes": 2097152,
              "reason": "ended 31 days ago; runs are kept for 30 days"
            },
            {
              "kind": "run",
              "run": "old",
              "path": "/d/runs/old",
              "bytes": 1048576,
              "reason": "ended 31 days ago; runs are kept for 30 days"
            },
            {
              "kind": "operations",
              "count": 1,
              "bytes": 0,
              "reason": "kept for 7 days"
            }
          ],
          "bytesUsed": 3145728,
          "bytesOverQuota": 0
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&case.plan()).unwrap());
}

/// A data folder with a store, and the means to make it old.
struct Data {
    dir: tempfile::TempDir,
    store: Store,
    places: Places,
}

fn template_id() -> TemplateId {
    TemplateId { subscription: "s".into(), resource_group: "g".into(), name: "t".into() }
}

impl Data {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("server/kiln.db")).unwrap();
        let places = Places {
            runs: dir.path().join("runs"),
            artifacts: dir.path().join("artifacts"),
            library: Library::open(dir.path().join("library")).unwrap(),
        };
        let template = TemplateRecord {
            id: template_id(),
            location: "l".into(),
            tags: serde_json::Map::new(),
            identity: None,
            properties: json!({}),
            api_version: "2024-02-01".into(),
            provisioning: ProvisioningState::Succeeded,
            provisioning_error: None,
            copies: Vec::new(),
            pending: None,
            exact_version: None,
            last_run: None,
            created_at: "2026-01-01T00:00:00Z".into(),
            created_by: "me".into(),
            modified_at: "2026-01-01T00:00:00Z".into(),
            modified_by: "me".into(),
            generation: 1,
        };
        store.write(move |w| w.insert_template(&template)).await.unwrap();
        Self { dir, store, places }
    }

    /// A run with a directory, and an artifact of each name.
    async fn run(&self, name: &str, state: RunState, queued: &str, artifacts: &[&str]) -> RunDir {
        let over = state.is_final();
        let record = RunRecord {
            id: id(name),
            template: template_id(),
            operation: format!("op-{name}"),
            state,
            phase: None,
            message: String::new(),
            fault: None,
            queued_at: queued.into(),
            started_at: None,
            ended_at: over.then(|| queued.to_owned()),
            memory_mib: 0,
            cpus: 0,
            attempt: 1,
            started_by: "me".into(),
            holds_since: None,
        };
        let folder = self.places.artifacts.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut outputs = Vec::new();
        for artifact in artifacts {
            let file = format!("{artifact}.vhd");
            std::fs::write(folder.join(&file), "disk").unwrap();
            std::fs::write(folder.join(format!("{artifact}.json")), "{}").unwrap();
            let text = json!({
                "format": 1, "name": artifact, "type": "VHD", "runId": name, "file": file, "size": 4,
                "virtualSize": 4, "sha256": "00".repeat(32),
                "source": {"name": "d", "version": "1", "sha256": "11".repeat(32), "requested": "x"},
                "templateName": "t", "templateSha256": "22".repeat(32), "generation": "V2",
                "tags": {}, "createdAt": queued, "kilnVersion": "0", "status": "s",
            });
            outputs.push(OutputRecord {
                template: template_id(),
                name: (*artifact).to_owned(),
                run: id(name),
                output: RunOutput::from_json(&text.to_string()).unwrap(),
                created_at: queued.into(),
            });
        }
        let change = move |w: &Writer<'_>| -> Result<(), StoreError> {
            w.insert_run(&record)?;
            outputs.iter().try_for_each(|output| w.put_output(output))
        };
        self.store.write(change).await.unwrap();
        let dir = RunDir::create(&self.places.runs, &id(name)).unwrap();
        dir.write_request(&RunRequest {
            format: REQUEST_FORMAT,
            run_id: id(name),
            output_dir: folder,
            keep_on_error: false,
            library: self.places.library.root().to_owned(),
            operation: None,
            transcript: false,
            checkpoints: None,
        })
        .unwrap();
        std::fs::create_dir(dir.work()).unwrap();
        std::fs::write(dir.work().join("os.qcow2"), "overlay").unwrap();
        dir
    }

    async fn plan(&self) -> GcPlan {
        plan(&self.store, &self.places, &limits(30, 100, None), now()).await.unwrap()
    }

    /// Everything below the folders of runs and artifacts, and of inputs.
    fn files(&self) -> BTreeSet<String> {
        fn walk(root: &std::path::Path, path: &std::path::Path, into: &mut BTreeSet<String>) {
            for entry in std::fs::read_dir(path).into_iter().flatten() {
                let path = entry.unwrap().path();
                into.insert(path.strip_prefix(root).unwrap().display().to_string());
                walk(root, &path, into);
            }
        }
        let mut files = BTreeSet::new();
        for folder in ["runs", "artifacts", "library/inputs/sha256"] {
            walk(self.dir.path(), &self.dir.path().join(folder), &mut files);
        }
        files
    }
}

fn words(items: &[GcItem]) -> BTreeSet<String> {
    items.iter().map(|item| word(&item.what)).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

const OLD: &str = "2026-03-01T00:00:00Z";
const OLDER: &str = "2026-02-01T00:00:00Z";
const NEW: &str = "2026-05-30T00:00:00Z";

#[tokio::test]
async fn what_is_planned_goes_and_nothing_else() {
    let data = Data::new().await;
    data.run("first", RunState::Succeeded, OLDER, &["out", "other"]).await;
    data.run("second", RunState::Succeeded, OLD, &["out"]).await;
    data.run("third", RunState::Failed, NEW, &[]).await;
    let active = data.run("fourth", RunState::Running, NEW, &[]).await;
    std::fs::create_dir_all(data.places.runs.join("not a run")).unwrap();
    std::fs::create_dir_all(data.places.runs.join(".removed-zeroth/work")).unwrap();
    // In use by a living worker: its row says otherwise.
    let held = data.run("fifth", RunState::Succeeded, OLD, &[]).await;
    let _held = FileLock::try_exclusive(held.lock()).unwrap().unwrap();
    let wanted = Sha256::from_bytes([1; 32]);
    let unwanted = Sha256::from_bytes([2; 32]);
    for sha256 in [wanted, unwanted] {
        let path = data.places.library.root().join("inputs/sha256").join(sha256.to_string());
        std::fs::write(&path, "x").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
    }
    let copy = InputCopy { address: "https://h/x".into(), sha256: wanted, size: 1 };
    data.store
        .write(move |w| -> Result<u64, StoreError> {
            let template = w.template(&template_id())?.unwrap();
            w.update_template(&TemplateRecord { copies: vec![copy], ..template })
        })
        .await
        .unwrap();

    let before = data.files();
    let plan = data.plan().await;
    assert_eq!(data.files(), before, "planning changes nothing");
    let expected =
        ["artifact first/out.vhd", "run first", "run second", "work third", "leftover", "input 02"];
    assert_eq!(words(&plan.items), set(&expected));
    let done = carry_out(&data.store, &data.places, &plan).await;
    assert!(done.failed.is_empty() && done.kept.is_empty(), "{done:?}");
    assert_eq!(words(&done.removed), set(&expected));
    let gone: BTreeSet<_> = before.difference(&data.files()).cloned().collect();
    let stays = |path: &str| {
        path.starts_with("artifacts/first/other")
            || path == "artifacts/first"
            || path.starts_with("artifacts/second")
            || ["fourth", "fifth", "not a run"].iter().any(|name| path.contains(name))
            || path == "artifacts/third"
            || path.starts_with("runs/third") && !path.contains("work")
            || path.contains(&wanted.to_string())
    };
    for path in &before {
        assert_eq!(gone.contains(path), !stays(path), "{path}");
    }
    assert!(active.work().join("os.qcow2").exists());
    let outputs = data.store.read(|r| r.outputs(&template_id())).await.unwrap();
    assert_eq!(outputs.iter().map(|o| o.run.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    assert!(data.store.read(|r| r.run(&id("first"))).await.unwrap().is_none());
    assert_eq!(data.plan().await.items, [], "nothing is left to do");
}

/// Killed after each of its acts: what is left is found the next time, and no row points to nothing.
#[tokio::test]
async fn what_was_cut_off_is_finished_later() {
    let data = Data::new().await;
    let dir = data.run("old", RunState::Succeeded, OLD, &["out", "past"]).await;
    data.run("newer", RunState::Succeeded, NEW, &["past"]).await;
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    // The rows went, the files did not.
    data.store
        .write(|w| -> Result<(), StoreError> {
            assert!(w.delete_artifact(&id("old"), "past.vhd")?);
            assert!(w.delete_run(&id("old"))?);
            Ok(())
        })
        .await
        .unwrap();
    for path in [
        dir.path().to_owned(),
        data.places.artifacts.join("old/past.vhd"),
        data.places.artifacts.join("old/past.json"),
    ] {
        std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    let plan = data.plan().await;
    let expected = ["directory old", "file old/past.vhd", "file old/past.json", "work newer"];
    assert_eq!(words(&plan.items), set(&expected));
    let done = carry_out(&data.store, &data.places, &plan).await;
    assert!(done.failed.is_empty() && done.kept.is_empty(), "{done:?}");
    assert_eq!(data.plan().await.items, []);
    assert!(data.places.artifacts.join("old/out.vhd").exists(), "a run output");
    assert!(!dir.path().exists());
}

/// Much may have happened since it was made.
#[tokio::test]
async fn an_old_plan_harms_nothing() {
    let data = Data::new().await;
    data.run("old", RunState::Succeeded, OLD, &["out"]).await;
    data.run("new", RunState::Succeeded, NEW, &["out"]).await;
    let stray = RunDir::create(&data.places.runs, &id("stray")).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let sha256: Sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881".parse().unwrap();
    let input = data.places.library.root().join("inputs/sha256").join(sha256.to_string());
    std::fs::write(&input, "x").unwrap();
    for path in [stray.path(), input.as_path()] {
        std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
    }
    let plan = data.plan().await;
    let planned = ["artifact old/out.vhd", "run old", "work new", "directory stray", "input 2d"];
    assert_eq!(words(&plan.items), set(&planned));

    // It is the run output again; a worker came; a row was made; somebody wants the file.
    let artifact = data.store.read(|r| r.artifact(&id("old"), "out.vhd")).await.unwrap().unwrap();
    let run = data.store.read(|r| r.run(&id("old"))).await.unwrap().unwrap();
    data.store
        .write(move |w| -> Result<(), StoreError> {
            w.put_output(&artifact)?;
            w.insert_run(&RunRecord { id: id("stray"), ..run })
        })
        .await
        .unwrap();
    let held =
        |name: &str| FileLock::try_exclusive(data.places.runs.join(name).join("lock")).unwrap().unwrap();
    let locks = [held("old"), held("new")];
    let control = kiln_host::wait::Control::ending_in(Duration::from_secs(10));
    assert!(data.places.library.find_input(sha256, &control).await.unwrap().is_some());
    let before = data.files();
    let done = carry_out(&data.store, &data.places, &plan).await;
    assert!(done.failed.is_empty(), "{done:?}");
    assert_eq!(words(&done.kept), set(&planned), "{:?}", done.removed);
    assert_eq!(data.files(), before);
    drop(locks);
}

#[tokio::test]
async fn one_failure_does_not_keep_the_others() {
    let data = Data::new().await;
    data.run("first", RunState::Succeeded, OLD, &[]).await;
    let second = data.run("second", RunState::Succeeded, OLD, &[]).await;
    // A folder is in the way of the name it is to get.
    std::fs::create_dir_all(data.places.runs.join(".removed-first/full")).unwrap();
    let plan = data.plan().await;
    let done = carry_out(&data.store, &data.places, &plan).await;
    assert_eq!(done.failed.len(), 1, "{done:?}");
    assert!(done.failed[0].error.contains("first"), "{}", done.failed[0].error);
    assert!(!second.path().exists());
    assert!(data.store.read(|r| r.run(&id("first"))).await.unwrap().is_none());
}

#[tokio::test]
async fn it_comes_by_itself_and_ends_when_told() {
    let data = Data::new().await;
    let dir = data.run("old", RunState::Succeeded, OLDER, &[]).await;
    let shutdown = CancellationToken::new();
    let (store, places, retention) = (data.store.clone(), data.places.clone(), limits(1, 100, None));
    let comes = tokio::spawn(again_and_again(store, places, retention, Duration::ZERO, shutdown.clone()));
    let gone = async {
        while dir.path().exists() {
            // The file system is what is asked here.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), comes).await.unwrap().unwrap();
}

#[tokio::test]
async fn purging_a_template_removes_its_artifacts() {
    let data = Data::new().await;
    data.run("one", RunState::Succeeded, NEW, &["out", "other"]).await;
    data.run("two", RunState::Succeeded, NEW, &["out"]).await;
    remove_artifacts(&data.store, &data.places, &template_id()).await.unwrap();
    assert!(!data.places.artifacts.join("one/out.vhd").exists(), "superseded");
    assert!(data.places.artifacts.join("one/other.vhd").exists(), "still a run output");
    data.store.write(|w| w.delete_template(&template_id())).await.unwrap();
    remove_artifacts(&data.store, &data.places, &template_id()).await.unwrap();
    assert_eq!(std::fs::read_dir(&data.places.artifacts).unwrap().count(), 0);
    assert!(data.store.read(|r| r.artifacts(&template_id())).await.unwrap().is_empty());
}

#[tokio::test]
async fn old_rows_of_logs_go() {
    let data = Data::new().await;
    let operation = |id: &str, ended: Option<&str>| OperationRecord {
        id: id.into(),
        kind: OperationKind::Run,
        subscription: "s".into(),
        location: "l".into(),
        resource: "r".into(),
        status: if ended.is_some() { OperationStatus::Succeeded } else { OperationStatus::InProgress },
        started_at: OLDER.into(),
        ended_at: ended.map(str::to_owned),
        error: None,
        run: None,
    };
    let rows = [
        operation("old", Some("2026-05-24T00:00:00Z")),
        operation("young", Some("2026-05-26T00:00:00Z")),
        operation("runs", None),
    ];
    data.store
        .write(move |w| -> Result<(), StoreError> {
            for at in ["2026-01-01T00:00:00Z", NEW] {
                let by = "me".to_owned();
                let (action, resource, outcome) = ("a".into(), "r".into(), "o".into());
                w.append_activity(&ActivityRecord { seq: 0, at: at.into(), by, action, resource, outcome })?;
            }
            rows.iter().try_for_each(|row| w.insert_operation(row))
        })
        .await
        .unwrap();
    let plan = data.plan().await;
    assert_eq!(words(&plan.items), set(&["operations 1", "activity 1"]));
    carry_out(&data.store, &data.places, &plan).await;
    let left = |name: &'static str| {
        let store = data.store.clone();
        async move { store.read(move |r| r.operation(name)).await.unwrap().is_some() }
    };
    assert_eq!((left("old").await, left("young").await, left("runs").await), (false, true, true));
    assert_eq!(data.store.read(|r| r.activity(None, 9)).await.unwrap().items.len(), 1);
    assert_eq!(data.plan().await.items, []);
}
