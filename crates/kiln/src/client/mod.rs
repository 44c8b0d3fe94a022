//! The client: every command that talks to a server does it through this.
//!
//! ```text
//!  --server / KILN_SERVER ─┐
//!  socket of the data folder ─┼─ find ─► Link (socket, or TLS and a token) ─► Client
//!  /run/kiln/kiln.sock ───┤                    ▲
//!  nobody there ──────────┴─ Local: this process serves that socket ┘
//! ```
//! There is one path for all of them: HTTP, also to a server in this very process. What
//! differs is only who answers.

mod error;
mod find;
mod follow;
mod inputs;
mod link;
mod local;
mod sign_in;
mod stream;
mod transfer;

use std::time::{Duration, Instant};

use kiln_model::api::ApiVersion;
use reqwest::{Method, Response};
use serde_json::Value;

pub use error::ClientError;
pub use find::{Embed, SYSTEM_SOCKET, find, reachable};
pub use follow::follow;
pub use inputs::{LocalInput, upload};
pub use link::{Ask, Link};
pub use local::Local;
pub use stream::Stream;
pub use transfer::{Download, download};

use crate::settings::ServerSettings;

/// Of the endpoints around the provider (the versions that `az` sends).
const SUBSCRIPTIONS_VERSION: &str = "2022-12-01";
const GROUPS_VERSION: &str = "2024-11-01";
/// Where nothing tells how soon to ask again.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// Larger answers are none.
const MAX_ANSWER: usize = 64 << 20;

/// The newest version: its answers leave nothing out.
pub fn newest() -> ApiVersion {
    ApiVersion::ALL[ApiVersion::ALL.len() - 1]
}

/// Where in the server's tree a command works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    pub subscription: String,
    pub resource_group: String,
    pub location: String,
}

/// A server, and where in it.
pub struct Client {
    pub link: Link,
    pub scope: Scope,
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Succeeded,
    Canceled,
    /// Code and message.
    Failed(String, String),
}

impl Client {
    /// Asks where to work, as far as the settings do not say.
    pub async fn new(link: Link, settings: &ServerSettings) -> Result<Self, ClientError> {
        let first = |list: &Value, key: &str| {
            list.pointer(&format!("/value/0/{key}")).and_then(Value::as_str).map(str::to_owned)
        };
        let subscription = match &settings.subscription {
            Some(given) => given.clone(),
            None => {
                let list =
                    json(&link, &Ask::get(format!("/subscriptions?api-version={SUBSCRIPTIONS_VERSION}")))
                        .await?;
                first(&list, "subscriptionId").ok_or_else(|| link.strange("it has no subscription"))?
            }
        };
        let groups = format!("/subscriptions/{}/resourcegroups", encode(&subscription));
        let (resource_group, location) = match &settings.resource_group {
            Some(given) => {
                let path = format!("{groups}/{}?api-version={GROUPS_VERSION}", encode(given));
                let group = json(&link, &Ask::get(path)).await?;
                (given.clone(), group.get("location").and_then(Value::as_str).map(str::to_owned))
            }
            None => {
                let list = json(&link, &Ask::get(format!("{groups}?api-version={GROUPS_VERSION}"))).await?;
                let name = first(&list, "name").ok_or_else(|| link.strange("it has no resource group"))?;
                (name, first(&list, "location"))
            }
        };
        let scope = Scope { subscription, resource_group, location: location.unwrap_or_default() };
        Ok(Self { link, scope })
    }

    /// Path of the templates of the resource group.
    pub fn templates_path(&self) -> String {
        let Scope { subscription, resource_group, .. } = &self.scope;
        format!(
            "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.VirtualMachineImages/imageTemplates",
            encode(subscription),
            encode(resource_group)
        )
    }

    pub fn template_path(&self, name: &str) -> String {
        format!("{}/{}", self.templates_path(), encode(name))
    }

    /// `path` below a template, in the newest version.
    pub fn below(&self, template: &str, path: &str) -> String {
        format!("{}{path}?api-version={}", self.template_path(template), newest())
    }

    pub async fn get(&self, path: impl Into<String>) -> Result<Value, ClientError> {
        json(&self.link, &Ask::get(path)).await
    }

    /// The items of all pages of a list.
    pub async fn list(&self, path: String) -> Result<Vec<Value>, ClientError> {
        let mut items = Vec::new();
        let mut next = Some(path);
        while let Some(path) = next.take() {
            let mut page = self.get(path).await?;
            if let Some(Value::Array(values)) = page.get_mut("value").map(Value::take) {
                items.extend(values);
            }
            next = page
                .get("nextLink")
                .and_then(Value::as_str)
                .map(path_of)
                .transpose()
                .map_err(|()| self.link.strange("its next page has no address"))?;
        }
        Ok(items)
    }

    /// Sends a change and gives its operation's address, and the answer's body.
    pub async fn change(&self, ask: &Ask) -> Result<(Option<Pending>, Value), ClientError> {
        let response = self.link.send(ask).await?;
        let pending = Pending::of(&response);
        let bytes = body(&self.link, response, MAX_ANSWER).await?;
        // 202 and 204 have none.
        let value = if bytes.is_empty() { Value::Null } else { parse(&self.link, &bytes)? };
        Ok((pending, value))
    }

