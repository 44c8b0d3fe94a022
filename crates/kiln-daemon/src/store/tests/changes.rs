//! What changes do, and what they may not do.

use kiln_model::run::{Fault, RunState};

use super::*;

#[test]
fn records_come_back_as_they_were_put() {
    let mut desk = Desk::new();
    let w = desk.begin();
    let mut put = template("One");
    w.insert_template(&put).unwrap();
    let got = w.template(&id("oNE")).unwrap().unwrap();
    assert!(got == put);
    assert_eq!(got.id.name, "One", "the case it was written with first");

    put.id = id("ONE");
    put.pending = None;
    put.provisioning = ProvisioningState::Succeeded;
    put.provisioning_error = None;
    put.created_by = "somebody else".into();
    put.last_run = Some(LastRun {
        run: run_id(9),
        state: RunState::Failed,
        phase: None,
        message: "".into(),
        started_at: at(0),
        ended_at: None,
    });
    assert_eq!(w.update_template(&put).unwrap(), 2);
    let got = w.template(&id("one")).unwrap().unwrap();
    assert_eq!((got.id.name.as_str(), got.created_by.as_str(), got.generation), ("One", "me", 2));
    assert!(got.last_run.is_none(), "that belongs to its runs");
    assert!(got.pending.is_none() && got.provisioning == ProvisioningState::Succeeded);

    let mut record = run(&id("one"), 1, 5);
    record.fault = Some(Fault::Guest);
    record.memory_mib = 4096;
    w.insert_run(&record).unwrap();
    assert_eq!(w.run(&run_id(1)).unwrap().unwrap(), record);

    let mut op = operation("ABC");
    w.insert_operation(&op).unwrap();
    assert_eq!(w.operation("abc").unwrap().unwrap().run, Some(run_id(1)));
    assert_eq!(w.unfinished_operations().unwrap().len(), 1);
    op.id = "abc".into();
    op.status = OperationStatus::Failed;
    op.ended_at = Some(at(7));
    op.error = Some(OperationError { code: "PackerBuildFailed".into(), message: "no".into() });
    w.update_operation(&op).unwrap();
    assert_eq!(w.operation("ABC").unwrap().unwrap(), op);
    assert!(w.unfinished_operations().unwrap().is_empty());

    let trigger = TriggerRecord {
        template: id("One"),
        name: "Weekly".into(),
        kind: "SourceImage".into(),
        created_at: at(0),
        created_by: "me".into(),
        modified_at: at(0),
        modified_by: "me".into(),
    };
    w.put_trigger(&trigger).unwrap();
    assert_eq!(w.trigger(&id("ONE"), "wEEKLY").unwrap().unwrap(), trigger);
    w.put_trigger(&TriggerRecord { name: "weekly".into(), modified_by: "you".into(), ..trigger.clone() })
        .unwrap();
    let triggers = w.triggers(&id("one")).unwrap();
    assert_eq!(
        (triggers.len(), triggers[0].name.as_str(), triggers[0].modified_by.as_str()),
        (1, "Weekly", "you")
    );
    assert!(w.delete_trigger(&id("one"), "WEEKLY").unwrap());
    assert!(!w.delete_trigger(&id("one"), "WEEKLY").unwrap());

    let group = ResourceGroupRecord {
        subscription: "Sub-1".into(),
        name: "Group".into(),
        location: "westus2".into(),
        tags: put.tags.clone(),
    };
    w.put_resource_group(&group).unwrap();
    w.put_resource_group(&ResourceGroupRecord {
        name: "GROUP".into(),
        tags: Default::default(),
        ..group.clone()
    })
    .unwrap();
    let got = w.resource_group("sub-1", "grouP").unwrap().unwrap();
    assert_eq!((got.name.as_str(), got.tags.len()), ("Group", 0));
    assert_eq!(w.resource_groups("SUB-1").unwrap().len(), 1);
    assert!(w.delete_resource_group("SUB-1", "group").unwrap());
}

#[test]
fn templates_are_made_once_and_their_ids_are_whole() {
    let mut desk = Desk::new();
    let w = desk.begin();
    w.insert_template(&template("t")).unwrap();
    assert!(matches!(w.insert_template(&template("T")), Err(StoreError::Exists { what: "template", .. })));
    for (group, name) in [("", "x"), ("g", ""), ("g/h", "x"), ("g", "h/x")] {
        let mut bad = template("x");
        bad.id.resource_group = group.into();
        bad.id.name = name.into();
        assert!(matches!(w.insert_template(&bad), Err(StoreError::Unstorable { .. })), "{group} {name}");
    }
    let mut bad = template("x");
    bad.created_at = "yesterday".into();
    assert!(matches!(w.insert_template(&bad), Err(StoreError::Unstorable { .. })));
    assert!(matches!(w.update_template(&template("x")), Err(StoreError::Missing { .. })));
}

