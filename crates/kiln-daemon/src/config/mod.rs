//! The daemon's settings: one YAML file, each key of which can be left out.
//!
//! ```text
//!  defaults ◄─ file (Config::read) ◄─ environment ◄─ flags      the last one wins
//!                                      └── Overrides ──┘        kiln::settings makes them
//! ```
//! An unknown key, a repeated one, or a value that cannot be meant ends the start: the error names the file, the line
//! and the key. The file holds hashes of secrets, never secrets. Every key is documented once, in [`keys`], from which
//! [`Config::example`] is made.

mod environment;
mod keys;
mod names;
mod values;

use std::path::{Path, PathBuf};

pub use environment::{Environment, EnvironmentError, Subscription};
pub use names::Names;
use serde::Deserialize;
pub(crate) use values::split_authority;
use values::write_authority;
pub use values::{Guid, HostName, Listen, PublicUrl, SecretHash, SocketMode};

use crate::access::Role;

/// The port of a server that was told none.
pub const DEFAULT_PORT: u16 = 8441;
/// Larger files are no settings.
const MAX_BYTES: u64 = 1 << 20;
/// A socket's path has 108 bytes with its end (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Config {
    pub data: Option<PathBuf>,
    /// Empty: nothing listens on TCP.
    pub listen: Vec<Listen>,
    pub public_url: Option<PublicUrl>,
    #[serde(deserialize_with = "section")]
    pub socket: SocketConfig,
    #[serde(deserialize_with = "section")]
    pub tls: TlsConfig,
    #[serde(deserialize_with = "section")]
    pub access: AccessConfig,
    #[serde(deserialize_with = "section")]
    pub environment: EnvironmentConfig,
    #[serde(deserialize_with = "section")]
    pub runs: RunsConfig,
    #[serde(deserialize_with = "section")]
    pub checkpoints: CheckpointsConfig,
    #[serde(deserialize_with = "section")]
    pub retention: RetentionConfig,
    #[serde(deserialize_with = "section")]
    pub inputs: InputsConfig,
    #[serde(deserialize_with = "section")]
    pub templates: TemplatesConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: None,
            listen: vec![Listen { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT }],
            public_url: None,
            socket: SocketConfig::default(),
            tls: TlsConfig::default(),
            access: AccessConfig::default(),
            environment: EnvironmentConfig::default(),
            runs: RunsConfig::default(),
            checkpoints: CheckpointsConfig::default(),
            retention: RetentionConfig::default(),
            inputs: InputsConfig::default(),
            templates: TemplatesConfig::default(),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SocketConfig {
    pub path: Option<PathBuf>,
    pub mode: Option<SocketMode>,
    pub group: Option<String>,
}

