//! Answers: ARM's errors in both their shapes, the headers every answer carries, JSON.
//!
//! Only this folder knows status codes. An error is flat up to api-version 2020-02-14 and nested
//! after it; what ARM itself would refuse before a provider sees it (no api-version, no sign-in,
//! no such path) is nested unless an old version was asked for by name.

use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{Response, StatusCode};
use kiln_model::api::ApiVersion;
use serde_json::{Value, json};

/// What an answering function gives: the front writes an error in the shape its request expects.
pub type Answer = Result<Response<Body>, ArmError>;

/// An error as ARM answers it. Its texts go to clients: no secret in them.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmError {
    pub status: StatusCode,
    pub code: String,
    pub message: String,
    /// The property or parameter at fault.
    pub target: Option<String>,
    pub details: Vec<Detail>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// One of several things that are wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    pub code: String,
    pub message: String,
    pub target: Option<String>,
}

/// How a version writes errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `{"code", "message"}`
    Flat,
    /// `{"error": {"code", "message", …}}`
    Nested,
}

impl Shape {
    pub fn of(version: Option<ApiVersion>) -> Self {
        if version.is_some_and(ApiVersion::is_2020_or_older) { Self::Flat } else { Self::Nested }
    }
}

impl ArmError {
    pub fn new(status: StatusCode, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            target: None,
            details: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// 400.
    pub fn bad_request(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404.
    pub fn not_found(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 409.
    pub fn conflict(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// 500 for what is our fault. The cause goes to the log, under the request's id, and not to the client;
    /// `http::front` writes the text.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!("a request failed: {}", chain(cause));
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", "")
    }

    pub fn target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    pub fn detail(
        mut self,
        code: impl Into<String>,
        message: impl Into<String>,
        target: Option<String>,
    ) -> Self {
        self.details.push(Detail { code: code.into(), message: message.into(), target });
        self
    }

    /// A header of ours; a value that is no header value is left out.
    fn header(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }

    pub fn allow(self, methods: &str) -> Self {
        self.header(ALLOW, methods)
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        self.header(RETRY_AFTER, &seconds.to_string())
    }

    pub fn www_authenticate(self, challenge: &str) -> Self {
        self.header(WWW_AUTHENTICATE, challenge)
    }

    pub fn into_response(self, shape: Shape) -> Response<Body> {
        let mut response = json_response(self.status, &self.body(shape));
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }

    fn body(&self, shape: Shape) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let Some(target) = &self.target {
            error["target"] = json!(target);
        }
        if !self.details.is_empty() {
            let details = self.details.iter().map(|detail| {
                let mut value = json!({"code": detail.code, "message": detail.message});
                if let Some(target) = &detail.target {
                    value["target"] = json!(target);
                }
                value
            });
            error["details"] = details.collect();
        }
        match shape {
            Shape::Flat => error,
            Shape::Nested => json!({"error": error}),
        }
    }
}

/// An error and its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// `body` as `application/json`.
pub fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    response
}

/// 200 with `body`.
pub fn ok(body: &Value) -> Response<Body> {
    json_response(StatusCode::OK, body)
}

/// A status and nothing else.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
