//! The framing of sealed messages over HTTP (MS-WSMV 2.2.9.1): pure bytes, no keys.
//!
//! ```text
//!   --Encrypted Boundary\r\n
//!   \tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n
//!   \tOriginalContent: type=application/soap+xml;charset=UTF-8;Length=N\r\n
//!   --Encrypted Boundary\r\n
//!   \tContent-Type: application/octet-stream\r\n
//!   <u32le length of the signature><signature><sealed>--Encrypted Boundary--\r\n
//! ```
//!
//! It only looks like MIME: no blank line ends the headers, and the sealed bytes may contain the boundary. So parts
//! are found by the announced length. Servers differ in the tab before headers and in a space after the dashes.

const PROTOCOL: &str = "application/HTTP-SPNEGO-session-encrypted";
const BOUNDARY: &str = "Encrypted Boundary";
const ORIGINAL: &str = "application/soap+xml;charset=UTF-8";

/// What a request with a sealed body says of it.
pub(crate) const CONTENT_TYPE: &str = concat!(
    "multipart/encrypted;protocol=\"application/HTTP-SPNEGO-session-encrypted\"",
    ";boundary=\"Encrypted Boundary\""
);

/// One sealed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) signature: Vec<u8>,
    pub(crate) sealed: Vec<u8>,
}

/// Why a body is no sealed message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SealedError {
    #[error("a sealed answer lacks {what}")]
    Missing { what: &'static str },
    #[error("a sealed answer announces {announced} bytes, which is not what it has")]
    Length { announced: usize },
    #[error("a sealed answer announces a signature of {announced} bytes, and has {got}")]
    Signature { announced: usize, got: usize },
}

pub(crate) fn is_sealed(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("multipart/encrypted")
        || kind.eq_ignore_ascii_case("multipart/x-multi-encrypted")
}

pub(crate) fn write(part: &Part, plain_length: usize) -> Vec<u8> {
    let mut body = format!(
        "--{BOUNDARY}\r\n\tContent-Type: {PROTOCOL}\r\n\tOriginalContent: type={ORIGINAL};Length={plain_length}\r\n\
         --{BOUNDARY}\r\n\tContent-Type: application/octet-stream\r\n"
    )
    .into_bytes();
    let length = u32::try_from(part.signature.len()).unwrap_or(u32::MAX);
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(&part.signature);
    body.extend_from_slice(&part.sealed);
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// The sealed messages of a body, in order.
pub(crate) fn parse(content_type: &str, body: &[u8]) -> Result<Vec<Part>, SealedError> {
    let boundary = parameter(content_type, "boundary").unwrap_or(BOUNDARY);
    let mut rest = body;
    let mut parts = Vec::new();
    loop {
        match take_boundary(&mut rest, boundary) {
            Some(Boundary::Next) => {}
            Some(Boundary::Last) if !parts.is_empty() => return Ok(parts),
            _ => return Err(SealedError::Missing { what: "its boundary" }),
        }
        let mut announced = None;
        while let Some(line) = take_header(&mut rest) {
            if let Some((name, value)) = line.split_once(':')
                && name.trim().eq_ignore_ascii_case("OriginalContent")
            {
                announced = parameter(value, "Length").and_then(|length| length.parse::<usize>().ok());
            }
        }
        let announced = announced.ok_or(SealedError::Missing { what: "its length" })?;
        match take_boundary(&mut rest, boundary) {
            Some(Boundary::Next) => {}
            _ => return Err(SealedError::Missing { what: "its second boundary" }),
        }
        // One header, then bytes: whatever follows its line end is data.
        take_header(&mut rest).ok_or(SealedError::Missing { what: "the type of its data" })?;
        let (length, after) = rest
            .split_first_chunk::<4>()
            .ok_or(SealedError::Missing { what: "the length of its signature" })?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (signature, after) = after
            .split_at_checked(length)
            .ok_or(SealedError::Signature { announced: length, got: after.len() })?;
        let (sealed, after) = after.split_at_checked(announced).ok_or(SealedError::Length { announced })?;
        if !after.starts_with(b"--") {
            return Err(SealedError::Length { announced });
        }
        parts.push(Part { signature: signature.to_vec(), sealed: sealed.to_vec() });
        rest = after;
    }
}

enum Boundary {
    Next,
    Last,
}

fn take_boundary(rest: &mut &[u8], boundary: &str) -> Option<Boundary> {
    let after = rest.strip_prefix(b"--")?;
    let after = after.strip_prefix(b" ").unwrap_or(after);
    let after = after.strip_prefix(boundary.as_bytes())?;
    let (kind, after) = match after.strip_prefix(b"--") {
        Some(after) => (Boundary::Last, after),
        None => (Boundary::Next, after),
    };
    *rest = match after {
        [b'\r', b'\n', after @ ..] | [b'\n', after @ ..] => after,
        [] if matches!(kind, Boundary::Last) => after,
        _ => return None,
    };
    Some(kind)
}

/// A header line, until a boundary begins. Headers are text; data is not asked for here.
fn take_header<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    if rest.starts_with(b"--") {
        return None;
    }
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    let line = std::str::from_utf8(&rest[..end]).ok()?;
    *rest = &rest[end + 1..];
    Some(line.trim())
}

