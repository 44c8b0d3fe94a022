//! DELETE, and runs that begin by themselves.

use std::sync::Arc;
use std::time::Duration;

use kiln_daemon::executor::{Placement, WorkerCommand};
use kiln_daemon::runs::{HostBudget, Planner, Runs, RunsSettings, Unplannable};
use kiln_daemon::store::{OperationStatus, ProvisioningState, RunFilter, StoreError};
use kiln_daemon::templates::DeleteOptions;
use kiln_model::run::{Fault, RunState};
use serde_json::json;

use crate::home::*;

/// Runs whose planning takes `takes` and comes to nothing: active for so long, without a guest.
async fn runs(home: &Home, takes: Duration) -> Runs {
    let planner: Planner = Arc::new(move |_, _| {
        std::thread::sleep(takes);
        Err(Unplannable { fault: Fault::Template, cause: "this is a test".to_owned() })
    });
    let settings = RunsSettings {
        runs_root: home.dir.path().join("runs"),
        checkpoints: None,
        artifacts_root: home.dir.path().join("artifacts"),
        library: home.settings.shelves.library.clone(),
        worker: WorkerCommand::new("/bin/false"),
        budget: HostBudget { memory_mib: 1 << 20, cpus: 64 },
        placement: Some(Placement::Session { inside_service: None }),
        worker_user: None,
        kill_after: Duration::from_secs(1),
    };
    Runs::open(home.store.clone(), planner, settings).await.unwrap()
}

fn force() -> DeleteOptions {
    DeleteOptions { force: true, by: "me".to_owned(), purge: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_goes_and_deleting_nothing_is_fine() {
    let home = Home::new().await;
    let runs = runs(&home, Duration::ZERO).await;
    home.put_done(&body(json!([]))).await;
    let operation =
        home.templates.delete(&id("t"), NEW, DeleteOptions::default(), &runs).await.unwrap().unwrap();
    let ended = home.operation_ended(&operation.id).await;
    assert_eq!(ended.status, OperationStatus::Succeeded);
    assert!(home.template().await.is_none());
    assert!(home.templates.delete(&id("t"), NEW, DeleteOptions::default(), &runs).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_created_goes_by_force_only() {
    let web = Web::start([("/slow", always(504, b""))]).await;
    let home = Home::new().await;
    let runs = runs(&home, Duration::ZERO).await;
    let accepted = home.put(&body(json!([script(&format!("{}/slow", web.base))]))).await.unwrap();
    let error = home.templates.delete(&id("t"), NEW, DeleteOptions::default(), &runs).await.unwrap_err();
    assert_eq!(error.code(), "OperationNotAllowed");
    assert_eq!(
        error.to_string(),
        "Operation 'Microsoft.VirtualMachineImages/imageTemplates/delete' is not allowed in provisioningState: 'creating'"
    );
    let operation = home.templates.delete(&id("t"), NEW, force(), &runs).await.unwrap().unwrap();
    assert_eq!(home.operation_ended(&operation.id).await.status, OperationStatus::Succeeded);
    assert_eq!(home.operation_ended(&accepted.operation.id).await.status, OperationStatus::Canceled);
    assert!(home.template().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_with_a_run_goes_by_force_after_the_run() {
    let home = Home::new().await;
    let runs = runs(&home, Duration::from_millis(1500)).await;
    home.put_done(&body(json!([]))).await;
    let run = runs.enqueue(&id("t"), "me", NEW.as_str()).await.unwrap();
    let error = home.templates.delete(&id("t"), NEW, DeleteOptions::default(), &runs).await.unwrap_err();
    assert!(error.to_string().ends_with("provisioningState: 'provisioned', runState: 'running'"), "{error}");
    let error = home.templates.patch(&id("t"), NEW, b"{\"tags\":{}}", "x").await.err().unwrap();
    assert_eq!(error.code(), "OperationNotAllowed");
    let error = home.replace(&body(json!([]))).await.err().unwrap();
    assert!(error.to_string().contains("imageTemplates/write' is not allowed"), "{error}");

    let operation = home.templates.delete(&id("t"), NEW, force(), &runs).await.unwrap().unwrap();
    let same = home.templates.delete(&id("t"), NEW, force(), &runs).await.unwrap().unwrap();
    assert_eq!(same.id, operation.id, "one deletion");
    assert_eq!(home.template().await.unwrap().provisioning, ProvisioningState::Deleting);
    assert_eq!(home.operation_ended(&operation.id).await.status, OperationStatus::Succeeded);
    assert!(home.template().await.is_none());
    let run = home.store.read::<_, StoreError, _>(move |r| r.run(&run.id)).await.unwrap().unwrap();
    assert!(run.state.is_final(), "its history stays: {:?}", run.state);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_cut_off_goes_on() {
    let home = Home::new().await;
    let first = runs(&home, Duration::from_millis(500)).await;
    home.put_done(&body(json!([]))).await;
    first.enqueue(&id("t"), "me", NEW.as_str()).await.unwrap();
    let operation = home.templates.delete(&id("t"), NEW, force(), &first).await.unwrap().unwrap();
    first.shutdown().await;
    let home = home.reopened().await;
    let second = runs(&home, Duration::ZERO).await;
    home.templates.attach(second).await.unwrap();
    assert_eq!(home.operation_ended(&operation.id).await.status, OperationStatus::Succeeded);
    assert!(home.template().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_run_runs_once() {
    let home = Home::new().await;
    let runs = runs(&home, Duration::ZERO).await;
    home.templates.attach(runs).await.unwrap();
    let mut template = body(json!([]));
    template["properties"]["autoRun"] = json!({"state": "Enabled"});
    let accepted = home
        .templates
        .put(&id("t"), NEW, template.to_string().as_bytes(), Default::default())
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    home.ended(&accepted.operation.id).await;
    let filter = || RunFilter { template: Some(id("t")), state: None };
    for _ in 0..500 {
        let found =
            home.store.read::<_, StoreError, _>(move |r| r.runs(&filter(), None, 10)).await.unwrap().items;
        if let [run] = found.as_slice()
            && run.state == RunState::Failed
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not run");
}
