//! The resource as a whole: envelope, identity, tags, and the properties in their order.

use std::collections::BTreeMap;

use super::object::{Got, Object, is_placeholder, is_placeholder_at, string};
use super::report::Report;
use super::schema;
use super::values::{is_name, resource_id, resource_id_form};
use super::{customize, distribute, machine, source};
use crate::api::ApiVersion;
use crate::catalog::{Catalog, Os};
use crate::document::{Document, RESOURCE_TYPE, placeholders_in, shown};
use crate::problem::{Code, Place};
use crate::template::{CheckedTemplate, Placed, TemplateSource, Validation};
use crate::tree::{Cursor, Value};

/// Minutes, where a template gives none or 0 (contract, 2.1).
const DEFAULT_TIMEOUT: u32 = 240;
/// Minutes AIB takes at most.
const LONGEST_TIMEOUT: i64 = 960;
/// Minutes below which a build in Azure fails, although the template is taken.
const AZURE_SHORTEST_TIMEOUT: u32 = 6;
/// Minutes below which the 2020 document advises against for Windows.
const WINDOWS_ADVISED_TIMEOUT: u32 = 60;

pub(super) fn template(
    document: &Document,
    catalog: &Catalog,
    report: &mut Report<'_>,
) -> Option<CheckedTemplate> {
    let cursor = document.cursor();
    placeholders(&cursor, report);
    let envelope = match document.request {
        // The resource's own name and type may come along; the rest belongs to files.
        Some(version) if version.is_strict() => schema::REQUEST_ENVELOPE.to_vec(),
        _ if document.in_deployment => [schema::ENVELOPE, schema::DEPLOYMENT_ENVELOPE].concat(),
        _ => schema::ENVELOPE.to_vec(),
    };
    let (name, is_template) = read_envelope(document, report);
    if !is_template {
        // Whatever it is, an image template's fields are not its.
        return None;
    }
    let resource = Object::open_with_envelope(&cursor, schema::RESOURCE, &envelope, report)?;

    let location = resource.required("location", report).map(|(text, _)| text.to_owned());
    let tags = tags(&resource, "tags", report);
    let identity = identity(&resource, report);
    let Got::Is(properties) = resource.object("properties", schema::PROPERTIES, report) else {
        if resource.get("properties").is_none() {
            report.missing(&cursor, "properties");
        }
        return None;
    };

    let source = source::source(&properties, report);
    let os = source.as_ref().and_then(|source| guest_os(&source.value, catalog));
    if let Some(source) = &source {
        source::in_catalog(source, &properties, catalog, report);
    }
    let customizers = customize::customizers(&properties, os, report);
    let validation = validation(&properties, os, report);
    let distributors = distribute::distributors(&properties, report);
    let timeout = timeout(&properties, os, report);
    let vm = machine::vm_profile(&properties, report);
    let optimize = machine::optimize(&properties, report);
    let errors = machine::error_handling(&properties, report);
    let auto_run = machine::auto_run(&properties, report);
    let disks = machine::data_disks(&properties, report);
    let staging = machine::staging_group(&properties, report);
    let managed_resource_tags = tags_of(&properties, "managedResourceTags", report);
    if let Some(at) = properties.get("managedResourceTags") {
        report.no_local_meaning(at, "there are no resources of a staging group to tag");
    }

    let source = source?;
    let (on_customizer_error, on_validation_error) = errors?;
    Some(CheckedTemplate {
        name: name?,
        sha256: document.sha256,
        api_version: report.version,
        location: location?,
        tags: tags?,
        identity: identity?,
        source: source.value,
        source_place: source.place,
        vm: vm?,
        customizers: customizers?,
        optimize: optimize?,
        validation: validation?,
        distributors: distributors?,
        on_customizer_error,
        on_validation_error,
        timeout_minutes: timeout?,
        additional_data_disks: disks?,
        auto_run: auto_run?,
        staging_resource_group: staging?,
        managed_resource_tags: managed_resource_tags?,
    })
}

/// The system of the base image, where the catalog or the publisher tells.
fn guest_os(source: &TemplateSource, catalog: &Catalog) -> Option<Os> {
    let TemplateSource::Platform { name, .. } = source else { return None };
    catalog.find(name).map(|entry| entry.os).or_else(|| {
        // MicrosoftWindowsServer, MicrosoftWindowsDesktop: Windows and nothing else.
        name.publisher.to_ascii_lowercase().starts_with("microsoftwindows").then_some(Os::Windows)
    })
}

