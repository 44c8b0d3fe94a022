mod changes;
mod damage;
mod lists;
mod reindex;
mod sharing;

use std::path::PathBuf;

use kiln_build::run_dir::RunId;
use kiln_model::Sha256;
use kiln_model::event::RunOutput;
use kiln_model::run::{Phase, RunState};
use rusqlite::{Connection, Transaction};
use serde_json::json;

use super::*;

/// Called for every statement that any test runs: no question may read a whole table, or sort.
pub(super) fn check_plan(connection: &Connection, sql: &str) {
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let steps: Vec<String> =
        statement.raw_query().mapped(|row| row.get("detail")).collect::<Result<_, _>>().unwrap();
    for step in &steps {
        let whole = step.starts_with("SCAN") && !step.contains("USING");
        assert!(!whole && !step.contains("TEMP B-TREE"), "{sql}\n{steps:#?}");
    }
}

#[test]
#[should_panic(expected = "SCAN runs")]
fn a_question_that_reads_a_whole_table_is_noticed() {
    let mut desk = Desk::new();
    check_plan(desk.begin().connection, "SELECT * FROM runs WHERE message = 'x'");
}

#[test]
#[should_panic(expected = "TEMP B-TREE")]
fn a_question_that_sorts_is_noticed() {
    let mut desk = Desk::new();
    check_plan(desk.begin().connection, "SELECT * FROM runs WHERE template_key = 'x' ORDER BY message");
}

/// A database and one transaction after another on it, without threads.
struct Desk {
    _dir: tempfile::TempDir,
    path: PathBuf,
    connection: Connection,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server/kiln.db");
        let (connection, is_new) = open::writer(&path).unwrap();
        assert!(is_new);
        Self { _dir: dir, path, connection }
    }

    /// What is written is seen by the next one.
    fn begin(&mut self) -> Writer<'_> {
        Writer::new(&self.connection, &self.path)
    }

    fn transaction(&mut self) -> Transaction<'_> {
        self.connection.transaction().unwrap()
    }
}

fn id(name: &str) -> TemplateId {
    TemplateId { subscription: "Sub-1".into(), resource_group: "Group".into(), name: name.into() }
}

/// RFC 3339, so many minutes into 2026.
fn at(minutes: i64) -> String {
    let beginning: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    (beginning + jiff::SignedDuration::from_mins(minutes)).to_string()
}

fn template(name: &str) -> TemplateRecord {
    let serde_json::Value::Object(tags) = json!({"b": "1", "a": "ü"}) else { unreachable!() };
    TemplateRecord {
        id: id(name),
        location: "westus2".into(),
        tags,
        identity: Some(json!({"type": "None"})),
        properties: json!({"source": {"type": "PlatformImage"}, "customize": [], "x": 1.5}),
        api_version: "2024-02-01".into(),
        provisioning: ProvisioningState::Creating,
        provisioning_error: Some(ProvisioningError { code: "Other".into(), message: "no".into() }),
        copies: vec![InputCopy {
            address: "https://h/x?sig=secret".into(),
            sha256: Sha256::from_bytes([7; 32]),
            size: 12,
        }],
        pending: Some(PendingWork { operation: "op".into(), task: PendingTask::Create { uploads: None } }),
        exact_version: Some("12.1".into()),
        last_run: None,
        created_at: at(0),
        created_by: "me".into(),
        modified_at: at(0),
        modified_by: "me".into(),
        generation: 1,
    }
}

fn run_id(number: u32) -> RunId {
    format!("20260101T000000Z-t-{number:06}").parse().unwrap()
}

/// Queued at that minute.
fn run(template: &TemplateId, number: u32, minute: i64) -> RunRecord {
    RunRecord {
        id: run_id(number),
        template: template.clone(),
        operation: format!("op-{number}"),
        state: RunState::Running,
        phase: Some(Phase::Queued),
        message: String::new(),
        fault: None,
        queued_at: at(minute),
        started_at: None,
        ended_at: None,
        memory_mib: 0,
        cpus: 0,
        attempt: 0,
        started_by: "me".into(),
        holds_since: None,
    }
}

fn ended(run: RunRecord, state: RunState, minute: i64) -> RunRecord {
    let started_at = Some(run.queued_at.clone());
    RunRecord { state, started_at, ended_at: Some(at(minute)), message: "over".into(), ..run }
}

fn output(template: &TemplateId, name: &str, run: &RunId) -> OutputRecord {
    let text = json!({
        "format": 1, "name": name, "type": "VHD", "runId": run.as_str(), "file": format!("{name}.vhd"),
        "size": 1024, "virtualSize": 512, "sha256": "00".repeat(32),
        "source": {"name": "debian-12", "version": "12.1", "sha256": "11".repeat(32), "requested": "x"},
        "templateName": template.name, "templateSha256": "22".repeat(32), "generation": "V2",
        "tags": {}, "createdAt": at(0), "kilnVersion": "0", "status": "s",
    });
    OutputRecord {
        template: template.clone(),
        name: name.to_owned(),
        run: run.clone(),
        output: RunOutput::from_json(&text.to_string()).unwrap(),
        created_at: at(0),
    }
}

fn operation(id: &str) -> OperationRecord {
    OperationRecord {
        id: id.into(),
        kind: OperationKind::Run,
        subscription: "Sub-1".into(),
        location: "westus2".into(),
        resource: "/subscriptions/x".into(),
        status: OperationStatus::InProgress,
        started_at: at(1),
        ended_at: None,
        error: None,
        run: Some(run_id(1)),
    }
}
