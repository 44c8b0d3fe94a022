//! The resource as the service says it back.
//!
//! ```text
//!  body ─ check ─► Reading (what each member was read as) ─ resource ─► stored ─ resource_for(version) ─► answered
//! ```
//! Up to 2024-02-01 a body may spell names in any case and carry what nobody knows. The check
//! notes how it read each member; the stored resource is made of that, so that what is stored is
//! what was understood, by construction. An answer leaves out what its api-version does not have.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value as Json};

use super::schema::{self, Field};
use crate::api::ApiVersion;
use crate::tree::{Cursor, Value};

/// How a check read the members of a resource, by their pointers.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The exact names of known fields.
    pub names: HashMap<String, &'static str>,
    /// Unknown, read-only, or of the envelope.
    pub ignored: HashSet<String>,
    /// The exact words of discriminators.
    pub kinds: HashMap<String, &'static str>,
}

impl Reading {
    pub fn resource(&self, cursor: &Cursor<'_>) -> Json {
        match &cursor.node.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            // As written; what is no JSON number was reported.
            Value::Number(text) => text.parse().map_or(Json::Null, Json::Number),
            Value::String(text) => match self.kinds.get(&cursor.pointer) {
                Some(kind) => Json::from(*kind),
                None => Json::from(text.as_str()),
            },
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| self.resource(&cursor.item(index, item)))
                .collect(),
            Value::Object(members) => Json::Object(
                members
                    .iter()
                    .filter_map(|member| {
                        let at = cursor.member(member);
                        let name = self.names.get(&at.pointer);
                        // Null is how some clients write "not given".
                        let absent = name.is_some() && member.value.value == Value::Null;
                        if absent || self.ignored.contains(&at.pointer) {
                            return None;
                        }
                        let key = name.map_or_else(|| member.key.clone(), |name| (*name).to_owned());
                        Some((key, self.resource(&at)))
                    })
                    .collect(),
            ),
        }
    }
}

/// A stored resource (or its parts `identity`, `properties`) as `version` knows it: fields of later versions are
/// left out, and fields of older ones have the name they have now.
pub fn resource_for(resource: &Json, version: ApiVersion) -> Json {
    let mut resource = resource.clone();
    let Json::Object(fields) = &mut resource else { return resource };
    leave_out(fields, schema::RESOURCE, version);
    within(fields, "identity", |identity| leave_out(identity, schema::IDENTITY, version));
    within(fields, "properties", |properties| {
        leave_out(properties, schema::PROPERTIES, version);
        within(properties, "source", |source| source_for(source, version));
        each(properties, "customize", |step| step_for(step, version));
        within(properties, "validate", |validate| {
            leave_out(validate, schema::VALIDATE, version);
            each(validate, "inVMValidations", |step| step_for(step, version));
        });
        each(properties, "distribute", |target| target_for(target, version));
        within(properties, "vmProfile", |profile| {
            leave_out(profile, schema::VM_PROFILE, version);
            within(profile, "vnetConfig", |vnet| leave_out(vnet, schema::VNET_CONFIG, version));
        });
        within(properties, "optimize", |optimize| leave_out(optimize, schema::OPTIMIZE, version));
    });
    resource
}

fn source_for(source: &mut Map<String, Json>, version: ApiVersion) {
    match kind(source) {
        "PlatformImage" => leave_out(source, schema::PLATFORM_IMAGE, version),
        "SharedImageVersion" => leave_out(source, schema::SHARED_IMAGE_SOURCE, version),
        _ => {}
    }
}

fn step_for(step: &mut Map<String, Json>, version: ApiVersion) {
    match kind(step) {
        "Shell" => leave_out(step, schema::SHELL, version),
        "PowerShell" => leave_out(step, schema::POWERSHELL, version),
        "File" => leave_out(step, schema::FILE, version),
        _ => {}
    }
}

fn target_for(target: &mut Map<String, Json>, version: ApiVersion) {
    match kind(target) {
        "VHD" => leave_out(target, schema::VHD, version),
        "SharedImage" => leave_out(target, schema::SHARED_IMAGE_TARGET, version),
        _ => {}
    }
}

fn kind(object: &Map<String, Json>) -> &str {
    object.get("type").and_then(Json::as_str).unwrap_or_default()
}

fn within(object: &mut Map<String, Json>, name: &str, change: impl FnOnce(&mut Map<String, Json>)) {
    if let Some(Json::Object(inner)) = object.get_mut(name) {
        change(inner);
    }
}

fn each(object: &mut Map<String, Json>, name: &str, change: impl Fn(&mut Map<String, Json>)) {
    if let Some(Json::Array(items)) = object.get_mut(name) {
        items.iter_mut().filter_map(Json::as_object_mut).for_each(change);
    }
}

fn leave_out(object: &mut Map<String, Json>, table: &[Field], version: ApiVersion) {
    let kept = std::mem::take(object).into_iter().filter_map(|(name, value)| {
        match table.iter().find(|field| field.name == name) {
            Some(field) if version < field.since => None,
            Some(field) if version > field.until && name == "script" => Some(("scriptUri".to_owned(), value)),
            _ => Some((name, value)),
        }
    });
    *object = kept.collect();
}

#[cfg(test)]
mod tests {
    use super::super::{CheckContext, check_body};
    use super::*;
    use crate::catalog::Catalog;
    use crate::document::Document;
    use serde_json::json;

    fn stored(body: &str, version: ApiVersion) -> Json {
        let catalog = Catalog::parse("format: 1\nimages: []\n", "test").unwrap();
        let document = Document::from_request(body.as_bytes(), "t", version).unwrap();
        let checked = check_body(&document, &CheckContext { catalog: &catalog, azure: false });
        checked.resource.unwrap_or_else(|| panic!("{:?}", checked.problems))
    }

