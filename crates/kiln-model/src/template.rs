//! A template that passed every check: domain types for the whole resource.
//!
//! Wider than the plan on purpose. Everything AIB knows is represented and checked;
//! what this build of Kiln cannot do yet is refused by [`CheckedTemplate::plan`],
//! before a machine starts, with the place in the file. [`crate::plan`] then holds
//! only what can be built.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::Sha256;
use crate::api::ApiVersion;
use crate::catalog::PlatformName;
use crate::plan::{InputRef, Script, UpdateFilter, VmSize};
use crate::problem::Place;

/// A template without errors. [`crate::check()`] is the only way to one.
///
/// It still names its base image as the template does: `latest` is resolved when a run starts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CheckedTemplate {
    /// From the envelope, else from the file's name.
    pub name: String,
    /// Digest of the template's text as it was read.
    pub sha256: Sha256,
    pub api_version: ApiVersion,
    /// Empty where the template gives none.
    pub location: String,
    pub tags: BTreeMap<String, String>,
    /// Resource id of the user-assigned identity. No local meaning.
    pub identity: Option<String>,
    pub source: TemplateSource,
    pub source_place: Place,
    pub vm: VmProfile,
    pub customizers: Vec<TemplateCustomizer>,
    pub optimize: Optimize,
    pub validation: Option<Validation>,
    pub distributors: Vec<TemplateDistributor>,
    pub on_customizer_error: Placed<OnError>,
    pub on_validation_error: Placed<OnError>,
    /// Minutes; never 0.
    pub timeout_minutes: u32,
    /// Gigabytes each.
    pub additional_data_disks: Vec<Placed<u32>>,
    pub auto_run: Placed<bool>,
    pub staging_resource_group: Option<String>,
    pub managed_resource_tags: BTreeMap<String, String>,
}

impl CheckedTemplate {
    /// Every script and file it names, with the place of what needs it: customizers first,
    /// then validators, then the workload of `optimize`.
    pub fn inputs(&self) -> Vec<(&InputRef, &Place)> {
        let steps = self.customizers.iter().chain(self.validation.iter().flat_map(|v| &v.validators));
        let workload = self.optimize.workload.iter().filter_map(|w| Some((w.value.as_ref()?, &w.place)));
        steps.filter_map(|step| Some((step.action.input()?, &step.place))).chain(workload).collect()
    }
}

/// A value and where the template says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placed<T> {
    pub value: T,
    pub place: Place,
}

/// Where the base image comes from, as the template says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    Platform {
        name: PlatformName,
        /// `latest`, or an exact version.
        version: String,
        plan: Option<PurchasePlan>,
    },
    ManagedImage {
        image_id: String,
    },
    SharedImageVersion {
        image_version_id: String,
    },
}

/// `planInfo` of a Marketplace image. No local meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurchasePlan {
    pub name: String,
    pub product: String,
    pub publisher: String,
}

/// `vmProfile`: the machine a build runs on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VmProfile {
    /// `None` takes the default of the base image's generation.
    pub size: Option<VmSize>,
    /// Gigabytes (2^30 bytes); 0 keeps the base image's size.
    pub os_disk_size_gb: Placed<u32>,
    /// No local meaning.
    pub identities: Vec<String>,
    /// No local meaning: the guest reaches the network through this host.
    pub subnet_id: Option<String>,
}

/// A customizer as the template has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateCustomizer {
    /// Its place in the list, from 1.
    pub position: u32,
    /// Empty where the template gives none.
    pub name: String,
    pub action: TemplateAction,
    pub place: Place,
}

/// What customizers and in-VM validators do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateAction {
    Shell {
        script: Script,
    },
    PowerShell {
        script: Script,
        run_elevated: bool,
        run_as_system: bool,
        /// Never empty.
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
        timeout: Duration,
    },
    WindowsUpdate {
        search_criteria: String,
        filters: Vec<UpdateFilter>,
        /// Updates a pass; never 0.
        limit: u32,
    },
}

impl TemplateAction {
    /// What must be fetched before it can run.
    pub fn input(&self) -> Option<&InputRef> {
        match self {
            TemplateAction::Shell { script } | TemplateAction::PowerShell { script, .. } => match script {
                Script::Fetched(input) => Some(input),
                Script::Inline(_) => None,
            },
            TemplateAction::File { source, .. } => Some(source),
            TemplateAction::WindowsRestart { .. } | TemplateAction::WindowsUpdate { .. } => None,
        }
    }

    /// The template's word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            TemplateAction::Shell { .. } => "Shell",
            TemplateAction::PowerShell { .. } => "PowerShell",
            TemplateAction::File { .. } => "File",
            TemplateAction::WindowsRestart { .. } => "WindowsRestart",
            TemplateAction::WindowsUpdate { .. } => "WindowsUpdate",
        }
    }
}

/// `validate` (2022-02-14 and later).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validation {
    pub continue_distribute_on_failure: bool,
    pub source_validation_only: bool,
    pub validators: Vec<TemplateCustomizer>,
    pub place: Place,
}

/// `optimize` (2022-07-01 and later).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Optimize {
    pub vm_boot: Placed<bool>,
    /// 2025-10-01 and later.
    pub workload: Option<Placed<Option<InputRef>>>,
}

/// `errorHandling` (2023-07-01 and later).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    #[default]
    Cleanup,
    /// Keep the machine for a look at it.
    Abort,
}

/// A distributor as the template has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateDistributor {
    pub run_output_name: String,
    /// The target's own tags.
    pub artifact_tags: BTreeMap<String, String>,
    pub target: TemplateTarget,
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateTarget {
    Vhd {
        /// `None`: beside the other artifacts of the run.
        uri: Option<Placed<String>>,
    },
    ManagedImage {
        image_id: String,
        location: String,
    },
    SharedImage {
        gallery_image_id: String,
        version: ImageVersioning,
        regions: Vec<TargetRegion>,
        exclude_from_latest: bool,
        replication: ReplicationMode,
    },
}

/// How a gallery image version gets its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageVersioning {
    /// `galleryImageId` ends with `/versions/1.2.3`.
    Explicit(String),
    /// No `versioning`: made of the time of the run.
    ByTime,
    /// The next patch after the highest; of one major number, or of all.
    Latest { major: Option<u32> },
    /// The source image's number.
    Source,
}

/// No local meaning beyond the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRegion {
    pub name: String,
    pub replica_count: u32,
    pub storage_account_type: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReplicationMode {
    #[default]
    Full,
    Shallow,
}