    /// Polls an operation to its end. `tick` is called before each look.
    pub async fn wait(&self, pending: &Pending, mut tick: impl FnMut()) -> Result<Operation, ClientError> {
        let mut after = pending.after;
        loop {
            // The server says how soon it wants to be asked; there is no event for it in this API.
            tokio::time::sleep(after).await;
            tick();
            let response = self.link.send(&Ask::get(pending.path.clone())).await?;
            after = link::retry_after(response.headers()).unwrap_or(POLL_EVERY);
            let value = parse(&self.link, &body(&self.link, response, MAX_ANSWER).await?)?;
            let text =
                |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
            match text("/status").as_str() {
                "Succeeded" => return Ok(Operation::Succeeded),
                "Canceled" => return Ok(Operation::Canceled),
                "Failed" => return Ok(Operation::Failed(text("/error/code"), text("/error/message"))),
                "" => return Err(self.link.strange("an operation has no status")),
                _ => {}
            }
        }
    }

    /// Asks for a run of a template. Its operation ends when the run does.
    pub async fn start_run(&self, template: &str) -> Result<String, ClientError> {
        self.begin_run(template, "/run").await
    }

    /// Asks for a run in the place of one that failed.
    pub async fn retry_run(&self, template: &str, failed: &str) -> Result<String, ClientError> {
        self.begin_run(template, &format!("/runs/{}/retry", encode(failed))).await
    }

    async fn begin_run(&self, template: &str, path: &str) -> Result<String, ClientError> {
        let asked = Instant::now();
        let (pending, _) = self.change(&Ask::new(Method::POST, self.below(template, path))).await?;
        let operation = pending.ok_or_else(|| self.link.strange("a run has no operation"))?;
        tracing::debug!(template, operation = operation.path, took = ?asked.elapsed(), "run asked for");
        // The newest run of a template is the one just begun: there is one at a time.
        let run = self.get(self.below(template, "/runs/latest")).await?;
        run_id(&run).ok_or_else(|| self.link.strange("a run has no id"))
    }

    pub async fn cancel_run(&self, template: &str, force: bool) -> Result<Option<Pending>, ClientError> {
        let forced = if force { "&kilnForce=true" } else { "" };
        let path = self.below(template, "/cancel") + forced;
        Ok(self.change(&Ask::new(Method::POST, path)).await?.0)
    }

    pub async fn delete_template(
        &self,
        template: &str,
        force: bool,
        purge: bool,
    ) -> Result<Option<Pending>, ClientError> {
        let mut path = self.below(template, "");
        for (wanted, query) in [(force, "&kilnForce=true"), (purge, "&kilnPurge=true")] {
            path.push_str(if wanted { query } else { "" });
        }
        Ok(self.change(&Ask::new(Method::DELETE, path)).await?.0)
    }
}

/// What the server at a socket says it is.
pub async fn version_of(socket: &std::path::Path) -> Result<String, ClientError> {
    let link = Link::socket(socket, None)?;
    let status = json(&link, &Ask::get("/kiln/status")).await?;
    let version = status.get("version").and_then(Value::as_str).map(str::to_owned);
    version.ok_or_else(|| link.strange("it does not say its version"))
}

/// An operation under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    path: String,
    after: Duration,
}

impl Pending {
    fn of(response: &Response) -> Option<Self> {
        let headers = response.headers();
        let address = headers.get("azure-asyncoperation").or_else(|| headers.get("location"))?;
        let path = path_of(address.to_str().ok()?).ok()?;
        // The first look is soon: most operations take no longer.
        let after = link::retry_after(headers).unwrap_or(POLL_EVERY).min(POLL_EVERY) / 4;
        Some(Self { path, after })
    }
}

/// The id of a run, as the server shows it.
pub fn run_id(run: &Value) -> Option<String> {
    run.get("name").and_then(Value::as_str).map(str::to_owned)
}

/// The path and query of an address: the server may call itself by another name than we do.
pub fn path_of(address: &str) -> Result<String, ()> {
    if address.starts_with('/') {
        return Ok(address.to_owned());
    }
    let url = reqwest::Url::parse(address).map_err(drop)?;
    Ok(match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    })
}

async fn json(link: &Link, ask: &Ask) -> Result<Value, ClientError> {
    let response = link.send(ask).await?;
    parse(link, &body(link, response, MAX_ANSWER).await?)
}

fn parse(link: &Link, bytes: &[u8]) -> Result<Value, ClientError> {
    serde_json::from_slice(bytes).map_err(|error| link.strange(format!("no JSON: {error}")))
}

/// All of an answer, which is not longer than `limit`.
async fn body(link: &Link, mut response: Response, limit: usize) -> Result<Vec<u8>, ClientError> {
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(stream::SILENCE, response.chunk()).await {
            Ok(Ok(Some(chunk))) if bytes.len() + chunk.len() <= limit => bytes.extend_from_slice(&chunk),
            Ok(Ok(Some(_))) => return Err(link.strange(format!("more than {limit} bytes"))),
            Ok(Ok(None)) => return Ok(bytes),
            Ok(Err(error)) => return Err(link.transport(error)),
            Err(_) => {
                let server = link.shown().to_owned();
                return Err(ClientError::Silent { server, seconds: stream::SILENCE.as_secs() });
            }
        }
    }
}

/// A text as one segment of a path, or as a value in a query or form (RFC 3986, section 2.3).
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests;
