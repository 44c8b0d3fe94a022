//! What the tests share: a data folder with everything in it, a web server that does what it is told, bodies.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use kiln_daemon::shelves::ShelvesSettings;
use kiln_daemon::store::{
    OperationRecord, OperationStatus, ProvisioningState, Store, TemplateId, TemplateRecord,
};
use kiln_daemon::templates::{Accepted, PutOptions, TemplateError, Templates, TemplatesSettings};
use kiln_library::{FetchSettings, Library};
use kiln_model::Sha256;
use kiln_model::api::ApiVersion;
use serde_json::{Value, json};

/// What is searched for in everything that is said.
pub const CANARY: &str = "sig=CANARY%2Bsecret";

pub const NEW: ApiVersion = ApiVersion::V2025_10_01;
pub const LENIENT: ApiVersion = ApiVersion::V2023_07_01;

pub struct Home {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub settings: TemplatesSettings,
    pub templates: Templates,
}

impl Home {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut TemplatesSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let images = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../images"));
        let mut settings = TemplatesSettings {
            shelves: ShelvesSettings {
                library: dir.path().join("library"),
                images: Some(images),
                user_catalog: None,
            },
            fetch: FetchSettings {
                stall_timeout: Duration::from_secs(20),
                first_pause: Duration::from_millis(1),
                longest_pause: Duration::from_millis(3),
                ..FetchSettings::default()
            },
            file_roots: Vec::new(),
            // The test's servers are on loopback.
            allow_private: true,
            replace: false,
        };
        change(&mut settings);
        let store = Store::open(&dir.path().join("kiln.db")).unwrap();
        let templates = Templates::open(store.clone(), settings.clone()).await.unwrap();
        Self { dir, store, settings, templates }
    }

    /// Another daemon on the same data, after this one ended without a word.
    pub async fn reopened(self) -> Self {
        self.templates.shutdown().await;
        let templates = Templates::open(self.store.clone(), self.settings.clone()).await.unwrap();
        Self { templates, ..self }
    }

    pub fn library(&self) -> Library {
        Library::open(&self.settings.shelves.library).unwrap()
    }

    pub async fn put(&self, body: &Value) -> Result<Accepted, TemplateError> {
        self.put_with(body, PutOptions::default()).await
    }

    pub async fn put_with(&self, body: &Value, options: PutOptions) -> Result<Accepted, TemplateError> {
        let options = PutOptions { by: "tester".to_owned(), ..options };
        self.templates.put(&id("t"), LENIENT, body.to_string().as_bytes(), options).await
    }

    pub async fn replace(&self, body: &Value) -> Result<Accepted, TemplateError> {
        self.put_with(body, PutOptions { replace: true, ..PutOptions::default() }).await
    }

    /// PUT, awaited.
    pub async fn put_done(&self, body: &Value) -> (TemplateRecord, OperationRecord) {
        let accepted = self.put(body).await.unwrap_or_else(|error| panic!("{error}: {:?}", error.details()));
        self.ended(&accepted.operation.id).await
    }

    /// The template and the operation once it has ended. A hang becomes a failure.
    pub async fn ended(&self, operation: &str) -> (TemplateRecord, OperationRecord) {
        let operation = self.operation_ended(operation).await;
        (self.template().await.unwrap(), operation)
    }

    pub async fn operation_ended(&self, operation: &str) -> OperationRecord {
        for _ in 0..2000 {
            let id = operation.to_owned();
            let found: Option<OperationRecord> = self
                .store
                .read::<_, kiln_daemon::store::StoreError, _>(move |r| r.operation(&id))
                .await
                .unwrap();
            let found = found.unwrap();
            if found.status != OperationStatus::InProgress {
                return found;
            }
            // The store has no events; the test's patience is 20 s.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the operation does not end");
    }

    pub async fn template(&self) -> Option<TemplateRecord> {
        self.store.read::<_, kiln_daemon::store::StoreError, _>(|r| r.template(&id("T"))).await.unwrap()
    }
}