/// INVARIANT: a run ends once. Every pair of states, against the one function that knows.
#[test]
fn a_run_becomes_what_it_may_and_ends_once() {
    use RunState::*;
    let all = [Running, Canceling, Succeeded, PartiallySucceeded, Failed, Canceled];
    for from in all {
        for to in all {
            let mut desk = Desk::new();
            let w = desk.begin();
            let as_state = |state: RunState, minute| {
                let record = run(&id("t"), 1, 1);
                if state.is_final() { ended(record, state, minute) } else { RunRecord { state, ..record } }
            };
            w.insert_run(&as_state(from, 2)).unwrap();
            let mut next = as_state(to, 3);
            next.message = "something new".into();
            let answer = w.update_run(&next);
            let same_and_running = from == to && !from.is_final();
            if from.may_become(to) || same_and_running {
                answer.unwrap();
                assert_eq!(w.run(&run_id(1)).unwrap().unwrap(), next);
            } else {
                assert!(matches!(answer, Err(StoreError::Transition { .. })), "{from:?} -> {to:?}");
                assert_eq!(w.run(&run_id(1)).unwrap().unwrap(), as_state(from, 2));
            }
            w.update_run(&w.run(&run_id(1)).unwrap().unwrap()).unwrap();
        }
    }
    let mut desk = Desk::new();
    assert!(matches!(desk.begin().update_run(&run(&id("t"), 1, 1)), Err(StoreError::Missing { .. })));
}

#[test]
fn an_operation_ends_once() {
    let mut desk = Desk::new();
    let w = desk.begin();
    let op = operation("a");
    w.insert_operation(&op).unwrap();
    assert!(matches!(w.insert_operation(&operation("A")), Err(StoreError::Exists { .. })));
    let over = OperationRecord { status: OperationStatus::Succeeded, ended_at: Some(at(3)), ..op.clone() };
    for half in [
        OperationRecord { ended_at: None, ..over.clone() },
        OperationRecord { status: OperationStatus::InProgress, ..over.clone() },
    ] {
        assert!(matches!(w.update_operation(&half), Err(StoreError::Unstorable { .. })));
    }
    w.update_operation(&over).unwrap();
    w.update_operation(&over).unwrap();
    for other in [op, OperationRecord { status: OperationStatus::Failed, ..over.clone() }] {
        assert!(matches!(w.update_operation(&other), Err(StoreError::OperationEnded(_))));
    }
    assert_eq!(w.operation("a").unwrap().unwrap(), over);
}

#[test]
fn a_template_has_one_active_run() {
    let mut desk = Desk::new();
    let w = desk.begin();
    w.insert_run(&run(&id("t"), 1, 1)).unwrap();
    let second = run(&id("T"), 2, 2);
    assert!(matches!(w.insert_run(&second), Err(StoreError::Exists { what: "active run", .. })));
    assert!(matches!(w.insert_run(&run(&id("u"), 1, 1)), Err(StoreError::Exists { what: "run", .. })));
    w.insert_run(&run(&id("u"), 3, 3)).unwrap();
    assert_eq!(w.active_run(&id("T")).unwrap().unwrap().id, run_id(1));
    let unfinished: Vec<_> = w.unfinished_runs().unwrap().into_iter().map(|run| run.id).collect();
    assert_eq!(unfinished, [run_id(1), run_id(3)]);
    w.update_run(&ended(run(&id("t"), 1, 1), RunState::Failed, 4)).unwrap();
    assert!(w.active_run(&id("t")).unwrap().is_none());
    w.insert_run(&second).unwrap();

    // The database itself knows, too: whatever the code above it comes to do.
    let raw = w.connection.execute("UPDATE runs SET finished = 0 WHERE id = ?1", [run_id(1).as_str()]);
    assert!(raw.unwrap_err().to_string().contains("UNIQUE"));
}

#[test]
fn a_template_says_what_its_newest_run_says() {
    let mut desk = Desk::new();
    let w = desk.begin();
    w.insert_template(&template("t")).unwrap();
    let last = |w: &Writer<'_>| w.template(&id("t")).unwrap().unwrap().last_run;
    assert!(last(&w).is_none());
    let first = run(&id("T"), 1, 10);
    w.insert_run(&first).unwrap();
    let now = last(&w).unwrap();
    assert_eq!(
        (now.run, now.state, now.phase, now.started_at),
        (run_id(1), RunState::Running, first.phase, at(10))
    );
    let first = ended(RunRecord { started_at: Some(at(11)), ..first }, RunState::Failed, 12);
    w.update_run(&first).unwrap();
    let now = last(&w).unwrap();
    assert_eq!((now.state, now.ended_at, now.message.as_str()), (RunState::Failed, Some(at(12)), "over"));
    w.insert_run(&run(&id("t"), 2, 20)).unwrap();
    assert_eq!(last(&w).unwrap().run, run_id(2));
    // An older one that becomes known late is not the last.
    w.insert_run(&ended(run(&id("t"), 3, 15), RunState::Canceled, 16)).unwrap();
    assert_eq!(last(&w).unwrap().run, run_id(2));
    // What was said stays said.
    w.delete_run(&run_id(2)).unwrap();
    assert_eq!(last(&w).unwrap().run, run_id(2));

    // Its successor of that name begins anew, also while a run of the old one still ends.
    let old = run(&id("t"), 4, 30);
    w.insert_run(&old).unwrap();
    assert!(w.delete_template(&id("T")).unwrap());
    assert!(!w.delete_template(&id("T")).unwrap());
    w.insert_template(&TemplateRecord { created_at: at(31), ..template("t") }).unwrap();
    w.update_run(&ended(old, RunState::Canceled, 32)).unwrap();
    assert!(last(&w).is_none());
}

