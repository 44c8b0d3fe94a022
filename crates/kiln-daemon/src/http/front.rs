//! The front: what holds for every request, whoever answers it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use axum::http::{Method, Request, Response, StatusCode};
use futures_util::FutureExt;

use super::answer::{Answer, ArmError, Shape, empty};
use super::call::{Call, Ids, bad_uri};
use super::path::Query;
use super::route::{Route, RouteError};
use super::{environment, images, own, signin, version};
use crate::access::{Principal, Role};
use crate::daemon::Daemon;
use crate::serve::Peer;

/// Answers one request. Never fails: what goes wrong is an ARM error.
pub async fn answer(daemon: Arc<Daemon>, request: Request<Body>) -> Response<Body> {
    let ids = Ids::of(request.headers());
    let query = Query::parse(request.uri().query());
    let shape = Shape::of(query.as_ref().ok().and_then(version::known));
    let answer = match query {
        Ok(query) => {
            let answer = AssertUnwindSafe(dispatch(&daemon, request, query, ids.clone())).catch_unwind();
            answer.await.unwrap_or_else(|_| {
                tracing::error!(request = %ids.request, "answering a request panicked");
                Err(ArmError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "InternalServerError",
                    format!(
                        "Internal error occurred. The server's log has more under request id {}.",
                        ids.request
                    ),
                ))
            })
        }
        Err(error) => Err(bad_uri(error)),
    };
    let mut response = answer.unwrap_or_else(|error| error.into_response(shape));
    let headers = response.headers_mut();
    for (name, id) in [("x-ms-request-id", ids.request), ("x-ms-correlation-request-id", ids.correlation)] {
        if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

async fn dispatch(daemon: &Arc<Daemon>, request: Request<Body>, query: Query, ids: Ids) -> Answer {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let route = Route::parse(&path).map_err(no_route)?;
    let methods = route.methods();
    if parts.method == Method::OPTIONS {
        let mut response = empty(StatusCode::NO_CONTENT);
        if let Ok(value) = HeaderValue::from_str(&allow(methods)) {
            response.headers_mut().insert(axum::http::header::ALLOW, value);
        }
        return Ok(response);
    }
    if !methods.contains(&parts.method) {
        return Err(ArmError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!(
                "The requested resource does not support http method '{}'.",
                version::shown(parts.method.as_str())
            ),
        )
        .allow(&allow(methods)));
    }
    let peer = parts.extensions.get::<Peer>().cloned();
    let principal = if route.is_open() { None } else { Some(who(parts.extensions.get())?) };
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    if let Some(principal) = &principal
        && !reads
        && principal.role != Role::Operator
    {
        return Err(ArmError::new(StatusCode::FORBIDDEN, "AuthorizationFailed", "may only read"));
    }
    let call = Call {
        method: parts.method,
        path,
        query,
        base: "https://localhost:8441".to_owned(),
        headers: parts.headers,
        ids,
        peer: peer.unwrap_or(Peer::Unix { uid: 0, pid: None }),
        principal,
        body,
    };
    match route {
        Route::Images(route) => images::answer(daemon, route, call).await,
        Route::Environment(route) => environment::answer(daemon, route, call).await,
        Route::SignIn(route) => signin::answer(daemon, route, call).await,
        Route::Own(route) => own::answer(daemon, route, call).await,
    }
}

fn who(principal: Option<&Principal>) -> Result<Principal, ArmError> {
    principal.cloned().ok_or_else(|| {
        ArmError::new(
            StatusCode::UNAUTHORIZED,
            "AuthenticationFailed",
            "Authentication failed. The 'Authorization' header is missing.",
        )
        .www_authenticate("Bearer")
    })
}

fn allow(methods: &[Method]) -> String {
    methods.iter().map(Method::as_str).chain(["OPTIONS"]).collect::<Vec<_>>().join(", ")
}

/// 400 or 404 for a path that names nothing.
fn no_route(error: RouteError) -> ArmError {
    match error {
        RouteError::Uri(error) => bad_uri(error),
        RouteError::Nowhere => ArmError::not_found(
            "MissingSubscription",
            "The request did not have a subscription or a valid tenant level resource provider.",
        ),
        RouteError::Namespace(namespace) => ArmError::not_found(
            "InvalidResourceNamespace",
            format!("The resource namespace '{}' is invalid.", version::shown(&namespace)),
        ),
        RouteError::Type(name) => ArmError::not_found(
            "InvalidResourceType",
            format!(
                "The resource type '{}' could not be found in the namespace '{}'. The supported api-versions are '{}'.",
                version::shown(&name),
                super::route::NAMESPACE,
                version::supported()
            ),
        ),
        RouteError::Own => ArmError::not_found("NotFound", "There is nothing at this path."),
    }
}