pub fn id(name: &str) -> TemplateId {
    TemplateId { subscription: "sub".to_owned(), resource_group: "rg".to_owned(), name: name.to_owned() }
}

pub fn body(customize: Value) -> Value {
    json!({
        "location": "westus2",
        "tags": {"team": "a"},
        "identity": {"type": "UserAssigned", "userAssignedIdentities": {identity("Id1"): {}}},
        "properties": {
            "source": {"type": "PlatformImage", "publisher": "Debian", "offer": "debian-12", "sku": "12", "version": "latest"},
            "customize": customize,
            "distribute": [{"type": "VHD", "runOutputName": "out"}]
        }
    })
}

pub fn identity(name: &str) -> String {
    format!(
        "/subscriptions/s/resourceGroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}"
    )
}

pub fn script(address: &str) -> Value {
    json!({"type": "Shell", "name": "s", "scriptUri": address})
}

pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::from_bytes(kiln_host::digest::sha256(bytes))
}

pub fn is_succeeded(record: &TemplateRecord) -> bool {
    record.provisioning == ProvisioningState::Succeeded && record.provisioning_error.is_none()
}

type Answer = Box<dyn Fn(usize) -> (StatusCode, Vec<u8>) + Send + Sync>;

/// A web server on loopback; what a path answers is decided by how often it was asked, from 0.
pub struct Web {
    pub base: String,
    hits: Arc<Mutex<HashMap<String, usize>>>,
    _task: tokio::task::JoinHandle<()>,
}

impl Web {
    pub async fn start(paths: impl IntoIterator<Item = (&'static str, Answer)>) -> Self {
        let paths: Arc<HashMap<&str, Answer>> = Arc::new(paths.into_iter().collect());
        let hits: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let counted = hits.clone();
        let router = axum::Router::new().fallback(move |request: Request<Body>| {
            let (paths, counted) = (paths.clone(), counted.clone());
            async move {
                let path = request.uri().path().to_owned();
                let count = {
                    let mut counted = counted.lock().unwrap();
                    let count = counted.entry(path.clone()).or_default();
                    *count += 1;
                    *count - 1
                };
                match paths.get(path.as_str()) {
                    Some(answer) => {
                        let (status, bytes) = answer(count);
                        if status == StatusCode::GATEWAY_TIMEOUT {
                            // Until the client goes away.
                            std::future::pending::<()>().await;
                        }
                        Response::builder().status(status).body(Body::from(bytes)).unwrap()
                    }
                    None => Response::builder().status(404).body(Body::empty()).unwrap(),
                }
            }
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { base, hits, _task: task }
    }

    /// An address with a secret in it.
    pub fn secret(&self, path: &str) -> String {
        format!("{}{path}?{CANARY}", self.base)
    }

    pub fn hits(&self, path: &str) -> usize {
        self.hits.lock().unwrap().get(path).copied().unwrap_or(0)
    }
}

pub fn always(status: u16, bytes: &'static [u8]) -> Answer {
    Box::new(move |_| (StatusCode::from_u16(status).unwrap(), bytes.to_vec()))
}

pub fn ok(bytes: &'static [u8]) -> Answer {
    always(200, bytes)
}

/// Trouble a few times, then the file.
pub fn after(failures: usize, bytes: &'static [u8]) -> Answer {
    Box::new(move |count| {
        if count < failures {
            (StatusCode::SERVICE_UNAVAILABLE, Vec::new())
        } else {
            (StatusCode::OK, bytes.to_vec())
        }
    })
}

/// Hangs the first time, and gives the file later.
pub fn hangs_once(bytes: &'static [u8]) -> Answer {
    Box::new(move |count| match count {
        0 => (StatusCode::GATEWAY_TIMEOUT, Vec::new()),
        _ => (StatusCode::OK, bytes.to_vec()),
    })
}
