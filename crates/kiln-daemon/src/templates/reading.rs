//! Bodies and records, read by the one check there is.
//!
//! ```text
//!  PUT body ─ restore redacted addresses ─ check ─► Wanted ─► record
//!                                                               │ body(record) ─ check ─► CheckedTemplate ─► plan, provisioning
//! ```
//! A record is read again each time it is used, by the catalog of that day: what was true when it was put need not be.

use kiln_model::api::ApiVersion;
use kiln_model::catalog::Catalog;
use kiln_model::plan::{InputLocation, redact_url};
use kiln_model::problem::{Code, Place};
use kiln_model::template::CheckedTemplate;
use kiln_model::{CheckContext, Document, Problem, Problems, check_body};
use serde_json::{Map, Value, json};

use super::TemplateError;
use crate::store::{Replacement, TemplateId, TemplateRecord};

/// The newest version there is; a record without a known one is read by it.
const NEWEST: ApiVersion = ApiVersion::ALL[ApiVersion::ALL.len() - 1];

/// A body that can be stored. Its addresses are whole: no `Debug`.
pub(super) struct Wanted {
    pub location: String,
    pub tags: Map<String, Value>,
    pub identity: Option<Value>,
    pub properties: Value,
    pub template: CheckedTemplate,
    /// Warnings and notes.
    pub notes: Problems,
}

/// The resource of those parts, as a body has it.
pub(super) fn body(
    location: &str,
    tags: &Map<String, Value>,
    identity: Option<&Value>,
    properties: &Value,
) -> Value {
    let mut body = json!({"location": location, "tags": tags, "properties": properties});
    if let Some(identity) = identity {
        body["identity"] = identity.clone();
    }
    body
}

/// Reads and checks the body of a PUT. `known` are the properties it would replace.
pub(super) fn read_body(
    bytes: &[u8],
    id: &TemplateId,
    version: ApiVersion,
    known: Option<&Value>,
    catalog: &Catalog,
) -> Result<Wanted, TemplateError> {
    let mut document = Document::from_request(bytes, &id.name, version).map_err(TemplateError::Malformed)?;
    let addresses = known.map(whole_addresses).unwrap_or_default();
    document.restore_addresses(&|redacted| the_one(&addresses, redacted));
    let checked = check_body(&document, &CheckContext { catalog, azure: false });
    let (Some(template), Some(Value::Object(mut resource))) = (checked.template, checked.resource) else {
        return Err(TemplateError::Invalid(checked.problems));
    };
    let identity = resource.remove("identity").map(plain_identity);
    let tags = match resource.remove("tags") {
        Some(Value::Object(tags)) => tags.into_iter().map(|(name, value)| (name, text_of(value))).collect(),
        _ => Map::new(),
    };
    Ok(Wanted {
        location: template.location.clone(),
        tags,
        identity,
        properties: resource.remove("properties").unwrap_or_else(|| json!({})),
        template,
        notes: checked.problems,
    })
}

/// Reads parts of a record again.
///
/// # Errors
/// This program, or this catalog, does not take it any more.
pub(super) fn reread(
    name: &str,
    body: &Value,
    version: ApiVersion,
    catalog: &Catalog,
) -> Result<CheckedTemplate, Problems> {
    let document = Document::from_request(body.to_string().as_bytes(), name, version)?;
    let checked = check_body(&document, &CheckContext { catalog, azure: false });
    checked.template.ok_or(checked.problems)
}

pub(super) fn reread_record(record: &TemplateRecord, catalog: &Catalog) -> Result<CheckedTemplate, Problems> {
    let TemplateRecord { id, location, tags, identity, properties, api_version, .. } = record;
    let body = body(location, tags, identity.as_ref(), properties);
    reread(&id.name, &body, stored_version(api_version), catalog)
}

pub(super) fn reread_replacement(
    id: &TemplateId,
    by: &Replacement,
    catalog: &Catalog,
) -> Result<CheckedTemplate, Problems> {
    let body = body(&by.location, &by.tags, by.identity.as_ref(), &by.properties);
    reread(&id.name, &body, stored_version(&by.api_version), catalog)
}

pub(super) fn stored_version(text: &str) -> ApiVersion {
    ApiVersion::find(text).unwrap_or(NEWEST)
}

/// An address as copies are filed under it.
pub(super) fn address_of(location: &InputLocation) -> String {
    match location {
        InputLocation::Url(url) => url.clone(),
        InputLocation::File(path) => format!("file:{}", path.display()),
        InputLocation::Stored { address } => address.clone(),
    }
}

/// Whether a name may be one of a template, trigger or run output: `^[A-Za-z0-9-_.]{1,64}$`.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), TemplateError> {
    let good = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if good {
        return Ok(());
    }
    // A hostile name is not repeated at length.
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    let message = format!("Validation failed: '{what}': Field 'name' has a bad value: '{shown}'");
    let problem = Problem::error(Code::BadName, &Place::default(), message);
    Err(TemplateError::invalid(problem.help("1 to 64 letters, digits, '-', '_' and '.'")))
}

/// Addresses in the properties that are shown otherwise than they are.
fn whole_addresses(properties: &Value) -> Vec<String> {
    fn walk(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::String(text) if redact_url(text) != *text => found.push(text.clone()),
            Value::Object(fields) => fields.values().for_each(|value| walk(value, found)),
            Value::Array(items) => items.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(properties, &mut found);
    found.sort();
    found.dedup();
    found
}

/// The address that is shown like this, if there is only one.
fn the_one(addresses: &[String], redacted: &str) -> Option<String> {
    let mut fitting = addresses.iter().filter(|address| redact_url(address) == redacted);
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Some(one.clone()),
        _ => None,
    }
}

/// Without what a directory would fill in.
fn plain_identity(mut identity: Value) -> Value {
    if let Some(ids) = identity.get_mut("userAssignedIdentities").and_then(Value::as_object_mut) {
        ids.values_mut().for_each(|value| *value = json!({}));
    }
    identity
}

/// A tag's value; null is how some clients write an empty one.
fn text_of(value: Value) -> Value {
    if value.is_null() { json!("") } else { value }
}
