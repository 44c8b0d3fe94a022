//! Pages of a list: `nextLink` with an opaque `$skipToken`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::answer::ArmError;
use super::call::Call;
use super::path;

/// Resources on a page.
pub const PAGE: usize = 100;

/// First in a token: what comes after it is read by rules that may change.
const TOKEN_FORMAT: u8 = b'1';

/// Where the page that is asked for begins: after this place of the list, or at its start.
pub fn place(call: &Call) -> Result<Option<String>, ArmError> {
    let Some(token) = call.parameter("$skipToken")? else { return Ok(None) };
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad_token())?;
    match bytes.split_first() {
        Some((&TOKEN_FORMAT, place)) if !place.is_empty() => {
            String::from_utf8(place.to_vec()).map(Some).map_err(|_| bad_token())
        }
        _ => Err(bad_token()),
    }
}

/// A token that no list of ours gave.
pub fn bad_token() -> ArmError {
    ArmError::bad_request(
        "InvalidSkipToken",
        "The $skipToken is not one that this list gave. Begin the list again without it.",
    )
}

/// `{"value": […], "nextLink": …}`; the link is absolute, and repeats the request's path and version.
pub fn page(call: &Call, value: Vec<Value>, next: Option<String>) -> Result<Value, ArmError> {
    page_of(call, value, next, &["api-version"])
}

/// The same, for a list with parameters of its own: the link repeats those of `names` that the request has.
pub fn page_of(
    call: &Call,
    value: Vec<Value>,
    next: Option<String>,
    names: &[&str],
) -> Result<Value, ArmError> {
    let mut page = json!({"value": value});
    if let Some(next) = next {
        let mut link = format!("{}{}?", call.base, call.path);
        for name in names {
            if let Some(value) = call.parameter(name)? {
                link.push_str(&format!("{name}={}&", path::encode(value)));
            }
        }
        let mut token = vec![TOKEN_FORMAT];
        token.extend(next.bytes());
        link.push_str(&format!("$skipToken={}", URL_SAFE_NO_PAD.encode(token)));
        page["nextLink"] = json!(link);
    }
    Ok(page)
}
