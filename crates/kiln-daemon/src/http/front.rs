//! The front: what holds for every request, whoever answers it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, HOST, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tracing::Instrument;

use super::answer::{Answer, ArmError, Shape, empty};
use super::call::{Call, Ids, bad_uri};
use super::path::Query;
use super::route::{NAMESPACE, Route, RouteError, SignInRoute};
use super::{activity, environment, images, own, signin, version};
use crate::access::{AuthError, Principal, Role};
use crate::daemon::Daemon;
use crate::serve::{Closing, IdentityOnly, Peer};

/// Of a body that is refused unread: bytes that are still taken off the wire, and for how long. A client that
/// writes on finds a closed connection in place of the answer.
const DISCARD_BYTES: usize = 16 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

const EVERY_METHOD: &[Method] =
    &[Method::GET, Method::HEAD, Method::PUT, Method::PATCH, Method::POST, Method::DELETE];

/// Answers one request. Never fails: what goes wrong is an ARM error.
pub async fn answer(daemon: Arc<Daemon>, request: Request<Body>) -> Response<Body> {
    let ids = Ids::of(request.headers());
    // At the level of errors, so that those are found by it.
    let span = tracing::error_span!("request", id = %ids.request);
    async {
        // The query is left out: others' signatures may be in it.
        tracing::debug!(method = %request.method(), path = request.uri().path(), "asked");
        let query = Query::parse(request.uri().query());
        let shape = Shape::of(query.as_ref().ok().and_then(version::known));
        let answer = match query {
            Ok(query) => caught(dispatch(&daemon, request, query, ids.clone())).await,
            Err(error) => Err(bad_uri(error)),
        };
        let response = finished(answer, shape, &ids);
        tracing::debug!(status = response.status().as_u16(), "answered");
        response
    }
    .instrument(span)
    .await
}

/// For a task that was ended with the runtime.
pub fn unanswered() -> Response<Body> {
    let text = "The server is shutting down. Try again.";
    ArmError::new(StatusCode::SERVICE_UNAVAILABLE, "ServerBusy", text)
        .retry_after(2)
        .into_response(Shape::Nested)
}

/// What `answer` gives; an internal error where it panics.
async fn caught(answer: impl Future<Output = Answer>) -> Answer {
    // What a panic leaves half-way is this request's own: the rooms below change things in transactions.
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("answering a request panicked");
        Err(ArmError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", ""))
    })
}

