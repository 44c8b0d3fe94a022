//! Long-running operations: how they are announced, and how they stand. And the list of what the provider can do.
//!
//! ```text
//!  201/202  Azure-AsyncOperation: …/operations/{id}         200 {"status": InProgress … Succeeded|Failed|Canceled}
//!           Location:             …/operationResults/{id}   202 … then 200 with a body, or 204
//!           Retry-After: seconds
//! ```
//! Both stay readable after the end: clients read once more.

use std::sync::Arc;

use axum::http::header::{HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use kiln_model::api::ApiVersion;
use serde_json::{Value, json};

use super::super::answer::{Answer, ArmError, empty, json_response, ok};
use super::super::call::Call;
use super::super::route::{ImagesRoute, NAMESPACE, Route};
use super::refusals;
use crate::daemon::Daemon;
use crate::store::{OperationKind, OperationRecord, OperationStatus, Reader};
use crate::templates;

/// Seconds between a client's questions. Without the header azure-core waits 30.
const ASK_AGAIN: u64 = 1;

const AZURE_ASYNC_OPERATION: HeaderName = HeaderName::from_static("azure-asyncoperation");

/// The answer to what was begun: where to ask how it stands.
pub fn accepted(
    call: &Call,
    version: ApiVersion,
    operation: &OperationRecord,
    status: StatusCode,
    resource: Option<Value>,
) -> Answer {
    let mut response = match resource {
        Some(resource) => json_response(status, &resource),
        None => empty(status),
    };
    announce(response.headers_mut(), &call.base, version, operation)?;
    Ok(response)
}

fn announce(
    headers: &mut HeaderMap,
    base: &str,
    version: ApiVersion,
    operation: &OperationRecord,
) -> Result<(), ArmError> {
    let address = |kind: &str| {
        let path = operation_path(operation, kind);
        HeaderValue::from_str(&format!("{base}{path}?api-version={version}"))
            .map_err(|error| ArmError::internal(&error))
    };
    headers.insert(AZURE_ASYNC_OPERATION, address("operations")?);
    headers.insert(LOCATION, address("operationResults")?);
    headers.insert(RETRY_AFTER, HeaderValue::from(ASK_AGAIN));
    Ok(())
}

fn operation_path(operation: &OperationRecord, kind: &str) -> String {
    let OperationRecord { subscription, location, id, .. } = operation;
    format!("/subscriptions/{subscription}/providers/{NAMESPACE}/locations/{location}/{kind}/{id}")
}

/// 200, whatever the operation has come to: its status is in the body.
pub async fn status(daemon: &Arc<Daemon>, subscription: &str, location: &str, id: String) -> Answer {
    let operation = find(daemon, subscription, location, id).await?;
    let mut response = ok(&body(&operation));
    if operation.status == OperationStatus::InProgress {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(ASK_AGAIN));
    }
    Ok(response)
}

fn body(operation: &OperationRecord) -> Value {
    let mut body = json!({
        "id": operation_path(operation, "operations"),
        "name": operation.id,
        "resourceId": operation.resource,
        "status": status_word(operation.status),
        "startTime": operation.started_at,
    });
    if let Some(ended) = &operation.ended_at {
        body["endTime"] = json!(ended);
    }
    if let Some(error) = &operation.error {
        body["error"] = json!({"code": error.code, "message": error.message});
    }
    body
}

fn status_word(status: OperationStatus) -> &'static str {
    match status {
        OperationStatus::InProgress => "InProgress",
        OperationStatus::Succeeded => "Succeeded",
        OperationStatus::Failed => "Failed",
        OperationStatus::Canceled => "Canceled",
    }
}

