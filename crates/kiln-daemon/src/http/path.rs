//! Paths and queries of a request, taken apart and decoded once.
//!
//! A segment is decoded after the path was split, and never again: an encoded slash
//! does not make a new segment, and what decodes to something that is no name is refused.

use std::borrow::Cow;

/// Bytes of a decoded segment: longer than any name of the contract, and any file name.
const MAX_SEGMENT: usize = 255;

/// Bytes of a path and its query, as they arrive.
const MAX_TARGET: usize = 8 * 1024;

/// A path or query that means nothing. The text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("the path and the query are longer than {MAX_TARGET} bytes")]
    TooLong,
    #[error("a segment of the path is longer than {MAX_SEGMENT} bytes")]
    SegmentTooLong,
    #[error("a percent sign is not followed by two hexadecimal digits")]
    Percent,
    #[error("its percent-encoded bytes are not UTF-8")]
    NotUtf8,
    #[error("a segment of the path holds a slash, a backslash or a control character")]
    Character,
    #[error("a segment of the path is '.' or '..'")]
    Dots,
    #[error("the query gives '{0}' more than once, with different values")]
    Repeated(String),
}

/// The segments of a path, without empty ones: `//` counts as `/`.
pub fn segments(path: &str) -> Result<Vec<String>, UriError> {
    if path.len() > MAX_TARGET {
        return Err(UriError::TooLong);
    }
    path.split('/').filter(|segment| !segment.is_empty()).map(segment).collect()
}

fn segment(raw: &str) -> Result<String, UriError> {
    let text = decode(raw)?;
    if text.len() > MAX_SEGMENT {
        return Err(UriError::SegmentTooLong);
    }
    if text == "." || text == ".." {
        return Err(UriError::Dots);
    }
    if text.contains(|c: char| matches!(c, '/' | '\\') || c.is_control()) {
        return Err(UriError::Character);
    }
    Ok(text)
}

fn decode(raw: &str) -> Result<String, UriError> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || {
                let digit = rest.next().and_then(|byte| char::from(byte).to_digit(16));
                digit.and_then(|digit| u8::try_from(digit).ok()).ok_or(UriError::Percent)
            };
            bytes.push(digit()? * 16 + digit()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| UriError::NotUtf8)
}

/// The query's parameters. Names ignore case; those nobody asks for do no harm.
///
/// It may hold secrets of others (a signature that a client appended): no `Debug`.
#[derive(Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(raw: Option<&str>) -> Result<Self, UriError> {
        let raw = raw.unwrap_or_default();
        if raw.len() > MAX_TARGET {
            return Err(UriError::TooLong);
        }
        Self::form(raw)
    }

    /// A form's fields (`application/x-www-form-urlencoded`): how long it may be is its reader's to say.
    pub fn form(raw: &str) -> Result<Self, UriError> {
        let pairs = raw.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(&plus(name))?, decode(&plus(value))?))
        });
        Ok(Self(pairs.collect::<Result<_, _>>()?))
    }

    /// The parameter's value. Given twice, its values must be the same.
    pub fn get(&self, name: &str) -> Result<Option<&str>, UriError> {
        let mut values =
            self.0.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
        let first = values.next();
        match first {
            Some(first) if values.any(|value| !value.eq_ignore_ascii_case(first)) => {
                Err(UriError::Repeated(name.to_owned()))
            }
            first => Ok(first),
        }
    }

    /// Whether the parameter is `true` (or there without a value).
    pub fn is_set(&self, name: &str) -> Result<bool, UriError> {
        Ok(self.get(name)?.is_some_and(|value| value.is_empty() || value.eq_ignore_ascii_case("true")))
    }
}

/// A parameter's value for an address of ours: all but unreserved characters (RFC 3986, section 2.3) encoded.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// In a query a plus is a space.
fn plus(text: &str) -> Cow<'_, str> {
    if text.contains('+') { Cow::Owned(text.replace('+', " ")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_once() {
        assert_eq!(segments("//a///b%20c/%25%32e/").unwrap(), ["a", "b c", "%2e"]);
        assert_eq!(segments("/").unwrap(), Vec::<String>::new());
        for (path, error) in [
            ("/a/%2e%2e/b", UriError::Dots),
            ("/a/../b", UriError::Dots),
            ("/a/%2E", UriError::Dots),
            ("/a%2fb", UriError::Character),
            ("/a%5Cb", UriError::Character),
            ("/a%00", UriError::Character),
            ("/a%0d%0aX: y", UriError::Character),
            ("/a%ff", UriError::NotUtf8),
            ("/a%c0%ae", UriError::NotUtf8),
            ("/a%4", UriError::Percent),
            ("/a%", UriError::Percent),
            ("/a%+1", UriError::Percent),
            (&format!("/{}", "x".repeat(256)), UriError::SegmentTooLong),
            (&"/x".repeat(5000), UriError::TooLong),
        ] {
            assert_eq!(segments(path), Err(error), "{path}");
        }
    }

    #[test]
    fn a_query_ignores_case_and_strangers() {
        let query = Query::parse(Some("API-Version=2020-02-14&t=1&c&%24filter=a+b%2Bc&kilnForce")).unwrap();
        assert_eq!(query.get("api-version").unwrap(), Some("2020-02-14"));
        assert_eq!(query.get("$filter").unwrap(), Some("a b+c"));
        assert_eq!(query.get("skip").unwrap(), None);
        assert!(query.is_set("kilnforce").unwrap());
        assert!(!query.is_set("t").unwrap());
        let odd = "a b+c&d=é/?";
        let again = Query::parse(Some(&format!("x={}", encode(odd)))).unwrap();
        assert_eq!(again.get("x").unwrap(), Some(odd));
        let twice = Query::parse(Some("a=1&A=1&b=1&b=2")).unwrap();
        assert_eq!(twice.get("a").unwrap(), Some("1"));
        assert_eq!(twice.get("b"), Err(UriError::Repeated("b".into())));
        assert!(Query::parse(Some("a=%zz")).is_err());
    }
}
