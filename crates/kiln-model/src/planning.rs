//! From a checked template to a plan: the choices that need the base image and the host.
//!
//! Here is also the one list of what this Kiln checks but cannot build yet. The match
//! over the template's parts is exhaustive on purpose: what is added there must be
//! planned or refused here, it cannot be forgotten.

use std::collections::BTreeMap;

use crate::api::ApiVersion;
use crate::catalog::{Login, Os, StoredImage};
use crate::plan::{
    BuildPlan, Customizer, CustomizerAction, Distributor, HostLimits, PLAN_FORMAT, PlannedMachine, VmSize,
};
use crate::problem::{Code, Place, Problem, Problems};
use crate::template::{
    CheckedTemplate, OnError, TemplateAction, TemplateCustomizer, TemplateDistributor, TemplateSource,
    TemplateTarget,
};
use crate::vmsize;

/// MiB below which no supported guest comes up.
const LEAST_MEMORY_MIB: u64 = 512;

const GIB: u64 = 1 << 30;

/// The 2020-02-14 template reference, "default Linux deprovision command".
const DEPROVISION_2020: &str = "/usr/sbin/waagent -force -deprovision+user && export HISTSIZE=0 && sync";

/// The default since (contract, section 5).
const DEPROVISION: &str = "WAAGENT=/usr/sbin/waagent; waagent -version 1>/dev/null 2>&1; \
if [ $? -eq 0 ]; then WAAGENT=waagent; fi; \
$WAAGENT -force -deprovision+user && export HISTSIZE=0 && sync";

/// What a person who builds from a Windows must know.
const WINDOWS_PROOF: &str = "every step of a Windows build is protocol-tested and lab-tested (no Windows); none is \
verified on a Windows";

impl CheckedTemplate {
    /// Makes every choice that is left, for this base image on this host.
    ///
    /// # Errors
    /// All that cannot be built: sources, targets and fields this Kiln does not do yet, a
    /// disk smaller than the base image's, customizers the guest's system cannot run.
    pub fn plan(&self, image: &StoredImage, host: HostLimits) -> Result<BuildPlan, Problems> {
        let mut refused = self.refusals();
        let mut warnings = Vec::new();
        self.check_guest(image, &mut refused);
        let machine = self.machine(image, host, &mut refused, &mut warnings);
        if self.optimize.vm_boot.value {
            warnings.push(
                "optimize.vmBoot is of Azure's storage: nothing is done for it, the image is the same"
                    .to_owned(),
            );
        }
        let customizers: Vec<Customizer> = self.customizers.iter().map(planned_customizer).collect();
        let distributors: Vec<Distributor> =
            self.distributors.iter().filter_map(|target| planned_distributor(target, &self.tags)).collect();
        for customizer in &customizers {
            if let CustomizerAction::PowerShell { run_as_system: true, .. } = customizer.action
                && image.os == Os::Linux
            {
                warnings.push(format!("{}: runAsSystem means root on Linux", customizer.title()));
            }
        }
        if image.os == Os::Windows {
            warnings.push(WINDOWS_PROOF.to_owned());
        }
        if let Login::Credentials(credentials) = &image.login {
            warnings.push(format!(
                "the image keeps the account \"{}\", its password and its WinRM listener: they are the base image's own",
                credentials.user()
            ));
        }
        let (TemplateSource::Platform { name, version, .. }, true) = (&self.source, refused.is_empty())
        else {
            return Err(Problems::new(refused));
        };
        Ok(BuildPlan {
            format: PLAN_FORMAT,
            template_name: self.name.clone(),
            template_sha256: self.sha256,
            api_version: self.api_version,
            location: self.location.clone(),
            tags: self.tags.clone(),
            source_requested: format!("{name}:{version}"),
            source: image.clone(),
            machine,
            customizers,
            deprovision: match image.os {
                Os::Linux => Some(deprovision(self.api_version).to_owned()),
                Os::Windows => None,
            },
            distributors,
            timeout_minutes: self.timeout_minutes,
            keep_on_error: self.on_customizer_error.value == OnError::Abort,
            warnings,
        })
    }

