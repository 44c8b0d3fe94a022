//! PATCH: identity, tags, `distribute` and `vmProfile`; all else of a template stays as it was put.
//!
//! The changed template is checked as a whole, like one that is put. A change of tags or identity leaves the api-version
//! the template is read by alone; a change of its properties may make it the request's, if that one is newer.

use kiln_model::api::ApiVersion;
use kiln_model::problem::{Code, Place};
use kiln_model::{Document, Problem};
use serde_json::{Map, Value, json};

use super::error::NO_UPDATE;
use super::put::{allow_change, blocking};
use super::reading::{body, read_body, stored_version};
use super::{Accepted, TemplateError, Templates, ended, now, operation};
use crate::shelves::Shelves;
use crate::store::{OperationKind, TemplateId, TemplateRecord};

/// A change that meets others in the same moment is tried this often.
const ATTEMPTS: u32 = 4;

/// What a PATCH asks for.
#[derive(Clone, Default)]
struct Change {
    identity: Option<Map<String, Value>>,
    tags: Option<Value>,
    distribute: Option<Value>,
    vm_profile: Option<Value>,
}

impl Templates {
    /// Changes a template. It is done when this returns.
    ///
    /// # Errors
    /// The change is not allowed, now or ever, or would make the template wrong.
    pub async fn patch(
        &self,
        id: &TemplateId,
        version: ApiVersion,
        bytes: &[u8],
        by: &str,
    ) -> Result<Accepted, TemplateError> {
        for _ in 0..ATTEMPTS {
            let Some(old) = self.find(id).await? else { return Err(TemplateError::no_template(id)) };
            let generation = old.generation;
            let (changed, notes) = {
                let (templates, bytes) = (self.clone(), bytes.to_vec());
                blocking(move || templates.changed(old, version, &bytes)).await?
            };
            let by = by.to_owned();
            let accepted = self
                .inner
                .store
                .write(move |writer| -> Result<Option<Accepted>, TemplateError> {
                    let current = writer.template(&changed.id)?;
                    let Some(current) = current else { return Err(TemplateError::no_template(&changed.id)) };
                    allow_change(writer, &current)?;
                    if current.generation != generation {
                        return Ok(None);
                    }
                    let at = now();
                    let operation =
                        operation(OperationKind::PatchTemplate, &changed.id, "", &changed.location, &at);
                    let operation = ended(operation, None);
                    let template = TemplateRecord { modified_at: at, modified_by: by, ..changed };
                    writer.update_template(&template)?;
                    writer.insert_operation(&operation)?;
                    Ok(Some(Accepted { template, operation, created: false, notes }))
                })
                .await?;
            if let Some(accepted) = accepted {
                return Ok(accepted);
            }
        }
        Err(TemplateError::Conflict("The template is being changed by others; try again".to_owned()))
    }

    /// The template as the change makes it, checked. Blocks.
    fn changed(
        &self,
        old: TemplateRecord,
        version: ApiVersion,
        bytes: &[u8],
    ) -> Result<(TemplateRecord, kiln_model::Problems), TemplateError> {
        let change = read_change(bytes, &old, version)?;
        let shelves = Shelves::look(&self.settings().shelves)?;
        let mut properties = old.properties.clone();
        if let Some(distribute) = &change.distribute {
            keep_targets(&old.properties, distribute)?;
            properties["distribute"] = distribute.clone();
        }
        if let Some(profile) = &change.vm_profile {
            let before = properties.get("vmProfile").cloned().unwrap_or_else(|| json!({}));
            properties["vmProfile"] = merged(before, profile);
        }
        let identity = match &change.identity {
            Some(change) => Some(merged_identity(old.identity.as_ref(), change)),
            None => old.identity.clone(),
        };
        let tags = match change.tags {
            Some(Value::Object(tags)) => tags,
            Some(other) => return Err(wrong("/tags", "an object of strings", &other)),
            None => old.tags.clone(),
        };
        let before = stored_version(&old.api_version);
        let deep = change.distribute.is_some() || change.vm_profile.is_some();
        let read_by = if deep { before.max(version) } else { before };
        let text = body(&old.location, &tags, identity.as_ref(), &properties).to_string();
        let wanted = read_body(text.as_bytes(), &old.id, read_by, Some(&old.properties), &shelves.catalog)?;
        let changed = TemplateRecord {
            tags: wanted.tags,
            identity: wanted.identity,
            properties: wanted.properties,
            api_version: read_by.to_string(),
            ..old
        };
        Ok((changed, wanted.notes))
    }
}

