//! One tree with places, whatever the template was written in.
//!
//! ```text
//!  bytes ─ Text (UTF-8? binary? size?) ─┬─ json ─┐
//!                                       └─ yaml ─┴─► Node { value, span } ─► Cursor (node + JSON pointer)
//! ```
//! A [`Node`] keeps numbers as they were written, so that `18.10` in a place where a
//! string belongs can be shown as the author wrote it. Spans are byte offsets; lines
//! and columns are computed only for what is reported.
//!
//! INVARIANT: no input makes the parsers recurse deeper than [`MAX_DEPTH`], read more
//! than [`MAX_BYTES`], or panic.

mod json;
mod text;
mod yaml;

pub(crate) use text::Text;

use crate::problem::{Code, Place, Problem};

/// Longer files are refused unread.
pub(crate) const MAX_BYTES: usize = 4 << 20;

/// Deeper nesting is refused. The deepest template AIB takes has nine levels.
pub(crate) const MAX_DEPTH: usize = 64;

/// Byte offsets, end exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        // Files are at most 4 MiB.
        Self { start: start as u32, end: end.max(start) as u32 }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub value: Value,
    pub span: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// As written, or in plain decimal where YAML wrote it otherwise.
    Number(String),
    String(String),
    List(Vec<Node>),
    Object(Vec<Member>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub key: String,
    pub key_span: Span,
    pub value: Node,
}

impl Node {
    /// The member of that name in whatever case.
    pub fn get_ignoring_case(&self, key: &str) -> Option<&Node> {
        self.members().iter().find(|member| member.key.eq_ignore_ascii_case(key)).map(|member| &member.value)
    }

    /// Empty for what is no object.
    pub fn members(&self) -> &[Member] {
        match &self.value {
            Value::Object(members) => members,
            _ => &[],
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Object(_) => "an object",
        }
    }
}

/// A node and the JSON pointer that leads to it.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    pub node: &'a Node,
    pub pointer: String,
}

impl<'a> Cursor<'a> {
    pub fn root(node: &'a Node) -> Self {
        Self { node, pointer: String::new() }
    }

    pub fn member(&self, member: &'a Member) -> Cursor<'a> {
        Cursor { node: &member.value, pointer: push(&self.pointer, &member.key) }
    }

    pub fn item(&self, index: usize, node: &'a Node) -> Cursor<'a> {
        Cursor { node, pointer: format!("{}/{index}", self.pointer) }
    }

    pub fn place(&self, text: &Text) -> Place {
        text.place(&self.pointer, self.node.span.start)
    }
}

/// Adds a key to a pointer, escaped as RFC 6901 wants it.
pub(crate) fn push(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Reads a whole text. The content decides between JSON and YAML; the file's name
/// only where a text that starts like JSON is none.
pub(crate) fn parse(text: &Text, file_name: &str) -> Result<Node, Problem> {
    let named_yaml = [".yaml", ".yml"].iter().any(|end| file_name.to_ascii_lowercase().ends_with(end));
    if text.text.trim().is_empty() {
        return Err(Problem::error(Code::Syntax, &text.place("", 0), "the file is empty"));
    }
    if !text.looks_like_json() {
        return yaml::parse(text);
    }
    match json::parse(text) {
        // `{a: 1}` is a YAML mapping, too.
        Err(problem) if named_yaml => yaml::parse(text).map_err(|_| problem),
        other => other,
    }
}

/// Reads a text that has to be JSON.
pub(crate) fn parse_json(text: &Text) -> Result<Node, Problem> {
    if text.text.trim().is_empty() {
        return Err(Problem::error(Code::Syntax, &text.place("", 0), "there is no text"));
    }
    json::parse(text)
}

/// Repeated keys that are listed; a file with more is no template.
const MOST_REPEATED: usize = 100;

/// Repeated keys are an error with both places: which one a reader takes is anyone's guess.
pub(crate) fn repeated_keys(root: &Node, text: &Text) -> Vec<Problem> {
    let mut problems = Vec::new();
    find_repeated_keys(&Cursor::root(root), text, &mut problems);
    problems
}

fn find_repeated_keys(cursor: &Cursor<'_>, text: &Text, problems: &mut Vec<Problem>) {
    match &cursor.node.value {
        Value::Object(members) => {
            let mut seen = std::collections::HashMap::with_capacity(members.len());
            for member in members {
                match seen.entry(member.key.as_str()) {
                    std::collections::hash_map::Entry::Vacant(free) => {
                        free.insert(member.key_span);
                    }
                    std::collections::hash_map::Entry::Occupied(first) if problems.len() < MOST_REPEATED => {
                        problems.push(repeated(&cursor.pointer, member, *first.get(), text));
                    }
                    std::collections::hash_map::Entry::Occupied(_) => {}
                }
                find_repeated_keys(&cursor.member(member), text, problems);
            }
        }
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                find_repeated_keys(&cursor.item(index, item), text, problems);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn repeated(pointer: &str, member: &Member, first: Span, text: &Text) -> Problem {
    let place = text.place(&push(pointer, &member.key), member.key_span.start);
    let first = text.place("", first.start);
    Problem::error(
        Code::RepeatedKey,
        &place,
        format!(
            "\"{}\" is here for the second time: it was given at line {}, column {} already",
            crate::document::shown(&member.key),
            first.line,
            first.column
        ),
    )
    .help("keep one of them")
}

fn too_deep(place: &Place) -> Problem {
    Problem::error(
        Code::TooDeep,
        place,
        format!("objects and lists are nested more than {MAX_DEPTH} levels deep"),
    )
    .help("no image template needs more than nine")
}

#[cfg(test)]
mod tests;
