//! Run outputs and triggers of a template.

use std::sync::Arc;

use axum::http::StatusCode;
use kiln_model::api::ApiVersion;
use serde_json::{Value, json};

use super::super::answer::{Answer, ArmError, empty, ok};
use super::super::artifacts;
use super::super::body;
use super::super::call::Call;
use super::{operations, refusals};
use crate::daemon::Daemon;
use crate::store::{OutputRecord, TemplateId};
use crate::templates;

pub async fn outputs(daemon: &Arc<Daemon>, call: Call, version: ApiVersion, id: TemplateId) -> Answer {
    let outputs = daemon
        .store
        .read(move |store| -> Result<_, ArmError> {
            let template = super::template(store, &id)?;
            Ok(store.outputs(&template.id)?)
        })
        .await?;
    let value: Vec<Value> = outputs.iter().map(|output| output_value(&call, version, output)).collect();
    Ok(ok(&json!({"value": value})))
}

pub async fn output(
    daemon: &Arc<Daemon>,
    call: Call,
    version: ApiVersion,
    id: TemplateId,
    name: String,
) -> Answer {
    let output = daemon
        .store
        .read(move |store| {
            let template = super::template(store, &id)?;
            store.output(&template.id, &name)?.ok_or_else(|| refusals::no_part(&id, "runOutputs", &name))
        })
        .await?;
    Ok(ok(&output_value(&call, version, &output)))
}

fn output_value(call: &Call, version: ApiVersion, output: &OutputRecord) -> Value {
    let uri = format!("{}{}", call.base, artifacts::address(&output.run, &output.output.file));
    templates::output_view(output, version, &uri)
}

pub async fn triggers(daemon: &Arc<Daemon>, version: ApiVersion, id: TemplateId) -> Answer {
    let triggers = daemon
        .store
        .read(move |store| -> Result<_, ArmError> {
            let template = super::template(store, &id)?;
            Ok(store.triggers(&template.id)?)
        })
        .await?;
    let value: Vec<Value> =
        triggers.iter().map(|trigger| templates::trigger_view(trigger, version)).collect();
    Ok(ok(&json!({"value": value})))
}

pub async fn trigger(daemon: &Arc<Daemon>, version: ApiVersion, id: TemplateId, name: String) -> Answer {
    let trigger = daemon
        .store
        .read(move |store| {
            let template = super::template(store, &id)?;
            store.trigger(&template.id, &name)?.ok_or_else(|| refusals::no_part(&id, "triggers", &name))
        })
        .await?;
    Ok(ok(&templates::trigger_view(&trigger, version)))
}

/// 201 with both addresses, though it is done: as the service answers.
pub async fn put_trigger(
    daemon: &Arc<Daemon>,
    mut call: Call,
    version: ApiVersion,
    id: TemplateId,
    name: String,
) -> Answer {
    let text = body::json(&mut call).await?;
    super::find(daemon, &id).await?;
    let accepted = daemon.templates.put_trigger(&id, &name, version, &text, call.by()).await?;
    let status = if accepted.created { StatusCode::CREATED } else { StatusCode::OK };
    let resource = templates::trigger_view(&accepted.trigger, version);
    operations::accepted(&call, version, &accepted.operation, status, Some(resource))
}

pub async fn delete_trigger(
    daemon: &Arc<Daemon>,
    call: Call,
    version: ApiVersion,
    id: TemplateId,
    name: String,
) -> Answer {
    match daemon.templates.delete_trigger(&id, &name).await? {
        Some(operation) => operations::accepted(&call, version, &operation, StatusCode::ACCEPTED, None),
        None => Ok(empty(StatusCode::NO_CONTENT)),
    }
}
