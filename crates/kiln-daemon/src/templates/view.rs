//! Records as the API says them, by api-version.
//!
//! ```text
//!  stored (whole addresses, exact names) ─ resource_for(version) ─► redacted ─► defaults and read-only fields added ─► answered
//! ```
//! INVARIANT: no query string, user name or password of an address leaves here.

use jiff::Timestamp;
use kiln_model::api::ApiVersion;
use kiln_model::plan::redact_url;
use kiln_model::run::Phase;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::store::{LastRun, OutputRecord, ProvisioningError, TEMPLATE_TYPE, TemplateRecord, TriggerRecord};

/// Fields that hold addresses of files.
const ADDRESSES: [&str; 4] = ["scriptUri", "sourceUri", "script", "uri"];

/// The template as GET answers it. Fields newer than the version are left out.
pub fn view(record: &TemplateRecord, version: ApiVersion) -> Value {
    let mut stored =
        super::reading::body(&record.location, &record.tags, record.identity.as_ref(), &record.properties);
    redact(&mut stored);
    let Value::Object(mut stored) = kiln_model::resource_for(&stored, version) else { return Value::Null };
    let mut properties = match stored.remove("properties") {
        Some(Value::Object(properties)) => properties,
        _ => Map::new(),
    };
    fill_steps(&mut properties, version);
    exact_version(&mut properties, record, version);
    properties.insert("provisioningState".to_owned(), json!(record.provisioning));
    if let Some(ProvisioningError { code, message }) = &record.provisioning_error {
        let error = json!({"provisioningErrorCode": code, "message": message});
        properties.insert("provisioningError".to_owned(), error);
    }
    if let Some(last) = &record.last_run {
        properties.insert("lastRunStatus".to_owned(), last_run(last, version));
    }

    let mut view = Map::new();
    view.insert("id".to_owned(), json!(record.id.arm_id()));
    view.insert("name".to_owned(), json!(record.id.name));
    view.insert("type".to_owned(), json!(TEMPLATE_TYPE));
    view.insert("location".to_owned(), json!(record.location));
    view.insert("tags".to_owned(), Value::Object(record.tags.clone()));
    if let Some(mut identity) = stored.remove("identity") {
        fill_identity(&mut identity);
        view.insert("identity".to_owned(), identity);
    }
    if version >= ApiVersion::V2021_10_01 {
        view.insert("systemData".to_owned(), system_data(record));
    }
    view.insert("properties".to_owned(), Value::Object(properties));
    Value::Object(view)
}

/// A run output as GET answers it; `artifact_uri` is where the file can be had.
pub fn output_view(record: &OutputRecord, version: ApiVersion, artifact_uri: &str) -> Value {
    let mut view = json!({
        "id": format!("{}/runOutputs/{}", record.template.arm_id(), record.name),
        "name": record.name,
        "type": format!("{TEMPLATE_TYPE}/runOutputs"),
        "properties": {"artifactUri": artifact_uri, "provisioningState": "Succeeded"},
    });
    if version >= ApiVersion::V2021_10_01 {
        view["systemData"] = json!({"createdAt": precise(&record.created_at)});
    }
    view
}

/// A trigger as GET answers it. Its status is true: nothing is watched yet.
pub fn trigger_view(record: &TriggerRecord, version: ApiVersion) -> Value {
    let mut view = json!({
        "id": format!("{}/triggers/{}", record.template.arm_id(), record.name),
        "name": record.name,
        "type": format!("{TEMPLATE_TYPE}/triggers"),
        "properties": {
            "kind": record.kind,
            "status": {
                "code": "Inactive",
                "message": "The trigger is stored. This Kiln does not watch source images yet: run the template yourself when there is a new one.",
                "time": precise(&record.modified_at),
            },
            "provisioningState": "Succeeded",
        },
    });
    if version >= ApiVersion::V2021_10_01 {
        let TriggerRecord { created_at, created_by, modified_at, modified_by, .. } = record;
        view["systemData"] = changes([created_at, created_by], [modified_at, modified_by]);
    }
    view
}

fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if ADDRESSES.iter().any(|known| name.eq_ignore_ascii_case(known)) => {
                        *text = redact_url(text);
                    }
                    _ => redact(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

/// What the service fills in: `runElevated` and `runAsSystem` of PowerShell steps.
fn fill_steps(properties: &mut Map<String, Value>, version: ApiVersion) {
    let fill = |steps: Option<&mut Value>| {
        let steps =
            steps.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut);
        for step in steps.filter(|step| step.get("type").is_some_and(|kind| kind == "PowerShell")) {
            for (field, since) in
                [("runElevated", ApiVersion::V2019_05_01Preview), ("runAsSystem", ApiVersion::V2021_10_01)]
            {
                if version >= since && !step.contains_key(field) {
                    step.insert(field.to_owned(), json!(false));
                }
            }
        }
    };
    fill(properties.get_mut("customize"));
    fill(properties.get_mut("validate").and_then(|validate| validate.get_mut("inVMValidations")));
}

/// What the source's version meant the last time; of a version given outright, that one.
fn exact_version(properties: &mut Map<String, Value>, record: &TemplateRecord, version: ApiVersion) {
    let Some(Value::Object(source)) = properties.get_mut("source") else { return };
    let text = |field: &str| source.get(field).and_then(Value::as_str).unwrap_or_default();
    let (asked, since) = match text("type") {
        "PlatformImage" => (text("version"), ApiVersion::V2021_10_01),
        "SharedImageVersion" => {
            (text("imageVersionId").rsplit('/').next().unwrap_or_default(), ApiVersion::V2022_07_01)
        }
        _ => return,
    };
    let exact = match &record.exact_version {
        Some(known) => known.clone(),
        None if !asked.is_empty() && !asked.eq_ignore_ascii_case("latest") => asked.to_owned(),
        None => return,
    };
    if version >= since {
        source.insert("exactVersion".to_owned(), json!(exact));
    }
}

/// A directory would give these GUIDs. Here there is none: they are made of the id, and stay the same.
fn fill_identity(identity: &mut Value) {
    let Some(ids) = identity.get_mut("userAssignedIdentities").and_then(Value::as_object_mut) else { return };
    for (id, value) in ids {
        let id = id.to_ascii_lowercase();
        let guid =
            |what: &str| Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{id}#{what}").as_bytes()).to_string();
        *value = json!({"principalId": guid("principalId"), "clientId": guid("clientId")});
    }
}

fn last_run(last: &LastRun, version: ApiVersion) -> Value {
    let mut status = Map::new();
    status.insert("startTime".to_owned(), json!(precise(&last.started_at)));
    if let Some(ended) = &last.ended_at {
        status.insert("endTime".to_owned(), json!(precise(ended)));
    }
    status.insert("runState".to_owned(), json!(last.state));
    if let Some(phase) = last.phase {
        status.insert("runSubState".to_owned(), json!(phase_for(phase, version)));
    }
    status.insert("message".to_owned(), json!(last.message));
    Value::Object(status)
}

/// Older versions have fewer words: a phase they do not know is the one before it.
fn phase_for(phase: Phase, version: ApiVersion) -> Phase {
    match phase {
        Phase::Optimizing if version < ApiVersion::V2022_07_01 => Phase::Customizing,
        Phase::Validating if version < ApiVersion::V2022_02_14 => Phase::Customizing,
        known => known,
    }
}

fn system_data(record: &TemplateRecord) -> Value {
    let TemplateRecord { created_at, created_by, modified_at, modified_by, .. } = record;
    changes([created_at, created_by], [modified_at, modified_by])
}

fn changes([created_at, created_by]: [&String; 2], [modified_at, modified_by]: [&String; 2]) -> Value {
    json!({
        "createdBy": created_by,
        "createdByType": "Application",
        "createdAt": precise(created_at),
        "lastModifiedBy": modified_by,
        "lastModifiedByType": "Application",
        "lastModifiedAt": precise(modified_at),
    })
}

/// A time with all nine digits of its second, as the service writes them; what is no time as it is.
fn precise(time: &str) -> String {
    time.parse::<Timestamp>().map_or_else(|_| time.to_owned(), |time| format!("{time:.9}"))
}

#[cfg(test)]
mod tests;
