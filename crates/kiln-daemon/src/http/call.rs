//! A request, taken apart: what every answering function gets.

use axum::body::{Body, HttpBody as _};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kiln_model::api::ApiVersion;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::answer::ArmError;
use super::path::{Query, UriError};
use crate::access::Principal;
use crate::serve::Peer;

/// Bytes of a body, uploads apart.
pub const MAX_BODY: usize = 4 << 20;

/// The ids ARM gives a request.
#[derive(Debug, Clone)]
pub struct Ids {
    /// `x-ms-request-id`: ours.
    pub request: Uuid,
    /// `x-ms-correlation-request-id`: the client's where it sent a GUID, else ours.
    pub correlation: Uuid,
}

impl Ids {
    pub fn of(headers: &HeaderMap) -> Self {
        let request = Uuid::new_v4();
        let sent = headers.get("x-ms-correlation-request-id").and_then(|value| value.to_str().ok());
        // Only a GUID's own characters come back: nothing of the client's is echoed as it is.
        let correlation = sent.and_then(|text| Uuid::try_parse(text.trim()).ok()).unwrap_or(request);
        Self { request, correlation }
    }
}

/// A request, taken apart. Its headers and body hold secrets: no `Debug`.
pub struct Call {
    pub method: Method,
    /// As it came, percent-encoded.
    pub path: String,
    pub query: Query,
    pub headers: HeaderMap,
    /// `https://host:port` as this client reaches us; absolute addresses in answers begin with it.
    pub base: String,
    pub ids: Ids,
    pub peer: Peer,
    /// Who asks; `None` only on routes that are open to everybody.
    pub principal: Option<Principal>,
    pub body: Body,
    /// Canceled when the server shuts down: an answer without an end ends itself then.
    pub closing: CancellationToken,
}

impl Call {
    /// Id of who asks.
    pub fn by(&self) -> &str {
        self.principal.as_ref().map_or("", |principal| principal.id.as_str())
    }

    /// A query parameter; its name ignores case.
    pub fn parameter(&self, name: &str) -> Result<Option<&str>, ArmError> {
        self.query.get(name).map_err(bad_uri)
    }

    pub fn is_set(&self, name: &str) -> Result<bool, ArmError> {
        self.query.is_set(name).map_err(bad_uri)
    }

    /// A header's text, where it is there once and is text.
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok())
    }

    /// The `api-version` of the image templates.
    pub fn version(&self) -> Result<ApiVersion, ArmError> {
        super::version::required(&self.query)
    }

    /// The whole body, once.
    ///
    /// # Errors
    /// 413 over [`MAX_BODY`], 400 for one that is cut off.
    pub async fn bytes(&mut self) -> Result<Bytes, ArmError> {
        read(std::mem::take(&mut self.body)).await
    }
}

async fn read(mut body: Body) -> Result<Bytes, ArmError> {
    let too_large = || {
        ArmError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestContentTooLarge",
            format!("The request content size exceeds the maximum size of {} MiB.", MAX_BODY >> 20),
        )
    };
    // Known beforehand: a client that waits for "100 Continue" sends none of it.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    match Limited::new(&mut body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            super::front::discard(body).await;
            Err(too_large())
        }
        Err(_) => Err(ArmError::bad_request(
            "InvalidRequestContent",
            "The request's body ended before it was complete.",
        )),
    }
}

/// 400 for a path or query that means nothing.
pub fn bad_uri(error: UriError) -> ArmError {
    ArmError::bad_request("InvalidRequestUri", format!("The request's address is not valid: {error}."))
}
