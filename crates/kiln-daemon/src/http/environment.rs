//! What clients need around the contract: endpoints, subscriptions, locations, resource groups, providers, resources.
//!
//! Every api-version is taken here, for clients send dozens of them and what is shown has not changed between them;
//! only the endpoints have shapes of their own. The shapes are those of Microsoft.Resources.

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use kiln_model::api::ApiVersion;
use serde_json::{Map, Value, json};

use super::answer::{Answer, ArmError, empty, json_response, ok};
use super::call::Call;
use super::route::{EnvironmentRoute, NAMESPACE};
use super::{body, paging, version};
use crate::config::{Subscription, is_resource_group};
use crate::daemon::Daemon;
use crate::store::{
    Reader, ResourceGroupRecord, Scope, StoreError, TEMPLATE_TYPE, TemplateId, TemplateRecord,
};

mod filter;

use filter::Filter;

const RESOURCES: &str = "Microsoft.Resources";
/// Templates looked at for one page of a filtered list; the next page goes on from there.
const LOOKED_AT: usize = 2_000;
/// ARM's limits on tags.
const MAX_TAGS: usize = 50;
const MAX_TAG_NAME: usize = 512;
const MAX_TAG_VALUE: usize = 256;

pub async fn answer(daemon: &Arc<Daemon>, route: EnvironmentRoute, mut call: Call) -> Answer {
    use EnvironmentRoute as Around;
    if route == Around::Aliases {
        return Ok(ok(&aliases()));
    }
    let asked = version::present(&call.query)?.to_owned();
    match route {
        Around::Endpoints => Ok(ok(&endpoints(&call.base, &asked))),
        Around::Aliases => Ok(ok(&aliases())),
        Around::Tenants => Ok(ok(&json!({"value": [tenant(daemon)]}))),
        Around::Subscriptions => {
            let value: Vec<Value> =
                daemon.environment.subscriptions.iter().map(|known| subscription(daemon, known)).collect();
            let count = value.len();
            Ok(ok(&json!({"value": value, "count": {"type": "Total", "value": count}})))
        }
        Around::Subscription { subscription: id } => {
            Ok(ok(&subscription(daemon, known_subscription(daemon, &id)?)))
        }
        Around::Locations { subscription } => {
            let subscription = known_subscription(daemon, &subscription)?;
            Ok(ok(&json!({"value": [location(daemon, subscription)]})))
        }
        Around::ResourceGroups { subscription } => {
            let subscription = known_subscription(daemon, &subscription)?.id.clone();
            resource_groups(daemon, &mut call, subscription).await
        }
        Around::ResourceGroup { subscription, name } => {
            let subscription = known_subscription(daemon, &subscription)?.id.clone();
            match call.method {
                Method::PUT => put_group(daemon, &mut call, subscription, name).await,
                Method::DELETE => delete_group(daemon, subscription, name).await,
                _ => {
                    let group = group(daemon, subscription, name).await?;
                    let exists = call.method == Method::HEAD;
                    Ok(if exists { empty(StatusCode::NO_CONTENT) } else { ok(&group_view(&group)) })
                }
            }
        }
        Around::GroupResources { subscription, resource_group } => {
            let subscription = known_subscription(daemon, &subscription)?.id.clone();
            let group = group(daemon, subscription, resource_group).await?;
            resources(daemon, &mut call, group.subscription, Some(group.name)).await
        }
        Around::Resources { subscription } => {
            let subscription = known_subscription(daemon, &subscription)?.id.clone();
            resources(daemon, &mut call, subscription, None).await
        }
        Around::Providers { subscription } => {
            let prefix = format!("/subscriptions/{}", known_subscription(daemon, &subscription)?.id);
            let value = [NAMESPACE, RESOURCES].map(|namespace| provider(daemon, &prefix, namespace));
            Ok(ok(&json!({"value": value})))
        }
        Around::Provider { subscription, namespace } | Around::Register { subscription, namespace } => {
            let prefix = format!("/subscriptions/{}", known_subscription(daemon, &subscription)?.id);
            Ok(ok(&provider(daemon, &prefix, known_namespace(&namespace)?)))
        }
        Around::Unregister { subscription, namespace } => {
            known_subscription(daemon, &subscription)?;
            let namespace = known_namespace(&namespace)?;
            Err(ArmError::conflict(
                "CannotUnregisterResourceProvider",
                format!(
                    "The resource provider '{namespace}' is what this server is for: it stays registered."
                ),
            ))
        }
        Around::TenantProvider { namespace } => Ok(ok(&provider(daemon, "", known_namespace(&namespace)?))),
    }
}

