//! Kiln's own paths: runs, logs, artifacts, inputs, the host.

mod artifacts;
mod host;
mod inputs;
mod logs;
mod runs;

use std::path::PathBuf;

use axum::Extension;
use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use kiln_build::run_dir::RunId;
use kiln_model::Sha256;
use kiln_model::event::{OutputSource, RUN_OUTPUT_FORMAT, RunOutput};
use kiln_model::run::{Phase, RunState};
use tokio::net::{TcpListener, TcpStream};

use super::{LOCAL, Server};
use crate::store::{OutputRecord, RunRecord, TemplateId};

impl Server {
    fn template_id(&self, name: &str) -> TemplateId {
        TemplateId {
            subscription: self.subscription().to_owned(),
            resource_group: "kiln".to_owned(),
            name: name.to_owned(),
        }
    }

    /// A run that has a worker, or had one.
    async fn add_run(&self, template: &str, minute: u32, state: RunState) -> RunRecord {
        let run = RunRecord {
            id: format!("20260102T03{minute:02}00Z-{template}-3f9a1c").parse().unwrap(),
            template: self.template_id(template),
            operation: uuid::Uuid::new_v4().to_string(),
            state: RunState::Running,
            phase: Some(Phase::Building),
            message: String::new(),
            fault: None,
            queued_at: format!("2026-01-02T03:{minute:02}:00Z"),
            started_at: Some(format!("2026-01-02T03:{minute:02}:01Z")),
            ended_at: None,
            memory_mib: 4096,
            cpus: 2,
            attempt: 1,
            started_by: "somebody".to_owned(),
            holds_since: None,
        };
        let row = run.clone();
        self.daemon.store.write(move |w| w.insert_run(&row)).await.unwrap();
        std::fs::create_dir_all(self.run_folder(&run.id)).unwrap();
        if state.is_final() { self.end(&run, state).await } else { run }
    }

    async fn end(&self, run: &RunRecord, state: RunState) -> RunRecord {
        let mut run = run.clone();
        run.state = state;
        run.message = format!("it is {state:?}");
        run.ended_at = Some("2026-01-02T04:00:00Z".to_owned());
        let row = run.clone();
        self.daemon.store.write(move |w| w.update_run(&row)).await.unwrap();
        run
    }

    fn run_folder(&self, run: &RunId) -> PathBuf {
        self.daemon.paths.runs().join(run.as_str())
    }

    fn artifacts_of(&self, run: &RunId) -> PathBuf {
        self.daemon.paths.artifacts().join(run.as_str())
    }

    async fn add_output(&self, run: &RunRecord, name: &str, size: u64) -> OutputRecord {
        let digest = Sha256::from_bytes(kiln_host::digest::sha256(name.as_bytes()));
        let output = RunOutput {
            format: RUN_OUTPUT_FORMAT,
            name: name.to_owned(),
            r#type: "VHD".to_owned(),
            run_id: run.id.to_string(),
            file: format!("{name}.vhd"),
            size,
            virtual_size: size.saturating_sub(512),
            sha256: digest,
            extents: None,
            image: None,
            source: OutputSource {
                name: "debian-12".to_owned(),
                version: "1.0.0".to_owned(),
                sha256: digest,
                requested: "Debian:debian-12:12:latest".to_owned(),
            },
            template_name: run.template.name.clone(),
            template_sha256: digest,
            generation: kiln_model::catalog::Generation::V1,
            os: kiln_model::catalog::Os::Linux,
            tags: std::collections::BTreeMap::new(),
            created_at: "2026-01-02T03:04:05Z".to_owned(),
            kiln_version: "0".to_owned(),
            status: "never booted".to_owned(),
        };
        let record = OutputRecord {
            template: run.template.clone(),
            name: name.to_owned(),
            run: run.id.clone(),
            output,
            created_at: "2026-01-02T03:04:05Z".to_owned(),
        };
        let row = record.clone();
        self.daemon.store.write(move |w| w.put_output(&row)).await.unwrap();
        record
    }

    /// The router behind a real socket, for what only a connection shows.
    async fn listen(&self) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = self.router.clone().layer(Extension(LOCAL));
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn log_path(&self, run: &RunRecord, rest: &str) -> String {
        self.target(&format!("B/imageTemplates/{}/runs/{}/{rest}", run.template.name, run.id))
    }
}

/// A connection, and the answer that comes over it. Dropped, it is closed.
struct Open {
    response: hyper::Response<hyper::body::Incoming>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Open {
    async fn get(address: std::net::SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = Request::builder().method(Method::GET).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        let response = sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        Self { response, connection }
    }

    /// The next bytes; `None` at the end. An error where the end was not one.
    async fn next(&mut self) -> Option<Result<Vec<u8>, hyper::Error>> {
        let frame =
            tokio::time::timeout(std::time::Duration::from_secs(20), self.response.body_mut().frame());
        let frame = frame.await.expect("something comes, or an end")?;
        Some(frame.map(|frame| frame.into_data().map(|data| data.to_vec()).unwrap_or_default()))
    }

    async fn until_end(mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await {
            all.extend(bytes.unwrap());
        }
        all
    }
}
