//! What Azure's clients are shown around the templates: tenant, subscriptions, resource groups, the one location.
//!
//! What the configuration does not say is made at first start and kept in `server/environment.json`.

use std::io;
use std::path::{Path, PathBuf};

use kiln_host::publish;
use serde::{Deserialize, Serialize};

use super::{Config, Guid, Names};

const FILE: &str = "environment.json";
/// Of that file.
const FORMAT: u32 = 1;
const LOCATION: &str = "local";
const RESOURCE_GROUP: &str = "kiln";
const SUBSCRIPTION_NAME: &str = "Kiln";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// A GUID in lower case.
    pub id: String,
    pub name: String,
}

/// Never empty: at least one subscription and one resource group. The first of each is what clients are advised to use.
#[derive(Debug, Clone)]
pub struct Environment {
    pub tenant: String,
    pub subscriptions: Vec<Subscription>,
    /// Those that are there from the start. The store holds them, and those that clients made.
    pub resource_groups: Vec<String>,
    pub location: String,
    pub names: Names,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Generated {
    format: u32,
    tenant: String,
    subscription: String,
}

#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    #[error("cannot {act} {}", .path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged: put it back from a backup, or remove it and a new tenant and subscription are made", .path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} has format {found}; this version of Kiln knows {FORMAT}: use the newer version that wrote it", .path.display())]
    Newer { path: PathBuf, found: u32 },
}

impl Environment {
    /// Reads or makes `environment.json` in `server_dir`, which must exist. Blocking.
    pub fn open(server_dir: &Path, config: &Config) -> Result<Self, EnvironmentError> {
        let path = server_dir.join(FILE);
        let generated = match read(&path)? {
            Some(generated) => generated,
            None => make(&path)?,
        };
        Ok(Self::of(generated, config))
    }

    /// As [`Self::open`], of a folder where a server has started already: makes nothing.
    pub(crate) fn read(server_dir: &Path, config: &Config) -> Result<Self, EnvironmentError> {
        let path = server_dir.join(FILE);
        let missing = || EnvironmentError::File {
            act: "read",
            path: path.clone(),
            source: io::ErrorKind::NotFound.into(),
        };
        Ok(Self::of(read(&path)?.ok_or_else(missing)?, config))
    }

    fn of(generated: Generated, config: &Config) -> Self {
        let asked = &config.environment;
        let mut subscriptions: Vec<Subscription> = asked
            .subscriptions
            .iter()
            .map(|given| Subscription { id: given.id.to_string(), name: given.name.clone() })
            .collect();
        if subscriptions.is_empty() {
            subscriptions
                .push(Subscription { id: generated.subscription, name: SUBSCRIPTION_NAME.to_owned() });
        }
        let mut resource_groups = asked.resource_groups.clone();
        if resource_groups.is_empty() {
            resource_groups.push(RESOURCE_GROUP.to_owned());
        }
        Self {
            tenant: asked.tenant.as_ref().map_or(generated.tenant, ToString::to_string),
            subscriptions,
            resource_groups,
            location: asked.location.clone().unwrap_or_else(|| LOCATION.to_owned()),
            names: Names::new(config, &Names::host_name()),
        }
    }

    pub fn subscription(&self, id: &str) -> Option<&Subscription> {
        self.subscriptions.iter().find(|known| known.id.eq_ignore_ascii_case(id))
    }
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EnvironmentError {
    let path = path.to_owned();
    move |source| EnvironmentError::File { act, path, source }
}

fn read(path: &Path) -> Result<Option<Generated>, EnvironmentError> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let damaged = |source| EnvironmentError::Damaged { path: path.to_owned(), source };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let head: Head = serde_json::from_slice(&bytes).map_err(damaged)?;
    if head.format > FORMAT {
        return Err(EnvironmentError::Newer { path: path.to_owned(), found: head.format });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

fn make(path: &Path) -> Result<Generated, EnvironmentError> {
    let made = Generated {
        format: FORMAT,
        tenant: Guid::random().to_string(),
        subscription: Guid::random().to_string(),
    };
    let text = serde_json::to_string_pretty(&made)
        .map_err(|source| EnvironmentError::Damaged { path: path.to_owned(), source })?;
    publish::write_file(path, format!("{text}\n").as_bytes(), 0o600).map_err(failed("write", path))?;
    Ok(made)
}
