//! Why a server did not do what it was asked.

use std::fmt;

use kiln_model::run::Fault;
use serde_json::Value;

use super::local::LocalError;
use crate::exit::Failure;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot reach the server at {server}")]
    Unreachable { server: String, source: reqwest::Error },
    /// After the request was sent: what became of it is not known.
    #[error("the connection to {server} broke")]
    Broken { server: String, source: reqwest::Error },
    #[error("{server} did not answer within {seconds} seconds")]
    Silent { server: String, seconds: u64 },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{server} gave an answer that is not understood: {why}")]
    Strange { server: String, why: String },
    #[error("cannot sign in to {server}: {why}")]
    SignIn { server: String, why: String },
    #[error("no server runs, and this command cannot be one meanwhile")]
    Local(#[from] LocalError),
    /// Something on this side, before anything was sent.
    #[error("{what}")]
    Here { what: String, source: std::io::Error },
}

impl ClientError {
    /// The server knows no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(Refusal { kind: RefusalKind::NotFound, .. }))
    }

    /// Something is there under that name already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.code == "Conflict")
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Refused(Refusal { kind: RefusalKind::Server, .. }) | Self::Strange { .. } => Fault::Remote,
            Self::Refused(_) => Fault::Template,
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Silent { .. } | Self::SignIn { .. } => {
                Fault::Remote
            }
            Self::Here { .. } | Self::Local(_) => Fault::Host,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let untrusted = matches!(&error, ClientError::Unreachable { source, .. } if is_certificate(source));
        let failure = Failure::new(error.fault(), error);
        if untrusted {
            failure.hint("--ca-file (or KILN_CA_FILE) names the certificate authority of the server")
        } else {
            failure
        }
    }
}

/// Whether the server's certificate was refused.
fn is_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An I/O error hides what it wraps: its `source` is already that of the wrapped one.
    let inside = match error.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
        None => error.source(),
    };
    inside.is_some_and(is_certificate)
}

/// What a refusal means for who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// Who we are is not known, or not known any more.
    SignIn,
    NotFound,
    /// The request is not right, or not now.
    Request,
    /// The server has no answer just now: it may be asked again.
    Busy,
    /// The server failed.
    Server,
}

/// An ARM error, of either shape: `{"code", "message"}` up to 2020-02-14, `{"error": {…}}` later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub kind: RefusalKind,
    pub code: String,
    pub message: String,
    /// `code: message`, where the server gave more than one.
    pub details: Vec<String>,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind: _, code, message, details } = self;
        if code.is_empty() || message.starts_with(code.as_str()) {
            f.write_str(message)?;
        } else {
            write!(f, "{code}: {message}")?;
        }
        details.iter().try_for_each(|detail| write!(f, "\n  - {detail}"))
    }
}

impl Refusal {
    /// Of an error's body; of whatever came, where it is none.
    pub fn of(kind: RefusalKind, status: &str, body: &[u8]) -> Self {
        let parsed: Option<Value> = serde_json::from_slice(body).ok();
        let inner = parsed.as_ref().map(|value| value.get("error").unwrap_or(value));
        let (code, message) = inner.map(code_and_message).unwrap_or_default();
        let details = inner
            .and_then(|inner| inner.get("details"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(code_and_message)
            .map(|(code, message)| if code.is_empty() { message } else { format!("{code}: {message}") })
            .collect();
        if message.is_empty() {
            let message = format!("the server answered {status} without saying why");
            return Self { kind, code, message, details };
        }
        Self { kind, code, message, details }
    }
}

fn code_and_message(value: &Value) -> (String, String) {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("code"), text("message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_arm_errors_are_read() {
        let of = |body: &str| Refusal::of(RefusalKind::Request, "409 Conflict", body.as_bytes()).to_string();
        assert_eq!(
            of(r#"{"code":"ValidationFailed","message":"no"}"#),
            "ValidationFailed: no",
            "up to 2020-02-14"
        );
        assert_eq!(
            of(
                r#"{"error":{"code":"Conflict","message":"no","details":[{"code":"A","message":"b"},{"message":"c"}]}}"#
            ),
            "Conflict: no\n  - A: b\n  - c"
        );
        assert_eq!(
            of(r#"{"error":{"code":"Conflict","message":"Conflict. Details: x"}}"#),
            "Conflict. Details: x"
        );
        for nothing in ["", "<html>", "[]", "{}", r#"{"error":"text"}"#] {
            assert_eq!(of(nothing), "the server answered 409 Conflict without saying why", "{nothing:?}");
        }
    }
}
