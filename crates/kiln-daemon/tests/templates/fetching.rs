//! Files: fetched, refused, brought, and had again after a restart.

use kiln_daemon::store::{OperationStatus, ProvisioningState};
use kiln_daemon::templates::{PutOptions, view};
use kiln_host::wait::Control;
use serde_json::{Value, json};

use crate::home::*;

#[tokio::test(flavor = "multi_thread")]
async fn files_become_copies_and_secrets_stay_inside() {
    let web = Web::start([("/a.sh", after(3, b"echo a")), ("/b", ok(b"bee"))]).await;
    let home = Home::new().await;
    let steps = json!([
        script(&web.secret("/a.sh")),
        {"type": "File", "sourceUri": web.secret("/b"), "destination": "/tmp/b", "sha256Checksum": sha256(b"bee")},
        // The same file again is fetched once.
        {"type": "File", "sourceUri": web.secret("/b"), "destination": "/tmp/c"}
    ]);
    let accepted = home.put(&body(steps)).await.unwrap();
    assert!(accepted.created);
    assert_eq!(accepted.operation.location, "westus2");
    assert_eq!(view(&accepted.template, NEW)["properties"]["provisioningState"], "Creating");
    let (record, operation) = home.ended(&accepted.operation.id).await;
    assert_eq!((operation.status, operation.error), (OperationStatus::Succeeded, None));
    assert!(is_succeeded(&record) && record.pending.is_none());
    assert_eq!((web.hits("/a.sh"), web.hits("/b")), (4, 1));

    let copies: Vec<_> = record.copies.iter().map(|copy| (copy.sha256, copy.size)).collect();
    assert_eq!(copies, [(sha256(b"echo a"), 6), (sha256(b"bee"), 3)]);
    assert_eq!(std::fs::read(home.library().input_path(sha256(b"bee"))).unwrap(), b"bee");
    let shown = view(&record, NEW).to_string();
    assert!(shown.contains("/a.sh?<redacted>") && !shown.contains("CANARY"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_had_fails_the_template_in_the_services_words() {
    let web = Web::start([
        ("/down", always(503, b"")),
        ("/lie", ok(b"not what was meant")),
        ("/good", ok(b"good")),
    ])
    .await;
    let wrong = json!({"type": "Shell", "scriptUri": web.secret("/lie"), "sha256Checksum": sha256(b"meant")});
    for (step, hits, code, texts) in [
        (
            script(&web.secret("/down")),
            ("/down", 10),
            "NoCustomizerScript",
            vec![
                "Downloading external file (",
                ".1.customizer.fp) [attempt 10 of 10] failed: Error downloading '",
                "503",
            ],
        ),
        // Nobody asks ten times for what is not there.
        (
            script(&web.secret("/gone")),
            ("/gone", 1),
            "NoCustomizerScript",
            vec!["[attempt 1 of 10]", "404 (Not Found)"],
        ),
        (wrong, ("/lie", 1), "NoCustomizerScript", vec!["does not match its sha256Checksum"]),
    ] {
        let home = Home::new().await;
        let (record, operation) = home.put_done(&body(json!([script(&web.secret("/good")), step]))).await;
        assert_eq!(record.provisioning, ProvisioningState::Failed);
        assert_eq!(operation.status, OperationStatus::Failed);
        let (error, told) = (record.provisioning_error.clone().unwrap(), operation.error.unwrap());
        assert_eq!((&error.code, &error.message), (&told.code, &told.message));
        assert_eq!(error.code, code);
        for text in texts {
            assert!(error.message.contains(text), "{text}: {}", error.message);
        }
        assert!(!error.message.contains("CANARY"), "{}", error.message);
        assert_eq!(web.hits(hits.0), hits.1, "{}", hits.0);
        let shown = view(&record, NEW);
        assert_eq!(shown["properties"]["provisioningError"]["provisioningErrorCode"], code);
        assert!(!shown.to_string().contains("CANARY"));
        assert!(record.copies.is_empty(), "half of the files are no template");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_fetch_from_itself() {
    let web = Web::start([("/a", ok(b"inside"))]).await;
    let home = Home::with(|settings| settings.allow_private = false).await;
    let port = web.base.rsplit(':').next().unwrap().to_owned();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "169.254.169.254"] {
        let address = format!("http://{host}:{port}/a?{CANARY}");
        let accepted = home.replace(&body(json!([script(&address)]))).await.unwrap();
        let (record, operation) = home.ended(&accepted.operation.id).await;
        assert_eq!(record.provisioning, ProvisioningState::Failed, "{host}");
        let text = operation.error.unwrap().message;
        assert!(text.contains("is not fetched") && text.contains("allowPrivateAddresses"), "{host}: {text}");
        assert!(!text.contains("CANARY") && !text.contains("attempt"), "{text}");
    }
    assert_eq!(web.hits("/a"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_host_need_an_open_folder_or_an_upload() {
    let open = tempfile::tempdir().unwrap();
    std::fs::write(open.path().join("a.sh"), "host").unwrap();
    let (inside, outside) =
        (format!("file://{}/a.sh", open.path().display()), "file:///etc/hostname".to_owned());

    let home = Home::new().await;
    let error = home.put(&body(json!([script(&inside)]))).await.err().unwrap();
    assert_eq!(error.code(), "ValidationFailed");
    assert!(error.to_string().contains("inputs.fileRoots"), "{error}");
    assert_eq!(error.target().as_deref(), Some("/properties/customize/0"));
    assert!(home.template().await.is_none());

    let root = open.path().to_owned();
    let home = Home::with(|settings| settings.file_roots = vec![root]).await;
    assert!(home.put(&body(json!([script(&inside), script(&outside)]))).await.is_err());
    let (record, _) = home.put_done(&body(json!([script(&inside)]))).await;
    assert!(is_succeeded(&record));
    assert_eq!(record.copies[0].sha256, sha256(b"host"));

    // What a client brought is used whatever its address is.
    let home = Home::new().await;
    let control = Control::ending_in(std::time::Duration::from_secs(10));
    let store =
        async |bytes: &[u8]| home.library().store_input(None, 1 << 20, bytes, &control).await.unwrap().sha256;
    let file = store(b"uploaded").await;
    let manifest = store(json!({ outside.clone(): file }).to_string().as_bytes()).await;
    let with = |uploads| PutOptions { uploads: Some(uploads), ..PutOptions::default() };
    let steps = body(json!([script(&outside)]));
    for (uploads, text) in [(sha256(b"none"), "no such upload"), (file, "no JSON object")] {
        let error = home.put_with(&steps, with(uploads)).await.err().unwrap();
        assert!(error.to_string().contains(text), "{error}");
    }
    let accepted = home.put_with(&steps, with(manifest)).await.unwrap();
    let (record, _) = home.ended(&accepted.operation.id).await;
    assert!(is_succeeded(&record), "{:?}", record.provisioning_error);
    assert_eq!(record.copies[0].sha256, file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_goes_on_with_what_was_cut_off() {
    let web = Web::start([("/slow", hangs_once(b"at last"))]).await;
    let home = Home::new().await;
    let accepted = home.put(&body(json!([script(&web.secret("/slow"))]))).await.unwrap();
    while web.hits("/slow") == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let home = home.reopened().await;
    let (record, operation) = home.ended(&accepted.operation.id).await;
    assert_eq!(operation.status, OperationStatus::Succeeded);
    assert!(is_succeeded(&record));
    assert_eq!((web.hits("/slow"), record.copies[0].sha256), (2, sha256(b"at last")));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_templates_at_once_all_get_there() {
    let web = Web::start([("/a", after(5, b"a"))]).await;
    let home = Home::new().await;
    let text = body(json!([script(&format!("{}/a", web.base))])).to_string();
    let mut operations = Vec::new();
    for number in 0..12 {
        let accepted = home
            .templates
            .put(&id(&format!("t{number}")), NEW, text.as_bytes(), PutOptions::default())
            .await
            .unwrap();
        operations.push(accepted.operation.id);
    }
    for operation in operations {
        assert_eq!(home.operation_ended(&operation).await.status, OperationStatus::Succeeded);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn validators_are_fetched_too() {
    let web = Web::start([("/v", always(404, b""))]).await;
    let home = Home::new().await;
    let mut template = body(json!([]));
    template["properties"]["validate"] = json!({"inVMValidations": [script(&format!("{}/v", web.base))]});
    let accepted = home.put(&template).await.unwrap();
    let notes: Vec<String> = accepted.notes.iter().map(ToString::to_string).collect();
    assert!(
        notes.iter().any(|note| note.contains("warning") && note.contains("does not build it yet")),
        "{notes:?}"
    );
    let (record, _) = home.ended(&accepted.operation.id).await;
    assert_eq!(record.provisioning_error.unwrap().code, "NoValidatorScript");
    let _: Value = view(&home.template().await.unwrap(), LENIENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_library_fails_the_template_instead_of_leaving_it_in_the_making() {
    let web = Web::start([("/slow", hangs_once(b"x"))]).await;
    let home = Home::new().await;
    let accepted = home.put(&body(json!([script(&format!("{}/slow", web.base))]))).await.unwrap();
    while web.hits("/slow") == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    home.templates.shutdown().await;
    std::fs::write(home.settings.shelves.library.join("library.json"), r#"{"format": 999}"#).unwrap();
    let home = home.reopened().await;
    let (record, operation) = home.ended(&accepted.operation.id).await;
    assert_eq!(record.provisioning, ProvisioningState::Failed);
    let error = operation.error.unwrap();
    assert_eq!(error.code, "ServerError");
    assert!(
        error.message.contains("Internal error occurred") && error.message.contains("999"),
        "{}",
        error.message
    );
}
