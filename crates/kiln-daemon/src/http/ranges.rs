//! Which bytes of a representation a request asks for (RFC 9110, sections 13 and 14). Pure.
//!
//! One range is honoured; a request for several gets the whole, as section 14.2 allows: who reads disk images asks for
//! one at a time.

use axum::http::HeaderMap;
use axum::http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};
use jiff::Timestamp;
use jiff::fmt::rfc2822::{DateTimeParser, DateTimePrinter};

/// What a representation can be told apart by.
pub(super) struct Validators<'a> {
    /// A strong entity tag, with its quotes.
    pub etag: Option<&'a str>,
    pub modified: Option<Timestamp>,
}

/// The answer that the conditions and the range of a request lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Whole,
    /// `start..end`, not empty.
    Part {
        start: u64,
        end: u64,
    },
    NotModified,
    PreconditionFailed,
    /// No byte of the range is there.
    Unsatisfiable,
}

/// Judges the conditions of a GET or HEAD in the order of section 13.2.2, then its range.
pub(super) fn wanted(headers: &HeaderMap, validators: &Validators<'_>, length: u64) -> Wanted {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(tags) = text(IF_MATCH) {
        if !names_tag(tags, validators.etag, Comparison::Strong) {
            return Wanted::PreconditionFailed;
        }
    } else if let (Some(date), Some(modified)) =
        (text(IF_UNMODIFIED_SINCE).and_then(parse_date), validators.modified)
        && modified.as_second() > date.as_second()
    {
        return Wanted::PreconditionFailed;
    }
    if let Some(tags) = text(IF_NONE_MATCH) {
        if names_tag(tags, validators.etag, Comparison::Weak) {
            return Wanted::NotModified;
        }
    } else if let (Some(date), Some(modified)) =
        (text(IF_MODIFIED_SINCE).and_then(parse_date), validators.modified)
        && modified.as_second() <= date.as_second()
    {
        return Wanted::NotModified;
    }
    // A date is too coarse to splice two halves of a file by: only a strong tag keeps the range.
    let same = text(IF_RANGE).is_none_or(|tag| validators.etag == Some(tag.trim()));
    match text(RANGE).filter(|_| same) {
        Some(range) => one_range(range, length),
        None => Wanted::Whole,
    }
}

/// A date as HTTP writes it.
pub(super) fn http_date(time: Timestamp) -> Option<String> {
    DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()
}

fn parse_date(text: &str) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(text).ok()
}

#[derive(Clone, Copy, PartialEq)]
enum Comparison {
    Strong,
    Weak,
}

fn names_tag(list: &str, etag: Option<&str>, comparison: Comparison) -> bool {
    if list.trim() == "*" {
        return true;
    }
    let Some(etag) = etag else { return false };
    // Our tags have no commas in them, so a split is enough to find one.
    list.split(',').map(str::trim).any(|tag| match tag.strip_prefix("W/") {
        Some(weak) => comparison == Comparison::Weak && weak == etag,
        None => tag == etag,
    })
}

fn one_range(range: &str, length: u64) -> Wanted {
    let Some((unit, set)) = range.split_once('=') else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Wanted::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Wanted::Whole };
    let part = match (position(first), position(last)) {
        // The last bytes, or all where there are fewer.
        (None, Some(count)) if first.is_empty() => (length.saturating_sub(count), length),
        (Some(first), None) if last.is_empty() => (first, length),
        (Some(first), Some(last)) if first <= last => (first, length.min(last.saturating_add(1))),
        _ => return Wanted::Whole,
    };
    match part {
        (start, end) if start < end => Wanted::Part { start, end },
        _ => Wanted::Unsatisfiable,
    }
}

