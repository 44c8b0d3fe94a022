//! Signing in: OIDC discovery, tokens for service principals, tokens for managed identity.
//!
//! Clients of Microsoft Entra meet its documents, fields and error codes (`AADSTS…`) here. Nothing on these paths
//! needs a sign-in, so nothing is read that is longer or slower than a form, and an error never tells whether it
//! was the client id or the secret.
//!
//! Sources: RFC 6749 4.4 (client credentials), 2.3.1 (Basic), 5.2 (errors); OpenID Connect Discovery 1.0; App Service's
//! managed-identity endpoint, 2019-08-01.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, HeaderValue, RETRY_AFTER};
use axum::http::{Response, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::answer::{Answer, json_response};
use super::call::{Call, Ids};
use super::path::Query;
use super::route::SignInRoute;
use super::version::shown;
use crate::access::{IssueError, IssuedToken, Secret};
use crate::daemon::Daemon;

/// Bytes of a token request, and how long it may take to come.
const MAX_FORM: usize = 64 * 1024;
const FORM_TIME: Duration = Duration::from_secs(10);

pub async fn answer(daemon: &Arc<Daemon>, route: SignInRoute, call: Call) -> Answer {
    let mut response = match route {
        SignInRoute::Discovery { tenant, v2 } => match is_tenant(daemon, &tenant) {
            true => super::answer::ok(&discovery(daemon, &call.base, v2)),
            false => refusal(&call.ids, &no_tenant(&tenant)),
        },
        // Tokens are signed with a secret of this server's: there is no public key that could check them.
        SignInRoute::Keys { .. } => super::answer::ok(&json!({"keys": []})),
        SignInRoute::Token { tenant, v2 } => {
            let ids = call.ids.clone();
            match token(daemon, &tenant, v2, call).await {
                Ok(response) => response,
                Err(error) => refusal(&ids, &error),
            }
        }
        SignInRoute::ManagedIdentity => managed_identity(daemon, &call),
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn is_tenant(daemon: &Daemon, tenant: &str) -> bool {
    [daemon.environment.tenant.as_str(), "common", "organizations"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(tenant))
}

fn discovery(daemon: &Daemon, base: &str, v2: bool) -> Value {
    let tenant = &daemon.environment.tenant;
    let (oauth2, issuer) = if v2 { ("oauth2/v2.0", "/v2.0") } else { ("oauth2", "/") };
    json!({
        "issuer": format!("{base}/{tenant}{issuer}"),
        "token_endpoint": format!("{base}/{tenant}/{oauth2}/token"),
        // MSAL wants to read it; there is nobody to be shown a page, and nothing at this address.
        "authorization_endpoint": format!("{base}/{tenant}/{oauth2}/authorize"),
        "jwks_uri": format!("{base}/{tenant}/discovery/v2.0/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": ["token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": ["openid"],
    })
}

/// An error as Microsoft Entra answers it. Its text goes to the client.
struct Refusal {
    status: StatusCode,
    /// RFC 6749's word.
    error: &'static str,
    /// `AADSTS…`
    code: u32,
    text: String,
    retry_after: Option<u64>,
}

fn refuse(status: StatusCode, error: &'static str, code: u32, text: impl Into<String>) -> Refusal {
    Refusal { status, error, code, text: text.into(), retry_after: None }
}

fn bad_request(code: u32, text: impl Into<String>) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, "invalid_request", code, text)
}

fn missing(parameter: &str) -> Refusal {
    bad_request(900144, format!("The request body must contain the following parameter: '{parameter}'."))
}

fn no_tenant(tenant: &str) -> Refusal {
    bad_request(
        90002,
        format!("Tenant '{}' not found. Check that it is the tenant id of this server.", shown(tenant)),
    )
}

fn refusal(ids: &Ids, refusal: &Refusal) -> Response<Body> {
    let Refusal { status, error, code, text, retry_after } = refusal;
    let (trace, correlation) = (ids.request, ids.correlation);
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    let mut response = json_response(
        *status,
        &json!({
            "error": error,
            "error_description":
                format!("AADSTS{code}: {text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {now}"),
            "error_codes": [code],
            "timestamp": now,
            "trace_id": trace.to_string(),
            "correlation_id": correlation.to_string(),
        }),
    );
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(*seconds));
    }
    response
}

fn not_issued(error: &IssueError, resource: &str) -> Refusal {
    match error {
        IssueError::Denied | IssueError::Disabled => refuse(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            7000215,
            "Invalid client secret provided, or no such client. The secret itself is needed, not its hash or its id.",
        ),
        IssueError::Throttled { retry_after } => Refusal {
            retry_after: Some(*retry_after),
            ..refuse(
                StatusCode::TOO_MANY_REQUESTS,
                "temporarily_unavailable",
                90055,
                format!("Too many failed sign-ins. Try again in {retry_after} seconds."),
            )
        },
        IssueError::Resource => refuse(
            StatusCode::BAD_REQUEST,
            "invalid_resource",
            500011,
            format!(
                "The resource principal named {} was not found. Tokens are given for this server's own addresses \
                 (tls.names and publicUrl add to them) and for https://management.azure.com.",
                shown(resource)
            ),
        ),
        IssueError::Internal => refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            90033,
            "The token could not be made. The server's log may say why.",
        ),
    }
}

