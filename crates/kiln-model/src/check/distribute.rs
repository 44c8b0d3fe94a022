//! `properties.distribute`: where the finished image goes.

use std::collections::{BTreeMap, HashMap};

use super::customize::location;
use super::object::{At, Got, Object, discriminator};
use super::report::Report;
use super::resource::{placed, tags_of};
use super::schema;
use super::source::image_id;
use super::values::{is_gallery_version, is_name, resource_id, resource_id_form};
use crate::api::ApiVersion;
use crate::problem::Code;
use crate::template::{ImageVersioning, ReplicationMode, TargetRegion, TemplateDistributor, TemplateTarget};
use crate::tree::Cursor;

const DEFINITION: &[&str] = &["Microsoft.Compute", "galleries", "images"];
const DEFINITION_VERSION: &[&str] = &["Microsoft.Compute", "galleries", "images", "versions"];

pub(super) fn distributors(
    properties: &Object<'_>,
    report: &mut Report<'_>,
) -> Option<Vec<TemplateDistributor>> {
    let items = match properties.list("distribute", "distributors", report) {
        Got::Absent => {
            report.missing(&properties.cursor, "distribute");
            return None;
        }
        Got::Bad => return None,
        Got::Is(items) => items,
    };
    if items.is_empty() {
        if let Some(at) = properties.get("distribute") {
            report.bad_value(at, "[]", "at least one distributor is needed, for example a VHD");
        }
        return None;
    }
    let mut names = HashMap::new();
    let read: Vec<TemplateDistributor> =
        items.iter().filter_map(|item| distributor(item, &mut names, report)).collect();
    (read.len() == items.len()).then_some(read)
}

fn distributor(
    item: &Cursor<'_>,
    names: &mut HashMap<String, u32>,
    report: &mut Report<'_>,
) -> Option<TemplateDistributor> {
    let kind = discriminator(item, schema::DISTRIBUTORS, report)?;
    let table = match kind {
        "VHD" => schema::VHD,
        "ManagedImage" => schema::MANAGED_IMAGE_TARGET,
        _ => schema::SHARED_IMAGE_TARGET,
    };
    let object = Object::open(item, table, report)?;
    let name = run_output_name(&object, names, report);
    let tags =
        if kind == "VHD" { vhd_tags(&object, report) } else { tags_of(&object, "artifactTags", report) };
    let target = match kind {
        "VHD" => vhd(&object, report),
        "ManagedImage" => {
            let image_id = image_id(&object, report);
            let location = object.required("location", report);
            (|| Some(TemplateTarget::ManagedImage { image_id: image_id?, location: location?.0.to_owned() }))(
            )
        }
        _ => shared_image(&object, report),
    };
    Some(TemplateDistributor {
        run_output_name: name?,
        artifact_tags: tags?,
        target: target?,
        place: report.place(item),
    })
}

/// ARM's names compare without case, and so do many file systems.
fn run_output_name(
    object: &Object<'_>,
    names: &mut HashMap<String, u32>,
    report: &mut Report<'_>,
) -> Option<String> {
    let (name, at) = object.required("runOutputName", report)?;
    if !is_name(name) {
        let message = report.bad_value_text(&at, name);
        report.error(&at, Code::BadName, message).help =
            Some("1 to 64 letters, digits, '-', '_' and '.'".to_owned());
        return None;
    }
    let line = report.place(&at).line;
    if let Some(first) = names.insert(name.to_ascii_lowercase(), line) {
        report
            .error(
                &at,
                Code::DuplicateName,
                format!("the runOutputName \"{name}\" is used at line {first} already"),
            )
            .help = Some("each distributor has a runOutputName of its own".to_owned());
        return None;
    }
    Some(name.to_owned())
}

