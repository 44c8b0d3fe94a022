//! Bodies that must be JSON.

use axum::http::StatusCode;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use bytes::Bytes;

use super::answer::ArmError;
use super::call::Call;
use super::version::shown;

/// A byte order mark: Windows' editors put it before a file, and clients send the file.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The body's text, without a byte order mark. It may be no JSON yet: whoever reads it tells where it is none.
///
/// # Errors
/// 415 for what says that it is something else, 413, 400 for none or for bytes that are not UTF-8.
pub async fn json(call: &mut Call) -> Result<Bytes, ArmError> {
    if let Err(error) = is_json(call) {
        super::front::discard(std::mem::take(&mut call.body)).await;
        return Err(error);
    }
    let bytes = call.bytes().await?;
    let bytes = if bytes.starts_with(BOM) { bytes.slice(BOM.len()..) } else { bytes };
    if bytes.trim_ascii().is_empty() {
        return Err(invalid("The request content was empty; a JSON object is expected."));
    }
    if std::str::from_utf8(&bytes).is_err() {
        return Err(invalid("The request content is not UTF-8."));
    }
    Ok(bytes)
}

/// 400 in ARM's words.
pub fn invalid(text: impl Into<String>) -> ArmError {
    ArmError::bad_request("InvalidRequestContent", text)
}

fn is_json(call: &Call) -> Result<(), ArmError> {
    let unsupported =
        |text: String| ArmError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", text);
    if let Some(coding) = call.headers.get(CONTENT_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(unsupported(
            "A compressed body is not supported: send it without Content-Encoding.".to_owned(),
        ));
    }
    let Some(value) = call.headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or("?");
    let mut parts = text.split(';');
    let media = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    if !matches!(media.as_str(), "application/json" | "text/json") && !media.ends_with("+json") {
        return Err(unsupported(format!(
            "The content media type '{}' is not supported. Only 'application/json' is supported.",
            shown(&media)
        )));
    }
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let charset = value.trim().trim_matches('"');
        if name.trim().eq_ignore_ascii_case("charset")
            && !["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known))
        {
            return Err(unsupported(format!(
                "The charset '{}' is not supported. Only 'utf-8' is supported.",
                shown(charset)
            )));
        }
    }
    Ok(())
}
