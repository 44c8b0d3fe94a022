//! Kiln's own files: pretty JSON, a `format` number, newer ones refused.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Pretty JSON with a line feed at its end.
///
/// Only for this crate's own types, which have string keys and no floats: they always serialize.
pub(crate) fn pretty<T: Serialize>(value: &T) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// A file of Kiln's own could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(
        "{what} has format {found}, this Kiln reads up to {newest}: use a newer Kiln; the file was left untouched"
    )]
    Newer { what: &'static str, found: u64, newest: u32 },
    #[error("{what} has no usable \"format\" number")]
    Missing { what: &'static str },
    #[error("{what} cannot be read{}", at(*.line))]
    Malformed {
        what: &'static str,
        /// 0 where the file is one value.
        line: usize,
        #[source]
        source: serde_json::Error,
    },
    #[error("{what} contradicts itself: {detail}")]
    Inconsistent { what: &'static str, detail: String },
}

fn at(line: usize) -> String {
    if line == 0 { String::new() } else { format!(" at line {line}") }
}

/// Reads `text` if its top-level `format` is one that this build knows.
///
/// The number is looked at first, so that a newer file is called newer and not malformed.
pub(crate) fn read<T: DeserializeOwned>(
    what: &'static str,
    text: &str,
    newest: u32,
) -> Result<T, FormatError> {
    let malformed = |source| FormatError::Malformed { what, line: 0, source };
    let value: serde_json::Value = serde_json::from_str(text).map_err(malformed)?;
    check_format(what, value.get("format"), newest)?;
    serde_json::from_value(value).map_err(malformed)
}

pub(crate) fn check_format(
    what: &'static str,
    format: Option<&serde_json::Value>,
    newest: u32,
) -> Result<(), FormatError> {
    match format.and_then(serde_json::Value::as_u64) {
        Some(found) if found > u64::from(newest) => Err(FormatError::Newer { what, found, newest }),
        Some(found) if found > 0 => Ok(()),
        _ => Err(FormatError::Missing { what }),
    }
}