fn read_change(bytes: &[u8], old: &TemplateRecord, version: ApiVersion) -> Result<Change, TemplateError> {
    let document = Document::from_request(bytes, &old.id.name, version).map_err(TemplateError::Malformed)?;
    let Value::Object(fields) = document.to_json().map_err(TemplateError::Invalid)? else {
        return Ok(Change::default());
    };
    let mut change = Change::default();
    for (name, value) in fields {
        match known(
            &name,
            version,
            &["identity", "tags", "properties", "location", "id", "name", "type", "systemData"],
        ) {
            // Null is how some clients write "as it is".
            Some(_) if value.is_null() => {}
            Some("tags") => change.tags = Some(value),
            Some("identity") => match value {
                Value::Object(identity) => change.identity = Some(identity),
                other => return Err(wrong("/identity", "an object", &other)),
            },
            Some("properties") => match value {
                Value::Object(properties) => read_properties(properties, version, &mut change)?,
                other => return Err(wrong("/properties", "an object", &other)),
            },
            // Sent back as it was read.
            Some("id" | "name" | "type" | "systemData") => {}
            Some("location") if value.as_str().is_some_and(|l| same_location(l, &old.location)) => {}
            Some(_) => return Err(TemplateError::Conflict(NO_UPDATE.to_owned())),
            None if version.is_strict() => return Err(unknown(&name, "", version)),
            None => {}
        }
    }
    Ok(change)
}

fn read_properties(
    properties: Map<String, Value>,
    version: ApiVersion,
    change: &mut Change,
) -> Result<(), TemplateError> {
    for (name, value) in properties {
        match known(&name, version, &["distribute", "vmProfile"]) {
            Some(_) if value.is_null() => {}
            Some("distribute") if version >= ApiVersion::V2023_07_01 => change.distribute = Some(value),
            Some("vmProfile") if version >= ApiVersion::V2024_02_01 => change.vm_profile = Some(value),
            Some(_) => {
                let since = if name.eq_ignore_ascii_case("distribute") {
                    ApiVersion::V2023_07_01
                } else {
                    ApiVersion::V2024_02_01
                };
                let text = format!("{NO_UPDATE}: '{name}' can be changed since api-version {since}");
                return Err(TemplateError::Conflict(text));
            }
            None => {
                let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
                let text = format!(
                    "{NO_UPDATE}: '{shown}' stays as it was created; identity, tags, distribute and vmProfile can be changed"
                );
                return Err(TemplateError::Conflict(text));
            }
        }
    }
    Ok(())
}

/// The exact name of a field, spelled in any case before 2024-02-01.
fn known<'a>(name: &str, version: ApiVersion, fields: &[&'a str]) -> Option<&'a str> {
    fields
        .iter()
        .find(|field| **field == name || (!version.is_strict() && field.eq_ignore_ascii_case(name)))
        .copied()
}

fn same_location(a: &str, b: &str) -> bool {
    super::location_name(a) == super::location_name(b)
}

/// The value itself is not repeated: it may hold a secret.
fn wrong(pointer: &str, wanted: &str, found: &Value) -> TemplateError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let name = pointer.trim_start_matches('/');
    let message = format!("Validation failed: 'ImageTemplate': Field '{name}' must be {wanted}, not {found}");
    let place = Place { pointer: pointer.to_owned(), ..Place::default() };
    TemplateError::invalid(Problem::error(Code::WrongType, &place, message))
}

fn unknown(name: &str, below: &str, version: ApiVersion) -> TemplateError {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    let message = format!(
        "Unmarshalling entity encountered error: unmarshalling type *v{}.ImageTemplateUpdateParameters: {below}unknown field \"{shown}\"",
        version.as_str().replace('-', "_")
    );
    let place = Place { pointer: format!("/{shown}"), ..Place::default() };
    TemplateError::invalid(Problem::error(Code::UnknownField, &place, message))
}

/// A target may be changed or added, not taken away.
fn keep_targets(properties: &Value, distribute: &Value) -> Result<(), TemplateError> {
    let names = |list: &Value| -> Vec<String> {
        let targets = list.as_array().into_iter().flatten().filter_map(Value::as_object);
        targets
            .filter_map(|target| {
                let name = target.iter().find(|(key, _)| key.eq_ignore_ascii_case("runOutputName"));
                name.and_then(|(_, name)| name.as_str()).map(str::to_owned)
            })
            .collect()
    };
    let asked = names(distribute);
    let existing = properties.get("distribute").map(names).unwrap_or_default();
    match existing.iter().find(|name| !asked.iter().any(|asked| asked.eq_ignore_ascii_case(name))) {
        None => Ok(()),
        Some(name) => {
            let message = format!(
                "Distribute target with Runoutput name {name} not found in the update request. Deleting a distribution target is not allowed."
            );
            let place = Place { pointer: "/properties/distribute".to_owned(), ..Place::default() };
            Err(TemplateError::invalid(Problem::error(Code::MissingTarget, &place, message)))
        }
    }
}