/// What `az cloud register` and `Add-AzEnvironment` discover. Three shapes, by age.
fn endpoints(base: &str, asked: &str) -> Value {
    let authentication = json!({
        "loginEndpoint": base,
        "audiences": [format!("{base}/")],
        "tenant": "common",
        "identityProvider": "AAD",
    });
    if asked < "2018-01-01" {
        return json!({
            "galleryEndpoint": base,
            "graphEndpoint": base,
            "portalEndpoint": base,
            "authentication": {"loginEndpoint": base, "audiences": [format!("{base}/")]},
        });
    }
    let cloud = json!({
        "name": "Kiln",
        "portal": base,
        "authentication": authentication,
        "graphAudience": base,
        "graph": base,
        "resourceManager": base,
        "suffixes": {},
        "vmImageAliasDoc": format!("{base}/aliases.json"),
        "gallery": base,
        "microsoftGraphResourceId": base,
    });
    if asked < "2022-09-01" { json!([cloud]) } else { cloud }
}

/// Short names for images, as `az vm create` knows them: there are none here.
fn aliases() -> Value {
    json!({"outputs": {"aliases": {"type": "object", "value": {"Linux": {}, "Windows": {}}}}})
}

fn tenant(daemon: &Daemon) -> Value {
    let id = &daemon.environment.tenant;
    json!({
        "id": format!("/tenants/{id}"),
        "tenantId": id,
        "displayName": "Kiln",
        "tenantCategory": "Home",
        "domains": [],
    })
}

fn subscription(daemon: &Daemon, known: &Subscription) -> Value {
    json!({
        "id": format!("/subscriptions/{}", known.id),
        "subscriptionId": known.id,
        "tenantId": daemon.environment.tenant,
        "displayName": known.name,
        "state": "Enabled",
        "authorizationSource": "RoleBased",
        "managedByTenants": [],
        "subscriptionPolicies": {
            "locationPlacementId": "Public_2014-09-01",
            "quotaId": "PayAsYouGo_2014-09-01",
            "spendingLimit": "Off",
        },
    })
}

/// The subscription of a path.
///
/// # Errors
/// 400 for what is no GUID, 404 for one that is not here.
pub fn known_subscription<'a>(daemon: &'a Daemon, id: &str) -> Result<&'a Subscription, ArmError> {
    daemon.environment.subscription(id).ok_or_else(|| {
        if uuid::Uuid::try_parse(id).is_ok() {
            ArmError::not_found(
                "SubscriptionNotFound",
                format!("The subscription '{}' could not be found.", version::shown(id)),
            )
        } else {
            ArmError::bad_request(
                "InvalidSubscriptionId",
                format!(
                    "The provided subscription identifier '{}' is malformed or invalid.",
                    version::shown(id)
                ),
            )
        }
    })
}

/// `local` → `Local`.
fn display_name(location: &str) -> String {
    let mut chars = location.chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + chars.as_str())
}

fn location(daemon: &Daemon, subscription: &Subscription) -> Value {
    let name = &daemon.environment.location;
    let display = display_name(name);
    json!({
        "id": format!("/subscriptions/{}/locations/{name}", subscription.id),
        "name": name,
        "type": "Region",
        "displayName": display,
        "regionalDisplayName": display,
        "metadata": {"regionType": "Physical", "regionCategory": "Recommended", "pairedRegion": []},
    })
}

