//! YAML, by the deserializer's own notion of places.
//!
//! Aliases are expanded by the deserializer under a budget: a few bytes that stand for
//! billions of nodes are refused, not expanded.

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::budget::BudgetBreach;
use serde_yaml::{DuplicateKeyPolicy, Location, Spanned};

use super::{MAX_BYTES, MAX_DEPTH, Member, Node, Span, Text, Value, too_deep};
use crate::problem::{Code, Problem};

/// Nodes that aliases may stand for, all together.
const MAX_ALIASED: usize = 20_000;

fn parse_here(text: &Text) -> Result<Node, Problem> {
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: MAX_DEPTH,
            // The scanner looks 1024 characters ahead; the depth above is what ends deep files.
            flow_nesting_limit: 2048,
            max_documents: 1,
            max_total_scalar_bytes: MAX_BYTES,
        },
        alias_limits: serde_yaml::alias_limits! { max_total_replayed_events: MAX_ALIASED },
        // Both places are wanted in the message, so repeated keys come through to us.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        with_snippet: false,
    };
    let tree: Spanned<Raw> =
        serde_yaml::from_str_with_options(&text.text, options).map_err(|error| syntax_error(text, &error))?;
    convert(tree, text, 1)
}

/// Bytes of stack for reading YAML. The deserializer and serde's visitors take up to
/// 40 KiB a level unoptimized: 64 levels of it do not fit into a thread of tokio's.
const STACK: usize = 16 << 20;

/// Reads YAML on a stack that is large enough for [`MAX_DEPTH`], whatever the caller's is.
pub(super) fn parse(text: &Text) -> Result<Node, Problem> {
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new()
            .name("yaml".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || parse_here(text));
        let failed = |what: &str| Problem::error(Code::Syntax, &text.place("", 0), what);
        match reader.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(failed("the YAML reader gave up on this file")),
            Err(_) => Err(failed("the host has no room for a thread to read YAML")),
        }
    })
}

/// YAML's values before they get their places.
enum Raw {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    String(String),
    List(Vec<Spanned<Raw>>),
    Object(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Raw, E> {
        Ok(i128::try_from(value).map_or_else(|_| Raw::String(value.to_string()), Raw::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = access.next_entry()? {
            members.push(member);
        }
        Ok(Raw::Object(members))
    }
}

fn convert(raw: Spanned<Raw>, text: &Text, depth: usize) -> Result<Node, Problem> {
    let span = span_of(&raw.referenced);
    if matches!(raw.value, Raw::List(_) | Raw::Object(_)) && depth > MAX_DEPTH {
        return Err(too_deep(&text.place("", span.start)));
    }
    let written = || text.text.get(span.start as usize..span.end as usize).unwrap_or_default().trim();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(value),
        Raw::Integer(value) => Value::Number(value.to_string()),
        Raw::Float(value) => Value::Number(match written() {
            text if text.parse::<f64>().is_ok() => text.to_owned(),
            _ => value.to_string(),
        }),
        Raw::String(value) => Value::String(value),
        Raw::List(items) => Value::List(
            items.into_iter().map(|item| convert(item, text, depth + 1)).collect::<Result<_, _>>()?,
        ),
        Raw::Object(members) => Value::Object(
            members
                .into_iter()
                .map(|(key, value)| {
                    let key = convert(key, text, depth + 1)?;
                    let key_span = key.span;
                    let key = match key.value {
                        Value::String(text) | Value::Number(text) => text,
                        Value::Bool(value) => value.to_string(),
                        Value::Null | Value::List(_) | Value::Object(_) => {
                            return Err(Problem::error(
                                Code::Syntax,
                                &text.place("", key_span.start),
                                "a key must be a plain word or a string",
                            ));
                        }
                    };
                    Ok(Member { key, key_span, value: convert(value, text, depth + 1)? })
                })
                .collect::<Result<_, Problem>>()?,
        ),
    };
    Ok(Node { value, span })
}

fn span_of(location: &Location) -> Span {
    let span = location.span();
    let start = usize::try_from(span.byte_offset().unwrap_or(0)).unwrap_or(0).min(MAX_BYTES);
    let length = usize::try_from(span.byte_len().unwrap_or(0)).unwrap_or(0).min(MAX_BYTES);
    Span::new(start, start + length)
}

fn syntax_error(text: &Text, error: &serde_yaml::Error) -> Problem {
    let place = error.location().map_or_else(
        || text.place("", 0),
        |location| match location.span().byte_offset() {
            Some(offset) => text.place("", u32::try_from(offset).unwrap_or(0)),
            None => text.place("", 0),
        },
    );
    if let serde_yaml::Error::Budget { breach: BudgetBreach::Depth { .. }, .. } = error.without_snippet() {
        return too_deep(&place);
    }
    let message = error.to_string();
    // The place is said already; the first line says what is wrong.
    let first = message.lines().next().unwrap_or_default();
    Problem::error(Code::Syntax, &place, format!("not YAML: {first}"))
}
