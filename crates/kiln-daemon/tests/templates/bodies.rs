//! Bodies that are refused, and how; PUT over what is there.

use kiln_daemon::store::{OperationStatus, ProvisioningState};
use kiln_daemon::templates::{PutOptions, view};
use kiln_model::api::ApiVersion;
use serde_json::json;

use crate::home::*;

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_have_their_codes_and_texts() {
    let home = Home::new().await;
    let good = body(json!([]));
    let changed = |pointer: &str, value: serde_json::Value| {
        let mut body = good.clone();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[name] = value;
        body.to_string()
    };
    let deep = format!("{}{}", "[".repeat(70), "]".repeat(70));
    let table: Vec<(&str, ApiVersion, String, &str, &str)> = vec![
        ("empty", NEW, String::new(), "InvalidRequestContent", "could not be deserialized"),
        ("no JSON", NEW, "location: westus2".to_owned(), "InvalidRequestContent", "not JSON"),
        ("a list", NEW, "[]".to_owned(), "InvalidRequestContent", "an image template is an object"),
        ("deep", NEW, deep, "InvalidRequestContent", "nested more than 64"),
        (
            "no location",
            NEW,
            changed("/location", json!(null)),
            "ValidationFailed",
            "Validation failed: 'ImageTemplate': Missing field 'location'. Please review http://aka.ms/azvmimagebuildertmplref for details",
        ),
        (
            "bad value",
            NEW,
            changed("/properties/source", json!({"type": "ManagedImage", "imageId": "x"})),
            "ValidationFailed",
            "Validation failed: 'ImageTemplate.properties.source': Field 'imageId' has a bad value: 'x'. Please review  http://aka.ms/azvmimagebuildertmplref  for details on fields requirements in the Image Builder Template.",
        ),
        (
            "case of a type, old",
            ApiVersion::V2021_10_01,
            changed("/properties/distribute", json!([{"type": "vhd", "runOutputName": "o"}])),
            "ValidationFailed",
            "Field 'distribute[0].type' has a bad value: ''",
        ),
        (
            "unknown field, strict",
            ApiVersion::V2024_02_01,
            changed("/properties/optimize", json!({"vmboot": {}})),
            "ValidationFailed",
            "Unmarshalling entity encountered error: unmarshalling type *v2024_02_01.ImageTemplate: struct field Properties: struct field Optimize: unknown field \"vmboot\". There is an issue with the syntax with the JSON template you are submitting",
        ),
        (
            "apiVersion in a strict body",
            ApiVersion::V2024_02_01,
            changed("/apiVersion", json!("2024-02-01")),
            "ValidationFailed",
            "unmarshalling type *v2024_02_01.ImageTemplate: unknown field \"apiVersion\"",
        ),
        (
            "Shell on Windows",
            NEW,
            {
                let mut body = body(json!([{"type": "Shell", "inline": ["true"]}]));
                body["properties"]["source"]["publisher"] = json!("MicrosoftWindowsServer");
                body.to_string()
            },
            "CustomizerNotSupportedForImage",
            "Customizer shell is not supported on Windows images",
        ),
        (
            "repeated key",
            LENIENT,
            good.to_string().replacen("{", "{\"location\":\"a\",", 1),
            "ValidationFailed",
            "\"location\" is here for the second time",
        ),
    ];
    for (what, version, text, code, part) in table {
        let error = home
            .templates
            .put(&id("t"), version, text.as_bytes(), PutOptions::default())
            .await
            .err()
            .expect(what);
        assert_eq!(error.code(), code, "{what}: {error}");
        assert!(error.to_string().contains(part), "{what}: {error}");
    }
    for name in ["", "a/b", "a b", "ä", &"x".repeat(65)] {
        let error = home
            .templates
            .put(&id(name), NEW, good.to_string().as_bytes(), PutOptions::default())
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains("Field 'name' has a bad value"), "{name}: {error}");
    }
    assert!(home.template().await.is_none(), "nothing of it is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_problems_come_at_once_with_their_places() {
    let home = Home::new().await;
    let text = "{\n \"location\": \"l\",\n \"properties\": {\n  \"buildTimeoutInMinutes\": 5000,\n  \"distribute\": []\n }\n}";
    let error =
        home.templates.put(&id("t"), NEW, text.as_bytes(), PutOptions::default()).await.err().unwrap();
    let found: Vec<(String, bool)> = error
        .details()
        .into_iter()
        .map(|detail| (detail.target.unwrap_or_default(), detail.message.starts_with("line ")))
        .collect();
    for pointer in ["/properties", "/properties/buildTimeoutInMinutes", "/properties/distribute"] {
        assert!(found.contains(&(pointer.to_owned(), true)), "{pointer}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lenient_bodies_are_stored_as_they_were_understood() {
    let home = Home::new().await;
    let mut lenient = body(json!([]));
    lenient["PROPERTIES"] = lenient["properties"].take();
    lenient.as_object_mut().unwrap().remove("properties");
    lenient["apiVersion"] = json!("2020-02-14");
    lenient["PROPERTIES"]["unheardOf"] = json!(1);
    let (record, _) = home.put_done(&lenient).await;
    let shown = view(&record, NEW);
    assert_eq!(shown["properties"]["source"]["offer"], "debian-12");
    assert!(shown.get("apiVersion").is_none() && shown["properties"].get("unheardOf").is_none(), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn put_over_an_existing_template() {
    let web = Web::start([("/old", ok(b"old")), ("/new", ok(b"new")), ("/slow", hangs_once(b"slow"))]).await;
    let at = |path: &str| format!("{}{path}", web.base);
    let home = Home::new().await;
    let (first, _) = home.put_done(&body(json!([script(&at("/old"))]))).await;

    // As the service has it.
    let error = home.put(&body(json!([]))).await.err().unwrap();
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        ("Conflict", "Update/Upgrade of image templates is currently not supported")
    );

    // A replacement that fails leaves what there is.
    let accepted = home.replace(&body(json!([script(&at("/gone"))]))).await.unwrap();
    assert!(!accepted.created);
    assert_eq!(accepted.template.provisioning, ProvisioningState::Updating);
    let (record, operation) = home.ended(&accepted.operation.id).await;
    assert_eq!(operation.status, OperationStatus::Failed);
    assert!(is_succeeded(&record));
    assert_eq!((&record.properties, &record.copies.len()), (&first.properties, &1));
    assert_eq!(record.created_at, first.created_at);

    // The tag asks for it, too; one that is under way is not to be replaced.
    let mut tagged = body(json!([script(&at("/slow"))]));
    tagged["tags"] = json!({"kiln.replace": "True"});
    let slow = home.put(&tagged).await.unwrap();
    assert_eq!(view(&slow.template, NEW)["tags"], tagged["tags"], "the answer is what it is to become");
    let error = home.replace(&body(json!([]))).await.err().unwrap();
    assert_eq!(error.code(), "OperationNotAllowed");
    assert!(error.to_string().contains("is not allowed in provisioningState: 'updating'"), "{error}");
    assert_eq!(view(&home.template().await.unwrap(), NEW)["tags"], json!({"team": "a"}), "still what it was");
    while web.hits("/slow") == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let home = home.reopened().await;
    let (record, _) = home.ended(&slow.operation.id).await;
    assert!(is_succeeded(&record));
    assert_eq!((record.copies[0].sha256, record.tags.len()), (sha256(b"slow"), 1), "after a restart as well");
    assert_eq!(record.created_at, first.created_at, "with its history");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_template_is_deleted_first_or_replaced() {
    let web = Web::start([("/a", ok(b"a"))]).await;
    let home = Home::new().await;
    home.put_done(&body(json!([script(&format!("{}/gone", web.base))]))).await;
    let good = body(json!([script(&format!("{}/a", web.base))]));
    let error = home.put(&good).await.err().unwrap();
    assert_eq!(error.code(), "Conflict");
    assert!(error.to_string().contains("delete it"), "{error}");
    let accepted = home.replace(&good).await.unwrap();
    assert_eq!(accepted.template.provisioning, ProvisioningState::Creating);
    let (record, _) = home.ended(&accepted.operation.id).await;
    assert!(is_succeeded(&record));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redacted_address_keeps_the_copy() {
    let web = Web::start([("/a", after(0, b"a")), ("/b", ok(b"b"))]).await;
    let home = Home::new().await;
    let (first, _) = home.put_done(&body(json!([script(&web.secret("/a"))]))).await;
    // What a reader gets, with one step more, sent back.
    let mut shown = view(&first, LENIENT);
    let steps = shown["properties"]["customize"].as_array_mut().unwrap();
    assert_eq!(steps[0]["scriptUri"], format!("{}/a?<redacted>", web.base));
    steps.push(script(&web.secret("/b")));
    let accepted = home.replace(&shown).await.unwrap();
    let (record, operation) = home.ended(&accepted.operation.id).await;
    assert_eq!(operation.status, OperationStatus::Succeeded, "{:?}", operation.error);
    assert_eq!(record.copies.len(), 2);
    assert!(record.copies.iter().any(|copy| copy.address == web.secret("/a")), "whole again inside");
    assert_eq!((web.hits("/a"), web.hits("/b")), (1, 1), "the copy is good");

    // Another file is asked for by its digest: the address is asked again.
    let mut wrong = view(&record, LENIENT);
    wrong["properties"]["customize"][0]["sha256Checksum"] = json!(sha256(b"other"));
    let accepted = home.replace(&wrong).await.unwrap();
    let (record, operation) = home.ended(&accepted.operation.id).await;
    assert!(operation.error.unwrap().message.contains("does not match"));
    assert!(is_succeeded(&record));
    assert_eq!(web.hits("/a"), 2);

    // Nobody knows this one.
    let strange = body(json!([script(&format!("{}/strange?<redacted>", web.base))]));
    let error = home.replace(&strange).await.err().unwrap();
    assert!(error.to_string().contains("<redacted>"), "{error}");
}
