//! The plan: a template with every choice made.
//!
//! INVARIANT: a [`BuildPlan`] is valid. [`crate::check()`] is the only way to a
//! [`CheckedTemplate`], and [`CheckedTemplate::plan`] the only way from there;
//! a plan file is read back only in the format that was written.
//! The same template, catalog and host give the same plan.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Sha256;
use crate::catalog::StoredImage;
use crate::json::{self, FormatError};
pub use crate::template::CheckedTemplate;

/// The newest plan format this build reads and the one it writes.
pub const PLAN_FORMAT: u32 = 1;

/// An Azure VM size: what the guest gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmSize {
    pub name: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// The size has a GPU in Azure; none is attached here.
    pub gpu: bool,
}

/// What this host can give to one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    pub cpus: u32,
    pub memory_mib: u64,
}

/// Everything a run does, with no choices left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildPlan {
    pub format: u32,
    pub template_name: String,
    pub template_sha256: Sha256,
    pub api_version: crate::api::ApiVersion,
    pub location: String,
    pub tags: BTreeMap<String, String>,
    /// `publisher:offer:sku:version` as the template wrote it.
    pub source_requested: String,
    pub source: StoredImage,
    pub machine: PlannedMachine,
    pub customizers: Vec<Customizer>,
    /// The default deprovisioning command line of this api-version. None for Windows, which Sysprep generalizes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deprovision: Option<String>,
    pub distributors: Vec<Distributor>,
    pub timeout_minutes: u32,
    /// `errorHandling.onCustomizerError` is `abort`: a machine in which a customizer fails is left for a look.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_on_error: bool,
    /// What a person should know before it runs.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlannedMachine {
    pub vm_size: VmSize,
    /// After the host's cap.
    pub vcpus: u32,
    pub memory_mib: u64,
    /// Size of the OS disk, bytes: the base's, or larger.
    pub disk_bytes: u64,
}

impl BuildPlan {
    /// The content of `plan.json`. Holds addresses whole, secrets in them included: the
    /// file is the owner's alone. To show a plan, take [`BuildPlan::redacted`].
    pub fn to_json(&self) -> String {
        json::pretty(self)
    }

    /// The same plan for people and programs that only look at it: addresses without
    /// their query strings, user names and passwords. It cannot be built from.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut plan = self.clone();
        for customizer in &mut plan.customizers {
            if let Some(input) = customizer.input_mut()
                && let InputLocation::Url(url) = &input.location
            {
                input.location = InputLocation::Url(redact_url(url));
            }
        }
        plan
    }

    /// Every script and file it needs, in the order of the customizers.
    pub fn inputs_mut(&mut self) -> impl Iterator<Item = &mut InputRef> {
        self.customizers.iter_mut().filter_map(Customizer::input_mut)
    }

    /// Reads `plan.json`.
    ///
    /// # Errors
    /// A newer format, a torn or foreign file.
    pub fn from_json(text: &str) -> Result<Self, FormatError> {
        json::read("the plan", text, PLAN_FORMAT)
    }
}

/// Where the bytes of a script or file come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputRef {
    pub location: InputLocation,
    /// What the template says the digest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InputLocation {
    /// An http or https address, whole. May hold a SAS token: print it only with
    /// [`InputLocation::redacted`].
    Url(String),
    /// A file of this host (`file:`), absolute.
    File(PathBuf),
    /// A copy on this host's shelf, found by the digest of its [`InputRef`]; nothing is fetched.
    Stored {
        /// Where it came from, redacted: for people, and for the file's name.
        address: String,
    },
}

impl InputLocation {
    /// An address as a template writes it: http, https, or `file:` with an absolute path.
    ///
    /// # Errors
    /// What is wrong with it, in words for its author.
    pub fn parse(text: &str) -> Result<Self, String> {
        crate::check::input_location(text)
    }

    /// For people and logs: no query string, no user name, no password.
    pub fn redacted(&self) -> String {
        match self {
            InputLocation::Url(url) => redact_url(url),
            InputLocation::File(path) => format!("file:{}", path.display()),
            InputLocation::Stored { address } => redact_url(address),
        }
    }

    /// The last part of the path: what a File destination that is a directory gets.
    pub fn file_name(&self) -> String {
        let name = match self {
            InputLocation::Url(url) | InputLocation::Stored { address: url } => {
                let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
                let path = rest.split(['?', '#']).next().unwrap_or(rest);
                path.split_once('/').map_or("", |(_, path)| path).rsplit('/').next().unwrap_or("").to_owned()
            }
            InputLocation::File(path) => {
                path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
            }
        };
        if name.is_empty() { "download".to_owned() } else { name }
    }
}

impl std::fmt::Debug for InputLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.redacted())
    }
}

/// What stands for a query string that is not shown.
pub const REDACTED_QUERY: &str = "?<redacted>";

/// An address without what may be secret in it.
pub fn redact_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (before_fragment, _) = rest.split_once('#').unwrap_or((rest, ""));
    let (path, query) = match before_fragment.split_once('?') {
        Some((path, _)) => (path, REDACTED_QUERY),
        None => (before_fragment, ""),
    };
    let (authority, tail) = path.find('/').map_or((path, ""), |at| path.split_at(at));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{host}{tail}{query}")
}