fn known_namespace(namespace: &str) -> Result<&'static str, ArmError> {
    [NAMESPACE, RESOURCES].into_iter().find(|known| known.eq_ignore_ascii_case(namespace)).ok_or_else(|| {
        ArmError::not_found(
            "InvalidResourceNamespace",
            format!("The resource namespace '{}' is invalid.", version::shown(namespace)),
        )
    })
}

/// A provider and its types. `az resource` without `--api-version` takes the first that is no preview, of the type's
/// first segment.
fn provider(daemon: &Daemon, prefix: &str, namespace: &'static str) -> Value {
    let display = display_name(&daemon.environment.location);
    let known = |from: ApiVersion| -> Vec<&'static str> {
        ApiVersion::ALL
            .iter()
            .rev()
            .filter(|version| **version >= from)
            .map(|version| version.as_str())
            .collect()
    };
    let every = known(ApiVersion::ALL[0]);
    let type_of = |name: &str, versions: &[&str], located: bool, capabilities: &str| {
        json!({
            "resourceType": name,
            "locations": if located { vec![display.as_str()] } else { Vec::new() },
            "apiVersions": versions,
            "defaultApiVersion": versions[0],
            "capabilities": capabilities,
        })
    };
    let types = if namespace == NAMESPACE {
        vec![
            type_of("imageTemplates", &every, true, "SupportsTags, SupportsLocation"),
            type_of("imageTemplates/runOutputs", &every, true, "None"),
            type_of("imageTemplates/triggers", &known(ApiVersion::V2022_07_01), true, "None"),
            type_of("locations", &every, false, "None"),
            type_of("locations/operations", &every, true, "None"),
            type_of("operations", &every, false, "None"),
        ]
    } else {
        let versions = ["2024-11-01", "2022-09-01", "2021-04-01", "2020-06-01", "2019-10-01", "2018-05-01"];
        ["subscriptions", "subscriptions/locations", "subscriptions/providers", "tenants", "resources"]
            .map(|name| type_of(name, &versions, false, "None"))
            .into_iter()
            .chain([type_of("resourceGroups", &versions, true, "SupportsTags, SupportsLocation")])
            .collect()
    };
    let mut provider = json!({
        "id": format!("{prefix}/providers/{namespace}"),
        "namespace": namespace,
        "resourceTypes": types,
    });
    if !prefix.is_empty() {
        provider["registrationState"] = json!("Registered");
        provider["registrationPolicy"] = json!("RegistrationFree");
    }
    provider
}

fn failed(error: StoreError) -> ArmError {
    ArmError::internal(&error)
}

fn group_view(group: &ResourceGroupRecord) -> Value {
    let mut view = json!({
        "id": format!("/subscriptions/{}/resourceGroups/{}", group.subscription, group.name),
        "name": group.name,
        "type": "Microsoft.Resources/resourceGroups",
        "location": group.location,
        "properties": {"provisioningState": "Succeeded"},
    });
    if !group.tags.is_empty() {
        view["tags"] = Value::Object(group.tags.clone());
    }
    view
}

fn no_group(name: &str) -> ArmError {
    ArmError::not_found(
        "ResourceGroupNotFound",
        format!("Resource group '{}' could not be found.", version::shown(name)),
    )
}

async fn group(daemon: &Daemon, subscription: String, name: String) -> Result<ResourceGroupRecord, ArmError> {
    let asked = name.clone();
    let found = daemon.store.read(move |store| store.resource_group(&subscription, &asked)).await;
    found.map_err(failed)?.ok_or_else(|| no_group(&name))
}

