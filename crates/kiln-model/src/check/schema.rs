//! The image template resource by api-version: which property exists from when to when.
//!
//! Sources: the REST specifications of each version, as their generated clients have
//! them, and the 2020-02-14 template reference.

use crate::api::ApiVersion::{self, *};

/// A property of an object of the template.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub name: &'static str,
    pub since: ApiVersion,
    /// The last version that has it.
    pub until: ApiVersion,
    pub kind: FieldKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldKind {
    Plain,
    /// The service's answer: ignored in a file, with a note.
    ReadOnly,
    /// Only for another kind of object; an error by name, whatever the version.
    BelongsTo(&'static str),
}

const fn field(name: &'static str, since: ApiVersion) -> Field {
    Field { name, since, until: V2025_10_01, kind: FieldKind::Plain }
}

const fn always(name: &'static str) -> Field {
    field(name, V2018_02_01Preview)
}

const fn read_only(name: &'static str, since: ApiVersion) -> Field {
    Field { name, since, until: V2025_10_01, kind: FieldKind::ReadOnly }
}

const fn only_of(name: &'static str, whose: &'static str) -> Field {
    Field { name, since: V2018_02_01Preview, until: V2025_10_01, kind: FieldKind::BelongsTo(whose) }
}

/// The spelling of the first previews; `scriptUri` since.
const SCRIPT: Field =
    Field { name: "script", since: V2018_02_01Preview, until: V2019_02_01Preview, kind: FieldKind::Plain };

/// The resource. The envelope of a file comes on top.
pub(super) const RESOURCE: &[Field] = &[
    always("location"),
    always("tags"),
    field("identity", V2019_05_01Preview),
    always("properties"),
    read_only("id", V2018_02_01Preview),
    read_only("systemData", V2021_10_01),
];

/// What a file has around the resource; stripped, never an unknown field.
pub(crate) const ENVELOPE: &[&str] = &["type", "apiVersion", "name", "dependsOn", "comments"];

/// What the body of a request may have besides, from 2024-02-01 on: `apiVersion` is unknown there.
pub(super) const REQUEST_ENVELOPE: &[&str] = &["type", "name"];

/// What deployment templates allow besides, for each of their resources.
pub(crate) const DEPLOYMENT_ENVELOPE: &[&str] = &["condition", "metadata", "scope"];

pub(super) const IDENTITY: &[Field] = &[
    field("type", V2019_05_01Preview),
    field("userAssignedIdentities", V2019_05_01Preview),
    read_only("principalId", V2019_05_01Preview),
    read_only("tenantId", V2019_05_01Preview),
];

pub(super) const PROPERTIES: &[Field] = &[
    always("source"),
    always("customize"),
    always("distribute"),
    field("buildTimeoutInMinutes", V2019_05_01Preview),
    field("vmProfile", V2019_05_01Preview),
    field("validate", V2022_02_14),
    field("stagingResourceGroup", V2022_02_14),
    field("optimize", V2022_07_01),
    field("errorHandling", V2023_07_01),
    field("autoRun", V2024_02_01),
    field("managedResourceTags", V2024_02_01),
    field("additionalDataDisks", V2025_10_01),
    read_only("exactStagingResourceGroup", V2022_02_14),
    read_only("provisioningState", V2018_02_01Preview),
    read_only("provisioningError", V2018_02_01Preview),
    read_only("lastRunStatus", V2018_02_01Preview),
];

pub(super) const PLATFORM_IMAGE: &[Field] = &[
    always("type"),
    always("publisher"),
    always("offer"),
    always("sku"),
    always("version"),
    field("planInfo", V2020_02_14),
    read_only("exactVersion", V2021_10_01),
];

pub(super) const PLAN_INFO: &[Field] =
    &[field("planName", V2020_02_14), field("planProduct", V2020_02_14), field("planPublisher", V2020_02_14)];

pub(super) const MANAGED_IMAGE_SOURCE: &[Field] = &[always("type"), always("imageId")];

pub(super) const SHARED_IMAGE_SOURCE: &[Field] =
    &[always("type"), always("imageVersionId"), read_only("exactVersion", V2022_07_01)];

pub(super) const SHELL: &[Field] = &[
    always("type"),
    always("name"),
    SCRIPT,
    field("scriptUri", V2019_05_01Preview),
    field("inline", V2019_02_01Preview),
    field("sha256Checksum", V2019_05_01Preview),
    only_of("runElevated", "PowerShell"),
    only_of("runAsSystem", "PowerShell"),
    only_of("validExitCodes", "PowerShell"),
];

pub(super) const POWERSHELL: &[Field] = &[
    always("type"),
    always("name"),
    SCRIPT,
    field("scriptUri", V2019_05_01Preview),
    field("inline", V2019_02_01Preview),
    field("sha256Checksum", V2019_05_01Preview),
    field("runElevated", V2019_05_01Preview),
    field("runAsSystem", V2021_10_01),
    field("validExitCodes", V2019_02_01Preview),
];

pub(super) const FILE: &[Field] = &[
    always("type"),
    always("name"),
    field("sourceUri", V2019_05_01Preview),
    field("destination", V2019_05_01Preview),
    field("sha256Checksum", V2019_05_01Preview),
    only_of("inline", "Shell and PowerShell"),
    only_of("scriptUri", "Shell and PowerShell"),
    only_of("runElevated", "PowerShell"),
];

pub(super) const WINDOWS_RESTART: &[Field] = &[
    always("type"),
    always("name"),
    always("restartCommand"),
    always("restartCheckCommand"),
    always("restartTimeout"),
];

pub(super) const WINDOWS_UPDATE: &[Field] =
    &[always("type"), always("name"), always("searchCriteria"), always("filters"), always("updateLimit")];

pub(super) const VALIDATE: &[Field] = &[
    field("continueDistributeOnFailure", V2022_02_14),
    field("sourceValidationOnly", V2022_02_14),
    field("inVMValidations", V2022_02_14),
];

pub(super) const OPTIMIZE: &[Field] = &[field("vmBoot", V2022_07_01), field("workload", V2025_10_01)];

pub(super) const VM_BOOT: &[Field] = &[field("state", V2022_07_01)];

pub(super) const WORKLOAD: &[Field] =
    &[field("state", V2025_10_01), field("scriptUri", V2025_10_01), field("sha256Checksum", V2025_10_01)];

pub(super) const ERROR_HANDLING: &[Field] =
    &[field("onCustomizerError", V2023_07_01), field("onValidationError", V2023_07_01)];

pub(super) const AUTO_RUN: &[Field] = &[field("state", V2024_02_01)];

pub(super) const DATA_DISK: &[Field] = &[field("sizeGB", V2025_10_01)];

pub(super) const VM_PROFILE: &[Field] = &[
    field("vmSize", V2019_05_01Preview),
    field("osDiskSizeGB", V2020_02_14),
    field("vnetConfig", V2020_02_14),
    field("userAssignedIdentities", V2021_10_01),
];

pub(super) const VNET_CONFIG: &[Field] = &[
    field("subnetId", V2020_02_14),
    field("proxyVmSize", V2021_10_01),
    field("containerInstanceSubnetId", V2024_02_01),
];

/// `tags` is how the 2020 document spells `artifactTags` here: never unknown.
pub(super) const VHD: &[Field] = &[
    always("type"),
    always("runOutputName"),
    always("artifactTags"),
    always("tags"),
    field("uri", V2022_07_01),
];

pub(super) const MANAGED_IMAGE_TARGET: &[Field] =
    &[always("type"), always("runOutputName"), always("artifactTags"), always("imageId"), always("location")];

pub(super) const SHARED_IMAGE_TARGET: &[Field] = &[
    always("type"),
    always("runOutputName"),
    always("artifactTags"),
    always("galleryImageId"),
    always("replicationRegions"),
    field("excludeFromLatest", V2020_02_14),
    field("storageAccountType", V2020_02_14),
    field("targetRegions", V2022_07_01),
    field("versioning", V2022_07_01),
    field("replicationMode", V2025_10_01),
];

pub(super) const TARGET_REGION: &[Field] = &[
    field("name", V2022_07_01),
    field("replicaCount", V2022_07_01),
    field("storageAccountType", V2022_07_01),
];

pub(super) const VERSIONING: &[Field] = &[field("scheme", V2022_07_01), field("major", V2022_07_01)];

/// A value of `type`, and from when to when AIB has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub name: &'static str,
    pub since: ApiVersion,
    /// The last version that has it.
    pub until: ApiVersion,
    /// Another spelling, and the last version that takes it.
    pub also: Option<(&'static str, ApiVersion)>,
}

const fn kind(name: &'static str, since: ApiVersion) -> Kind {
    Kind { name, since, until: V2025_10_01, also: None }
}

pub(super) const SOURCES: &[Kind] = &[
    kind("PlatformImage", V2018_02_01Preview),
    kind("ManagedImage", V2019_02_01Preview),
    kind("SharedImageVersion", V2019_05_01Preview),
    Kind { name: "ISO", since: V2018_02_01Preview, until: V2019_05_01Preview, also: None },
];

pub(super) const CUSTOMIZERS: &[Kind] = &[
    // The first preview spelled it in lower case.
    Kind {
        name: "Shell",
        since: V2018_02_01Preview,
        until: V2025_10_01,
        also: Some(("shell", V2018_02_01Preview)),
    },
    kind("PowerShell", V2019_02_01Preview),
    kind("WindowsRestart", V2019_02_01Preview),
    kind("File", V2019_05_01Preview),
    kind("WindowsUpdate", V2019_05_01Preview),
];

pub(super) const VALIDATORS: &[Kind] =
    &[kind("Shell", V2022_02_14), kind("PowerShell", V2022_02_14), kind("File", V2022_07_01)];

pub(super) const DISTRIBUTORS: &[Kind] = &[
    kind("VHD", V2018_02_01Preview),
    Kind {
        name: "ManagedImage",
        since: V2018_02_01Preview,
        until: V2025_10_01,
        also: Some(("managedImage", V2020_02_14)),
    },
    Kind {
        name: "SharedImage",
        since: V2018_02_01Preview,
        until: V2025_10_01,
        also: Some(("sharedImage", V2020_02_14)),
    },
];

pub(super) const VERSIONING_SCHEMES: &[Kind] = &[kind("Latest", V2022_07_01), kind("Source", V2022_07_01)];