/// A customizer of the template, checked. Position is its place in the list, from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Customizer {
    pub position: u32,
    /// Empty where the template gives none.
    pub name: String,
    pub action: CustomizerAction,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
pub enum CustomizerAction {
    Shell {
        script: Script,
    },
    PowerShell {
        script: Script,
        run_elevated: bool,
        run_as_system: bool,
        valid_exit_codes: Vec<i32>,
    },
    File {
        source: InputRef,
        destination: String,
    },
    WindowsRestart {
        command: String,
        /// Empty where the template gives none.
        check_command: String,
        timeout_ms: u64,
    },
    WindowsUpdate {
        search_criteria: String,
        /// Never empty.
        filters: Vec<UpdateFilter>,
        /// Updates a round; never 0.
        limit: u32,
    },
}

/// `include:<expression>` or `exclude:<expression>`; the first that is true decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateFilter {
    pub include: bool,
    /// A PowerShell expression; `$_` is the update.
    pub expression: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Script {
    /// The entries of `inline`, joined by line feeds when run.
    Inline(Vec<String>),
    Fetched(InputRef),
}

impl Customizer {
    /// `Shell "install nginx"`, or `Shell #2` where there is no name.
    pub fn title(&self) -> String {
        match self.name.as_str() {
            "" => format!("{} #{}", self.kind(), self.position),
            name => format!("{} \"{name}\"", self.kind()),
        }
    }

    /// The template's word for it.
    pub fn kind(&self) -> &'static str {
        match self.action {
            CustomizerAction::Shell { .. } => "Shell",
            CustomizerAction::PowerShell { .. } => "PowerShell",
            CustomizerAction::File { .. } => "File",
            CustomizerAction::WindowsRestart { .. } => "WindowsRestart",
            CustomizerAction::WindowsUpdate { .. } => "WindowsUpdate",
        }
    }

    /// The word of the `(telemetry)` lines in customization.log.
    pub fn provisioner(&self) -> &'static str {
        match self.action {
            CustomizerAction::Shell { .. } => "shell",
            CustomizerAction::PowerShell { .. } => "powershell",
            CustomizerAction::File { .. } => "file",
            CustomizerAction::WindowsRestart { .. } => "windows-restart",
            CustomizerAction::WindowsUpdate { .. } => "windows-update",
        }
    }

    /// What must be fetched before it can run.
    pub fn input(&self) -> Option<&InputRef> {
        match &self.action {
            CustomizerAction::Shell { script } | CustomizerAction::PowerShell { script, .. } => {
                match script {
                    Script::Fetched(input) => Some(input),
                    Script::Inline(_) => None,
                }
            }
            CustomizerAction::File { source, .. } => Some(source),
            CustomizerAction::WindowsRestart { .. } | CustomizerAction::WindowsUpdate { .. } => None,
        }
    }
}

impl Customizer {
    fn input_mut(&mut self) -> Option<&mut InputRef> {
        match &mut self.action {
            CustomizerAction::Shell { script: Script::Fetched(input) }
            | CustomizerAction::PowerShell { script: Script::Fetched(input), .. }
            | CustomizerAction::File { source: input, .. } => Some(input),
            CustomizerAction::Shell { script: Script::Inline(_) }
            | CustomizerAction::PowerShell { script: Script::Inline(_), .. }
            | CustomizerAction::WindowsRestart { .. }
            | CustomizerAction::WindowsUpdate { .. } => None,
        }
    }
}

/// A distributor of the template, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
pub enum Distributor {
    #[serde(rename = "VHD")]
    Vhd {
        run_output_name: String,
        /// The template's tags, overlaid by the target's.
        tags: BTreeMap<String, String>,
    },
}

impl Distributor {
    pub fn run_output_name(&self) -> &str {
        match self {
            Distributor::Vhd { run_output_name, .. } => run_output_name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redaction_leaves_host_and_path_only() {
        for (url, shown) in [
            (
                "https://acct.blob.core.windows.net/c/x.sh?sv=1&sig=SECRET",
                "https://acct.blob.core.windows.net/c/x.sh?<redacted>",
            ),
            ("http://user:pass@host:8080/a", "http://host:8080/a"),
            ("https://h/a?x#sig=SECRET", "https://h/a?<redacted>"),
            ("https://u:p@h", "https://h"),
            ("https://h?sig=S", "https://h?<redacted>"),
            ("no scheme?sig=S", "no scheme?<redacted>"),
        ] {
            assert_eq!(redact_url(url), shown);
            assert!(!format!("{:?}", InputLocation::Url(url.into())).contains("SECRET"));
        }
    }

    #[test]
    fn file_names_come_from_the_path() {
        for (url, name) in
            [("https://h/a/b.sh?x=/y", "b.sh"), ("https://h", "download"), ("https://h/a/", "download")]
        {
            assert_eq!(InputLocation::Url(url.into()).file_name(), name);
            assert_eq!(InputLocation::Stored { address: url.into() }.file_name(), name);
        }
        assert_eq!(InputLocation::Stored { address: "file:/srv/a.sh".into() }.file_name(), "a.sh");
    }
}
