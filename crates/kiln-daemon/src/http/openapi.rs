//! The OpenAPI document of everything that is served: `openapi.json`, written by hand, held to the routes by a test.

use axum::body::Body;
use axum::http::Response;
use axum::http::header::{CONTENT_TYPE, HeaderValue};

const DOCUMENT: &str = include_str!("openapi.json");

/// GET `/kiln/openapi.json`.
pub(super) fn document() -> Response<Body> {
    let mut answer = Response::new(Body::from(DOCUMENT));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use axum::http::Method;
    use serde_json::Value;

    use super::*;
    use crate::http::route::{
        EnvironmentRoute as Around, ImagesRoute as Images, OwnRoute as Own, Route, SignInRoute,
    };

    const IMAGES: &str = "/subscriptions/{subscriptionId}/resourceGroups/{resourceGroupName}/providers/Microsoft.VirtualMachineImages/imageTemplates";
    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Every route has an arm here: a new one does not compile without a path in the document.
    fn path_of(route: &Route) -> String {
        let around = |rest: &str| format!("/subscriptions/{{subscriptionId}}{rest}");
        let ours = |rest: &str| around(&format!("/providers/Microsoft.VirtualMachineImages{rest}"));
        let template = |rest: &str| format!("{IMAGES}/{{imageTemplateName}}{rest}");
        let group = |rest: &str| around(&format!("/resourceGroups/{{resourceGroupName}}{rest}"));
        let tenant = |v2: bool, v1_path: &str, v2_path: &str| {
            format!("/{{tenant}}{}", if v2 { v2_path } else { v1_path })
        };
        match route {
            Route::Images(route) => match route {
                Images::Operations => "/providers/Microsoft.VirtualMachineImages/operations".to_owned(),
                Images::SubscriptionTemplates { .. } => ours("/imageTemplates"),
                Images::GroupTemplates { .. } => IMAGES.to_owned(),
                Images::Template(_) => template(""),
                Images::Run(_) => template("/run"),
                Images::Cancel(_) => template("/cancel"),
                Images::RunOutputs(_) => template("/runOutputs"),
                Images::RunOutput(..) => template("/runOutputs/{runOutputName}"),
                Images::Triggers(_) => template("/triggers"),
                Images::Trigger(..) => template("/triggers/{triggerName}"),
                Images::Operation { .. } => ours("/locations/{location}/operations/{operationId}"),
                Images::OperationResult { .. } => {
                    ours("/locations/{location}/operationResults/{operationId}")
                }
            },
            Route::Environment(route) => match route {
                Around::Endpoints => "/metadata/endpoints".to_owned(),
                Around::Aliases => "/aliases.json".to_owned(),
                Around::Tenants => "/tenants".to_owned(),
                Around::Subscriptions => "/subscriptions".to_owned(),
                Around::Subscription { .. } => around(""),
                Around::Locations { .. } => around("/locations"),
                Around::ResourceGroups { .. } => around("/resourceGroups"),
                Around::ResourceGroup { .. } => group(""),
                Around::GroupResources { .. } => group("/resources"),
                Around::Resources { .. } => around("/resources"),
                Around::Providers { .. } => around("/providers"),
                Around::Provider { .. } => around("/providers/{namespace}"),
                Around::Register { .. } => around("/providers/{namespace}/register"),
                Around::Unregister { .. } => around("/providers/{namespace}/unregister"),
                Around::TenantProvider { .. } => "/providers/{namespace}".to_owned(),
            },
            Route::SignIn(route) => match route {
                SignInRoute::Discovery { v2, .. } => {
                    tenant(*v2, "/.well-known/openid-configuration", "/v2.0/.well-known/openid-configuration")
                }
                SignInRoute::Token { v2, .. } => tenant(*v2, "/oauth2/token", "/oauth2/v2.0/token"),
                SignInRoute::Keys { .. } => "/{tenant}/discovery/keys".to_owned(),
                SignInRoute::ManagedIdentity => "/msi/token".to_owned(),
            },
            Route::Own(route) => match route {
                Own::Runs(_) => template("/runs"),
                Own::Run(..) => template("/runs/{run}"),
                Own::Log(..) => template("/runs/{run}/log"),
                Own::Events(..) => template("/runs/{run}/events"),
                Own::CustomizationLog(..) => template("/runs/{run}/customization.log"),
                Own::Retry(..) => template("/runs/{run}/retry"),
                Own::ValidationLog(..) => template("/runs/{run}/validation.log"),
                Own::Artifact { .. } => "/kiln/artifacts/{runId}/{file}".to_owned(),
                Own::Input(_) => "/kiln/inputs/{sha256}".to_owned(),
                Own::AllRuns => "/kiln/runs".to_owned(),
                Own::Status => "/kiln/status".to_owned(),
                Own::Gc => "/kiln/gc".to_owned(),
                Own::Activity => "/kiln/activity".to_owned(),
                Own::Health => "/kiln/health".to_owned(),
                Own::OpenApi => "/kiln/openapi.json".to_owned(),
            },
        }
    }

    /// How many paths [`path_of`] can give; a new arm there makes one more.
    const PATHS: usize = 48;

    fn document_paths() -> BTreeMap<String, Value> {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        serde_json::from_value(document["paths"].clone()).unwrap()
    }

    fn with_names(path: &str) -> String {
        let names = [
            ("{subscriptionId}", "00000000-0000-0000-0000-000000000001"),
            ("{resourceGroupName}", "rg"),
            ("{imageTemplateName}", "t1"),
            ("{runOutputName}", "out"),
            ("{triggerName}", "source"),
            ("{location}", "local"),
            ("{operationId}", "00000000-0000-0000-0000-000000000002"),
            ("{namespace}", "Microsoft.Compute"),
            ("{tenant}", "common"),
            ("{run}", "latest"),
            ("{runId}", "20260102T030405Z-t1-3f9a1c"),
            ("{file}", "out.vhd"),
            ("{sha256}", DIGEST),
        ];
        let named = names.iter().fold(path.to_owned(), |path, (name, value)| path.replace(name, value));
        assert!(!named.contains('{'), "{named}");
        named
    }

    #[test]
    fn the_document_has_every_path_and_method_and_no_other() {
        let verbs = |methods: &[Method]| -> BTreeSet<String> {
            methods
                .iter()
                .filter(|method| *method != Method::HEAD)
                .map(|m| m.as_str().to_lowercase())
                .collect()
        };
        let paths = document_paths();
        for (path, item) in &paths {
            let route = Route::parse(&with_names(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(&path_of(&route), path, "the document's spelling");
            let described: BTreeSet<String> = item
                .as_object()
                .unwrap()
                .keys()
                .filter(|key| !["parameters", "head"].contains(&key.as_str()))
                .cloned()
                .collect();
            assert_eq!(described, verbs(route.methods()), "{path}");
            for verb in &described {
                let open = item[verb]["security"] == serde_json::json!([]);
                assert_eq!(open, route.is_open(), "{verb} {path}: whether it asks for a sign-in");
            }
        }
        assert_eq!(paths.len(), PATHS, "paths in the document, and arms above");
    }

    #[test]
    fn references_lead_somewhere_and_all_is_used() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let mut used = BTreeSet::new();
        let mut left = vec![&document];
        let mut ids = BTreeSet::new();
        while let Some(value) = left.pop() {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(target)) = fields.get("$ref") {
                        assert!(document.pointer(&target[1..]).is_some(), "{target}");
                        used.insert(target.clone());
                    }
                    if let Some(Value::String(id)) = fields.get("operationId") {
                        assert!(ids.insert(id.clone()), "{id} twice");
                    }
                    left.extend(fields.values());
                }
                Value::Array(items) => left.extend(items),
                _ => {}
            }
        }
        for kind in ["schemas", "parameters", "responses"] {
            for name in document["components"][kind].as_object().unwrap().keys() {
                assert!(used.contains(&format!("#/components/{kind}/{name}")), "{name} is not used");
            }
        }
    }

    #[test]
    fn every_api_version_is_named() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let named = &document["components"]["parameters"]["apiVersion"]["schema"]["enum"];
        assert_eq!(*named, serde_json::json!(kiln_model::api::ApiVersion::ALL));
    }
}
