//! Triggers: stored by the service's rules. Nothing watches source images yet, and a trigger's status says so.

use kiln_model::Document;
use kiln_model::Problem;
use kiln_model::api::ApiVersion;
use kiln_model::problem::{Code, Place};
use serde_json::Value;

use super::reading::check_name;
use super::{TemplateError, Templates, ended, now, operation};
use crate::store::{OperationKind, OperationRecord, TemplateId, TemplateRecord, TriggerRecord};

/// The only kind there is.
const SOURCE_IMAGE: &str = "SourceImage";

/// A trigger that was stored.
#[derive(Debug, Clone)]
pub struct AcceptedTrigger {
    pub trigger: TriggerRecord,
    pub operation: OperationRecord,
    pub created: bool,
}

impl Templates {
    /// Stores a trigger of a template. It is done when this returns.
    ///
    /// # Errors
    /// There is no such template, or a rule of triggers is broken.
    pub async fn put_trigger(
        &self,
        id: &TemplateId,
        name: &str,
        version: ApiVersion,
        body: &[u8],
        by: &str,
    ) -> Result<AcceptedTrigger, TemplateError> {
        check_name("Trigger", name)?;
        let kind = read_trigger(body, name, version)?;
        let (id, name, by) = (id.clone(), name.to_owned(), by.to_owned());
        self.inner
            .store
            .write(move |writer| {
                let Some(template) = writer.template(&id)? else {
                    return Err(TemplateError::no_template(&id));
                };
                let existing = writer.triggers(&id)?;
                let other = existing.iter().find(|trigger| !trigger.name.eq_ignore_ascii_case(&name));
                if let Some(other) = other {
                    let text = format!("the template has the SourceImage trigger '{}' already", other.name);
                    return Err(broken("", text));
                }
                check_rules(&template)?;
                let at = now();
                let old = existing.into_iter().next();
                let created = old.is_none();
                let trigger = TriggerRecord {
                    template: template.id.clone(),
                    name: old.as_ref().map_or(name, |old| old.name.clone()),
                    kind,
                    created_at: old.as_ref().map_or_else(|| at.clone(), |old| old.created_at.clone()),
                    created_by: old.map_or_else(|| by.clone(), |old| old.created_by),
                    modified_at: at.clone(),
                    modified_by: by,
                };
                let below = format!("/triggers/{}", trigger.name);
                let operation =
                    operation(OperationKind::PutTrigger, &template.id, &below, &template.location, &at);
                let operation = ended(operation, None);
                writer.put_trigger(&trigger)?;
                writer.insert_operation(&operation)?;
                Ok(AcceptedTrigger { trigger, operation, created })
            })
            .await
    }

    /// Removes a trigger; `None` if there is none.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub async fn delete_trigger(
        &self,
        id: &TemplateId,
        name: &str,
    ) -> Result<Option<OperationRecord>, TemplateError> {
        let (id, name) = (id.clone(), name.to_owned());
        self.inner
            .store
            .write(move |writer| {
                let (Some(template), Some(trigger)) = (writer.template(&id)?, writer.trigger(&id, &name)?)
                else {
                    return Ok(None);
                };
                let below = format!("/triggers/{}", trigger.name);
                let operation =
                    operation(OperationKind::DeleteTrigger, &template.id, &below, &template.location, &now());
                let operation = ended(operation, None);
                writer.delete_trigger(&id, &name)?;
                writer.insert_operation(&operation)?;
                Ok(Some(operation))
            })
            .await
    }
}