/// With the headers every answer has. An internal error says where its cause can be found.
fn finished(answer: Answer, shape: Shape, ids: &Ids) -> Response<Body> {
    let mut response = answer.unwrap_or_else(|mut error| {
        if error.status == StatusCode::INTERNAL_SERVER_ERROR {
            error.message = format!(
                "Internal error occurred. The server's log has the cause under request id {}.",
                ids.request
            );
        }
        error.into_response(shape)
    });
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
    let Some(peer) = parts.extensions.get::<Peer>().cloned() else {
        tracing::error!("a request came without its peer: the listener did not say where from");
        return Err(ArmError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", ""));
    };
    let authority = authority(&parts.uri, &parts.headers);
    let base = daemon.environment.names.base_url(authority.filter(|_| matches!(peer, Peer::Tcp(_))));
    let identity_only = parts.extensions.get::<IdentityOnly>().is_some();
    let admitted = admit(daemon, &path, &parts.method, &parts.headers, &peer, identity_only, &base);
    let (route, principal) = match admitted {
        Ok(Admitted::Route(route, principal)) => (route, principal),
        Ok(Admitted::Options(methods)) => return Ok(options(methods)),
        Err(error) => {
            discard(body).await;
            return Err(error);
        }
    };
    let change = activity::Change::of(&route, &parts.method, &query);
    let by = principal.as_ref().map(|principal| principal.id.clone());
    let closing = parts.extensions.get::<Closing>().map(|closing| closing.0.clone()).unwrap_or_default();
    let (method, headers) = (parts.method, parts.headers);
    let call = Call { method, path, query, headers, base, ids, peer, principal, body, closing };
    let answer = match route {
        Route::Images(route) => images::answer(daemon, route, call).await,
        Route::Environment(route) => environment::answer(daemon, route, call).await,
        Route::SignIn(route) => signin::answer(daemon, route, call).await,
        Route::Own(route) => own::answer(daemon, route, call).await,
    };
    let row = change.zip(by).and_then(|(change, by)| change.row(by, &answer));
    if let Some(row) = row {
        activity::append(daemon, row).await;
    }
    answer
}

enum Admitted {
    /// The principal is absent on open routes.
    Route(Route, Option<Principal>),
    Options(&'static [Method]),
}

/// Whether there is something at the path, with that method, for who asks.
fn admit(
    daemon: &Daemon,
    path: &str,
    method: &Method,
    headers: &HeaderMap,
    peer: &Peer,
    identity_only: bool,
    base: &str,
) -> Result<Admitted, ArmError> {
    if method == Method::OPTIONS && path == "*" {
        // Of the server as a whole (RFC 9110, section 9.3.7).
        return Ok(Admitted::Options(EVERY_METHOD));
    }
    let route = Route::parse(path).map_err(no_route)?;
    if identity_only && route != Route::SignIn(SignInRoute::ManagedIdentity) {
        return Err(ArmError::not_found("NotFound", "Only /msi/token is answered on this port."));
    }
    let methods = route.methods();
    if method == Method::OPTIONS {
        return Ok(Admitted::Options(methods));
    }
    if !methods.contains(method) {
        let method = version::shown(method.as_str());
        let text = format!("The requested resource does not support http method '{method}'.");
        let error = ArmError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", text);
        return Err(error.allow(&allow(methods)));
    }
    if route.is_open() {
        return Ok(Admitted::Route(route, None));
    }
    let principal = match peer {
        Peer::Unix { uid, .. } => Principal::local(*uid),
        Peer::Tcp(_) => who(daemon, headers, base)?,
    };
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if !reads && principal.role != Role::Operator {
        return Err(ArmError::new(
            StatusCode::FORBIDDEN,
            "AuthorizationFailed",
            format!(
                "The client '{}' with object id '{}' does not have authorization to perform action '{}' over scope '{}' \
                 or the scope is invalid. If access was recently granted, please refresh your credentials.",
                principal.name,
                principal.id,
                route.action(method),
                route.scope(),
            ),
        ));
    }
    Ok(Admitted::Route(route, Some(principal)))
}

/// Whose token the request bears.
fn who(daemon: &Daemon, headers: &HeaderMap, base: &str) -> Result<Principal, ArmError> {
    let refused = |code: &str, text: &str| {
        let tenant = &daemon.environment.tenant;
        ArmError::new(StatusCode::UNAUTHORIZED, code, text).www_authenticate(&format!(
            "Bearer authorization_uri=\"{base}/{tenant}\", error=\"invalid_token\", error_description=\"{text}\""
        ))
    };
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        let text = "Authentication failed. The 'Authorization' header is missing.";
        return Err(refused("AuthenticationFailed", text));
    };
    let value = value.to_str().ok().filter(|_| values.next().is_none());
    let bearer = value.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim())
    });
    let Some(bearer) = bearer else {
        let text = "Authentication failed. The 'Authorization' header is provided in an invalid format.";
        return Err(refused("AuthenticationFailedInvalidHeader", text));
    };
    daemon.access.authenticate(bearer).map_err(|error| match error {
        AuthError::Expired => {
            refused("ExpiredAuthenticationToken", "The access token has expired. Sign in again.")
        }
        AuthError::Audience => refused(
            "InvalidAuthenticationTokenAudience",
            "The access token has been obtained for wrong audience or resource.",
        ),
        AuthError::Invalid => refused("InvalidAuthenticationToken", "The access token is invalid."),
    })
}

/// What the client calls us. Two Host headers name nobody.
fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().filter(|_| hosts.next().is_none()).and_then(|host| host.to_str().ok());
    uri.authority().map(|authority| authority.as_str()).or(host)
}

fn options(methods: &[Method]) -> Response<Body> {
    let mut response = empty(StatusCode::NO_CONTENT);
    if let Ok(value) = HeaderValue::from_str(&allow(methods)) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

fn allow(methods: &[Method]) -> String {
    methods.iter().map(Method::as_str).chain(["OPTIONS"]).collect::<Vec<_>>().join(", ")
}

/// Takes a refused body off the wire, within bounds.
pub(super) async fn discard(mut body: Body) {
    let drain = async {
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // A slow client has lost nothing but our answer.
    let _ = tokio::time::timeout(DISCARD_TIME, drain).await;
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
        RouteError::Type { namespace, name } => {
            let mut text = format!(
                "The resource type '{}' could not be found in the namespace '{namespace}'.",
                version::shown(&name)
            );
            if namespace == NAMESPACE {
                text.push_str(&format!(" The supported api-versions are '{}'.", version::supported()));
            }
            ArmError::not_found("InvalidResourceType", text)
        }
        RouteError::Own => ArmError::not_found("NotFound", "There is nothing at this path."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_a_place_to_look() {
        let ids = Ids::of(&HeaderMap::new());
        let answer = caught(async { panic!("a secret in a message") }).await;
        let response = finished(answer, Shape::Flat, &ids);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], "InternalServerError");
        let message = body["message"].as_str().unwrap();
        assert!(message.contains(&ids.request.to_string()) && !message.contains("secret"), "{message}");
    }
}