/// Digits only; a number past what 64 bits hold is past every file.
fn position(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;
    use proptest::prelude::*;

    use super::Wanted::*;
    use super::*;

    const TAG: &str = "\"abc\"";

    fn ask(headers: &[(HeaderName, &str)]) -> Wanted {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.clone(), value.parse().unwrap());
        }
        let modified = "2026-01-02T03:04:05.678Z".parse().unwrap();
        wanted(&map, &Validators { etag: Some(TAG), modified: Some(modified) }, 1000)
    }

    #[test]
    fn ranges() {
        for (range, expected) in [
            ("bytes=0-0", Part { start: 0, end: 1 }),
            ("bytes=0-999", Part { start: 0, end: 1000 }),
            ("bytes=10-", Part { start: 10, end: 1000 }),
            ("Bytes= 10-19", Part { start: 10, end: 20 }),
            ("bytes=990-5000", Part { start: 990, end: 1000 }),
            ("bytes=990-99999999999999999999999", Part { start: 990, end: 1000 }),
            ("bytes=-512", Part { start: 488, end: 1000 }),
            ("bytes=-5000", Part { start: 0, end: 1000 }),
            ("bytes=1000-", Unsatisfiable),
            ("bytes=1000-1001", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            // Not ranges, or more than one: the whole.
            ("bytes=20-10", Whole),
            ("bytes=", Whole),
            ("bytes=-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1-2-3", Whole),
            ("bytes=0-1,5-6", Whole),
            ("items=0-1", Whole),
            ("0-1", Whole),
        ] {
            assert_eq!(ask(&[(RANGE, range)]), expected, "{range}");
        }
        let nothing = Validators { etag: None, modified: None };
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, "bytes=0-".parse().unwrap());
        assert_eq!(wanted(&headers, &nothing, 0), Unsatisfiable);
    }

    #[test]
    fn conditions() {
        let (before, same, after) = (
            "Fri, 02 Jan 2026 03:04:04 GMT",
            "Fri, 02 Jan 2026 03:04:05 GMT",
            "Fri, 02 Jan 2026 03:04:06 GMT",
        );
        let part = Part { start: 0, end: 2 };
        let range = (RANGE, "bytes=0-1");
        for (headers, expected) in [
            (vec![(IF_NONE_MATCH, TAG)], NotModified),
            (vec![(IF_NONE_MATCH, "\"x\", W/\"abc\"")], NotModified),
            (vec![(IF_NONE_MATCH, "*")], NotModified),
            (vec![(IF_NONE_MATCH, "\"x\"")], Whole),
            // An entity tag wins over a date.
            (vec![(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, after)], Whole),
            (vec![(IF_MODIFIED_SINCE, same)], NotModified),
            (vec![(IF_MODIFIED_SINCE, before)], Whole),
            (vec![(IF_MODIFIED_SINCE, "yesterday")], Whole),
            (vec![(IF_MATCH, "\"x\"")], PreconditionFailed),
            (vec![(IF_MATCH, "W/\"abc\"")], PreconditionFailed),
            (vec![(IF_MATCH, "\"x\", \"abc\"")], Whole),
            (vec![(IF_UNMODIFIED_SINCE, before)], PreconditionFailed),
            (vec![(IF_UNMODIFIED_SINCE, same)], Whole),
            (vec![range.clone(), (IF_RANGE, TAG)], part),
            (vec![range.clone(), (IF_RANGE, "\"x\"")], Whole),
            (vec![range.clone(), (IF_RANGE, "W/\"abc\"")], Whole),
            (vec![range.clone(), (IF_RANGE, same)], Whole),
            (vec![range.clone(), (IF_NONE_MATCH, TAG)], NotModified),
            (vec![range, (IF_MATCH, TAG)], part),
        ] {
            assert_eq!(ask(&headers), expected, "{headers:?}");
        }
        assert_eq!(http_date("2026-01-02T03:04:05.678Z".parse().unwrap()).unwrap(), same);
    }

    proptest! {
        #[test]
        fn a_part_lies_inside(range in "bytes=[0-9]{0,5}-[0-9]{0,5}", length in 0u64..100_000) {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, range.parse().unwrap());
            if let Part { start, end } = wanted(&headers, &Validators { etag: None, modified: None }, length) {
                prop_assert!(start < end && end <= length);
            }
        }
    }
}