/// The kind a body asks for.
fn read_trigger(bytes: &[u8], name: &str, version: ApiVersion) -> Result<String, TemplateError> {
    let document = Document::from_request(bytes, name, version).map_err(TemplateError::Malformed)?;
    let body = document.to_json().map_err(TemplateError::Invalid)?;
    let field = |value: &Value, name: &str| -> Option<Value> {
        let same = |key: &str| key == name || (!version.is_strict() && key.eq_ignore_ascii_case(name));
        value.as_object()?.iter().find(|(key, _)| same(key)).map(|(_, value)| value.clone())
    };
    if version.is_strict() {
        refuse_unknown(&body, &["properties", "id", "name", "type", "systemData"], "", version)?;
    }
    let Some(properties) = field(&body, "properties").filter(Value::is_object) else {
        return Err(missing("'Trigger'", "properties", ""));
    };
    if version.is_strict() {
        let known = ["kind", "status", "provisioningState"];
        refuse_unknown(&properties, &known, "struct field Properties: ", version)?;
    }
    match field(&properties, "kind") {
        None | Some(Value::Null) => Err(missing("'Trigger.properties'", "kind", "/properties")),
        Some(Value::String(kind)) if kind == SOURCE_IMAGE => Ok(kind),
        Some(other) => {
            // What is no word is not repeated.
            let word = other.as_str().filter(|text| text.chars().all(char::is_alphanumeric));
            let shown: String = word.unwrap_or_default().chars().take(80).collect();
            let message =
                format!("Validation failed: 'Trigger.properties': Field 'kind' has a bad value: '{shown}'");
            let place = Place { pointer: "/properties/kind".to_owned(), ..Place::default() };
            let problem = Problem::error(Code::BadValue, &place, message);
            Err(TemplateError::invalid(problem.help("the only kind is 'SourceImage'; it cannot be changed")))
        }
    }
}

fn refuse_unknown(
    value: &Value,
    known: &[&str],
    below: &str,
    version: ApiVersion,
) -> Result<(), TemplateError> {
    let names = value.as_object().into_iter().flat_map(|fields| fields.keys());
    let Some(name) = names.into_iter().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
    let shown: String = name.chars().filter(|c| !c.is_control()).take(80).collect();
    let message = format!(
        "Unmarshalling entity encountered error: unmarshalling type *v{}.Trigger: {below}unknown field \"{shown}\"",
        version.as_str().replace('-', "_")
    );
    Err(TemplateError::invalid(Problem::error(Code::UnknownField, &Place::default(), message)))
}

fn missing(whose: &str, field: &str, pointer: &str) -> TemplateError {
    let message = format!("Validation failed: {whose}: Missing field '{field}'");
    let place = Place { pointer: pointer.to_owned(), ..Place::default() };
    TemplateError::invalid(Problem::error(Code::MissingField, &place, message))
}

/// What a template with a trigger must be.
fn check_rules(template: &TemplateRecord) -> Result<(), TemplateError> {
    let properties = &template.properties;
    let text =
        |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let source = properties.get("source").cloned().unwrap_or_default();
    let image = match text(&source, "type").as_str() {
        "PlatformImage" if text(&source, "version").eq_ignore_ascii_case("latest") => String::new(),
        "SharedImageVersion" => match text(&source, "imageVersionId").rsplit_once("/versions/") {
            Some((image, version)) if version.eq_ignore_ascii_case("latest") => image.to_owned(),
            _ => return Err(not_latest()),
        },
        "ManagedImage" => {
            return Err(broken(
                "/properties/source",
                "a ManagedImage source has no versions to watch".to_owned(),
            ));
        }
        _ => return Err(not_latest()),
    };
    let targets = properties.get("distribute").and_then(Value::as_array);
    for (index, target) in targets.into_iter().flatten().enumerate() {
        let gallery = text(target, "galleryImageId");
        let pointer = format!("/properties/distribute/{index}/galleryImageId");
        if gallery.to_ascii_lowercase().contains("/versions/") {
            return Err(broken(
                &pointer,
                "a template with a trigger must not distribute to one version".to_owned(),
            ));
        }
        if !image.is_empty() && gallery.trim_end_matches('/').eq_ignore_ascii_case(&image) {
            return Err(broken(
                &pointer,
                "the source and the target are the same image definition".to_owned(),
            ));
        }
    }
    Ok(())
}

fn not_latest() -> TemplateError {
    broken(
        "/properties/source",
        "a template with a trigger must have 'latest' as its source's version".to_owned(),
    )
}

fn broken(pointer: &str, what: String) -> TemplateError {
    let place = Place { pointer: pointer.to_owned(), ..Place::default() };
    TemplateError::invalid(Problem::error(
        Code::BadValue,
        &place,
        format!("Validation failed: 'Trigger': {what}"),
    ))
}