#[test]
fn a_run_output_is_the_newest_artifact_of_its_name() {
    let mut desk = Desk::new();
    let w = desk.begin();
    w.insert_template(&template("t")).unwrap();
    let (old, new) = (output(&id("t"), "Out", &run_id(1)), output(&id("t"), "out", &run_id(2)));
    w.put_output(&old).unwrap();
    w.put_output(&old).unwrap();
    assert!(!w.delete_artifact(&run_id(1), "Out.vhd").unwrap(), "it is the run output");
    w.put_output(&new).unwrap();
    w.put_output(&output(&id("t"), "b", &run_id(2))).unwrap();
    assert_eq!(w.output(&id("T"), "OUT").unwrap().unwrap(), new);
    let names: Vec<_> = w.outputs(&id("t")).unwrap().into_iter().map(|output| output.name).collect();
    assert_eq!(names, ["b", "out"]);
    assert_eq!(w.outputs_of_run(&run_id(1)).unwrap(), std::slice::from_ref(&old));
    assert_eq!(w.artifact(&run_id(1), "Out.vhd").unwrap(), Some(old));
    assert!(w.artifact(&run_id(1), "out.vhd").unwrap().is_none(), "files have case");
    assert_eq!(w.artifacts(&id("T")).unwrap().len(), 3);
    assert!(w.delete_artifact(&run_id(1), "Out.vhd").unwrap());
    assert!(!w.delete_artifact(&run_id(1), "Out.vhd").unwrap());

    // The template goes, its artifacts stay.
    w.delete_template(&id("t")).unwrap();
    assert!(w.outputs(&id("t")).unwrap().is_empty());
    assert_eq!(w.artifacts(&id("t")).unwrap().len(), 2);
    assert!(w.delete_artifact(&run_id(2), "out.vhd").unwrap());
    // An end that comes after its template went is kept, and is no run output.
    w.put_output(&output(&id("t"), "late", &run_id(3))).unwrap();
    assert!(w.output(&id("t"), "late").unwrap().is_none());
    assert!(w.artifact(&run_id(3), "late.vhd").unwrap().is_some());
}

/// Its path is made of it, to send and to remove the file.
#[test]
fn an_artifact_lies_in_its_folder() {
    let mut desk = Desk::new();
    let w = desk.begin();
    for file in ["", "..", "../x.vhd", "/etc/passwd", "a/b", "a\0b"] {
        let mut bad = output(&id("t"), "out", &run_id(1));
        bad.output.file = file.into();
        assert!(matches!(w.put_output(&bad), Err(StoreError::Unstorable { .. })), "{file:?}");
    }
}

#[test]
fn triggers_go_with_their_template_and_need_one() {
    let mut desk = Desk::new();
    let w = desk.begin();
    let trigger = |name: &str| TriggerRecord {
        template: id("t"),
        name: name.into(),
        kind: "SourceImage".into(),
        created_at: at(0),
        created_by: "me".into(),
        modified_at: at(0),
        modified_by: "me".into(),
    };
    assert!(matches!(w.put_trigger(&trigger("a")), Err(StoreError::Missing { .. })));
    w.insert_template(&template("t")).unwrap();
    w.put_trigger(&trigger("a")).unwrap();
    w.delete_template(&id("t")).unwrap();
    w.insert_template(&template("t")).unwrap();
    assert!(w.triggers(&id("t")).unwrap().is_empty());
}

#[test]
fn what_is_pending_is_found() {
    let mut desk = Desk::new();
    let w = desk.begin();
    for name in ["b", "a", "c"] {
        w.insert_template(&template(name)).unwrap();
    }
    w.update_template(&TemplateRecord { pending: None, ..template("a") }).unwrap();
    let names: Vec<_> = w.pending_templates().unwrap().into_iter().map(|t| t.id.name).collect();
    assert_eq!(names, ["b", "c"]);
}

/// Rows hold secrets; the parser's own words would quote them.
#[test]
fn a_damaged_row_is_named_and_not_shown() {
    let mut desk = Desk::new();
    let w = desk.begin();
    w.insert_template(&template("t")).unwrap();
    for (column, text) in [("copies", "\"canary\""), ("properties", "{\"canary"), ("provisioning", "canary")]
    {
        w.connection.execute_batch("SAVEPOINT s").unwrap();
        w.connection.execute(&format!("UPDATE templates SET {column} = ?1"), [text]).unwrap();
        let error = w.template(&id("t")).err().unwrap();
        assert!(
            matches!(&error, StoreError::Unreadable { what: "template", column: c, .. } if *c == column),
            "{error}"
        );
        let shown = format!("{error:?} {error}");
        assert!(!shown.contains("canary"), "{shown}");
        w.connection.execute_batch("ROLLBACK TO s").unwrap();
    }
}