    const OLD: &str = r#"{
        "Location": "westus2", "apiVersion": "2020-02-14", "type": "Microsoft.VirtualMachineImages/imageTemplates",
        "name": "other", "dependsOn": ["x"], "tags": {"Kept": "As Is", "empty": null},
        "PROPERTIES": {
            "provisioningState": "Succeeded", "vmboot": {"a": [1]}, "vmProfile": {"OSDiskSizeGB": 30, "vmSize": null},
            "source": {"type": "PlatformImage", "publisher": "p", "offer": "o", "SKU": "s", "version": "latest"},
            "distribute": [
                {"type": "VHD", "runOutputName": "v", "tags": {"a": "b"}},
                {"type": "sharedImage", "runOutputName": "s", "replicationRegions": ["westus2"],
                 "storageaccounttype": "Standard_ZRS",
                 "galleryImageId": "/subscriptions/s/resourceGroups/r/providers/Microsoft.Compute/galleries/g/images/i"}
            ]
        }
    }"#;

    #[test]
    fn what_is_stored_is_what_was_understood() {
        let expected = json!({
            "location": "westus2",
            "tags": {"Kept": "As Is", "empty": null},
            "properties": {
                "vmProfile": {"osDiskSizeGB": 30},
                "source": {"type": "PlatformImage", "publisher": "p", "offer": "o", "sku": "s", "version": "latest"},
                "distribute": [
                    {"type": "VHD", "runOutputName": "v", "artifactTags": {"a": "b"}},
                    {"type": "SharedImage", "runOutputName": "s", "replicationRegions": ["westus2"],
                     "storageAccountType": "Standard_ZRS",
                     "galleryImageId": "/subscriptions/s/resourceGroups/r/providers/Microsoft.Compute/galleries/g/images/i"}
                ]
            }
        });
        let first = stored(OLD, ApiVersion::V2020_02_14);
        assert_eq!(first, expected);
        assert_eq!(
            stored(&first.to_string(), ApiVersion::V2020_02_14),
            first,
            "reading it again changes nothing"
        );
    }

    #[test]
    fn the_envelope_of_files_is_unknown_to_strict_requests() {
        let catalog = Catalog::parse("format: 1\nimages: []\n", "test").unwrap();
        let context = CheckContext { catalog: &catalog, azure: false };
        for (field, refused) in [
            (r#""apiVersion": "2024-02-01""#, true),
            (r#""dependsOn": []"#, true),
            (r#""comments": "x""#, true),
            (r#""Name": "t""#, true),
            (r#""name": "t""#, false),
            (r#""type": "Microsoft.VirtualMachineImages/imageTemplates""#, false),
            (r#""id": "/x""#, false),
            (r#""systemData": {}"#, false),
        ] {
            for (version, strict) in [(ApiVersion::V2024_02_01, true), (ApiVersion::V2023_07_01, false)] {
                let body = format!("{{{field}}}");
                let document = Document::from_request(body.as_bytes(), "t", version).unwrap();
                let found = check_body(&document, &context).problems;
                let unknown =
                    found.errors().any(|problem| problem.code == crate::problem::Code::UnknownField);
                assert_eq!(unknown, refused && strict, "{field} {version}: {found:?}");
            }
        }
    }

    #[test]
    fn older_answers_leave_newer_fields_out() {
        let resource = json!({"identity": {"type": "None"}, "properties": {
            "autoRun": {"state": "Enabled"}, "errorHandling": {}, "validate": {}, "customize": [
                {"type": "PowerShell", "runElevated": true, "runAsSystem": true},
                {"type": "Shell", "script": "https://h/a"},
            ],
            "distribute": [{"type": "VHD", "uri": "https://h/v"}, {"type": "SharedImage", "versioning": {}}],
            "vmProfile": {"vmSize": "x", "userAssignedIdentities": [], "vnetConfig": {"proxyVmSize": "x"}}
        }});
        assert_eq!(
            resource_for(&resource, ApiVersion::V2020_02_14),
            json!({"identity": {"type": "None"}, "properties": {
                "customize": [{"type": "PowerShell", "runElevated": true}, {"type": "Shell", "scriptUri": "https://h/a"}],
                "distribute": [{"type": "VHD"}, {"type": "SharedImage"}],
                "vmProfile": {"vmSize": "x", "vnetConfig": {}}
            }})
        );
        let mut newest = resource.clone();
        newest["properties"]["customize"][1] = json!({"type": "Shell", "scriptUri": "https://h/a"});
        assert_eq!(resource_for(&resource, ApiVersion::V2025_10_01), newest);
    }

    #[test]
    fn redacted_addresses_are_made_whole_before_the_check() {
        let body = r#"{"properties": {"customize": [
            {"type": "Shell", "scriptUri": "https://h/a?<redacted>"}, {"type": "Shell", "scriptUri": "https://h/b?<redacted>"}
        ]}}"#;
        let mut document = Document::from_request(body.as_bytes(), "t", ApiVersion::V2023_07_01).unwrap();
        document.restore_addresses(&|address| {
            (address == "https://h/a?<redacted>").then(|| "https://h/a?sig=CANARY".to_owned())
        });
        let catalog = Catalog::parse("format: 1\nimages: []\n", "test").unwrap();
        let found = check_body(&document, &CheckContext { catalog: &catalog, azure: false }).problems;
        let placeholders: Vec<_> =
            found.errors().filter(|p| p.code == crate::problem::Code::Placeholder).collect();
        assert_eq!(placeholders.len(), 1, "the unknown one only: {found:?}");
        assert_eq!(placeholders[0].pointer, "/properties/customize/1/scriptUri");
        assert!(!format!("{found:?}").contains("CANARY"));
    }
}
