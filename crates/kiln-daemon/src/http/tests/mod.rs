//! The API through its router: real rooms in a temporary folder, no network.

mod around;
mod flow;
mod own;
mod refusals;
mod refused_changes;
mod routes;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use kiln_library::FetchSettings;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::config::Config;
use crate::daemon::{Daemon, DaemonSettings, Paths};
use crate::executor::WorkerCommand;
use crate::serve::Peer;
use crate::shelves::ShelvesSettings;

/// A daemon in a folder of its own.
struct Server {
    daemon: Arc<Daemon>,
    router: Router,
    folder: tempfile::TempDir,
}

/// What came back, read to its end.
#[derive(Debug, Clone)]
struct Seen {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

/// Whoever has opened the Unix socket.
const LOCAL: Peer = Peer::Unix { uid: 1000, pid: None };

impl Server {
    async fn open() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::at(folder, config).await
    }

    async fn at(folder: tempfile::TempDir, config: Config) -> Self {
        let daemon = Daemon::open(settings(folder.path(), config)).await.unwrap();
        let router = crate::http::router(Arc::clone(&daemon));
        Self { daemon, router, folder }
    }

    fn subscription(&self) -> &str {
        &self.daemon.environment.subscriptions[0].id
    }

    /// `S` is the subscription; `B` stands for the provider below the resource group that is always there.
    fn target(&self, short: &str) -> String {
        let long = match short.strip_prefix("B/") {
            Some(rest) => {
                format!(
                    "/subscriptions/S/resourceGroups/kiln/providers/Microsoft.VirtualMachineImages/{rest}"
                )
            }
            None => short.to_owned(),
        };
        long.replace("/S/", &format!("/{}/", self.subscription()))
    }

    fn request(&self, method: Method, short: &str) -> axum::http::request::Builder {
        Request::builder().method(method).uri(self.target(short)).extension(LOCAL)
    }

    async fn send(&self, request: Request<Body>) -> Seen {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Seen { status: parts.status, headers: parts.headers, text }
    }

    /// From the local socket, without a body.
    async fn ask(&self, method: Method, short: &str) -> Seen {
        self.send(self.request(method, short).body(Body::empty()).unwrap()).await
    }

    async fn get(&self, short: &str) -> Seen {
        self.ask(Method::GET, short).await
    }

    async fn send_json(&self, method: Method, short: &str, body: &Value) -> Seen {
        let request = self.request(method, short).header("content-type", "application/json");
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    async fn put(&self, short: &str, body: &Value) -> Seen {
        self.send_json(Method::PUT, short, body).await
    }

    /// An answer as a golden text: what changes from time to time is replaced.
    fn show(&self, seen: &Seen) -> String {
        let mut lines = vec![seen.status.to_string()];
        for name in ["allow", "www-authenticate", "retry-after", "azure-asyncoperation", "location"] {
            if let Some(value) = seen.headers.get(name) {
                lines.push(format!("{name}: {}", value.to_str().unwrap()));
            }
        }
        if !seen.text.is_empty() {
            let body = serde_json::from_str::<Value>(&seen.text);
            lines.push(body.map_or(seen.text.clone(), |body| serde_json::to_string_pretty(&body).unwrap()));
        }
        let text = lines.join("\n") + "\n";
        let text = text.replace(self.subscription(), "S").replace(&self.daemon.environment.tenant, "TENANT");
        without_ids(&text)
    }
}

fn settings(folder: &Path, config: Config) -> DaemonSettings {
    let paths = Paths::new(folder.join("data"));
    let shelves = ShelvesSettings { library: paths.library(), images: None, user_catalog: None };
    // No run gets as far as a worker: there is no image.
    let worker = WorkerCommand::new("/nonexistent/kiln");
    DaemonSettings { paths, config, shelves, fetch: FetchSettings::default(), worker }
}

/// GUIDs and times, which are new each time.
fn without_ids(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let guid = rest.get(..36).filter(|word| uuid::Uuid::try_parse(word).is_ok());
        let time = rest.split('"').next().filter(|word| word.parse::<jiff::Timestamp>().is_ok());
        let (word, length) = match (guid, time) {
            (Some(word), _) => ("<id>", word.len()),
            (None, Some(word)) => ("<time>", word.len()),
            (None, None) => ("", first.len_utf8()),
        };
        shown.push_str(if word.is_empty() { &rest[..length] } else { word });
        rest = &rest[length..];
    }
    shown
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    /// `error.code` or `code`.
    fn code(&self) -> String {
        let body = self.json();
        let code = body.get("error").unwrap_or(&body)["code"].clone();
        code.as_str().unwrap_or_else(|| panic!("no code: {self:?}")).to_owned()
    }
}

/// A template that needs no files: it is provisioned at once.
fn template() -> Value {
    json!({
        "location": "local",
        "tags": {"a": "b"},
        "identity": {"type": "None"},
        "properties": {
            "source": {"type": "PlatformImage", "publisher": "Debian", "offer": "debian-12", "sku": "12", "version": "latest"},
            "customize": [{"type": "Shell", "name": "hello", "inline": ["echo hello"]}],
            "distribute": [{"type": "VHD", "runOutputName": "vhd"}],
            "buildTimeoutInMinutes": 30,
            "vmProfile": {"vmSize": "Standard_B1s"}
        }
    })
}

fn from_afar() -> Peer {
    Peer::Tcp(SocketAddr::from(([192, 0, 2, 7], 4711)))
}