/// 202 until the end; then what there is to be had of it.
///
/// Run and cancel end with the template as it is: `az resource invoke-action` reads the last answer as JSON.
pub async fn result(
    daemon: &Arc<Daemon>,
    call: Call,
    version: ApiVersion,
    subscription: &str,
    location: &str,
    id: String,
) -> Answer {
    let operation = find(daemon, subscription, location, id).await?;
    match operation.status {
        OperationStatus::InProgress => accepted(&call, version, &operation, StatusCode::ACCEPTED, None),
        OperationStatus::Succeeded => match operation.kind {
            OperationKind::DeleteTemplate | OperationKind::DeleteTrigger => Ok(empty(StatusCode::NO_CONTENT)),
            _ => {
                let resource = daemon.store.read(move |store| resource(store, &operation, version)).await?;
                Ok(ok(&resource.unwrap_or_else(|| json!({}))))
            }
        },
        OperationStatus::Failed | OperationStatus::Canceled => {
            let (code, message) = match operation.error {
                Some(error) => (error.code, error.message),
                None => ("OperationCanceled".to_owned(), "The operation was canceled.".to_owned()),
            };
            Err(ArmError::conflict(code, message))
        }
    }
}

/// What the operation was about, if it is still there.
fn resource(
    store: &Reader<'_>,
    operation: &OperationRecord,
    version: ApiVersion,
) -> Result<Option<Value>, ArmError> {
    Ok(match Route::parse(&operation.resource) {
        Ok(Route::Images(ImagesRoute::Trigger(id, name))) => {
            store.trigger(&id, &name)?.map(|trigger| templates::trigger_view(&trigger, version))
        }
        Ok(Route::Images(ImagesRoute::Template(id))) => {
            store.template(&id)?.map(|template| templates::view(&template, version))
        }
        _ => None,
    })
}

async fn find(
    daemon: &Arc<Daemon>,
    subscription: &str,
    location: &str,
    id: String,
) -> Result<OperationRecord, ArmError> {
    let name = id.clone();
    let found = daemon.store.read(move |store| -> Result<_, ArmError> { Ok(store.operation(&id)?) }).await?;
    found
        .filter(|operation| {
            operation.subscription.eq_ignore_ascii_case(subscription)
                && operation.location.eq_ignore_ascii_case(location)
        })
        .ok_or_else(|| refusals::no_operation(&name, location))
}

/// The provider's operations, as the service lists them: `(name, resource, operation, description)`.
const OPERATIONS: [(&str, &str, &str, &str); 13] = [
    (
        "register/action",
        "Virtual Machine Image Builder",
        "Register",
        "Registers the subscription for image templates",
    ),
    ("unregister/action", "Virtual Machine Image Builder", "Unregister", "Unregisters the subscription"),
    (
        "imageTemplates/read",
        "Image templates",
        "Get image template",
        "Reads an image template, or lists them",
    ),
    (
        "imageTemplates/write",
        "Image templates",
        "Create or update image template",
        "Creates or updates an image template",
    ),
    ("imageTemplates/delete", "Image templates", "Delete image template", "Deletes an image template"),
    (
        "imageTemplates/run/action",
        "Image templates",
        "Run image template",
        "Builds the image of an image template",
    ),
    (
        "imageTemplates/cancel/action",
        "Image templates",
        "Cancel image build",
        "Cancels the build of an image template",
    ),
    (
        "imageTemplates/runOutputs/read",
        "Run outputs",
        "Get run output",
        "Reads what the last run distributed",
    ),
    (
        "imageTemplates/triggers/read",
        "Triggers",
        "Get trigger",
        "Reads a trigger of an image template, or lists them",
    ),
    ("imageTemplates/triggers/write", "Triggers", "Create or update trigger", "Creates or updates a trigger"),
    ("imageTemplates/triggers/delete", "Triggers", "Delete trigger", "Deletes a trigger"),
    ("operations/read", "Operations", "List operations", "Lists the operations of this provider"),
    (
        "locations/operations/read",
        "Operations",
        "Get operation status",
        "Reads how a long-running operation stands",
    ),
];

pub fn list() -> Answer {
    let value: Vec<Value> = OPERATIONS
        .iter()
        .map(|(name, resource, operation, description)| {
            json!({
                "name": format!("{NAMESPACE}/{name}"),
                "isDataAction": false,
                "display": {
                    "provider": "Virtual Machine Image Builder",
                    "resource": resource,
                    "operation": operation,
                    "description": description,
                },
            })
        })
        .collect();
    Ok(ok(&json!({"value": value})))
}
