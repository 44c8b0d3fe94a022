//! The rest of the properties: `vmProfile`, `optimize`, `errorHandling`, `autoRun` and small ones.

use super::customize::{checksum, location};
use super::object::{At, Got, Object};
use super::report::Report;
use super::resource::placed;
use super::schema;
use super::values::{resource_id, resource_id_form};
use crate::document::shown;
use crate::plan::{InputRef, VmSize};
use crate::problem::Code;
use crate::template::{OnError, Optimize, Placed, VmProfile};
use crate::vmsize;

/// Gigabytes of the largest managed disk that is no Ultra Disk.
const LARGEST_DISK_GB: i64 = 32_767;

const IDENTITY: &[&str] = &["Microsoft.ManagedIdentity", "userAssignedIdentities"];
const SUBNET: &[&str] = &["Microsoft.Network", "virtualNetworks", "subnets"];

pub(super) fn vm_profile(properties: &Object<'_>, report: &mut Report<'_>) -> Option<VmProfile> {
    let profile = match properties.object("vmProfile", schema::VM_PROFILE, report) {
        Got::Absent => return Some(VmProfile::default()),
        Got::Bad => return None,
        Got::Is(profile) => profile,
    };
    let size = match profile.text("vmSize", report) {
        Got::Absent => Some(None),
        Got::Bad => None,
        Got::Is(found) => vm_size(found, report).map(Some),
    };
    let disk = profile.integer("osDiskSizeGB", 0..=LARGEST_DISK_GB, report).or(0);
    let identities = match profile.strings("userAssignedIdentities", report) {
        Got::Absent => Some(Vec::new()),
        Got::Bad => None,
        Got::Is(ids) => {
            if let (Some(at), false) = (profile.get("userAssignedIdentities"), ids.is_empty()) {
                report.no_local_meaning(at, "a managed identity has no rights on this host");
            }
            let count = ids.len();
            let good: Vec<String> = ids
                .into_iter()
                .filter_map(|found| checked_id(found, IDENTITY, "a user-assigned identity", report))
                .collect();
            (good.len() == count).then_some(good)
        }
    };
    let subnet_id = vnet_config(&profile, report);
    Some(VmProfile {
        size: size?,
        os_disk_size_gb: placed(u32::try_from(disk?).unwrap_or(0), &profile, "osDiskSizeGB", report),
        identities: identities?,
        subnet_id: subnet_id?,
    })
}

fn vm_size((name, at): At<'_>, report: &mut Report<'_>) -> Option<VmSize> {
    match vmsize::find(name) {
        Some(size) => {
            if size.gpu {
                report.warning(
                    &at,
                    Code::Gpu,
                    format!(
                        "{} has an accelerator in Azure; none is attached here, only its {} vCPUs and memory",
                        size.name, size.vcpus
                    ),
                );
            }
            Some(size)
        }
        None => {
            let nearest = vmsize::nearest(name);
            let message = report.bad_value_text(&at, name);
            report.error(&at, Code::UnknownVmSize, message).help = Some(if nearest.is_empty() {
                "it is no size of Azure, for example Standard_D2s_v3".to_owned()
            } else {
                format!("the nearest sizes are {}", nearest.join(", "))
            });
            None
        }
    }
}

/// The subnet's id; the outer option: nothing bad.
fn vnet_config(profile: &Object<'_>, report: &mut Report<'_>) -> Option<Option<String>> {
    let vnet = match profile.object("vnetConfig", schema::VNET_CONFIG, report) {
        Got::Absent => return Some(None),
        Got::Bad => return None,
        Got::Is(vnet) => vnet,
    };
    let read = |field: &str, report: &mut Report<'_>| match vnet.text(field, report) {
        Got::Absent => Some(None),
        Got::Bad => None,
        Got::Is(found) => checked_id(found, SUBNET, "a subnet", report).map(Some),
    };
    let subnet = read("subnetId", report)?;
    let container = read("containerInstanceSubnetId", report)?;
    let proxy = match vnet.text("proxyVmSize", report) {
        Got::Absent => None,
        Got::Bad => return None,
        Got::Is(found) => Some(vm_size(found, report)?),
    };
    if let Some(container) = &container {
        let at = vnet.get("containerInstanceSubnetId").unwrap_or(&vnet.cursor);
        let network = |id: &str| id.rsplit_once("/subnets/").map(|(network, _)| network.to_ascii_lowercase());
        let trouble = match &subnet {
            None => Some("containerInstanceSubnetId needs a subnetId"),
            Some(subnet) if subnet.eq_ignore_ascii_case(container) => {
                Some("containerInstanceSubnetId must be another subnet than subnetId")
            }
            Some(subnet)
                if network(&subnet.to_ascii_lowercase()) != network(&container.to_ascii_lowercase()) =>
            {
                Some("containerInstanceSubnetId must be of the same virtual network as subnetId")
            }
            Some(_) if proxy.is_some() => Some("proxyVmSize does not go with containerInstanceSubnetId"),
            Some(_) => None,
        };
        if let Some(trouble) = trouble {
            report.error(at, Code::Exclusive, trouble);
            return None;
        }
    }
    report.no_local_meaning(&vnet.cursor, "the guest reaches the network through this host");
    Some(subnet)
}

