//! What the rooms below refuse, with ARM's status, code and text.

use axum::http::StatusCode;

use super::super::answer::ArmError;
use super::super::paging;
use super::super::version::shown;
use crate::runs::{CancelError, EnqueueError};
use crate::store::{ProvisioningState, StoreError, TEMPLATE_TYPE, TemplateId};
use crate::templates::{NotAllowed, TemplateError};
use kiln_model::run::RunState;

/// ARM's page about a missing resource.
const NOT_FOUND_HELP: &str = "For more details please go to https://aka.ms/ARMResourceNotFoundFix";

pub fn no_subscription(id: &str) -> ArmError {
    ArmError::not_found(
        "SubscriptionNotFound",
        format!("The subscription '{}' could not be found.", shown(id)),
    )
}

pub fn no_resource_group(name: &str) -> ArmError {
    ArmError::not_found(
        "ResourceGroupNotFound",
        format!("Resource group '{}' could not be found.", shown(name)),
    )
}

/// With the way out, for whoever wants to put something in it.
pub fn no_resource_group_to_write(name: &str, location: &str) -> ArmError {
    let mut error = no_resource_group(name);
    error
        .message
        .push_str(&format!(" Make it first: az group create --name {} --location {location}", shown(name)));
    error
}

pub fn no_template(id: &TemplateId) -> ArmError {
    not_found(&id.resource_group, &format!("{TEMPLATE_TYPE}/{}", shown(&id.name)))
}

/// `kind`: `runOutputs` or `triggers`.
pub fn no_part(id: &TemplateId, kind: &str, name: &str) -> ArmError {
    not_found(&id.resource_group, &format!("{TEMPLATE_TYPE}/{}/{kind}/{}", shown(&id.name), shown(name)))
}

fn not_found(group: &str, resource: &str) -> ArmError {
    ArmError::not_found(
        "ResourceNotFound",
        format!(
            "The Resource '{resource}' under resource group '{}' was not found. {NOT_FOUND_HELP}",
            shown(group)
        ),
    )
}

pub fn no_operation(id: &str, location: &str) -> ArmError {
    ArmError::not_found(
        "ResourceNotFound",
        format!("There is no operation '{}' in location '{}'.", shown(id), shown(location)),
    )
}

impl From<StoreError> for ArmError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::BadPlace(_) => paging::bad_token(),
            StoreError::Busy { .. } | StoreError::Closed => ArmError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "ServerBusy",
                "The server cannot answer at the moment. Try again.",
            )
            .retry_after(2),
            StoreError::NoRoom { .. } => ArmError::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "InsufficientStorage",
                "The server's disk is full. Make room in its data folder; `kiln gc` may help.",
            ),
            error => ArmError::internal(&error),
        }
    }
}

impl From<TemplateError> for ArmError {
    fn from(error: TemplateError) -> Self {
        let status = match error {
            TemplateError::Store(error) => return error.into(),
            TemplateError::Shelves(_) => return ArmError::internal(&error),
            TemplateError::Malformed(_) | TemplateError::Invalid(_) => StatusCode::BAD_REQUEST,
            TemplateError::Conflict(_) | TemplateError::NotAllowed(_) => StatusCode::CONFLICT,
            TemplateError::NotFound { .. } => StatusCode::NOT_FOUND,
        };
        let mut answer = ArmError::new(status, error.code(), error.to_string());
        answer.target = error.target();
        for detail in error.details() {
            answer = answer.detail(detail.code, detail.message, detail.target);
        }
        answer
    }
}

fn not_allowed(operation: &'static str, provisioning: ProvisioningState, run: Option<RunState>) -> ArmError {
    let text = NotAllowed { operation, provisioning, run }.to_string();
    ArmError::conflict("OperationNotAllowed", text)
}

impl From<EnqueueError> for ArmError {
    fn from(error: EnqueueError) -> Self {
        match error {
            EnqueueError::NotFound(id) => no_template(&id),
            EnqueueError::NoRun(id) => {
                ArmError::not_found("RunNotFound", format!("The image template has no run '{id}'."))
            }
            EnqueueError::NotFailed { run, state } => ArmError::conflict(
                "OperationNotAllowed",
                format!(
                    "The run '{run}' is {state:?}; only a run that has ended without success can be retried."
                ),
            ),
            EnqueueError::NotAllowed { provisioning, run } => {
                not_allowed("Microsoft.VirtualMachineImages/imageTemplates/run", provisioning, run)
            }
            EnqueueError::Store(error) => error.into(),
        }
    }
}

impl From<CancelError> for ArmError {
    fn from(error: CancelError) -> Self {
        let operation = "Microsoft.VirtualMachineImages/imageTemplates/cancel";
        match error {
            CancelError::NotFound(id) => no_template(&id),
            CancelError::NotRunning { provisioning, run } => not_allowed(operation, provisioning, run),
            CancelError::AlreadyCanceling { provisioning } => {
                not_allowed(operation, provisioning, Some(RunState::Canceling))
            }
            CancelError::Store(error) => error.into(),
        }
    }
}
