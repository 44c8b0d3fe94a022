//! What a path names. Pure; all paths of the server are here.
//!
//! ARM's paths ignore case and repeated slashes; names keep the case they came in.
//! Which methods a path has is [`Route::methods`]; what an answer is, the modules beside this one know.

use axum::http::Method;
use kiln_build::run_dir::RunId;
use kiln_model::Sha256;

use super::path::{self, UriError};
use crate::store::TemplateId;

/// The namespace of the image templates.
pub const NAMESPACE: &str = "Microsoft.VirtualMachineImages";

/// The whole server, by who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The contract: `http::images`.
    Images(ImagesRoute),
    /// What clients need around it: `http::environment`.
    Environment(EnvironmentRoute),
    /// OIDC and tokens: `http::signin`.
    SignIn(SignInRoute),
    /// Kiln's own, beside the contract: `http::own`.
    Own(OwnRoute),
}

/// The operations of Microsoft.VirtualMachineImages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagesRoute {
    /// `/providers/Microsoft.VirtualMachineImages/operations`
    Operations,
    SubscriptionTemplates {
        subscription: String,
    },
    GroupTemplates {
        subscription: String,
        resource_group: String,
    },
    Template(TemplateId),
    Run(TemplateId),
    Cancel(TemplateId),
    RunOutputs(TemplateId),
    RunOutput(TemplateId, String),
    Triggers(TemplateId),
    Trigger(TemplateId, String),
    /// `…/locations/{location}/operations/{id}`: answers how an operation stands.
    Operation {
        subscription: String,
        location: String,
        id: String,
    },
    /// `…/locations/{location}/operationResults/{id}`: answers 202 until it has ended.
    OperationResult {
        subscription: String,
        location: String,
        id: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvironmentRoute {
    /// `/metadata/endpoints`; open to everybody.
    Endpoints,
    /// `/aliases.json`, the `vmImageAliasDoc` of the endpoints; open to everybody.
    Aliases,
    Tenants,
    Subscriptions,
    Subscription {
        subscription: String,
    },
    Locations {
        subscription: String,
    },
    ResourceGroups {
        subscription: String,
    },
    ResourceGroup {
        subscription: String,
        name: String,
    },
    /// `/subscriptions/{s}/resourceGroups/{g}/resources`
    GroupResources {
        subscription: String,
        resource_group: String,
    },
    /// `/subscriptions/{s}/resources`
    Resources {
        subscription: String,
    },
    Providers {
        subscription: String,
    },
    Provider {
        subscription: String,
        namespace: String,
    },
    /// POST `…/providers/{namespace}/register`
    Register {
        subscription: String,
        namespace: String,
    },
    Unregister {
        subscription: String,
        namespace: String,
    },
    /// `/providers/{namespace}`, without a subscription.
    TenantProvider {
        namespace: String,
    },
}

/// Open to everybody: who asks here has no token yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignInRoute {
    /// `/{tenant}[/v2.0]/.well-known/openid-configuration`
    Discovery { tenant: String, v2: bool },
    /// POST `/{tenant}/oauth2[/v2.0]/token`
    Token { tenant: String, v2: bool },
    /// `/{tenant}/discovery[/v2.0]/keys`
    Keys { tenant: String },
    /// `/msi/token`, and the address of Azure's instance metadata `/metadata/identity/oauth2/token`.
    ManagedIdentity,
}

