//! What the store keeps, as plain values. Wire shapes are made of them in `templates` and `http`.

use std::fmt;
use std::hash::{Hash, Hasher};

use kiln_build::run_dir::RunId;
use kiln_model::Sha256;
use kiln_model::event::RunOutput;
use kiln_model::run::{Fault, Phase, RunState};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The type of the one tracked resource, spelled as Azure answers it.
pub const TEMPLATE_TYPE: &str = "Microsoft.VirtualMachineImages/imageTemplates";

/// Where a template stands in Azure's tree. Compares ignoring case, as ARM ids do; keeps the case it was first written with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TemplateId {
    pub subscription: String,
    pub resource_group: String,
    pub name: String,
}

impl TemplateId {
    /// `/subscriptions/…/resourceGroups/…/providers/Microsoft.VirtualMachineImages/imageTemplates/…`.
    pub fn arm_id(&self) -> String {
        let Self { subscription, resource_group, name } = self;
        format!(
            "/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/{TEMPLATE_TYPE}/{name}"
        )
    }

    /// The same for every spelling of one id.
    pub fn key(&self) -> String {
        self.arm_id().to_ascii_lowercase()
    }
}

impl PartialEq for TemplateId {
    fn eq(&self, other: &Self) -> bool {
        self.subscription.eq_ignore_ascii_case(&other.subscription)
            && self.resource_group.eq_ignore_ascii_case(&other.resource_group)
            && self.name.eq_ignore_ascii_case(&other.name)
    }
}

impl Eq for TemplateId {}

impl Hash for TemplateId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Display for TemplateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arm_id())
    }
}

/// `properties.provisioningState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProvisioningState {
    Creating,
    Updating,
    Succeeded,
    Failed,
    Deleting,
    Canceled,
}

/// `properties.provisioningError`: `code` is one of the contract's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisioningError {
    pub code: String,
    pub message: String,
}

/// The stored copy of a file that a template names. Runs use it and never go back to the address.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputCopy {
    /// As the template has it, query string and all: never shown, hence no `Debug`.
    pub address: String,
    pub sha256: Sha256,
    /// Bytes.
    pub size: u64,
}

/// `properties.lastRunStatus`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    pub run: RunId,
    pub state: RunState,
    pub phase: Option<Phase>,
    pub message: String,
    /// RFC 3339, UTC, as are all times of these records.
    pub started_at: String,
    pub ended_at: Option<String>,
}

/// What the server still has to do about a template: begun again after a restart.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingWork {
    /// Id of the operation that ends with it.
    pub operation: String,
    pub task: PendingTask,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum PendingTask {
    /// The files it names are fetched for the first time.
    Create {
        /// Digest of the manifest of uploaded inputs.
        uploads: Option<Sha256>,
    },
    /// The same for its successor; it stays what it is until the successor is good.
    Replace { by: Box<Replacement>, uploads: Option<Sha256> },
    /// Its run is canceled if one is active, then it goes.
    Delete {
        /// Artifacts go, too.
        purge: bool,
        by: String,
        /// What it was, should it stay.
        before: ProvisioningState,
    },
}

/// What a template is to become.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Replacement {
    pub location: String,
    pub tags: Map<String, Value>,
    pub identity: Option<Value>,
    pub properties: Value,
    pub api_version: String,
    pub by: String,
    pub at: String,
}

/// A stored template. Its addresses may hold secrets: no `Debug`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateRecord {
    pub id: TemplateId,
    pub location: String,
    pub tags: Map<String, Value>,
    pub identity: Option<Value>,
    /// `properties` as they were put, without what only the service writes.
    pub properties: Value,
    /// Of the request that made it what it is.
    pub api_version: String,
    pub provisioning: ProvisioningState,
    pub provisioning_error: Option<ProvisioningError>,
    pub copies: Vec<InputCopy>,
    #[serde(default)]
    pub pending: Option<PendingWork>,
    /// What `latest` meant the last time a run was planned.
    #[serde(default)]
    pub exact_version: Option<String>,
    pub last_run: Option<LastRun>,
    pub created_at: String,
    pub created_by: String,
    pub modified_at: String,
    pub modified_by: String,
    /// Counts its changes, from 1.
    pub generation: u64,
}

/// A row of the index over run directories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    pub id: RunId,
    pub template: TemplateId,
    /// The operation whose end is this run's end.
    pub operation: String,
    pub state: RunState,
    pub phase: Option<Phase>,
    pub message: String,
    pub fault: Option<Fault>,
    pub queued_at: String,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    /// What admission set aside for it; 0 while that is not known.
    pub memory_mib: u64,
    pub cpus: u32,
    /// Workers it has had.
    pub attempt: u32,
    pub started_by: String,
    /// Of a run that retries another one: when the first of those began; see
    /// [`kiln_build::run_dir::CheckpointWishes::holds_since`].
    pub holds_since: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationKind {
    PutTemplate,
    PatchTemplate,
    DeleteTemplate,
    Run,
    Cancel,
    PutTrigger,
    DeleteTrigger,
}

/// `status` of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationStatus {
    InProgress,
    Succeeded,
    Failed,
    Canceled,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationError {
    pub code: String,
    pub message: String,
}

/// A long-running operation; readable after its end and after a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// A GUID.
    pub id: String,
    pub kind: OperationKind,
    pub subscription: String,
    pub location: String,
    /// ARM id of what it works on.
    pub resource: String,
    pub status: OperationStatus,
    pub started_at: String,
    pub ended_at: Option<String>,
    pub error: Option<OperationError>,
    pub run: Option<RunId>,
}

/// What a distributor of a daemon's run left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputRecord {
    pub template: TemplateId,
    /// `runOutputName`.
    pub name: String,
    pub run: RunId,
    /// The file lies in the artifacts' folder of the run.
    pub output: RunOutput,
    pub created_at: String,
}

/// A trigger. Stored; acting on it is not built yet, and its status says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TriggerRecord {
    pub template: TemplateId,
    pub name: String,
    /// `SourceImage`.
    pub kind: String,
    pub created_at: String,
    pub created_by: String,
    pub modified_at: String,
    pub modified_by: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResourceGroupRecord {
    pub subscription: String,
    pub name: String,
    pub location: String,
    pub tags: Map<String, Value>,
}

/// Who changed what, when, and how that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityRecord {
    /// Counts up; 0 before it is stored.
    pub seq: u64,
    pub at: String,
    /// Id of the principal.
    pub by: String,
    /// An action of the provider's operations list, or a word of Kiln's own.
    pub action: String,
    pub resource: String,
    pub outcome: String,
}