/// Client credentials, by form (RFC 6749 4.4.2).
async fn token(daemon: &Daemon, tenant: &str, v2: bool, call: Call) -> Result<Response<Body>, Refusal> {
    if !is_tenant(daemon, tenant) {
        return Err(no_tenant(tenant));
    }
    let basic = call.header(AUTHORIZATION).and_then(basic);
    let form = form(call.body).await?;
    let field = |name: &str| {
        let value = form.get(name).map_err(|_| bad_request(90014, format!("'{name}' is given twice.")))?;
        Ok::<_, Refusal>(value.filter(|value| !value.is_empty()))
    };
    let grant = field("grant_type")?.ok_or_else(|| missing("grant_type"))?;
    if grant != "client_credentials" {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            70003,
            format!("The grant type '{}' is not supported: service principals sign in here.", shown(grant)),
        ));
    }
    let (client, secret) = match basic {
        Some((client, secret)) => (client, Some(secret)),
        None => {
            let client = field("client_id")?.ok_or_else(|| missing("client_id"))?.to_owned();
            (client, field("client_secret")?.map(|secret| Secret::from(secret.to_owned())))
        }
    };
    let secret = secret.ok_or_else(|| {
        refuse(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            7000218,
            "The request body must contain the following parameter: 'client_secret'. Certificates are not supported.",
        )
    })?;
    let resource = if v2 {
        let scope = field("scope")?.ok_or_else(|| missing("scope"))?;
        let resource = scope.split(' ').find_map(|scope| scope.strip_suffix("/.default"));
        resource.ok_or_else(|| {
            refuse(
                StatusCode::BAD_REQUEST,
                "invalid_scope",
                1002012,
                "The scope must be the resource's address with '/.default' behind it.",
            )
        })?
    } else {
        field("resource")?.ok_or_else(|| missing("resource"))?
    };
    let issued = daemon.access.issue(&client, secret, resource, call.peer.ip()).await;
    let issued = issued.map_err(|error| not_issued(&error, resource))?;
    let IssuedToken { token, expires_in, not_before, expires_on } = &issued;
    Ok(super::answer::ok(&if v2 {
        json!({
            "token_type": "Bearer",
            "expires_in": expires_in,
            "ext_expires_in": expires_in,
            "access_token": token,
        })
    } else {
        // The first endpoint's numbers are strings.
        json!({
            "token_type": "Bearer",
            "expires_in": expires_in.to_string(),
            "ext_expires_in": expires_in.to_string(),
            "expires_on": expires_on.to_string(),
            "not_before": not_before.to_string(),
            "resource": resource,
            "access_token": token,
        })
    }))
}