impl SocketConfig {
    /// Permissions of the socket: its owner's alone, and its group's where one is named.
    pub fn permissions(&self) -> u32 {
        let unsaid = if self.group.is_some() { 0o660 } else { 0o600 };
        self.mode.map_or(unsaid, |mode| mode.0)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TlsConfig {
    /// With [`Self::key`]: both or none.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub names: Vec<HostName>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AccessConfig {
    pub principals: Vec<PrincipalConfig>,
    pub token_minutes: u32,
    #[serde(deserialize_with = "section")]
    pub managed_identity: ManagedIdentityConfig,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self { principals: Vec::new(), token_minutes: 60, managed_identity: ManagedIdentityConfig::default() }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PrincipalConfig {
    pub id: String,
    pub name: Option<String>,
    pub role: Role,
    pub secret_hash: SecretHash,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ManagedIdentityConfig {
    pub enabled: bool,
    pub role: Role,
    /// Port on 127.0.0.1 that offers it by plain http.
    pub http: Option<u16>,
}

impl Default for ManagedIdentityConfig {
    fn default() -> Self {
        Self { enabled: true, role: Role::Operator, http: None }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct EnvironmentConfig {
    pub tenant: Option<Guid>,
    pub subscriptions: Vec<SubscriptionConfig>,
    pub resource_groups: Vec<String>,
    pub location: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SubscriptionConfig {
    pub id: Guid,
    pub name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RunsConfig {
    #[serde(rename = "memoryMiB")]
    pub memory_mib: Option<u64>,
    pub cpus: Option<u32>,
    pub worker_user: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct CheckpointsConfig {
    pub enabled: bool,
    #[serde(rename = "sizeGiB")]
    pub size_gib: u64,
    pub max_age_hours: u64,
}

impl Default for CheckpointsConfig {
    fn default() -> Self {
        Self { enabled: true, size_gib: 20, max_age_hours: 24 }
    }
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RetentionConfig {
    pub days: u32,
    pub per_template: u32,
    #[serde(rename = "sizeGiB")]
    pub size_gib: Option<u64>,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self { days: 30, per_template: 100, size_gib: None }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct InputsConfig {
    pub file_roots: Vec<PathBuf>,
    pub allow_private_addresses: bool,
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TemplatesConfig {
    pub replace: bool,
}

/// A section whose keys are all commented out is null in YAML, and means its defaults.
fn section<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

/// What stands above the file: flags, and below them the environment. `None` leaves the file's word.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    pub data: Option<PathBuf>,
    pub listen: Option<Vec<Listen>>,
    pub socket: Option<PathBuf>,
}

impl Overrides {
    /// These, and `lower`'s where these say nothing.
    #[must_use]
    pub fn over(self, lower: Self) -> Self {
        let Self { data, listen, socket } = self;
        Self { data: data.or(lower.data), listen: listen.or(lower.listen), socket: socket.or(lower.socket) }
    }
}

/// The settings cannot be used. No message repeats a value that may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration file {} has {bytes} bytes; at most {MAX_BYTES} are read", .path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("{}:{line}:{column}: {}{message}", .path.display(), said(.key))]
    Syntax { path: PathBuf, line: u64, column: u64, key: Option<String>, message: String },
    #[error("{}: {}", .path.display(), .problems.join("; "))]
    Values { path: PathBuf, problems: Vec<String> },
}

fn said(key: &Option<String>) -> String {
    key.as_ref().map_or_else(String::new, |key| format!("{key}: "))
}

impl Config {
    /// Reads a file. An empty one is the defaults.
    ///
    /// # Errors
    /// What cannot be read or meant, with its place.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > MAX_BYTES {
            return Err(ConfigError::TooLarge { path: path.to_owned(), bytes });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(read)?, path)
    }

    /// `origin` names the text in errors.
    pub fn parse(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        let nothing = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        if nothing {
            return Ok(Self::default());
        }
        // Without the snippet: the lines around a mistake may hold what should not be printed.
        let options = serde_yaml::options! { with_snippet: false };
        let config: Self = serde_yaml::from_str_with_options(text, options).map_err(|error| {
            let (line, column) = error.location().map_or((1, 1), |place| (place.line(), place.column()));
            let message = error.render();
            // The place is said already.
            let first = message.lines().next().unwrap_or_default();
            let first = first.split(" at line ").next().unwrap_or(first).to_owned();
            let key = key_at(text, usize::try_from(line).unwrap_or(1));
            ConfigError::Syntax { path: origin.to_owned(), line, column, key, message: first }
        })?;
        let problems = config.problems();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Values { path: origin.to_owned(), problems })
        }
    }

    /// An example with every key: defaults as they are, the others commented out.
    pub fn example() -> String {
        keys::example()
    }

    #[must_use]
    pub fn overridden(mut self, overrides: Overrides) -> Self {
        let Overrides { data, listen, socket } = overrides;
        if data.is_some() {
            self.data = data;
        }
        if let Some(listen) = listen {
            self.listen = listen;
        }
        if socket.is_some() {
            self.socket.path = socket;
        }
        self
    }

    /// What the values' own forms cannot tell: each names its key and what to do.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut say = |key: &str, what: &str| problems.push(format!("{key}: {what}"));

        let absolute = [
            ("data", self.data.as_ref()),
            ("socket.path", self.socket.path.as_ref()),
            ("tls.certificate", self.tls.certificate.as_ref()),
            ("tls.key", self.tls.key.as_ref()),
            ("inputs.caFile", self.inputs.ca_file.as_ref()),
        ];
        let roots = self.inputs.file_roots.iter().map(|root| ("inputs.fileRoots", Some(root)));
        for (key, path) in absolute.into_iter().chain(roots) {
            if path.is_some_and(|path| !path.is_absolute()) {
                say(key, "must be an absolute path, beginning with /");
            }
        }
        if self.socket.path.as_ref().is_some_and(|path| path.as_os_str().len() > MAX_SOCKET_PATH) {
            say("socket.path", &format!("is too long: a socket's path has at most {MAX_SOCKET_PATH} bytes"));
        }
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            say(
                "tls",
                "certificate and key are given together, or neither of them (then Kiln makes its own)",
            );
        }
        if !(1..=24 * 60).contains(&self.access.token_minutes) {
            say("access.tokenMinutes", "must be from 1 to 1440");
        }
        if self.access.managed_identity.http.is_some() && !self.access.managed_identity.enabled {
            say("access.managedIdentity.http", "needs access.managedIdentity.enabled to be true");
        }
        for (at, principal) in self.access.principals.iter().enumerate() {
            let key = format!("access.principals[{at}].id");
            let id = &principal.id;
            let proper = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            if id.is_empty() || id.len() > 128 || !id.bytes().all(proper) {
                say(&key, "must be 1 to 128 letters, digits, '-', '.' or '_'");
            }
            if id.eq_ignore_ascii_case(crate::access::IDENTITY) {
                say(&key, &format!("{id:?} is the managed identity's: choose another"));
            }
            if self.access.principals[..at].iter().any(|other| other.id.eq_ignore_ascii_case(id)) {
                say(&key, &format!("{id:?} is there twice: give each principal an id of its own"));
            }
        }
        for (at, subscription) in self.environment.subscriptions.iter().enumerate() {
            if self.environment.subscriptions[..at].iter().any(|other| other.id == subscription.id) {
                say("environment.subscriptions", &format!("{} is there twice: remove one", subscription.id));
            }
        }
        for name in &self.environment.resource_groups {
            if !is_resource_group(name) {
                say(
                    "environment.resourceGroups",
                    &format!(
                        "{name:?} is no name: 1 to 90 letters, digits, '-', '_', '.', '(' or ')', no '.' at its end"
                    ),
                );
            }
        }
        if let Some(location) = &self.environment.location
            && (location.is_empty()
                || !location.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
        {
            say("environment.location", "must be lower-case letters and digits, as Azure's locations are");
        }
        if self.runs.memory_mib == Some(0) {
            say("runs.memoryMiB", "must be more than 0; leave it out to use what the host has");
        }
        if self.runs.cpus == Some(0) {
            say("runs.cpus", "must be more than 0; leave it out to use what the host has");
        }
        problems
    }
}

/// ARM's rule for names of resource groups.
pub(crate) fn is_resource_group(name: &str) -> bool {
    (1..=90).contains(&name.chars().count())
        && name.chars().all(|char| char.is_alphanumeric() || "-_.()".contains(char))
        && !name.ends_with('.')
}

/// The dotted key on line `line` (from 1), by indentation. Nothing for what is written in braces.
fn key_at(text: &str, line: usize) -> Option<String> {
    let mut path = Vec::new();
    let mut limit = usize::MAX;
    for line in text.lines().take(line).collect::<Vec<_>>().into_iter().rev() {
        let bare = line.trim_start_matches([' ', '-']);
        let indent = line.len() - bare.len();
        let Some((key, _)) = bare.split_once(':') else { continue };
        if indent < limit && !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            path.push(key);
            limit = indent;
        }
        if limit == 0 {
            break;
        }
    }
    path.reverse();
    (!path.is_empty()).then(|| path.join("."))
}

#[cfg(test)]
mod tests;
