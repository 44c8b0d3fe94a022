//! JSON, with comments and trailing commas.

use jsonc_parser::ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::errors::{ParseError, ParseErrorKind};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::{MAX_DEPTH, Member, Node, Span, Text, Value, too_deep};
use crate::problem::{Code, Problem};

/// What az and Bicep read besides plain JSON: comments and trailing commas, no more.
const OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: false,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

pub(super) fn parse(text: &Text) -> Result<Node, Problem> {
    // The parser itself stops at 512 levels, which is far from a full stack.
    let parsed = parse_to_ast(&text.text, &CollectOptions::default(), &OPTIONS)
        .map_err(|error| syntax_error(text, &error))?;
    match parsed.value {
        Some(value) => convert(value, text, 1),
        None => Err(Problem::error(Code::Syntax, &text.place("", 0), "the file is empty")),
    }
}

fn convert(value: ast::Value<'_>, text: &Text, depth: usize) -> Result<Node, Problem> {
    let range = value.range();
    let span = Span::new(range.start, range.end);
    let nests = matches!(value, ast::Value::Array(_) | ast::Value::Object(_));
    if nests && depth > MAX_DEPTH {
        return Err(too_deep(&text.place("", span.start)));
    }
    let value = match value {
        ast::Value::NullKeyword(_) => Value::Null,
        ast::Value::BooleanLit(literal) => Value::Bool(literal.value),
        ast::Value::NumberLit(literal) => Value::Number(literal.value.to_owned()),
        ast::Value::StringLit(literal) => Value::String(literal.value.into_owned()),
        ast::Value::Array(list) => Value::List(
            list.elements.into_iter().map(|item| convert(item, text, depth + 1)).collect::<Result<_, _>>()?,
        ),
        ast::Value::Object(object) => Value::Object(
            object
                .properties
                .into_iter()
                .map(|property| {
                    let range = property.name.range();
                    Ok(Member {
                        key_span: Span::new(range.start, range.end),
                        key: property.name.into_string(),
                        value: convert(property.value, text, depth + 1)?,
                    })
                })
                .collect::<Result<_, _>>()?,
        ),
    };
    Ok(Node { value, span })
}

fn syntax_error(text: &Text, error: &ParseError) -> Problem {
    let start = error.range().start.min(text.text.len());
    let place = text.place("", start as u32);
    if matches!(error.kind(), ParseErrorKind::NestingDepthExceeded) {
        return too_deep(&place);
    }
    // `"osDiskSizeGB": <sizeInGB>`: meant for sed, not for a parser.
    let placeholders = crate::document::placeholders_in(text.text.get(start..).unwrap_or_default());
    if text.text[start..].starts_with('<') && !placeholders.is_empty() {
        let mut all = crate::document::placeholders_in(&text.text);
        all.sort();
        all.dedup();
        return Problem::error(
            Code::Placeholder,
            &place,
            format!("placeholders were not filled in: {}", all.join(", ")),
        )
        .help("put real values in their place");
    }
    let message = error.kind().to_string();
    let mut letters = message.chars();
    let first: String = letters.next().map(|c| c.to_lowercase().collect()).unwrap_or_default();
    Problem::error(Code::Syntax, &place, format!("not JSON: {first}{}", letters.as_str()))
}