/// Which run of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhichRun {
    Latest,
    Id(RunId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnRoute {
    /// `…/imageTemplates/{t}/runs`
    Runs(TemplateId),
    /// `…/runs/{id|latest}`
    Run(TemplateId, WhichRun),
    /// `…/log`: customization.log while it is written.
    Log(TemplateId, WhichRun),
    Events(TemplateId, WhichRun),
    /// `…/customization.log`, the finished file.
    CustomizationLog(TemplateId, WhichRun),
    ValidationLog(TemplateId, WhichRun),
    /// POST `…/runs/{id|latest}/retry`: another run in the place of one that failed.
    Retry(TemplateId, WhichRun),
    /// `/kiln/artifacts/{run}/{file}`
    Artifact {
        run: RunId,
        file: String,
    },
    /// `/kiln/inputs/{sha256}`
    Input(Sha256),
    /// `/kiln/runs`: of all templates.
    AllRuns,
    Status,
    Gc,
    Activity,
    /// Open to everybody: whether the server works, and nothing else.
    Health,
    /// Open to everybody.
    OpenApi,
}

/// A path that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error(transparent)]
    Uri(#[from] UriError),
    /// Below no subscription and no provider.
    #[error("the request did not have a subscription or a valid tenant level resource provider")]
    Nowhere,
    #[error("there is no resource provider {0} here")]
    Namespace(String),
    #[error("there is no resource type {name} in {namespace}")]
    Type { namespace: &'static str, name: String },
    /// Below `/kiln`, or a malformed id in a path of Kiln's own.
    #[error("there is nothing at this path")]
    Own,
}

impl Route {
    /// What `path` (percent-encoded, without query) names.
    pub fn parse(path: &str) -> Result<Self, RouteError> {
        let names = path::segments(path)?;
        let lower: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        let name = |index: usize| names[index].clone();
        match lower.as_slice() {
            ["subscriptions"] => Ok(Self::Environment(EnvironmentRoute::Subscriptions)),
            ["subscriptions", _, rest @ ..] => below_subscription(&names, rest),
            ["tenants"] => Ok(Self::Environment(EnvironmentRoute::Tenants)),
            ["providers", namespace, "operations"] if is_ours(namespace) => {
                Ok(Self::Images(ImagesRoute::Operations))
            }
            ["providers", _] => {
                Ok(Self::Environment(EnvironmentRoute::TenantProvider { namespace: name(1) }))
            }
            ["providers", namespace, ..] if is_ours(namespace) => Err(unknown_type(&names)),
            ["providers", _, ..] => Err(RouteError::Namespace(name(1))),
            ["metadata", "endpoints"] => Ok(Self::Environment(EnvironmentRoute::Endpoints)),
            ["aliases.json"] => Ok(Self::Environment(EnvironmentRoute::Aliases)),
            ["msi", "token"] | ["metadata", "identity", "oauth2", "token"] => {
                Ok(Self::SignIn(SignInRoute::ManagedIdentity))
            }
            ["kiln", rest @ ..] => below_kiln(&names, rest).map(Self::Own),
            [_, rest @ ..] => below_tenant(name(0), rest).map(Self::SignIn),
            [] => Err(RouteError::Nowhere),
        }
    }

    /// The methods this path has. HEAD goes with GET; OPTIONS is answered for all.
    pub fn methods(&self) -> &'static [Method] {
        const GET: &[Method] = &[Method::GET, Method::HEAD];
        const POST: &[Method] = &[Method::POST];
        const GET_PUT_DELETE: &[Method] = &[Method::GET, Method::HEAD, Method::PUT, Method::DELETE];
        const RESOURCE: &[Method] = &[Method::GET, Method::HEAD, Method::PUT, Method::PATCH, Method::DELETE];
        const GET_PUT: &[Method] = &[Method::GET, Method::HEAD, Method::PUT];
        const GET_POST: &[Method] = &[Method::GET, Method::HEAD, Method::POST];
        match self {
            Self::Images(ImagesRoute::Template(_)) => RESOURCE,
            Self::Images(ImagesRoute::Run(_) | ImagesRoute::Cancel(_)) => POST,
            Self::Images(ImagesRoute::Trigger(..)) => GET_PUT_DELETE,
            Self::Images(_) => GET,
            Self::Environment(EnvironmentRoute::ResourceGroup { .. }) => GET_PUT_DELETE,
            Self::Environment(EnvironmentRoute::Register { .. } | EnvironmentRoute::Unregister { .. }) => {
                POST
            }
            Self::Environment(_) => GET,
            Self::SignIn(SignInRoute::Token { .. }) => POST,
            Self::SignIn(SignInRoute::ManagedIdentity) => GET_POST,
            Self::SignIn(_) => GET,
            Self::Own(OwnRoute::Input(_)) => GET_PUT,
            Self::Own(OwnRoute::Gc | OwnRoute::Retry(..)) => POST,
            Self::Own(_) => GET,
        }
    }

    /// Whether it is answered without a sign-in.
    pub fn is_open(&self) -> bool {
        matches!(
            self,
            Self::SignIn(_)
                | Self::Environment(EnvironmentRoute::Endpoints | EnvironmentRoute::Aliases)
                | Self::Own(OwnRoute::Health | OwnRoute::OpenApi)
        )
    }
}

impl Route {
    /// What a method does here, in the words of Azure's permissions.
    pub fn action(&self, method: &Method) -> String {
        let verb = match *method {
            Method::GET | Method::HEAD => "read",
            Method::DELETE => "delete",
            Method::POST => "action",
            _ => "write",
        };
        let of = match self {
            Self::Images(route) => {
                return match route {
                    ImagesRoute::Run(_) => format!("{NAMESPACE}/imageTemplates/run/action"),
                    ImagesRoute::Cancel(_) => format!("{NAMESPACE}/imageTemplates/cancel/action"),
                    ImagesRoute::Operations => format!("{NAMESPACE}/operations/{verb}"),
                    ImagesRoute::Operation { .. } | ImagesRoute::OperationResult { .. } => {
                        format!("{NAMESPACE}/locations/operations/{verb}")
                    }
                    ImagesRoute::RunOutputs(_) | ImagesRoute::RunOutput(..) => {
                        format!("{NAMESPACE}/imageTemplates/runOutputs/{verb}")
                    }
                    ImagesRoute::Triggers(_) | ImagesRoute::Trigger(..) => {
                        format!("{NAMESPACE}/imageTemplates/triggers/{verb}")
                    }
                    ImagesRoute::SubscriptionTemplates { .. }
                    | ImagesRoute::GroupTemplates { .. }
                    | ImagesRoute::Template(_) => format!("{NAMESPACE}/imageTemplates/{verb}"),
                };
            }
            Self::Environment(EnvironmentRoute::Register { namespace, .. }) => {
                return format!("{namespace}/register/action");
            }
            Self::Environment(EnvironmentRoute::Unregister { namespace, .. }) => {
                return format!("{namespace}/unregister/action");
            }
            Self::Environment(_) => "Microsoft.Resources/subscriptions/resourceGroups",
            Self::SignIn(_) => "Kiln/tokens",
            Self::Own(OwnRoute::Artifact { .. }) => "Kiln/artifacts",
            Self::Own(OwnRoute::Input(_)) => "Kiln/inputs",
            Self::Own(OwnRoute::Gc) => "Kiln/gc",
            // Whoever may run a template may do it once more.
            Self::Own(OwnRoute::Retry(..)) => return format!("{NAMESPACE}/imageTemplates/run/action"),
            Self::Own(OwnRoute::Health | OwnRoute::Status | OwnRoute::Activity | OwnRoute::OpenApi) => {
                "Kiln/host"
            }
            Self::Own(_) => "Kiln/runs",
        };
        format!("{of}/{verb}")
    }

    /// What it is about: an ARM id, or a path of Kiln's own.
    pub fn scope(&self) -> String {
        let group =
            |subscription: &str, name: &str| format!("/subscriptions/{subscription}/resourceGroups/{name}");
        match self {
            Self::Images(route) => match route {
                ImagesRoute::Operations => format!("/providers/{NAMESPACE}"),
                ImagesRoute::SubscriptionTemplates { subscription }
                | ImagesRoute::Operation { subscription, .. }
                | ImagesRoute::OperationResult { subscription, .. } => {
                    format!("/subscriptions/{subscription}")
                }
                ImagesRoute::GroupTemplates { subscription, resource_group } => {
                    group(subscription, resource_group)
                }
                ImagesRoute::Template(id)
                | ImagesRoute::Run(id)
                | ImagesRoute::Cancel(id)
                | ImagesRoute::RunOutputs(id)
                | ImagesRoute::Triggers(id) => id.arm_id(),
                ImagesRoute::RunOutput(id, name) => format!("{}/runOutputs/{name}", id.arm_id()),
                ImagesRoute::Trigger(id, name) => format!("{}/triggers/{name}", id.arm_id()),
            },
            Self::Environment(route) => match route {
                EnvironmentRoute::ResourceGroup { subscription, name }
                | EnvironmentRoute::GroupResources { subscription, resource_group: name } => {
                    group(subscription, name)
                }
                EnvironmentRoute::Subscription { subscription }
                | EnvironmentRoute::Locations { subscription }
                | EnvironmentRoute::ResourceGroups { subscription }
                | EnvironmentRoute::Resources { subscription }
                | EnvironmentRoute::Providers { subscription }
                | EnvironmentRoute::Provider { subscription, .. }
                | EnvironmentRoute::Register { subscription, .. }
                | EnvironmentRoute::Unregister { subscription, .. } => {
                    format!("/subscriptions/{subscription}")
                }
                EnvironmentRoute::Endpoints
                | EnvironmentRoute::Aliases
                | EnvironmentRoute::Tenants
                | EnvironmentRoute::Subscriptions
                | EnvironmentRoute::TenantProvider { .. } => "/".to_owned(),
            },
            Self::SignIn(_) => "/".to_owned(),
            Self::Own(route) => match route {
                OwnRoute::Runs(id)
                | OwnRoute::Run(id, _)
                | OwnRoute::Log(id, _)
                | OwnRoute::Events(id, _)
                | OwnRoute::CustomizationLog(id, _)
                | OwnRoute::ValidationLog(id, _)
                | OwnRoute::Retry(id, _) => id.arm_id(),
                OwnRoute::Artifact { run, file } => format!("/kiln/artifacts/{run}/{file}"),
                OwnRoute::Input(digest) => format!("/kiln/inputs/{digest}"),
                OwnRoute::AllRuns
                | OwnRoute::Health
                | OwnRoute::Status
                | OwnRoute::Gc
                | OwnRoute::Activity
                | OwnRoute::OpenApi => "/kiln".to_owned(),
            },
        }
    }
}

impl ImagesRoute {
    /// Whose resources it is about; none for the provider itself.
    pub fn subscription(&self) -> Option<&str> {
        match self {
            Self::Operations => None,
            Self::SubscriptionTemplates { subscription }
            | Self::GroupTemplates { subscription, .. }
            | Self::Operation { subscription, .. }
            | Self::OperationResult { subscription, .. } => Some(subscription),
            Self::Template(id)
            | Self::Run(id)
            | Self::Cancel(id)
            | Self::RunOutputs(id)
            | Self::RunOutput(id, _)
            | Self::Triggers(id)
            | Self::Trigger(id, _) => Some(&id.subscription),
        }
    }
}

fn is_ours(namespace: &str) -> bool {
    namespace.eq_ignore_ascii_case(NAMESPACE)
}

/// `names` is the whole path, `rest` its lower-case end after the subscription.
fn below_subscription(names: &[String], rest: &[&str]) -> Result<Route, RouteError> {
    use EnvironmentRoute as Around;
    let subscription = names[1].clone();
    let environment = |route| Ok(Route::Environment(route));
    match rest {
        [] => environment(Around::Subscription { subscription }),
        ["locations"] => environment(Around::Locations { subscription }),
        ["resources"] => environment(Around::Resources { subscription }),
        ["resourcegroups"] => environment(Around::ResourceGroups { subscription }),
        ["resourcegroups", _] => environment(Around::ResourceGroup { subscription, name: names[3].clone() }),
        ["resourcegroups", _, "resources"] => {
            environment(Around::GroupResources { subscription, resource_group: names[3].clone() })
        }
        ["resourcegroups", _, "providers", namespace, rest @ ..] if is_ours(namespace) => {
            below_group(names, rest)
        }
        ["resourcegroups", _, "providers", _, ..] => Err(RouteError::Namespace(names[5].clone())),
        ["providers"] => environment(Around::Providers { subscription }),
        ["providers", _] => environment(Around::Provider { subscription, namespace: names[3].clone() }),
        ["providers", _, "register"] => {
            environment(Around::Register { subscription, namespace: names[3].clone() })
        }
        ["providers", _, "unregister"] => {
            environment(Around::Unregister { subscription, namespace: names[3].clone() })
        }
        ["providers", namespace, rest @ ..] if is_ours(namespace) => match rest {
            ["imagetemplates"] => Ok(Route::Images(ImagesRoute::SubscriptionTemplates { subscription })),
            ["locations", _, kind @ ("operations" | "operationresults"), _] => {
                let (location, id) = (names[5].clone(), names[7].clone());
                Ok(Route::Images(if *kind == "operations" {
                    ImagesRoute::Operation { subscription, location, id }
                } else {
                    ImagesRoute::OperationResult { subscription, location, id }
                }))
            }
            _ => Err(unknown_type(names)),
        },
        ["providers", _, ..] => Err(RouteError::Namespace(names[3].clone())),
        _ => Err(unknown_type(names)),
    }
}

fn below_group(names: &[String], rest: &[&str]) -> Result<Route, RouteError> {
    let (subscription, resource_group) = (names[1].clone(), names[3].clone());
    if rest == ["imagetemplates"] {
        return Ok(Route::Images(ImagesRoute::GroupTemplates { subscription, resource_group }));
    }
    let ["imagetemplates", _, rest @ ..] = rest else { return Err(unknown_type(names)) };
    let template = TemplateId { subscription, resource_group, name: names[7].clone() };
    let images = |route| Ok(Route::Images(route));
    match rest {
        [] => images(ImagesRoute::Template(template)),
        ["run"] => images(ImagesRoute::Run(template)),
        ["cancel"] => images(ImagesRoute::Cancel(template)),
        ["runoutputs"] => images(ImagesRoute::RunOutputs(template)),
        ["runoutputs", _] => images(ImagesRoute::RunOutput(template, names[9].clone())),
        ["triggers"] => images(ImagesRoute::Triggers(template)),
        ["triggers", _] => images(ImagesRoute::Trigger(template, names[9].clone())),
        ["runs"] => Ok(Route::Own(OwnRoute::Runs(template))),
        ["runs", _, rest @ ..] => {
            let which = match names[9].as_str() {
                latest if latest.eq_ignore_ascii_case("latest") => WhichRun::Latest,
                id => WhichRun::Id(id.parse().map_err(|_| RouteError::Own)?),
            };
            Ok(Route::Own(match rest {
                [] => OwnRoute::Run(template, which),
                ["log"] => OwnRoute::Log(template, which),
                ["events"] => OwnRoute::Events(template, which),
                ["customization.log"] => OwnRoute::CustomizationLog(template, which),
                ["validation.log"] => OwnRoute::ValidationLog(template, which),
                ["retry"] => OwnRoute::Retry(template, which),
                _ => return Err(RouteError::Own),
            }))
        }
        _ => Err(unknown_type(names)),
    }
}

fn below_kiln(names: &[String], rest: &[&str]) -> Result<OwnRoute, RouteError> {
    Ok(match rest {
        ["artifacts", _, _] => {
            OwnRoute::Artifact { run: names[2].parse().map_err(|_| RouteError::Own)?, file: names[3].clone() }
        }
        ["inputs", digest] => OwnRoute::Input(digest.parse().map_err(|_| RouteError::Own)?),
        ["runs"] => OwnRoute::AllRuns,
        ["status"] => OwnRoute::Status,
        ["gc"] => OwnRoute::Gc,
        ["activity"] => OwnRoute::Activity,
        ["health"] => OwnRoute::Health,
        ["openapi.json"] => OwnRoute::OpenApi,
        _ => return Err(RouteError::Own),
    })
}

fn below_tenant(tenant: String, rest: &[&str]) -> Result<SignInRoute, RouteError> {
    Ok(match rest {
        [".well-known", "openid-configuration"] => SignInRoute::Discovery { tenant, v2: false },
        ["v2.0", ".well-known", "openid-configuration"] => SignInRoute::Discovery { tenant, v2: true },
        ["oauth2", "token"] => SignInRoute::Token { tenant, v2: false },
        ["oauth2", "v2.0", "token"] => SignInRoute::Token { tenant, v2: true },
        ["discovery", "keys"] | ["discovery", "v2.0", "keys"] => SignInRoute::Keys { tenant },
        _ => return Err(RouteError::Nowhere),
    })
}

/// ARM's name of a type: the segments after the namespace, without the names between them.
fn unknown_type(names: &[String]) -> RouteError {
    let provider = names.iter().position(|name| name.eq_ignore_ascii_case("providers"));
    let (namespace, start) = match provider {
        Some(index) => (NAMESPACE, index + 2),
        None => ("Microsoft.Resources", 2),
    };
    let segments: Vec<&str> = names.iter().skip(start).step_by(2).map(String::as_str).collect();
    RouteError::Type { namespace, name: segments.join("/") }
}
