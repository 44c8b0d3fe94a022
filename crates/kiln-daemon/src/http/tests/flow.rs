//! Operations from their begin to their end, lists, and what goes with every answer.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use expect_test::expect;
use kiln_build::run_dir::RunId;
use serde_json::{Value, json};

use super::{LOCAL, Seen, Server, from_afar, template};
use crate::config::Config;
use crate::store::{
    ActivityRecord, OperationError, OperationKind, OperationRecord, OperationStatus, OutputRecord,
    StoreError, TemplateId, TemplateRecord,
};

const V: &str = "api-version=2024-02-01";
const T: &str = "B/imageTemplates/t?api-version=2024-02-01";

/// Nothing here takes long; what does not end is a failure.
const SOON: Duration = Duration::from_secs(20);

impl Server {
    /// The path and query of an absolute address in an answer.
    fn local(&self, address: &str) -> String {
        let rest = address.strip_prefix(&self.daemon.environment.names.url());
        rest.unwrap_or_else(|| panic!("{address} does not begin with our address")).to_owned()
    }

    /// Asks how the operation stands until it has ended.
    async fn ended(&self, accepted: &Seen) -> Value {
        let address = self.local(accepted.header("azure-asyncoperation"));
        let deadline = Instant::now() + SOON;
        loop {
            let seen = self.get(&address).await;
            assert_eq!(seen.status, StatusCode::OK, "{seen:?}");
            let body = seen.json();
            if body["status"] != "InProgress" {
                assert!(!seen.headers.contains_key("retry-after"), "{seen:?}");
                return body;
            }
            assert_eq!(seen.header("retry-after"), "1");
            assert!(Instant::now() < deadline, "{body}");
            // As a client does, if more often.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn result(&self, accepted: &Seen) -> Seen {
        self.get(&self.local(accepted.header("location"))).await
    }

    /// Puts a template and waits until it is provisioned.
    async fn provisioned(&self, target: &str) {
        let accepted = self.put(target, &template()).await;
        assert_eq!(accepted.status, StatusCode::CREATED, "{accepted:?}");
        assert_eq!(self.ended(&accepted).await["status"], "Succeeded");
    }

    async fn actions(&self) -> Vec<String> {
        let rows = self.daemon.store.read(|store| store.activity(None, 100)).await;
        let mut rows: Vec<ActivityRecord> = rows.map_err(|error: StoreError| error).unwrap().items;
        rows.reverse();
        rows.iter().map(|row| format!("{} {} {}", row.by, row.action, row.outcome)).collect()
    }
}

#[tokio::test]
async fn a_template_from_put_to_delete() {
    let server = Server::open().await;
    let accepted = server.put(T, &template()).await;
    assert_eq!(accepted.header("retry-after"), "1");
    let shown = server.show(&accepted);
    expect![[r#"
        201 Created
        retry-after: 1
        azure-asyncoperation: https://localhost:8441/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operations/<id>?api-version=2024-02-01
        location: https://localhost:8441/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operationResults/<id>?api-version=2024-02-01"#]].assert_eq(&shown[..shown.find("\n{").unwrap()]);
    let ended = server.ended(&accepted).await;
    assert_eq!(ended["status"], "Succeeded");
    let result = server.result(&accepted).await;
    assert_eq!((result.status, result.json()["name"].clone()), (StatusCode::OK, json!("t")));

    let got = server.get(T).await;
    expect![[r#"
        200 OK
        {
          "id": "/subscriptions/S/resourceGroups/kiln/providers/Microsoft.VirtualMachineImages/imageTemplates/t",
          "name": "t",
          "type": "Microsoft.VirtualMachineImages/imageTemplates",
          "location": "local",
          "tags": {
            "a": "b"
          },
          "identity": {
            "type": "None"
          },
          "systemData": {
            "createdBy": "uid:1000",
            "createdByType": "Application",
            "createdAt": "<time>",
            "lastModifiedBy": "uid:1000",
            "lastModifiedByType": "Application",
            "lastModifiedAt": "<time>"
          },
          "properties": {
            "source": {
              "type": "PlatformImage",
              "publisher": "Debian",
              "offer": "debian-12",
              "sku": "12",
              "version": "latest"
            },
            "customize": [
              {
                "type": "Shell",
                "name": "hello",
                "inline": [
                  "echo hello"
                ]
              }
            ],
            "distribute": [
              {
                "type": "VHD",
                "runOutputName": "vhd"
              }
            ],
            "buildTimeoutInMinutes": 30,
            "vmProfile": {
              "vmSize": "Standard_B1s"
            },
            "provisioningState": "Succeeded"
          }
        }
    "#]].assert_eq(&server.show(&got));
    let spelled = "/SUBSCRIPTIONS/S/resourcegroups/KILN/providers/microsoft.virtualmachineimages//imagetemplates/T?Api-Version=2024-02-01";
    let spelled = spelled.replace("/S/", &format!("/{}/", server.subscription()));
    assert_eq!(server.get(&spelled).await.json(), got.json());
    let list = server.get(&format!("B/imageTemplates?{V}")).await.json();
    assert_eq!(list, json!({"value": [got.json()]}));

    // Immutable, unless it is asked for.
    let again = server.put(T, &template()).await;
    expect![[r#"
        409 Conflict
        {
          "error": {
            "code": "Conflict",
            "message": "Update/Upgrade of image templates is currently not supported"
          }
        }
    "#]]
    .assert_eq(&server.show(&again));
    let old = server.put(&T.replace("2024-02-01", "2020-02-14"), &template()).await;
    expect![[r#"
        409 Conflict
        {
          "code": "Conflict",
          "message": "Update/Upgrade of image templates is currently not supported"
        }
    "#]]
    .assert_eq(&server.show(&old));
    let replaced = server.put(&format!("{T}&kilnReplace=true"), &template()).await;
    assert_eq!(replaced.status, StatusCode::CREATED, "{replaced:?}");
    assert_eq!(server.ended(&replaced).await["status"], "Succeeded");

    let patched = server.send_json(Method::PATCH, T, &json!({"tags": {"new": "tag"}})).await;
    assert_eq!(patched.status, StatusCode::ACCEPTED, "{patched:?}");
    assert_eq!(server.ended(&patched).await["status"], "Succeeded");
    assert_eq!(server.get(T).await.json()["tags"], json!({"new": "tag"}));

    let deleted = server.ask(Method::DELETE, T).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (StatusCode::ACCEPTED, ""));
    assert_eq!(server.ended(&deleted).await["status"], "Succeeded");
    assert_eq!(server.result(&deleted).await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get(T).await.code(), "ResourceNotFound");
    assert_eq!(server.ask(Method::DELETE, T).await.status, StatusCode::NO_CONTENT);
    // What was readable stays readable.
    assert_eq!(server.ended(&accepted).await, ended);

    let write = "uid:1000 Microsoft.VirtualMachineImages/imageTemplates/write";
    assert_eq!(
        server.actions().await,
        [
            "uid:1000 Microsoft.VirtualMachineImages/imageTemplates/write Succeeded".to_owned(),
            format!("{write} Conflict"),
            format!("{write} Conflict"),
            format!("{write} Succeeded"),
            format!("{write} Accepted"),
            "uid:1000 Microsoft.VirtualMachineImages/imageTemplates/delete Accepted".to_owned(),
        ]
    );
}

/// The library has no image: the run fails before a machine is started, and everything says so.
#[tokio::test]
async fn a_run_as_powershell_asks_for_it() {
    let server = Server::open().await;
    server.provisioned(T).await;
    // Invoke-AzResourceAction -ApiVersion "2020-02-14" -Action Run
    let target = server.target("/subscriptions/S/resourceGroups/kiln/providers/Microsoft.VirtualMachineImages/imageTemplates/t/Run?api-version=2020-02-14");
    let bodies = [
        Request::post(&target).header("content-length", "0").body(Body::empty()),
        Request::post(&target)
            .header("transfer-encoding", "chunked")
            .header("content-type", "application/json; charset=utf-8")
            .body(Body::from_stream(futures_util::stream::iter([Ok::<_, std::io::Error>("null")]))),
    ];
    let mut answers = Vec::new();
    for request in bodies {
        let mut request = request.unwrap();
        request.headers_mut().insert("accept", "*/*".parse().unwrap());
        request.extensions_mut().insert(LOCAL);
        let accepted = server.send(request).await;
        answers.push(server.show(&accepted));
        let ended = server.ended(&accepted).await;
        assert_eq!(ended["status"], "Failed", "{ended}");
        assert!(ended["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{ended}");
        let result = server.result(&accepted).await;
        assert_eq!(result.status, StatusCode::CONFLICT);
        assert_eq!(result.code(), ended["error"]["code"]);
        let status = server.get(T).await.json()["properties"]["lastRunStatus"].clone();
        assert_eq!(status["runState"], "Failed", "{status}");
    }
    expect![[r#"
        202 Accepted
        retry-after: 1
        azure-asyncoperation: https://localhost:8441/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operations/<id>?api-version=2020-02-14
        location: https://localhost:8441/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operationResults/<id>?api-version=2020-02-14
    "#]].assert_eq(&answers[0]);
    assert_eq!(answers[0], answers[1]);
    // It has ended: there is nothing to cancel.
    let cancel = server.ask(Method::POST, "B/imageTemplates/t/cancel?api-version=2020-02-14").await;
    expect![[r#"
        409 Conflict
        {
          "code": "OperationNotAllowed",
          "message": "Operation 'Microsoft.VirtualMachineImages/imageTemplates/cancel' is not allowed in provisioningState: 'provisioned', runState: 'failed'"
        }
    "#]].assert_eq(&server.show(&cancel));
}

#[tokio::test]
async fn operations_outlive_the_server() {
    let Server { daemon, router, folder } = Server::open().await;
    let server = Server { daemon, router, folder };
    let accepted = server.put(T, &template()).await;
    let ended = server.ended(&accepted).await;
    let Server { daemon, router, folder } = server;
    daemon.shutdown().await;
    drop((daemon, router));
    let server = Server::at(folder, Config::default()).await;
    assert_eq!(server.ended(&accepted).await, ended);
    assert_eq!(server.get(T).await.json()["properties"]["provisioningState"], "Succeeded");
}

/// Every kind of operation in every state, at both of its addresses.
#[tokio::test]
async fn how_operations_stand() {
    let server = Server::open().await;
    server.provisioned(T).await;
    let resource = server.target("B/imageTemplates/t");
    let mut shown = String::new();
    for kind in
        [OperationKind::PutTemplate, OperationKind::Run, OperationKind::Cancel, OperationKind::DeleteTemplate]
    {
        for status in [
            OperationStatus::InProgress,
            OperationStatus::Succeeded,
            OperationStatus::Failed,
            OperationStatus::Canceled,
        ] {
            let ended = status != OperationStatus::InProgress;
            let error = OperationError { code: "PackerBuildFailed".to_owned(), message: "why".to_owned() };
            let operation = OperationRecord {
                id: uuid::Uuid::new_v4().to_string(),
                kind,
                subscription: server.subscription().to_owned(),
                location: "local".to_owned(),
                resource: resource.clone(),
                status,
                started_at: "2026-11-23T17:30:00Z".to_owned(),
                ended_at: ended.then(|| "2026-11-23T17:31:00Z".to_owned()),
                error: (status == OperationStatus::Failed).then_some(error),
                run: None,
            };
            let id = operation.id.clone();
            let written = server.daemon.store.write(move |store| store.insert_operation(&operation)).await;
            written.map_err(|error: StoreError| error).unwrap();
            let at = |what: &str| {
                format!(
                    "/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/LOCAL/{what}/{id}?{V}&t=1"
                )
            };
            let (asked, result) =
                (server.get(&at("operations")).await, server.get(&at("operationResults")).await);
            let body = if result.text.is_empty() {
                String::new()
            } else if result.status.is_success() {
                result.json()["name"].to_string()
            } else {
                result.code()
            };
            shown.push_str(&format!(
                "{kind:?}: {} {} {}; {} {body} {}\n",
                asked.status.as_u16(),
                asked.json()["status"],
                asked.headers.contains_key("retry-after"),
                result.status.as_u16(),
                result.headers.contains_key("retry-after"),
            ));
        }
    }
    expect![[r#"
        PutTemplate: 200 "InProgress" true; 202  true
        PutTemplate: 200 "Succeeded" false; 200 "t" false
        PutTemplate: 200 "Failed" false; 409 PackerBuildFailed false
        PutTemplate: 200 "Canceled" false; 409 OperationCanceled false
        Run: 200 "InProgress" true; 202  true
        Run: 200 "Succeeded" false; 200 "t" false
        Run: 200 "Failed" false; 409 PackerBuildFailed false
        Run: 200 "Canceled" false; 409 OperationCanceled false
        Cancel: 200 "InProgress" true; 202  true
        Cancel: 200 "Succeeded" false; 200 "t" false
        Cancel: 200 "Failed" false; 409 PackerBuildFailed false
        Cancel: 200 "Canceled" false; 409 OperationCanceled false
        DeleteTemplate: 200 "InProgress" true; 202  true
        DeleteTemplate: 200 "Succeeded" false; 204  false
        DeleteTemplate: 200 "Failed" false; 409 PackerBuildFailed false
        DeleteTemplate: 200 "Canceled" false; 409 OperationCanceled false
    "#]]
    .assert_eq(&shown);
}

#[tokio::test]
async fn one_owner_of_the_data() {
    let server = Server::open().await;
    let second = crate::daemon::Daemon::open(super::settings(server.folder.path(), Config::default())).await;
    assert!(matches!(second, Err(crate::daemon::OpenError::Held(_))));
}

#[tokio::test]
async fn a_list_comes_in_pages() {
    let server = Server::open().await;
    server.provisioned(T).await;
    let id = TemplateId {
        subscription: server.subscription().to_owned(),
        resource_group: "kiln".to_owned(),
        name: "t".to_owned(),
    };
    let many = move |store: &crate::store::Writer<'_>| -> Result<(), StoreError> {
        let Some(first) = store.template(&id)? else { panic!("no template") };
        for index in 0..249 {
            let group = if index % 2 == 0 { "kiln" } else { "other" };
            let id =
                TemplateId { resource_group: group.to_owned(), name: format!("t{index:03}"), ..id.clone() };
            store.insert_template(&TemplateRecord { id, ..first.clone() })?;
        }
        Ok(())
    };
    server.daemon.store.write(many).await.unwrap();
    for (target, expected) in [
        (format!("B/imageTemplates?{V}"), 126_usize),
        (format!("/subscriptions/S/providers/Microsoft.VirtualMachineImages//imagetemplates?{V}&x=y"), 250),
    ] {
        let (mut names, mut pages) = (std::collections::BTreeSet::new(), 0);
        let mut next = Some(target);
        while let Some(target) = next.take() {
            let page = server.get(&target).await.json();
            let value = page["value"].as_array().unwrap();
            assert!(value.len() <= 100);
            names.extend(value.iter().map(|template| template["id"].to_string()));
            pages += 1;
            next = page.get("nextLink").map(|link| server.local(link.as_str().unwrap()));
        }
        assert_eq!((names.len(), pages), (expected, expected.div_ceil(100)));
    }
}

#[tokio::test]
async fn run_outputs_name_where_they_download() {
    let server = Server::open().await;
    server.provisioned(T).await;
    assert_eq!(server.get(&format!("B/imageTemplates/t/runOutputs?{V}")).await.json(), json!({"value": []}));
    let run: RunId = "20261123T172233Z-t-3f9a1c".parse().unwrap();
    let output: kiln_model::event::RunOutput = serde_json::from_value(json!({
        "format": 1, "name": "vhd", "type": "VHD", "runId": run, "file": "a disk#1.vhd",
        "size": 1_049_088, "virtualSize": 1_048_576, "sha256": "ab".repeat(32),
        "source": {"name": "debian", "version": "1.0.0", "sha256": "cd".repeat(32), "requested": "Debian:debian-12:12:latest"},
        "templateName": "t", "templateSha256": "ef".repeat(32), "generation": "V2", "tags": {},
        "createdAt": "2026-11-23T17:30:00Z", "kilnVersion": "0", "status": "booted in QEMU; not tried on Azure"
    }))
    .unwrap();
    let record = OutputRecord {
        template: TemplateId {
            subscription: server.subscription().to_owned(),
            resource_group: "kiln".to_owned(),
            name: "t".to_owned(),
        },
        name: "vhd".to_owned(),
        run,
        output,
        created_at: "2026-11-23T17:30:00Z".to_owned(),
    };
    server
        .daemon
        .store
        .write(move |store| store.put_output(&record))
        .await
        .map_err(|e: StoreError| e)
        .unwrap();
    let one = server.get(&format!("B/imageTemplates/t/runOutputs/VHD?{V}")).await;
    expect![[r#"
        200 OK
        {
          "id": "/subscriptions/S/resourceGroups/kiln/providers/Microsoft.VirtualMachineImages/imageTemplates/t/runOutputs/vhd",
          "name": "vhd",
          "type": "Microsoft.VirtualMachineImages/imageTemplates/runOutputs",
          "properties": {
            "artifactUri": "https://localhost:8441/kiln/artifacts/20261123T172233Z-t-3f9a1c/a%20disk%231.vhd",
            "provisioningState": "Succeeded"
          },
          "systemData": {
            "createdAt": "<time>"
          }
        }
    "#]].assert_eq(&server.show(&one));
    let all = server.get(&format!("B/imageTemplates/t/runOutputs?{V}")).await;
    assert_eq!(all.json(), json!({"value": [one.json()]}));
}

#[tokio::test]
async fn triggers() {
    let server = Server::open().await;
    server.provisioned(T).await;
    let target = "B/imageTemplates/t/triggers/tr?api-version=2022-07-01";
    let accepted = server.put(target, &json!({"properties": {"kind": "SourceImage"}})).await;
    expect![[r#"
        201 Created
        retry-after: 1
        azure-asyncoperation: https://localhost:8441/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operations/<id>?api-version=2022-07-01
        location: https://localhost:8441/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operationResults/<id>?api-version=2022-07-01
        {
          "id": "/subscriptions/S/resourceGroups/kiln/providers/Microsoft.VirtualMachineImages/imageTemplates/t/triggers/tr",
          "name": "tr",
          "type": "Microsoft.VirtualMachineImages/imageTemplates/triggers",
          "properties": {
            "kind": "SourceImage",
            "status": {
              "code": "Inactive",
              "message": "The trigger is stored. This Kiln does not watch source images yet: run the template yourself when there is a new one.",
              "time": "<time>"
            },
            "provisioningState": "Succeeded"
          },
          "systemData": {
            "createdBy": "uid:1000",
            "createdByType": "Application",
            "createdAt": "<time>",
            "lastModifiedBy": "uid:1000",
            "lastModifiedByType": "Application",
            "lastModifiedAt": "<time>"
          }
        }
    "#]].assert_eq(&server.show(&accepted));
    assert_eq!(server.ended(&accepted).await["status"], "Succeeded");
    let got = server.get(target).await;
    assert_eq!(got.json()["name"], "tr");
    assert_eq!(server.result(&accepted).await.json()["name"], "tr");
    let list = server.get("B/imageTemplates/t/triggers?api-version=2022-07-01").await;
    assert_eq!(list.json(), json!({"value": [got.json()]}));
    let bad = server.put(target, &json!({"properties": {"kind": "Moon"}})).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST, "{bad:?}");
    let deleted = server.ask(Method::DELETE, target).await;
    assert_eq!(deleted.status, StatusCode::ACCEPTED);
    assert_eq!(server.ended(&deleted).await["status"], "Succeeded");
    assert_eq!(server.ask(Method::DELETE, target).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn the_providers_operations() {
    let server = Server::open().await;
    let seen = server.get(&format!("/providers/Microsoft.VirtualMachineImages/operations?{V}")).await;
    let names: Vec<String> =
        seen.json()["value"].as_array().unwrap().iter().map(|one| one["name"].to_string()).collect();
    assert_eq!(names.len(), 13);
    assert!(names.contains(&"\"Microsoft.VirtualMachineImages/imageTemplates/run/action\"".to_owned()));
}

#[tokio::test]
async fn what_goes_with_every_answer() {
    let server = Server::open().await;
    let ask = |name: &'static str, value: &'static str| {
        let request = server.request(Method::GET, T).header(name, value);
        server.send(request.body(Body::empty()).unwrap())
    };
    let guid = "3F2504E0-4F89-41D3-9A0C-0305E82C3301";
    let seen = ask("x-ms-correlation-request-id", guid).await;
    assert_eq!(seen.header("x-ms-correlation-request-id"), guid.to_ascii_lowercase());
    assert!(uuid::Uuid::try_parse(seen.header("x-ms-request-id")).is_ok());
    assert_eq!(seen.header("cache-control"), "no-cache");
    assert_eq!(seen.header("x-content-type-options"), "nosniff");
    let seen = ask("x-ms-correlation-request-id", "<script>").await;
    assert_eq!(seen.header("x-ms-correlation-request-id"), seen.header("x-ms-request-id"));
    // HEAD is GET without the body.
    let seen = server.ask(Method::HEAD, &format!("B/imageTemplates?{V}")).await;
    assert_eq!((seen.status, seen.text.as_str()), (StatusCode::OK, ""));
    assert_eq!(seen.header("content-length"), "12");
}

impl Server {
    async fn token(&self, id: &str, secret: &str) -> String {
        let resource = self.daemon.environment.names.url();
        let issued = self.daemon.access.issue(id, secret.to_owned().into(), &resource, None).await;
        issued.unwrap().token
    }

    async fn ask_from_afar(
        &self,
        method: Method,
        short: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Seen {
        let mut request = Request::builder().method(method).uri(self.target(short)).extension(from_afar());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(
            request.header("content-type", "application/json").body(Body::from(body.to_string())).unwrap(),
        )
        .await
    }
}

#[tokio::test]
async fn a_reader_reads() {
    let hash = crate::access::hash_secret("a secret").unwrap();
    let text = format!(
        "access:\n  principals:\n    - id: rita\n      name: Rita\n      role: reader\n      secretHash: '{hash}'\n    - id: otto\n      role: operator\n      secretHash: '{hash}'\n"
    );
    let config = Config::parse(&text, std::path::Path::new("test.yaml")).unwrap();
    let server = Server::with(config).await;
    let reader = format!("Bearer {}", server.token("rita", "a secret").await);
    let operator = format!("bearer {}", server.token("otto", "a secret").await);
    let as_reader = [("authorization", reader.as_str())];
    for (method, target, body) in [
        (Method::PUT, T, template()),
        (Method::PATCH, T, json!({"tags": {}})),
        (Method::DELETE, T, json!({})),
        (Method::POST, "B/imageTemplates/t/run?api-version=2024-02-01", json!({})),
        (Method::POST, "B/imageTemplates/t/cancel?api-version=2024-02-01", json!({})),
        (Method::PUT, "B/imageTemplates/t/triggers/x?api-version=2024-02-01", json!({})),
        (Method::PUT, "/subscriptions/S/resourcegroups/new?api-version=2024-11-01", json!({})),
        (Method::POST, "/kiln/gc?dryRun=true", json!({})),
    ] {
        let seen = server.ask_from_afar(method, target, &as_reader, &body).await;
        assert_eq!(
            (seen.status, seen.code()),
            (StatusCode::FORBIDDEN, "AuthorizationFailed".into()),
            "{target}"
        );
    }
    let refused = server.ask_from_afar(Method::PUT, T, &as_reader, &template()).await;
    expect![[r#"
        403 Forbidden
        {
          "error": {
            "code": "AuthorizationFailed",
            "message": "The client 'Rita' with object id 'rita' does not have authorization to perform action 'Microsoft.VirtualMachineImages/imageTemplates/write' over scope '/subscriptions/S/resourceGroups/kiln/providers/Microsoft.VirtualMachineImages/imageTemplates/t' or the scope is invalid. If access was recently granted, please refresh your credentials."
          }
        }
    "#]].assert_eq(&server.show(&refused));
    assert_eq!(server.ask_from_afar(Method::GET, T, &as_reader, &json!({})).await.code(), "ResourceNotFound");

    // Addresses in answers begin with a name of ours, whatever the client says.
    let own = [
        ("authorization", operator.as_str()),
        ("host", "127.0.0.1:9000"),
        ("x-forwarded-host", "evil.example"),
    ];
    let accepted = server.ask_from_afar(Method::PUT, T, &own, &template()).await;
    let address = accepted.header("azure-asyncoperation");
    assert!(address.starts_with("https://127.0.0.1:9000/subscriptions/"), "{address}");
    let foreign = [("authorization", operator.as_str()), ("host", "evil.example")];
    let target = T.replace("/t?", "/u?");
    let accepted = server.ask_from_afar(Method::PUT, &target, &foreign, &template()).await;
    let address = accepted.header("location");
    assert!(address.starts_with("https://localhost:8441/subscriptions/"), "{address}");
}