async fn resource_groups(daemon: &Daemon, call: &mut Call, subscription: String) -> Answer {
    let filter = Filter::of(call)?;
    let groups =
        daemon.store.read(move |store| store.resource_groups(&subscription)).await.map_err(failed)?;
    let value: Vec<Value> = groups
        .iter()
        .filter(|group| {
            filter.matches(&filter::Subject {
                name: &group.name,
                kind: "Microsoft.Resources/resourceGroups",
                resource_group: &group.name,
                location: &group.location,
                tags: &group.tags,
            })
        })
        .map(group_view)
        .collect();
    Ok(ok(&json!({"value": value})))
}

async fn put_group(daemon: &Daemon, call: &mut Call, subscription: String, name: String) -> Answer {
    if !is_resource_group(&name) {
        return Err(ArmError::bad_request(
            "InvalidResourceGroupName",
            format!(
                "The resource group name '{}' is invalid: 1 to 90 letters, digits, '-', '_', '.', '(' or ')', \
                 and no '.' at its end.",
                version::shown(&name)
            ),
        ));
    }
    let bytes = body::json(call).await?;
    let asked: Value = serde_json::from_slice(&bytes)
        .map_err(|error| body::invalid(format!("The request content is not JSON: {error}.")))?;
    let text = asked.get("location").and_then(Value::as_str).unwrap_or_default();
    // As ARM compares them: "West US 2" is westus2.
    let location: String =
        text.chars().filter(|char| !char.is_whitespace()).collect::<String>().to_lowercase();
    if location.is_empty() {
        return Err(ArmError::bad_request(
            "LocationRequired",
            "The location property is required for this definition.",
        ));
    }
    if location.len() > 64 || !location.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(ArmError::bad_request(
            "LocationNotAvailableForResourceGroup",
            format!(
                "The provided location '{}' is not available for resource group. List of available regions is '{}'.",
                version::shown(text),
                daemon.environment.location
            ),
        ));
    }
    let tags = tags(&asked)?;
    let wanted = ResourceGroupRecord { subscription, name, location, tags };
    let written: Result<(ResourceGroupRecord, bool), PutError> = daemon
        .store
        .write(move |store| {
            let there = store.resource_group(&wanted.subscription, &wanted.name)?;
            let created = there.is_none();
            let record = match there {
                Some(there) if there.location != wanted.location => return Err(PutError::Moved(there)),
                // It keeps the case it was first written in.
                Some(there) => ResourceGroupRecord { tags: wanted.tags, ..there },
                None => wanted,
            };
            store.put_resource_group(&record)?;
            Ok((record, created))
        })
        .await;
    match written {
        Ok((record, created)) => {
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            Ok(json_response(status, &group_view(&record)))
        }
        Err(PutError::Moved(there)) => Err(ArmError::conflict(
            "InvalidResourceGroupLocation",
            format!(
                "Invalid resource group location. The Resource group already exists in location '{}'.",
                there.location
            ),
        )),
        Err(PutError::Store(error)) => Err(failed(error)),
    }
}

enum PutError {
    Moved(ResourceGroupRecord),
    Store(StoreError),
}

impl From<StoreError> for PutError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn tags(body: &Value) -> Result<Map<String, Value>, ArmError> {
    let invalid = |text: String| ArmError::bad_request("InvalidTags", text).target("tags");
    let tags = match body.get("tags") {
        None | Some(Value::Null) => return Ok(Map::new()),
        Some(Value::Object(tags)) => tags,
        Some(_) => return Err(invalid("'tags' must be an object of names and texts.".to_owned())),
    };
    if tags.len() > MAX_TAGS {
        return Err(invalid(format!("There may be at most {MAX_TAGS} tags.")));
    }
    for (name, value) in tags {
        let fits = value.as_str().is_some_and(|value| value.chars().count() <= MAX_TAG_VALUE);
        if name.is_empty() || name.chars().count() > MAX_TAG_NAME || !fits {
            return Err(invalid(format!(
                "The tag '{}' is invalid: its name has 1 to {MAX_TAG_NAME} characters, its value is a text of at most \
                 {MAX_TAG_VALUE}.",
                version::shown(name)
            )));
        }
    }
    Ok(tags.clone())
}

