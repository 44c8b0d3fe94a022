//! Plans of stored templates.

use kiln_daemon::templates::{PlanError, view};
use kiln_model::plan::{HostLimits, InputLocation};
use kiln_model::run::Fault;
use serde_json::json;

use crate::home::*;

const HOST: HostLimits = HostLimits { cpus: 2, memory_mib: 4096 };

/// An image on the shelf, as its record says; nobody reads the disk here.
fn shelve(home: &Home, version: &str) {
    let dir = home.settings.shelves.library.join("images/debian-12").join(version);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("disk.qcow2"), "disk").unwrap();
    let record = json!({
        "format": 1, "name": "debian-12", "version": version, "file": "disk.qcow2", "diskFormat": "qcow2",
        "sha256": sha256(b"disk"), "virtualSize": 2u64 << 30, "os": "linux", "generations": ["V2", "V1"],
        "arch": "x86_64", "login": "cloud-init", "platform": [], "storedAt": "2026-01-01T00:00:00Z",
        "origin": {"kind": "imported", "sha256": sha256(b"disk")}
    });
    std::fs::write(dir.join("image.json"), record.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_names_copies_and_no_secret() {
    let web = Web::start([("/dir/a.sh", ok(b"echo a")), ("/b.tar", ok(b"bee"))]).await;
    let home = Home::new().await;
    let (record, _) = home
        .put_done(&body(json!([
            script(&web.secret("/dir/a.sh")),
            {"type": "Shell", "inline": ["true"]},
            {"type": "File", "sourceUri": web.secret("/b.tar"), "destination": "/tmp/"}
        ])))
        .await;
    let error = home.templates.plan(&record, HOST).unwrap_err();
    assert!(matches!(error, PlanError::Image(_)), "{error}");
    assert_eq!(error.fault(), Fault::Host);
    assert!(error.text().contains("kiln images"), "{}", error.text());

    shelve(&home, "12.1");
    let mut plan = home.templates.plan(&record, HOST).unwrap();
    let inputs: Vec<_> = plan.inputs_mut().map(|input| input.clone()).collect();
    assert_eq!(inputs[0].sha256, Some(sha256(b"echo a")));
    assert_eq!(
        inputs[0].location,
        InputLocation::Stored { address: format!("{}/dir/a.sh?<redacted>", web.base) }
    );
    assert_eq!(inputs[1].location.file_name(), "b.tar", "what a destination with a slash gets");
    assert!(!plan.to_json().contains("CANARY"));
    // Its worker has them without a network.
    drop(web);
    let control = kiln_host::wait::Control::ending_in(std::time::Duration::from_secs(5));
    let had = home.library().ensure_inputs(&inputs, &Default::default(), |_| {}, &control).await;
    assert!(had.iter().all(Result::is_ok), "{had:?}");

    // A newer base is used without another word, and exactVersion says so.
    shelve(&home, "12.3");
    let plan = home.templates.plan(&record, HOST).unwrap();
    assert_eq!(plan.source.version, "12.3");
    for _ in 0..500 {
        if home.template().await.unwrap().exact_version.as_deref() == Some("12.3") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let shown = view(&home.template().await.unwrap(), NEW);
    assert_eq!(shown["properties"]["source"]["exactVersion"], "12.3");

    std::fs::remove_file(home.library().input_path(sha256(b"bee"))).unwrap();
    let error = home.templates.plan(&record, HOST).unwrap_err();
    assert!(
        matches!(error, PlanError::CopyGone { .. }) && !error.text().contains("CANARY"),
        "{}",
        error.text()
    );
    let had = home.library().ensure_inputs(&inputs, &Default::default(), |_| {}, &control).await;
    let text = had[1].as_ref().unwrap_err().to_string();
    assert!(text.contains("the stored copy of") && text.contains("is gone"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_built_is_stored_and_refused_at_the_run() {
    let home = Home::new().await;
    shelve(&home, "12.1");
    let mut template = body(json!([]));
    template["properties"]["distribute"] = json!([{
        "type": "ManagedImage", "runOutputName": "m", "location": "l",
        "imageId": "/subscriptions/s/resourceGroups/r/providers/Microsoft.Compute/images/i"
    }]);
    template["properties"]["validate"] = json!({"inVMValidations": [{"type": "Shell", "inline": ["true"]}]});
    let accepted = home.put(&template).await.unwrap();
    assert_eq!(
        accepted.notes.iter().filter(|note| note.message.contains("does not build it yet")).count(),
        2
    );
    let (record, _) = home.ended(&accepted.operation.id).await;
    assert!(is_succeeded(&record));
    let error = home.templates.plan(&record, HOST).unwrap_err();
    assert_eq!(error.fault(), Fault::Template);
    for part in ["the distributor 'ManagedImage'", "/properties/distribute/0", "'validate'"] {
        assert!(error.text().contains(part), "{part}: {}", error.text());
    }
}