/// JSON merge patch (RFC 7396): null takes away.
fn merged(before: Value, change: &Value) -> Value {
    let (Value::Object(mut before), Value::Object(change)) = (before, change) else { return change.clone() };
    for (name, value) in change {
        let stored = before.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
        let name = stored.unwrap_or_else(|| name.clone());
        if value.is_null() {
            before.remove(&name);
        } else {
            let inner = before.remove(&name).unwrap_or(Value::Null);
            before.insert(name, merged(inner, value));
        }
    }
    Value::Object(before)
}

/// ARM's rule: `null` takes one identity away, type `None` all; ids compare without case, and `az` sends them in lower
/// case.
fn merged_identity(before: Option<&Value>, change: &Map<String, Value>) -> Value {
    let field =
        |name: &str| change.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let kind = field("type").filter(|kind| !kind.is_null());
    if kind.and_then(Value::as_str) == Some("None") {
        return json!({"type": "None"});
    }
    let before = before.and_then(|before| before.get("userAssignedIdentities")).and_then(Value::as_object);
    let mut ids: Map<String, Value> = before.cloned().unwrap_or_default();
    match field("userAssignedIdentities") {
        Some(Value::Object(change)) => {
            for (id, value) in change {
                let stored = ids.keys().find(|key| key.eq_ignore_ascii_case(id)).cloned();
                match (stored, value.is_null()) {
                    (Some(stored), true) => drop(ids.remove(&stored)),
                    (None, false) => drop(ids.insert(id.clone(), json!({}))),
                    _ => {}
                }
            }
        }
        // The check says what is wrong with it.
        Some(other) if !other.is_null() => {
            return json!({"type": kind, "userAssignedIdentities": other});
        }
        _ => {}
    }
    match kind {
        // Not a word the check knows: it says so.
        Some(kind) if kind != "UserAssigned" => json!({"type": kind, "userAssignedIdentities": ids}),
        _ if ids.is_empty() => json!({"type": "None"}),
        _ => json!({"type": "UserAssigned", "userAssignedIdentities": ids}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_merge_without_case() {
        let one = json!({"type": "UserAssigned", "userAssignedIdentities": {"/Sub/Id1": {}}});
        for (before, change, after) in [
            (Some(&one), json!({"userAssignedIdentities": {"/sub/id1": {}}}), one.clone()),
            (Some(&one), json!({"userAssignedIdentities": {"/sub/id1": null}}), json!({"type": "None"})),
            (Some(&one), json!({"type": "None"}), json!({"type": "None"})),
            (Some(&one), json!({"type": "UserAssigned", "userAssignedIdentities": null}), one.clone()),
            (
                None,
                json!({"type": "UserAssigned", "userAssignedIdentities": {"/a": {"clientId": "x"}}}),
                json!({"type": "UserAssigned", "userAssignedIdentities": {"/a": {}}}),
            ),
            (
                Some(&one),
                json!({"userAssignedIdentities": {"/sub/id1": null, "/b": {}}}),
                json!({"type": "UserAssigned", "userAssignedIdentities": {"/b": {}}}),
            ),
            (
                Some(&one),
                json!({"type": "SystemAssigned"}),
                json!({"type": "SystemAssigned", "userAssignedIdentities": {"/Sub/Id1": {}}}),
            ),
        ] {
            let Value::Object(change) = change else { panic!() };
            assert_eq!(merged_identity(before, &change), after, "{before:?} {change:?}");
        }
    }

    #[test]
    fn merging_takes_null_away() {
        let before = json!({"vmSize": "a", "vnetConfig": {"subnetId": "s", "proxyVmSize": "p"}});
        let change = json!({"VMSIZE": "b", "vnetConfig": {"proxyVmSize": null}, "osDiskSizeGB": 30});
        let after = json!({"vmSize": "b", "vnetConfig": {"subnetId": "s"}, "osDiskSizeGB": 30});
        assert_eq!(merged(before, &change), after);
    }
}