/// The value of `name=value` or `name="value"` in a list with semicolons.
fn parameter<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    list.split(';').find_map(|item| {
        let (key, value) = item.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(sealed: &[u8]) -> Part {
        Part { signature: vec![7; 16], sealed: sealed.to_vec() }
    }

    #[test]
    fn a_request_looks_as_servers_know_it() {
        let body = write(&part(b"SEALED"), 6);
        let mut expected = b"--Encrypted Boundary\r\n\
            \tContent-Type: application/HTTP-SPNEGO-session-encrypted\r\n\
            \tOriginalContent: type=application/soap+xml;charset=UTF-8;Length=6\r\n\
            --Encrypted Boundary\r\n\
            \tContent-Type: application/octet-stream\r\n\
            \x10\x00\x00\x00"
            .to_vec();
        expected.extend_from_slice(&[7; 16]);
        expected.extend_from_slice(b"SEALED--Encrypted Boundary--\r\n");
        assert_eq!(body, expected);
        assert!(is_sealed(CONTENT_TYPE));
        assert!(is_sealed("Multipart/Encrypted; boundary=x"));
        assert!(!is_sealed("application/soap+xml;charset=UTF-8"));
    }

    #[test]
    fn servers_may_differ_in_white_space() {
        let body = write(&part(b"SEALED"), 6);
        let text = |from: &[u8], to: &[u8]| {
            let mut changed = Vec::new();
            let mut rest = &body[..];
            while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
                changed.extend_from_slice(&rest[..at]);
                changed.extend_from_slice(to);
                rest = &rest[at + from.len()..];
            }
            changed.extend_from_slice(rest);
            changed
        };
        for changed in [
            text(b"\r\n\t", b"\r\n"),
            text(b"--Encrypted Boundary", b"-- Encrypted Boundary"),
            text(b"--\r\n", b"--"),
        ] {
            assert_eq!(parse(CONTENT_TYPE, &changed).unwrap(), [part(b"SEALED")]);
        }
        let renamed = text(b"Encrypted Boundary", b"other");
        assert_eq!(parse("multipart/encrypted;boundary=\"other\"", &renamed).unwrap(), [part(b"SEALED")]);
    }

    #[test]
    fn a_wrong_length_is_found() {
        for length in [5, 7, 1_000_000] {
            let body = write(&part(b"SEALED"), length);
            assert_eq!(parse(CONTENT_TYPE, &body), Err(SealedError::Length { announced: length }));
        }
        let whole = write(&part(b"SEALED"), 6);
        for cut in 0..whole.len() - b"ed Boundary--\r\n".len() {
            assert!(parse(CONTENT_TYPE, &whole[..cut]).is_err(), "cut at {cut}");
        }
        assert!(parse(CONTENT_TYPE, b"--Encrypted Boundary--\r\n").is_err());
    }

    proptest! {
        #[test]
        fn sealed_bytes_may_be_any(
            sealed in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                Just(b"\r\n--Encrypted Boundary\r\n--Encrypted Boundary--\r\n".to_vec()),
            ],
            signature in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let part = Part { signature, sealed };
            let one = write(&part, part.sealed.len());
            prop_assert_eq!(parse(CONTENT_TYPE, &one).unwrap(), std::slice::from_ref(&part));
            // Several in one body, as servers send what is too long for one seal.
            let mut two = one[..one.len() - b"--Encrypted Boundary--\r\n".len()].to_vec();
            two.extend_from_slice(&one);
            prop_assert_eq!(parse(CONTENT_TYPE, &two).unwrap(), vec![part.clone(), part]);
        }

        #[test]
        fn no_body_breaks_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200), prefix in 0usize..200) {
            let mut body = write(&part(b"x"), 1);
            body.truncate(prefix);
            body.extend_from_slice(&bytes);
            let _either_way = parse(CONTENT_TYPE, &body);
        }
    }
}