/// All that were not filled in, in one error at the first of them.
fn placeholders(cursor: &Cursor<'_>, report: &mut Report<'_>) {
    let mut found = Vec::new();
    let mut first = None;
    walk(cursor, &mut |at, text| {
        if is_placeholder_at(&at.pointer, text) {
            first.get_or_insert_with(|| at.clone());
            found.extend(placeholders_in(text));
        }
    });
    if let Some(first) = first {
        let mut seen = std::collections::HashSet::new();
        found.retain(|text| seen.insert(text.clone()));
        let more = found.len().saturating_sub(MOST_PLACEHOLDERS);
        found.truncate(MOST_PLACEHOLDERS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        report
            .error(
                &first,
                Code::Placeholder,
                format!("placeholders were not filled in: {}{more}", found.join(", ")),
            )
            .help = Some("put real values in their place".to_owned());
    }
}

/// Placeholders that are listed by name.
const MOST_PLACEHOLDERS: usize = 30;

fn walk<'a>(cursor: &Cursor<'a>, visit: &mut impl FnMut(&Cursor<'a>, &str)) {
    match &cursor.node.value {
        Value::String(text) => visit(cursor, text),
        Value::List(items) => {
            items.iter().enumerate().for_each(|(index, item)| walk(&cursor.item(index, item), visit));
        }
        Value::Object(members) => members.iter().for_each(|member| {
            let at = cursor.member(member);
            visit(&at, &member.key);
            walk(&at, visit);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Type, name and dependsOn; gives the template's name, and whether it is an image template.
fn read_envelope(document: &Document, report: &mut Report<'_>) -> (Option<String>, bool) {
    let cursor = document.cursor();
    let mut name = Some(document.fallback_name.clone());
    let mut is_template = true;
    for member in document.resource.members() {
        let at = cursor.member(member);
        match (member.key.to_ascii_lowercase().as_str(), &member.value.value) {
            ("type", Value::String(text)) => is_template &= resource_type(text, &at, report),
            // The request's address names it. Another name in the body is a slip, or a file sent as it is.
            ("name", Value::String(text))
                if document.request.is_some() && !text.eq_ignore_ascii_case(&document.fallback_name) =>
            {
                let message = format!(
                    "the name '{}' is not looked at: the request is for '{}'",
                    shown(text),
                    document.fallback_name
                );
                report.warning(&at, Code::BadName, message);
            }
            ("name", Value::String(_)) if document.request.is_some() => {}
            ("name", Value::String(text)) if !is_placeholder(text) => {
                if is_name(text) {
                    name = Some(text.clone());
                } else {
                    let message = report.bad_value_text(&at, text);
                    report.error(&at, Code::BadName, message).help =
                        Some("1 to 64 letters, digits, '-', '_' and '.'".to_owned());
                    name = None;
                }
            }
            ("name", Value::String(_)) => name = None,
            ("type" | "name", Value::Null) => {}
            ("type" | "name", _) => {
                let _ = string(&at, report);
                name = None;
            }
            ("dependson", Value::List(items))
                if !items.is_empty() && !document.in_deployment && document.request.is_none() =>
            {
                report.note(
                    &at,
                    Code::NoLocalMeaning,
                    "no local meaning: dependsOn is for deployments; nothing is waited for here",
                );
            }
            _ => {}
        }
    }
    (name, is_template)
}

fn resource_type(text: &str, at: &Cursor<'_>, report: &mut Report<'_>) -> bool {
    // ARM's types compare without case.
    if text.eq_ignore_ascii_case(RESOURCE_TYPE) || is_placeholder(text) {
        return true;
    }
    if text.eq_ignore_ascii_case("Microsoft.VirtualMachineImages") {
        report
            .warning(at, Code::WrongResourceType, "the type is cut short: it is read as an image template")
            .help = Some(format!("write \"{RESOURCE_TYPE}\""));
        return true;
    }
    report
        .error(
            at,
            Code::WrongResourceType,
            format!("the resource is of type '{}', not an image template", shown(text)),
        )
        .help = Some(format!("an image template has the type \"{RESOURCE_TYPE}\""));
    false
}

/// ARM's tags: strings by name. Limits of Azure are portability notes.
pub(super) fn tags_of(
    object: &Object<'_>,
    field: &str,
    report: &mut Report<'_>,
) -> Option<BTreeMap<String, String>> {
    tags(object, field, report)
}

fn tags(object: &Object<'_>, field: &str, report: &mut Report<'_>) -> Option<BTreeMap<String, String>> {
    let Some(at) = object.get(field) else { return Some(BTreeMap::new()) };
    let Value::Object(members) = &at.node.value else {
        super::object::wrong_type(at, "an object of strings", None, report);
        return None;
    };
    let mut tags = BTreeMap::new();
    let mut complete = true;
    for member in members {
        let value_at = at.member(member);
        match string(&value_at, report) {
            Got::Is((text, _)) => {
                // https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources
                if member.key.is_empty() || member.key.chars().count() > 512 || text.chars().count() > 256 {
                    report.not_portable(
                        &value_at,
                        "a tag's name has 1 to 512 characters and its value up to 256",
                        "shorten it",
                    );
                }
                tags.insert(member.key.clone(), text.to_owned());
            }
            Got::Absent => {
                tags.insert(member.key.clone(), String::new());
            }
            Got::Bad => complete = false,
        }
    }
    if members.len() > 50 {
        report.not_portable(at, "a resource has at most 50 tags", "leave some out");
    }
    complete.then_some(tags)
}

const IDENTITY_TYPES: &[&str] = &["Microsoft.ManagedIdentity", "userAssignedIdentities"];

/// The outer option: nothing bad. The inner: there is one.
fn identity(resource: &Object<'_>, report: &mut Report<'_>) -> Option<Option<String>> {
    let needed = report.version >= ApiVersion::V2020_02_14;
    let identity = match resource.object("identity", schema::IDENTITY, report) {
        Got::Is(identity) => identity,
        Got::Bad => return None,
        Got::Absent => {
            if needed {
                report.not_portable(
                    &resource.cursor,
                    "Validation failed: 'ImageTemplate': Missing field 'identity'",
                    "Azure needs a user-assigned identity; this host does not",
                );
            }
            return Some(None);
        }
    };
    let kind = identity.choice("type", &[("UserAssigned", true), ("None", false)], report);
    let mut ids: Vec<Cursor<'_>> = Vec::new();
    if let Some(at) = identity.get("userAssignedIdentities") {
        let Value::Object(members) = &at.node.value else {
            super::object::wrong_type(at, "an object with resource ids as names", None, report);
            return None;
        };
        let mut good = true;
        for member in members {
            let id = at.member(member);
            if is_placeholder(&member.key) {
                good = false;
            } else if resource_id(&member.key, IDENTITY_TYPES).is_none() {
                report.bad_value(
                    &id,
                    &member.key,
                    format!("the id of a user-assigned identity is {}", resource_id_form(IDENTITY_TYPES)),
                );
                good = false;
            } else {
                ids.push(id);
            }
        }
        if members.len() > 1 {
            report.error(
                at,
                Code::Exclusive,
                format!("{} identities are given; AIB takes one", members.len()),
            );
            good = false;
        }
        if !good {
            return None;
        }
    }
    match (kind, ids.as_slice()) {
        (Got::Bad, _) => None,
        (Got::Is(false), [_, ..]) => {
            report
                .error(
                    &identity.cursor,
                    Code::Exclusive,
                    "the identity's type is 'None', and userAssignedIdentities names one",
                )
                .help = Some("write \"type\": \"UserAssigned\"".to_owned());
            None
        }
        (Got::Absent, [_, ..]) => {
            report.missing(&identity.cursor, "type").help =
                Some("write \"type\": \"UserAssigned\"".to_owned());
            None
        }
        (_, [id]) => {
            let at = identity.get("userAssignedIdentities").unwrap_or(&identity.cursor);
            report.no_local_meaning(at, "a managed identity has no rights on this host");
            let member = id.pointer.rsplit('/').next().unwrap_or_default();
            Some(Some(member.replace("~1", "/").replace("~0", "~")))
        }
        _ => {
            if needed {
                report.not_portable(
                    &identity.cursor,
                    "Validation failed: 'ImageTemplate.identity': Missing field 'userAssignedIdentities'",
                    "Azure needs a user-assigned identity; this host does not",
                );
            }
            Some(None)
        }
    }
}

fn timeout(properties: &Object<'_>, os: Option<Os>, report: &mut Report<'_>) -> Option<u32> {
    const FIELD: &str = "buildTimeoutInMinutes";
    let minutes = properties.integer(FIELD, 0..=LONGEST_TIMEOUT, report).or(0)?;
    let minutes = u32::try_from(minutes).unwrap_or(0);
    if let Some(at) = properties.get(FIELD) {
        if (1..AZURE_SHORTEST_TIMEOUT).contains(&minutes) {
            report.not_portable(
                at,
                &format!("Azure takes {minutes} minutes and then fails: it needs {AZURE_SHORTEST_TIMEOUT}"),
                format!("give {AZURE_SHORTEST_TIMEOUT} or more, or 0 for {DEFAULT_TIMEOUT}"),
            );
        }
        if os == Some(Os::Windows) && (1..WINDOWS_ADVISED_TIMEOUT).contains(&minutes) {
            report.note(
                at,
                Code::Advice,
                format!(
                    "{minutes} minutes are short for Windows; {WINDOWS_ADVISED_TIMEOUT} or more are advised"
                ),
            );
        }
    }
    Some(if minutes == 0 { DEFAULT_TIMEOUT } else { minutes })
}

fn validation(
    properties: &Object<'_>,
    os: Option<Os>,
    report: &mut Report<'_>,
) -> Option<Option<Validation>> {
    let validate = match properties.object("validate", schema::VALIDATE, report) {
        Got::Absent => return Some(None),
        Got::Bad => return None,
        Got::Is(validate) => validate,
    };
    let continue_distribute = validate.boolean("continueDistributeOnFailure", report).or(false);
    let source_only = validate.boolean("sourceValidationOnly", report).or(false);
    let validators = customize::validators(&validate, os, report);
    Some(Some(Validation {
        continue_distribute_on_failure: continue_distribute?,
        source_validation_only: source_only?,
        validators: validators?,
        place: report.place(&validate.cursor),
    }))
}

/// A value with the place of its field, or of the object where the field is absent.
pub(super) fn placed<T>(value: T, object: &Object<'_>, field: &str, report: &Report<'_>) -> Placed<T> {
    let place: Place = report.place(object.get(field).unwrap_or(&object.cursor));
    Placed { value, place }
}
