//! The `api-version` of a request.

use kiln_model::api::ApiVersion;

use super::answer::ArmError;
use super::call::bad_uri;
use super::path::Query;

/// The version asked for, where it is one of ours: for the shape of an error, whatever else is wrong.
pub fn known(query: &Query) -> Option<ApiVersion> {
    query.get("api-version").ok().flatten().and_then(ApiVersion::find)
}

/// The version of a request to the image templates.
pub fn required(query: &Query) -> Result<ApiVersion, ArmError> {
    let text = present(query)?;
    ApiVersion::find(text).ok_or_else(|| {
        if is_date(text) {
            ArmError::bad_request(
                "NoRegisteredProviderFound",
                format!(
                    "No registered resource provider found for API version '{text}' and type 'imageTemplates'. \
                     The supported api-versions are '{}'.",
                    supported()
                ),
            )
        } else {
            ArmError::bad_request(
                "InvalidApiVersionParameter",
                format!("The api-version '{}' is invalid. The supported versions are '{}'.", shown(text), supported()),
            )
        }
    })
}

/// Any api-version: what ARM asks of every request, whoever answers it.
pub fn present(query: &Query) -> Result<&str, ArmError> {
    match query.get("api-version").map_err(bad_uri)? {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(ArmError::bad_request(
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )),
    }
}

/// Newest first.
pub fn supported() -> String {
    ApiVersion::ALL.iter().rev().map(|version| version.as_str()).collect::<Vec<_>>().join(", ")
}

/// `2024-02-01`, maybe with `-preview` or the like behind it.
fn is_date(text: &str) -> bool {
    let (date, suffix) = text.split_at_checked(10).unwrap_or((text, ""));
    date.len() == 10
        && date
            .bytes()
            .enumerate()
            .all(|(index, byte)| if matches!(index, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() })
        && (suffix.is_empty()
            || suffix.len() <= 20
                && suffix.starts_with('-')
                && suffix.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-'))
}

/// What a client sent, fit for an answer: short, and of plain characters.
pub fn shown(text: &str) -> String {
    text.chars().take(64).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