/// `tags` is the 2020 document's word for `artifactTags` of a VHD.
fn vhd_tags(object: &Object<'_>, report: &mut Report<'_>) -> Option<BTreeMap<String, String>> {
    match (object.get("tags"), object.get("artifactTags")) {
        (Some(at), Some(_)) => {
            report
                .error(at, Code::Exclusive, "both 'tags' and 'artifactTags' are given; they mean the same")
                .help = Some("keep artifactTags".to_owned());
            None
        }
        (Some(at), None) => {
            report.read_as(&at.pointer, "artifactTags");
            tags_of(object, "tags", report)
        }
        (None, _) => tags_of(object, "artifactTags", report),
    }
}

fn vhd(object: &Object<'_>, report: &mut Report<'_>) -> Option<TemplateTarget> {
    let uri = match object.text("uri", report) {
        Got::Absent => None,
        Got::Bad => return None,
        Got::Is(found) => {
            location(&found, report)?;
            Some(placed(found.0.to_owned(), object, "uri", report))
        }
    };
    Some(TemplateTarget::Vhd { uri })
}

fn shared_image(object: &Object<'_>, report: &mut Report<'_>) -> Option<TemplateTarget> {
    let id = object.required("galleryImageId", report).and_then(|found| gallery_image_id(found, report));
    let exclude = object.boolean("excludeFromLatest", report).or(false);
    let regions = regions(object, report);
    let version = versioning(object, id.as_ref().and_then(|(_, version)| version.clone()), report);
    let modes = &[("Full", ReplicationMode::Full), ("Shallow", ReplicationMode::Shallow)];
    let replication = object.choice("replicationMode", modes, report).or(ReplicationMode::Full);
    Some(TemplateTarget::SharedImage {
        gallery_image_id: id?.0,
        version: version?,
        regions: regions?,
        exclude_from_latest: exclude?,
        replication: replication?,
    })
}

/// The definition's id, and the version behind it if there is one.
fn gallery_image_id((text, at): At<'_>, report: &mut Report<'_>) -> Option<(String, Option<String>)> {
    if resource_id(text, DEFINITION).is_some() {
        return Some((text.to_owned(), None));
    }
    let version = resource_id(text, DEFINITION_VERSION).and_then(|names| names.last().copied());
    let help = match version {
        Some(version) if is_gallery_version(version) => {
            let cut = text.rsplitn(3, '/').last().unwrap_or(text);
            return Some((cut.to_owned(), Some(version.to_owned())));
        }
        Some(_) => "a version is three numbers up to 2147483647, for example 1.2.3".to_owned(),
        None => format!(
            "the id of an image definition is {}, with /versions/x.y.z behind it for a certain version",
            resource_id_form(DEFINITION)
        ),
    };
    report.bad_value(&at, text, help);
    None
}

fn versioning(
    object: &Object<'_>,
    explicit: Option<String>,
    report: &mut Report<'_>,
) -> Option<ImageVersioning> {
    let versioning = match object.object("versioning", schema::VERSIONING, report) {
        Got::Absent => return Some(explicit.map_or(ImageVersioning::ByTime, ImageVersioning::Explicit)),
        Got::Bad => return None,
        Got::Is(versioning) => versioning,
    };
    let scheme = versioning.kind("scheme", schema::VERSIONING_SCHEMES, report)?;
    if let Some(version) = explicit {
        report
            .error(
                &versioning.cursor,
                Code::Exclusive,
                format!("galleryImageId asks for version {version}, and versioning for another"),
            )
            .help = Some("take one of them out".to_owned());
        return None;
    }
    if scheme == "Source" {
        if let Some(at) = versioning.get("major") {
            report.error(at, Code::Exclusive, "'major' belongs to the scheme 'Latest'");
            return None;
        }
        return Some(ImageVersioning::Source);
    }
    let major = versioning.integer("major", -1..=i64::from(i32::MAX), report).or(-1)?;
    Some(ImageVersioning::Latest { major: u32::try_from(major).ok() })
}

