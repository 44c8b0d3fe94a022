//! The operations of Microsoft.VirtualMachineImages: the contract.
//!
//! | module       | answers                                                  |
//! |--------------|----------------------------------------------------------|
//! | `templates`  | list, get, put, patch, delete                            |
//! | `actions`    | run, run again, cancel                                   |
//! | `parts`      | run outputs, triggers                                    |
//! | `operations` | the operations list, and how a long-running one stands   |
//! | `refusals`   | what the rooms below refuse, in the service's words      |

mod actions;
mod operations;
mod parts;
mod refusals;
mod templates;

use std::sync::Arc;

pub use actions::retry;
use axum::http::Method;

use super::answer::{Answer, ArmError};
use super::call::Call;
use super::route::ImagesRoute;
use crate::daemon::Daemon;
use crate::store::{Reader, TemplateId, TemplateRecord};

pub async fn answer(daemon: &Arc<Daemon>, route: ImagesRoute, call: Call) -> Answer {
    // As ARM: the version before anything else, then the subscription.
    let version = call.version()?;
    if let Some(subscription) = route.subscription()
        && daemon.environment.subscription(subscription).is_none()
    {
        return Err(refusals::no_subscription(subscription));
    }
    match route {
        ImagesRoute::Operations => operations::list(),
        ImagesRoute::SubscriptionTemplates { subscription } => {
            templates::list(daemon, call, version, subscription, None).await
        }
        ImagesRoute::GroupTemplates { subscription, resource_group } => {
            templates::list(daemon, call, version, subscription, Some(resource_group)).await
        }
        ImagesRoute::Template(id) => match call.method {
            Method::PUT => templates::put(daemon, call, version, id).await,
            Method::PATCH => templates::patch(daemon, call, version, id).await,
            Method::DELETE => templates::delete(daemon, call, version, id).await,
            _ => templates::get(daemon, version, id).await,
        },
        ImagesRoute::Run(id) => actions::run(daemon, call, version, id).await,
        ImagesRoute::Cancel(id) => actions::cancel(daemon, call, version, id).await,
        ImagesRoute::RunOutputs(id) => parts::outputs(daemon, call, version, id).await,
        ImagesRoute::RunOutput(id, name) => parts::output(daemon, call, version, id, name).await,
        ImagesRoute::Triggers(id) => parts::triggers(daemon, version, id).await,
        ImagesRoute::Trigger(id, name) => match call.method {
            Method::PUT => parts::put_trigger(daemon, call, version, id, name).await,
            Method::DELETE => parts::delete_trigger(daemon, call, version, id, name).await,
            _ => parts::trigger(daemon, version, id, name).await,
        },
        ImagesRoute::Operation { subscription, location, id } => {
            operations::status(daemon, &subscription, &location, id).await
        }
        ImagesRoute::OperationResult { subscription, location, id } => {
            operations::result(daemon, call, version, &subscription, &location, id).await
        }
    }
}

/// The template, or why there is none: its resource group may be missing, too.
fn template(store: &Reader<'_>, id: &TemplateId) -> Result<TemplateRecord, ArmError> {
    match store.template(id)? {
        Some(template) => Ok(template),
        None => {
            resource_group(store, id)?;
            Err(refusals::no_template(id))
        }
    }
}

async fn find(daemon: &Daemon, id: &TemplateId) -> Result<TemplateRecord, ArmError> {
    let id = id.clone();
    daemon.store.read(move |store| template(store, &id)).await
}

fn resource_group(store: &Reader<'_>, id: &TemplateId) -> Result<(), ArmError> {
    match store.resource_group(&id.subscription, &id.resource_group)? {
        Some(_) => Ok(()),
        None => Err(refusals::no_resource_group(&id.resource_group)),
    }
}
