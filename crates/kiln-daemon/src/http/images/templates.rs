//! Templates: list, get, put, patch, delete.

use std::sync::Arc;

use axum::http::StatusCode;
use kiln_model::api::ApiVersion;

use super::super::answer::{Answer, ArmError, empty, ok};
use super::super::call::Call;
use super::super::{body, paging};
use super::{operations, refusals};
use crate::daemon::Daemon;
use crate::store::{Scope, TemplateId};
use crate::templates::{self, DeleteOptions, PutOptions};

pub async fn list(
    daemon: &Arc<Daemon>,
    call: Call,
    version: ApiVersion,
    subscription: String,
    group: Option<String>,
) -> Answer {
    let after = paging::place(&call)?;
    let scope = Scope { subscription, resource_group: group };
    let page = daemon
        .store
        .read(move |store| -> Result<_, ArmError> {
            if let Some(group) = &scope.resource_group
                && store.resource_group(&scope.subscription, group)?.is_none()
            {
                return Err(refusals::no_resource_group(group));
            }
            Ok(store.templates(&scope, after.as_deref(), paging::PAGE)?)
        })
        .await?;
    let value = page.items.iter().map(|template| templates::view(template, version)).collect();
    Ok(ok(&paging::page(&call, value, page.next)?))
}

pub async fn get(daemon: &Arc<Daemon>, version: ApiVersion, id: TemplateId) -> Answer {
    let template = daemon.store.read(move |store| super::template(store, &id)).await?;
    Ok(ok(&templates::view(&template, version)))
}

/// Always 201 where it was taken on: a replacement's clients (the GitHub action among them) expect it, too.
pub async fn put(daemon: &Arc<Daemon>, mut call: Call, version: ApiVersion, id: TemplateId) -> Answer {
    let text = body::json(&mut call).await?;
    let wanted = id.clone();
    let location = daemon.environment.location.clone();
    daemon
        .store
        .read(move |store| match store.resource_group(&wanted.subscription, &wanted.resource_group)? {
            Some(_) => Ok(()),
            None => Err(refusals::no_resource_group_to_write(&wanted.resource_group, &location)),
        })
        .await?;
    let uploads = match call.parameter("kilnUploads")? {
        None => None,
        Some(digest) => Some(digest.parse().map_err(|error| {
            ArmError::bad_request("InvalidParameter", format!("kilnUploads: {error}.")).target("kilnUploads")
        })?),
    };
    let options = PutOptions { replace: call.is_set("kilnReplace")?, uploads, by: call.by().to_owned() };
    let accepted = daemon.templates.put(&id, version, &text, options).await?;
    let resource = templates::view(&accepted.template, version);
    operations::accepted(&call, version, &accepted.operation, StatusCode::CREATED, Some(resource))
}

pub async fn patch(daemon: &Arc<Daemon>, mut call: Call, version: ApiVersion, id: TemplateId) -> Answer {
    let text = body::json(&mut call).await?;
    super::find(daemon, &id).await?;
    let accepted = daemon.templates.patch(&id, version, &text, call.by()).await?;
    let resource = templates::view(&accepted.template, version);
    operations::accepted(&call, version, &accepted.operation, StatusCode::ACCEPTED, Some(resource))
}

pub async fn delete(daemon: &Arc<Daemon>, call: Call, version: ApiVersion, id: TemplateId) -> Answer {
    let options = DeleteOptions {
        force: call.is_set("kilnForce")?,
        purge: call.is_set("kilnPurge")?,
        by: call.by().to_owned(),
    };
    match daemon.templates.delete(&id, version, options, &daemon.runs).await? {
        Some(operation) => operations::accepted(&call, version, &operation, StatusCode::ACCEPTED, None),
        None => Ok(empty(StatusCode::NO_CONTENT)),
    }
}