async fn form(body: Body) -> Result<Query, Refusal> {
    let whole = tokio::time::timeout(FORM_TIME, Limited::new(body, MAX_FORM).collect()).await;
    let bytes = match whole {
        Ok(Ok(body)) => Zeroizing::new(body.to_bytes().to_vec()),
        Ok(Err(_)) => {
            return Err(bad_request(
                90014,
                format!("The request's body is over {} KiB, or cut off.", MAX_FORM >> 10),
            ));
        }
        Err(_) => return Err(bad_request(90014, "The request's body did not come in time.")),
    };
    std::str::from_utf8(&bytes).ok().and_then(|text| Query::form(text).ok()).ok_or_else(|| {
        bad_request(90014, "The request's body is no form (application/x-www-form-urlencoded).")
    })
}

/// Client id and secret of a Basic header; each is percent-encoded before they are joined (RFC 6749 2.3.1).
fn basic(header: &str) -> Option<(String, Secret)> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    let bytes = Zeroizing::new(STANDARD.decode(encoded.trim()).ok()?);
    let (client, secret) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    // As a form of two fields, for it is encoded as one.
    let form = Query::form(&Zeroizing::new(format!("client={client}&secret={secret}"))).ok()?;
    let field = |name| form.get(name).ok().flatten().map(str::to_owned);
    Some((field("client")?, Secret::from(field("secret")?)))
}

/// `GET /msi/token?api-version=2019-08-01&resource=…` with `X-IDENTITY-HEADER`.
fn managed_identity(daemon: &Daemon, call: &Call) -> Response<Body> {
    let refused = |status: StatusCode, text: String| {
        json_response(status, &json!({"statusCode": status.as_u16(), "message": text}))
    };
    let parameter = |name: &str| call.query.get(name).ok().flatten().filter(|value| !value.is_empty());
    // 2019-08-01 is App Service's, 2018-02-01 the instance metadata's; what they answer is alike.
    if !matches!(parameter("api-version"), Some("2019-08-01" | "2018-02-01")) {
        return refused(StatusCode::BAD_REQUEST, "api-version must be 2019-08-01.".to_owned());
    }
    let Some(resource) = parameter("resource") else {
        return refused(StatusCode::BAD_REQUEST, "The parameter 'resource' is missing.".to_owned());
    };
    if ["client_id", "object_id", "principal_id", "mi_res_id", "msi_res_id"]
        .iter()
        .any(|name| parameter(name).is_some())
    {
        let text = "There is one managed identity here, and it is chosen by naming none.";
        return refused(StatusCode::BAD_REQUEST, text.to_owned());
    }
    let header = call.headers.get("x-identity-header").and_then(|value| value.to_str().ok());
    let Some(header) = header else {
        return refused(StatusCode::UNAUTHORIZED, "The header X-IDENTITY-HEADER is missing.".to_owned());
    };
    match daemon.access.issue_identity(&Secret::from(header.to_owned()), resource, call.peer.ip()) {
        Ok(IssuedToken { token, expires_in, not_before, expires_on }) => super::answer::ok(&json!({
            "access_token": token,
            "expires_in": expires_in.to_string(),
            "expires_on": expires_on.to_string(),
            "not_before": not_before.to_string(),
            "resource": resource,
            "token_type": "Bearer",
        })),
        Err(IssueError::Disabled) => {
            refused(StatusCode::NOT_FOUND, "Managed identity is switched off here.".to_owned())
        }
        Err(IssueError::Denied) => {
            refused(StatusCode::UNAUTHORIZED, "The value of X-IDENTITY-HEADER is wrong.".to_owned())
        }
        Err(error) => {
            let Refusal { status, text, retry_after, .. } = not_issued(&error, resource);
            let mut response = refused(status, text);
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_decoded_twice() {
        let header = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let parsed = |text: &str| basic(text).map(|(client, secret)| (client, secret.reveal().to_owned()));
        assert_eq!(parsed(&header("ci:se%3Acret%2B")), Some(("ci".into(), "se:cret+".into())));
        assert_eq!(parsed(&header("ci:a:b")), Some(("ci".into(), "a:b".into())));
        assert_eq!(parsed(&header("no colon")), None);
        assert_eq!(parsed("Bearer x"), None);
        assert_eq!(parsed("Basic !!!"), None);
    }
}