const STORAGE_TYPES_2020: &[(&str, &str)] =
    &[("Standard_LRS", "Standard_LRS"), ("Standard_ZRS", "Standard_ZRS")];
/// Since 2022-07-01.
const STORAGE_TYPES: &[(&str, &str)] =
    &[("Standard_LRS", "Standard_LRS"), ("Standard_ZRS", "Standard_ZRS"), ("Premium_LRS", "Premium_LRS")];

/// `replicationRegions` or, since 2022-07-01, `targetRegions`: exactly one.
fn regions(object: &Object<'_>, report: &mut Report<'_>) -> Option<Vec<TargetRegion>> {
    let newer = report.version >= ApiVersion::V2022_07_01;
    let types = if newer { STORAGE_TYPES } else { STORAGE_TYPES_2020 };
    let storage = object.choice("storageAccountType", types, report);
    let old = object.strings("replicationRegions", report);
    let targets = object.list("targetRegions", "objects", report);
    if let (Some(at), Some(_)) = (object.get("replicationRegions"), object.get("targetRegions")) {
        report.error(at, Code::Exclusive, "both 'replicationRegions' and 'targetRegions' are given").help =
            Some("keep targetRegions".to_owned());
        return None;
    }
    let regions = match (old, targets) {
        (Got::Bad, _) | (_, Got::Bad) => return None,
        (Got::Is(names), _) => {
            let at = object.get("replicationRegions").unwrap_or(&object.cursor);
            if newer {
                report.note(at, Code::Deprecated, "'replicationRegions' is deprecated").help =
                    Some("use targetRegions: [{\"name\": …}]".to_owned());
            }
            let storage = storage.clone().or("Standard_LRS");
            let storage = storage?.to_owned();
            names
                .into_iter()
                .map(|(name, _)| TargetRegion {
                    name: name.to_owned(),
                    replica_count: 1,
                    storage_account_type: storage.clone(),
                })
                .collect::<Vec<_>>()
        }
        (Got::Absent, Got::Is(items)) => {
            if let Some(at) = object.get("storageAccountType") {
                report
                    .error(at, Code::Exclusive, "'storageAccountType' goes with replicationRegions only")
                    .help = Some("give each of the targetRegions its own".to_owned());
                return None;
            }
            let read: Vec<TargetRegion> =
                items.iter().filter_map(|item| target_region(item, types, report)).collect();
            if read.len() != items.len() {
                return None;
            }
            read
        }
        (Got::Absent, Got::Absent) => {
            let field = if newer { "targetRegions" } else { "replicationRegions" };
            report.missing(&object.cursor, field);
            return None;
        }
    };
    storage.or("")?;
    let at = object.get("targetRegions").or(object.get("replicationRegions")).unwrap_or(&object.cursor);
    if regions.is_empty() {
        report.bad_value(at, "[]", "at least the gallery's own region is needed");
        return None;
    }
    if let Some(blank) = regions.iter().find(|region| region.name.trim().is_empty()) {
        report.bad_value(at, &blank.name, "a region has a name");
        return None;
    }
    report.no_local_meaning(at, "there are no regions to replicate to");
    Some(regions)
}

fn target_region(item: &Cursor<'_>, types: &[(&str, &str)], report: &mut Report<'_>) -> Option<TargetRegion> {
    let object = Object::open(item, schema::TARGET_REGION, report)?;
    let name = object.required("name", report);
    let replicas = object.integer("replicaCount", 1..=i64::from(i32::MAX), report).or(1);
    let types: Vec<(&str, usize)> = types.iter().enumerate().map(|(i, (word, _))| (*word, i)).collect();
    let storage = object.choice("storageAccountType", &types, report).or(0);
    Some(TargetRegion {
        name: name?.0.to_owned(),
        replica_count: u32::try_from(replicas?).unwrap_or(1),
        storage_account_type: types[storage?].0.to_owned(),
    })
}