    /// What is valid, and not built by this version: by source, target or field, with its
    /// place. Empty for a template that can be built.
    pub fn refusals(&self) -> Vec<Problem> {
        let CheckedTemplate {
            source,
            source_place,
            optimize,
            validation,
            distributors,
            additional_data_disks,
            // Part of every plan.
            on_customizer_error: _,
            name: _,
            customizers: _,
            sha256: _,
            api_version: _,
            location: _,
            tags: _,
            vm: _,
            timeout_minutes: _,
            // Without effect here; `check` says so.
            identity: _,
            auto_run: _,
            staging_resource_group: _,
            managed_resource_tags: _,
            // Matters with validators only, and those are refused.
            on_validation_error: _,
        } = self;
        let mut refused = Vec::new();
        match source {
            TemplateSource::Platform { .. } => {}
            TemplateSource::ManagedImage { .. } => {
                refused.push(not_yet("the source 'ManagedImage'", source_place, "use a PlatformImage"));
            }
            TemplateSource::SharedImageVersion { .. } => {
                refused.push(not_yet("the source 'SharedImageVersion'", source_place, "use a PlatformImage"));
            }
        }
        if let Some(workload) = &optimize.workload {
            refused.push(not_yet(
                "'optimize.workload'",
                &workload.place,
                "take it out, or set it to Disabled",
            ));
        }
        if let Some(validation) = validation
            && (!validation.validators.is_empty() || validation.source_validation_only)
        {
            refused.push(not_yet("'validate'", &validation.place, "take it out to build without validation"));
        }
        for distributor in distributors {
            let place = &distributor.place;
            match &distributor.target {
                TemplateTarget::Vhd { uri: None } => {}
                TemplateTarget::Vhd { uri: Some(uri) } => {
                    refused.push(not_yet(
                        "a VHD target's 'uri'",
                        &uri.place,
                        "without it, the VHD is put into the output folder",
                    ));
                }
                TemplateTarget::ManagedImage { .. } => {
                    refused.push(not_yet("the distributor 'ManagedImage'", place, "use a VHD"));
                }
                TemplateTarget::SharedImage { .. } => {
                    refused.push(not_yet("the distributor 'SharedImage'", place, "use a VHD"));
                }
            }
        }
        if let Some(first) = additional_data_disks.first() {
            refused.push(not_yet("'additionalDataDisks'", &first.place, "take it out"));
        }
        refused
    }

    /// What only the chosen image tells: an image that was imported by hand may be of
    /// another system than the check could know.
    fn check_guest(&self, image: &StoredImage, refused: &mut Vec<Problem>) {
        for customizer in &self.customizers {
            let unsupported = match (&customizer.action, image.os) {
                (TemplateAction::Shell { .. }, Os::Windows) => Some(("shell", "Windows")),
                (TemplateAction::WindowsRestart { .. }, Os::Linux) => Some(("windowsRestart", "Linux")),
                (TemplateAction::WindowsUpdate { .. }, Os::Linux) => Some(("windowsUpdate", "Linux")),
                _ => None,
            };
            if let Some((kind, system)) = unsupported {
                refused.push(Problem::error(
                    Code::CustomizerNotSupported,
                    &customizer.place,
                    format!(
                        "CustomizerNotSupportedForImage: Customizer {kind} is not supported on {system} images"
                    ),
                ));
            }
            if let TemplateAction::File { destination, .. } = &customizer.action
                && image.os == Os::Linux
                && !destination.starts_with('/')
            {
                refused.push(Problem::error(
                    Code::BadValue,
                    &customizer.place,
                    format!("the destination '{destination}' is no path of a Linux guest"),
                ));
            }
        }
    }

