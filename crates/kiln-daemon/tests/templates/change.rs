//! PATCH and triggers.

use kiln_daemon::store::{OperationStatus, ProvisioningState};
use kiln_daemon::templates::{trigger_view, view};
use kiln_model::api::ApiVersion;
use serde_json::{Value, json};

use crate::home::*;

const V2023: ApiVersion = ApiVersion::V2023_07_01;
const V2024: ApiVersion = ApiVersion::V2024_02_01;

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_changed_is() {
    let home = Home::new().await;
    home.put_done(&body(json!([]))).await;
    let patch = async |version, change: Value| {
        home.templates.patch(&id("t"), version, change.to_string().as_bytes(), "patcher").await
    };
    // az sends the identity's id in lower case.
    let lower = identity("Id1").to_ascii_lowercase();
    let accepted =
        patch(V2023, json!({"identity": {"type": "UserAssigned", "userAssignedIdentities": {lower: {}}}}))
            .await
            .unwrap();
    assert_eq!(accepted.operation.status, OperationStatus::Succeeded);
    let shown = view(&accepted.template, NEW);
    let ids = shown["identity"]["userAssignedIdentities"].as_object().unwrap();
    assert_eq!(ids.keys().collect::<Vec<_>>(), [&identity("Id1")], "the one it had");
    assert_eq!(accepted.template.api_version, LENIENT.as_str());

    let shown = view(&patch(V2023, json!({"tags": {"b": "c"}})).await.unwrap().template, NEW);
    assert_eq!(
        (&shown["tags"], &shown["systemData"]["lastModifiedBy"]),
        (&json!({"b": "c"}), &json!("patcher"))
    );
    let none =
        patch(V2023, json!({"identity": {"userAssignedIdentities": {identity("ID1"): null}}})).await.unwrap();
    assert_eq!(view(&none.template, NEW)["identity"], json!({"type": "None"}));

    let targets = json!([
        {"type": "VHD", "runOutputName": "OUT", "artifactTags": {"x": "y"}},
        {"type": "VHD", "runOutputName": "more"}
    ]);
    let more = patch(V2023, json!({"properties": {"distribute": targets}})).await.unwrap();
    assert_eq!(view(&more.template, NEW)["properties"]["distribute"], targets);
    let sized =
        patch(V2024, json!({"properties": {"vmProfile": {"vmSize": "Standard_D2s_v3"}}})).await.unwrap();
    assert_eq!(view(&sized.template, NEW)["properties"]["vmProfile"], json!({"vmSize": "Standard_D2s_v3"}));
    assert_eq!(sized.template.api_version, V2024.as_str());
    assert!(is_succeeded(&home.template().await.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_changed_is_not() {
    let home = Home::new().await;
    home.put_done(&body(json!([]))).await;
    let before = home.template().await.unwrap();
    for (version, change, code, text) in [
        (
            V2023,
            json!({"properties": {"distribute": [{"type": "VHD", "runOutputName": "other"}]}}),
            "ValidationFailed",
            "Distribute target with Runoutput name out not found in the update request. Deleting a distribution target is not allowed.",
        ),
        (
            V2023,
            json!({"properties": {"source": {}}}),
            "Conflict",
            "Update/Upgrade of image templates is currently not supported",
        ),
        (V2023, json!({"properties": {"vmProfile": {}}}), "Conflict", "since api-version 2024-02-01"),
        (
            ApiVersion::V2020_02_14,
            json!({"properties": {"distribute": []}}),
            "Conflict",
            "since api-version 2023-07-01",
        ),
        (V2023, json!({"location": "elsewhere"}), "Conflict", "not supported"),
        (
            V2024,
            json!({"Tags": {}}),
            "ValidationFailed",
            "ImageTemplateUpdateParameters: unknown field \"Tags\"",
        ),
        (
            V2024,
            json!({"properties": {"vmProfile": {"vmSize": "Nonsense"}}}),
            "ValidationFailed",
            "bad value: 'Nonsense'",
        ),
        (
            V2023,
            json!({"tags": []}),
            "ValidationFailed",
            "Field 'tags' must be an object of strings, not a list",
        ),
        (
            V2023,
            json!({"identity": {"type": "SystemAssigned"}}),
            "ValidationFailed",
            "bad value: 'SystemAssigned'",
        ),
        (
            V2023,
            json!({"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity("second"): {}}}}),
            "ValidationFailed",
            "2 identities are given; AIB takes one",
        ),
    ] {
        let text_of = change.to_string();
        let error =
            home.templates.patch(&id("t"), version, text_of.as_bytes(), "x").await.err().expect(&text_of);
        assert_eq!(error.code(), code, "{text_of}: {error}");
        assert!(error.to_string().contains(text), "{text_of}: {error}");
    }
    assert!(home.template().await.unwrap() == before, "nothing happened");
    let error = home.templates.patch(&id("other"), V2023, b"{}", "x").await.err().unwrap();
    assert_eq!(error.code(), "ResourceNotFound");
    assert_eq!(
        error.to_string(),
        "The Resource 'Microsoft.VirtualMachineImages/imageTemplates/other' under resource group 'rg' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_while_it_is_created() {
    let web = Web::start([("/slow", hangs_once(b"x"))]).await;
    let home = Home::new().await;
    home.put(&body(json!([script(&format!("{}/slow", web.base))]))).await.unwrap();
    let error = home.templates.patch(&id("t"), V2023, b"{\"tags\":{}}", "x").await.err().unwrap();
    assert_eq!(error.code(), "OperationNotAllowed");
    assert!(error.to_string().ends_with("is not allowed in provisioningState: 'creating'"), "{error}");
    assert_eq!(home.template().await.unwrap().provisioning, ProvisioningState::Creating);
    home.templates.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_that_meet_are_all_done() {
    let home = Home::new().await;
    home.put_done(&body(json!([]))).await;
    let patch = |change: Value| {
        let templates = home.templates.clone();
        async move { templates.patch(&id("t"), V2024, change.to_string().as_bytes(), "x").await.map(drop) }
    };
    let (tags, profile) = tokio::join!(
        patch(json!({"tags": {"new": "tag"}})),
        patch(json!({"properties": {"vmProfile": {"osDiskSizeGB": 50}}})),
    );
    tags.unwrap();
    profile.unwrap();
    let record = home.template().await.unwrap();
    assert_eq!(record.tags.len(), 1);
    assert_eq!(
        (&record.tags["new"], &record.properties["vmProfile"]["osDiskSizeGB"]),
        (&json!("tag"), &json!(50))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_have_rules_and_an_honest_status() {
    let home = Home::new().await;
    let put = async |name: &str, version, body: Value| {
        home.templates.put_trigger(&id("t"), name, version, body.to_string().as_bytes(), "me").await
    };
    let kind = json!({"properties": {"kind": "SourceImage"}});
    assert_eq!(put("tr", V2023, kind.clone()).await.unwrap_err().code(), "ResourceNotFound");
    home.put_done(&body(json!([]))).await;
    for (name, version, body, text) in [
        ("tr", V2023, json!({}), "Missing field 'properties'"),
        ("tr", V2023, json!({"properties": {}}), "Missing field 'kind'"),
        (
            "tr",
            V2023,
            json!({"properties": {"kind": "sourceImage"}}),
            "Field 'kind' has a bad value: 'sourceImage'",
        ),
        (
            "tr",
            V2024,
            json!({"properties": {"kind": "SourceImage", "x": 1}}),
            "Trigger: struct field Properties: unknown field \"x\"",
        ),
        ("a b", V2023, kind.clone(), "Field 'name' has a bad value"),
    ] {
        let error = put(name, version, body).await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
    let first = put("tr", V2023, kind.clone()).await.unwrap();
    assert!(first.created && first.operation.status == OperationStatus::Succeeded);
    let again = put("TR", V2023, kind.clone()).await.unwrap();
    assert!(!again.created);
    let error = put("second", V2023, kind.clone()).await.unwrap_err();
    assert!(error.to_string().contains("has the SourceImage trigger 'tr' already"), "{error}");
    let shown = trigger_view(&again.trigger, NEW);
    assert_eq!(shown["name"], "tr");
    assert_eq!(shown["properties"]["status"]["code"], "Inactive");
    assert!(trigger_view(&again.trigger, ApiVersion::V2020_02_14).get("systemData").is_none());

    assert!(home.templates.delete_trigger(&id("t"), "Tr").await.unwrap().is_some());
    assert!(home.templates.delete_trigger(&id("t"), "tr").await.unwrap().is_none());

    let gallery = "/subscriptions/s/resourceGroups/r/providers/Microsoft.Compute/galleries/g/images/i";
    for (source, target, text) in [
        (
            json!({"type": "PlatformImage", "publisher": "Debian", "offer": "debian-12", "sku": "12", "version": "1.2.3"}),
            None,
            "'latest'",
        ),
        (
            json!({"type": "ManagedImage", "imageId": "/subscriptions/s/resourceGroups/r/providers/Microsoft.Compute/images/i"}),
            None,
            "no versions to watch",
        ),
        (
            json!({"type": "SharedImageVersion", "imageVersionId": format!("{gallery}/versions/latest")}),
            Some(json!({"galleryImageId": gallery})),
            "the same image definition",
        ),
        (
            json!({"type": "SharedImageVersion", "imageVersionId": format!("{gallery}/versions/latest")}),
            Some(json!({"galleryImageId": format!("{gallery}2/versions/1.2.3")})),
            "to one version",
        ),
    ] {
        let mut template = body(json!([]));
        template["properties"]["source"] = source;
        if let Some(mut target) = target {
            target["type"] = json!("SharedImage");
            target["runOutputName"] = json!("g");
            target["targetRegions"] = json!([{"name": "westus2"}]);
            template["properties"]["distribute"] = json!([target]);
        }
        let accepted = home.replace(&template).await.unwrap_or_else(|e| panic!("{e}"));
        home.ended(&accepted.operation.id).await;
        let error = put("tr", V2023, kind.clone()).await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}