/// Azure deletes what is in a group along with it, in the background. Here a group must be empty: a template, and with
/// it the last word on its images, does not go by the way.
async fn delete_group(daemon: &Daemon, subscription: String, name: String) -> Answer {
    enum Deleted {
        Gone,
        NotThere,
        Holds(TemplateId),
    }
    let asked = name.clone();
    let deleted = daemon
        .store
        .write(move |store| -> Result<Deleted, StoreError> {
            let scope = Scope { subscription: subscription.clone(), resource_group: Some(asked.clone()) };
            if let Some(template) = store.templates(&scope, None, 1)?.items.pop() {
                return Ok(Deleted::Holds(template.id));
            }
            Ok(if store.delete_resource_group(&subscription, &asked)? {
                Deleted::Gone
            } else {
                Deleted::NotThere
            })
        })
        .await;
    match deleted.map_err(failed)? {
        Deleted::Gone => Ok(empty(StatusCode::OK)),
        Deleted::NotThere => Err(no_group(&name)),
        Deleted::Holds(template) => Err(ArmError::conflict(
            "ResourceGroupNotEmpty",
            format!(
                "Resource group '{}' still holds image templates, '{}' among them. Delete them first.",
                version::shown(&name),
                template.name
            ),
        )),
    }
}

fn resource_view(template: &TemplateRecord) -> Value {
    let mut view = json!({
        "id": template.id.arm_id(),
        "name": template.id.name,
        "type": TEMPLATE_TYPE,
        "location": template.location,
    });
    if !template.tags.is_empty() {
        view["tags"] = Value::Object(template.tags.clone());
    }
    if let Some(identity) = &template.identity {
        view["identity"] = identity.clone();
    }
    view
}

async fn resources(daemon: &Daemon, call: &mut Call, subscription: String, group: Option<String>) -> Answer {
    let filter = Filter::of(call)?;
    let top = match call.parameter("$top")? {
        None => paging::PAGE,
        Some(text) => match text.parse::<usize>() {
            Ok(top) if top > 0 => top.min(paging::PAGE),
            _ => {
                return Err(ArmError::bad_request(
                    "InvalidTopInQueryString",
                    "$top must be a number above 0.",
                ));
            }
        },
    };
    let place = paging::place(call)?;
    // The filter's group narrows the question; what is left of it is looked at one by one.
    let resource_group = group.or_else(|| filter.resource_group().map(str::to_owned));
    let scope = Scope { subscription, resource_group };
    let (found, next) =
        daemon.store.read(move |store| matching(store, &scope, &filter, place, top)).await.map_err(failed)?;
    let more = next.is_some();
    let mut page = paging::page(call, found.iter().map(resource_view).collect(), next)?;
    if more && let Some(link) = page["nextLink"].as_str() {
        let mut link = link.to_owned();
        for name in ["$filter", "$top"] {
            if let Some(value) = call.parameter(name)? {
                link.push_str(&format!("&{name}={}", encoded(value)));
            }
        }
        page["nextLink"] = json!(link);
    }
    Ok(ok(&page))
}

/// Up to `top` templates that match, and where to go on.
fn matching(
    store: &Reader<'_>,
    scope: &Scope,
    filter: &Filter,
    mut place: Option<String>,
    top: usize,
) -> Result<(Vec<TemplateRecord>, Option<String>), StoreError> {
    let mut found: Vec<TemplateRecord> = Vec::new();
    for _ in 0..LOOKED_AT / paging::PAGE {
        let page = store.templates(scope, place.as_deref(), top - found.len())?;
        found.extend(page.items.into_iter().filter(|template| {
            filter.matches(&filter::Subject {
                name: &template.id.name,
                kind: TEMPLATE_TYPE,
                resource_group: &template.id.resource_group,
                location: &template.location,
                tags: &template.tags,
            })
        }));
        place = page.next;
        if place.is_none() || found.len() >= top {
            break;
        }
    }
    Ok((found, place))
}

/// Percent-encoded for a query.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