    fn machine(
        &self,
        image: &StoredImage,
        host: HostLimits,
        refused: &mut Vec<Problem>,
        warnings: &mut Vec<String>,
    ) -> PlannedMachine {
        let size: VmSize = match &self.vm.size {
            Some(size) => size.clone(),
            None => vmsize::default_for(image.generation),
        };
        let vcpus = size.vcpus.min(host.cpus.max(1));
        let memory_mib = size.memory_mib.min(host.memory_mib).max(LEAST_MEMORY_MIB);
        if host.memory_mib < LEAST_MEMORY_MIB {
            refused.push(Problem::error(
                Code::Capped,
                &self.vm.os_disk_size_gb.place,
                format!(
                    "this host can give a guest {} MiB of memory; it needs {LEAST_MEMORY_MIB}",
                    host.memory_mib
                ),
            ));
        }
        if vcpus < size.vcpus || memory_mib < size.memory_mib {
            warnings.push(format!(
                "{} has {} vCPUs and {} MiB of memory; on this host the machine gets {vcpus} vCPUs and {memory_mib} MiB",
                size.name, size.vcpus, size.memory_mib
            ));
        }
        if size.gpu {
            warnings.push(format!("{} has an accelerator in Azure; none is attached here", size.name));
        }
        let wanted = u64::from(self.vm.os_disk_size_gb.value) * GIB;
        if wanted > 0 && wanted < image.virtual_size {
            refused.push(
                Problem::error(
                    Code::ShrinkingDisk,
                    &self.vm.os_disk_size_gb.place,
                    format!(
                        "osDiskSizeGB is {} GB, and the base image {} {} has a disk of {} GB: a disk can only grow",
                        self.vm.os_disk_size_gb.value,
                        image.name,
                        image.version,
                        gigabytes(image.virtual_size)
                    ),
                )
                .help(format!("give {} or more, or 0 to keep the size", image.virtual_size.div_ceil(GIB))),
            );
        }
        PlannedMachine { vm_size: size, vcpus, memory_mib, disk_bytes: wanted.max(image.virtual_size) }
    }
}

/// `4`, or `2.2` where it is no whole number.
fn gigabytes(bytes: u64) -> String {
    if bytes.is_multiple_of(GIB) {
        (bytes / GIB).to_string()
    } else {
        // One digit behind the point, rounded up.
        let tenths = (bytes * 10).div_ceil(GIB);
        format!("{}.{}", tenths / 10, tenths % 10)
    }
}

fn not_yet(what: &str, place: &Place, help: &str) -> Problem {
    Problem::error(Code::NotBuiltYet, place, format!("{what} is valid, and this Kiln does not build it yet"))
        .help(help)
}

fn planned_customizer(customizer: &TemplateCustomizer) -> Customizer {
    let action = match &customizer.action {
        TemplateAction::Shell { script } => CustomizerAction::Shell { script: script.clone() },
        TemplateAction::PowerShell { script, run_elevated, run_as_system, valid_exit_codes } => {
            CustomizerAction::PowerShell {
                script: script.clone(),
                run_elevated: *run_elevated,
                run_as_system: *run_as_system,
                valid_exit_codes: valid_exit_codes.clone(),
            }
        }
        TemplateAction::File { source, destination } => {
            CustomizerAction::File { source: source.clone(), destination: destination.clone() }
        }
        TemplateAction::WindowsRestart { command, check_command, timeout } => {
            CustomizerAction::WindowsRestart {
                command: command.clone(),
                check_command: check_command.clone(),
                timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            }
        }
        TemplateAction::WindowsUpdate { search_criteria, filters, limit } => {
            CustomizerAction::WindowsUpdate {
                search_criteria: search_criteria.clone(),
                filters: filters.clone(),
                limit: *limit,
            }
        }
    };
    Customizer { position: customizer.position, name: customizer.name.clone(), action }
}

fn planned_distributor(
    distributor: &TemplateDistributor,
    template_tags: &BTreeMap<String, String>,
) -> Option<Distributor> {
    match &distributor.target {
        TemplateTarget::Vhd { uri: None } => {
            let mut tags = template_tags.clone();
            tags.extend(distributor.artifact_tags.clone());
            Some(Distributor::Vhd { run_output_name: distributor.run_output_name.clone(), tags })
        }
        TemplateTarget::Vhd { uri: Some(_) }
        | TemplateTarget::ManagedImage { .. }
        | TemplateTarget::SharedImage { .. } => None,
    }
}

/// The default deprovisioning line of an api-version.
fn deprovision(version: ApiVersion) -> &'static str {
    if version.is_2020_or_older() { DEPROVISION_2020 } else { DEPROVISION }
}

#[cfg(test)]
mod tests;