fn checked_id((text, at): At<'_>, types: &[&str], what: &str, report: &mut Report<'_>) -> Option<String> {
    if resource_id(text, types).is_some() {
        return Some(text.to_owned());
    }
    report.bad_value(&at, text, format!("the id of {what} is {}", resource_id_form(types)));
    None
}

const STATES: &[(&str, bool)] = &[("Enabled", true), ("Disabled", false)];

pub(super) fn optimize(properties: &Object<'_>, report: &mut Report<'_>) -> Option<Optimize> {
    let optimize = match properties.object("optimize", schema::OPTIMIZE, report) {
        Got::Absent => return Some(Optimize::default()),
        Got::Bad => return None,
        Got::Is(optimize) => optimize,
    };
    let vm_boot = match optimize.object("vmBoot", schema::VM_BOOT, report) {
        Got::Absent => Some(Placed::default()),
        Got::Bad => None,
        Got::Is(boot) => {
            let state = boot.choice("state", STATES, report).or(false);
            if state == Some(true) {
                report.no_local_meaning(
                    &boot.cursor,
                    "boot optimization is of Azure's storage; the image is the same without it",
                );
            }
            state.map(|state| placed(state, &boot, "state", report))
        }
    };
    let workload = match optimize.object("workload", schema::WORKLOAD, report) {
        Got::Absent => Some(None),
        Got::Bad => None,
        Got::Is(workload) => {
            let state = workload.choice("state", STATES, report).or(false);
            let script = match workload.text("scriptUri", report) {
                Got::Absent => Some(None),
                Got::Bad => None,
                Got::Is(found) => location(&found, report).map(Some),
            };
            let checksum = checksum(&workload, report);
            (|| {
                let (state, script, sha256) = (state?, script?, checksum?);
                let input = script.map(|location| InputRef { location, sha256 });
                Some(state.then(|| placed(input, &workload, "state", report)))
            })()
        }
    };
    Some(Optimize { vm_boot: vm_boot?, workload: workload? })
}

/// What to do when a customizer fails, and when a validator does.
pub(super) fn error_handling(
    properties: &Object<'_>,
    report: &mut Report<'_>,
) -> Option<(Placed<OnError>, Placed<OnError>)> {
    const WORDS: &[(&str, OnError)] = &[("cleanup", OnError::Cleanup), ("abort", OnError::Abort)];
    let handling = match properties.object("errorHandling", schema::ERROR_HANDLING, report) {
        Got::Absent => return Some((Placed::default(), Placed::default())),
        Got::Bad => return None,
        Got::Is(handling) => handling,
    };
    let customizer = handling.choice("onCustomizerError", WORDS, report).or(OnError::Cleanup);
    let validation = handling.choice("onValidationError", WORDS, report).or(OnError::Cleanup);
    Some((
        placed(customizer?, &handling, "onCustomizerError", report),
        placed(validation?, &handling, "onValidationError", report),
    ))
}

pub(super) fn auto_run(properties: &Object<'_>, report: &mut Report<'_>) -> Option<Placed<bool>> {
    match properties.object("autoRun", schema::AUTO_RUN, report) {
        Got::Absent => Some(Placed::default()),
        Got::Bad => None,
        Got::Is(auto_run) => {
            let state = auto_run.choice("state", STATES, report).or(false)?;
            // A server obeys it.
            if state && report.reading.is_none() {
                report.no_local_meaning(&auto_run.cursor, "a build runs at once anyway");
            }
            Some(placed(state, &auto_run, "state", report))
        }
    }
}

pub(super) fn data_disks(properties: &Object<'_>, report: &mut Report<'_>) -> Option<Vec<Placed<u32>>> {
    let items = properties.list("additionalDataDisks", "objects", report).or(Vec::new())?;
    let read: Vec<Placed<u32>> = items
        .iter()
        .filter_map(|item| {
            let disk = Object::open(item, schema::DATA_DISK, report)?;
            let size = disk.integer("sizeGB", 0..=LARGEST_DISK_GB, report).or(0)?;
            Some(placed(u32::try_from(size).unwrap_or(0), &disk, "sizeGB", report))
        })
        .collect();
    (read.len() == items.len()).then_some(read)
}

/// The outer option: nothing bad.
pub(super) fn staging_group(properties: &Object<'_>, report: &mut Report<'_>) -> Option<Option<String>> {
    let (text, at) = match properties.text("stagingResourceGroup", report) {
        Got::Absent => return Some(None),
        Got::Bad => return None,
        Got::Is(found) => found,
    };
    if resource_id(text, &[]).is_none() {
        if text.contains('/') {
            report.bad_value(&at, text, format!("the id of a resource group is {}", resource_id_form(&[])));
            return None;
        }
        report.not_portable(
            &at,
            &format!("'{}' is a bare name, and stagingResourceGroup takes an id", shown(text)),
            format!("write {}", resource_id_form(&[])),
        );
    }
    report.no_local_meaning(&at, "there is no resource group to stage in");
    Some(Some(text.to_owned()))
}
