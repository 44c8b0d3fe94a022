//! A template's text, read into one tree with places.
//!
//! ```text
//!  file ─┬─ image template resource ───────────────────────────┐
//!        └─ deployment template ── resources[] ── the one ─────┴─► Document
//! ```
//! Half of the public templates are ARM deployment templates. One without expressions
//! is a resource in an envelope: the image template is taken out, and its places stay
//! those of the file. One with expressions is refused and the first of them named,
//! because a guess at `[parameters('x')]` would build the wrong image.

use sha2::Digest;

use crate::Sha256;
use crate::api::ApiVersion;
use crate::check::{DEPLOYMENT_ENVELOPE, ENVELOPE};
use crate::plan::redact_url;
use crate::problem::{Code, Place, Problem, Problems};
use crate::tree::{self, Cursor, Node, Text, Value};

/// Longer template files are refused. A caller need not read more than one byte beyond it.
pub const MAX_TEMPLATE_BYTES: usize = tree::MAX_BYTES;

/// The resource type of an image template.
pub(crate) const RESOURCE_TYPE: &str = "Microsoft.VirtualMachineImages/imageTemplates";

/// A template file, parsed but not checked.
#[derive(Debug, Clone)]
pub struct Document {
    /// Digest of the whole file.
    pub sha256: Sha256,
    pub(crate) text: Text,
    /// The image template resource.
    pub(crate) resource: Node,
    /// Where the resource lies in the file: empty, or `/resources/3`.
    pub(crate) pointer: String,
    pub(crate) in_deployment: bool,
    /// The body of a request: its api-version is the query's.
    pub(crate) request: Option<ApiVersion>,
    /// A name made of the file's, for templates that have none.
    pub(crate) fallback_name: String,
    /// What was found on the way; errors among them, for the check to report with the rest.
    pub(crate) notes: Vec<Problem>,
}

impl Document {
    /// Reads JSON, JSON with comments and trailing commas, or YAML, by its content.
    /// `file_name_hint` names the template where its text does not.
    ///
    /// # Errors
    /// Not text, no JSON and no YAML, too large, too deep; a deployment template with
    /// expressions, or without an image template. Repeated keys are found by [`crate::check()`].
    pub fn parse(bytes: &[u8], file_name_hint: &str) -> Result<Document, Problems> {
        let text = Text::new(bytes)?;
        let root = tree::parse(&text, file_name_hint)?;
        if !matches!(root.value, Value::Object(_)) {
            return Err(Problem::error(
                Code::NotATemplate,
                &text.place("", root.span.start),
                format!("the file holds {}, an image template is an object", root.kind()),
            )
            .help(format!("it begins with {{ \"type\": \"{RESOURCE_TYPE}\", …"))
            .into());
        }
        let mut notes = tree::repeated_keys(&root, &text);
        let in_deployment = is_deployment(&root);
        let (resource, pointer) =
            if in_deployment { take_out(&root, &text, &mut notes)? } else { (root, String::new()) };
        Ok(Document {
            sha256: Sha256::from_bytes(sha2::Sha256::digest(bytes).into()),
            text,
            resource,
            pointer,
            in_deployment,
            request: None,
            fallback_name: name_from_file(file_name_hint),
            notes,
        })
    }

    /// Reads the body of a PUT: JSON (comments are let pass, as ARM does), the resource itself.
    ///
    /// `name` and `version` are the request's: a body does not decide on them.
    ///
    /// # Errors
    /// Not JSON, no object, too large, too deep.
    pub fn from_request(bytes: &[u8], name: &str, version: ApiVersion) -> Result<Document, Problems> {
        let text = Text::new(bytes)?;
        let root = tree::parse_json(&text)?;
        if !matches!(root.value, Value::Object(_)) {
            return Err(Problem::error(
                Code::NotATemplate,
                &text.place("", root.span.start),
                format!("the body is {}, an image template is an object", root.kind()),
            )
            .into());
        }
        let notes = tree::repeated_keys(&root, &text);
        Ok(Document {
            sha256: Sha256::from_bytes(sha2::Sha256::digest(bytes).into()),
            text,
            resource: root,
            pointer: String::new(),
            in_deployment: false,
            request: Some(version),
            fallback_name: name.to_owned(),
            notes,
        })
    }

    /// The resource as the body of a PUT: what only a file has around it is left out. Its addresses are whole.
    pub fn body(&self) -> serde_json::Value {
        let serde_json::Value::Object(mut fields) = plain(&self.resource) else {
            return serde_json::Value::Null;
        };
        let deployment = if self.in_deployment { DEPLOYMENT_ENVELOPE } else { &[] };
        fields.retain(|key, _| {
            !ENVELOPE.iter().chain(deployment).any(|envelope| envelope.eq_ignore_ascii_case(key))
        });
        serde_json::Value::Object(fields)
    }

    /// The body as plain JSON, for requests that are no whole template.
    ///
    /// # Errors
    /// A key is repeated.
    pub fn to_json(&self) -> Result<serde_json::Value, Problems> {
        if self.notes.is_empty() { Ok(plain(&self.resource)) } else { Err(Problems::new(self.notes.clone())) }
    }

    /// Puts whole addresses where a reader of the resource got redacted ones and sends them back.
    /// `whole` is asked for each address.
    pub fn restore_addresses(&mut self, whole: &dyn Fn(&str) -> Option<String>) {
        fn walk(node: &mut Node, whole: &dyn Fn(&str) -> Option<String>) {
            match &mut node.value {
                Value::String(text) if text.contains("://") => {
                    if let Some(address) = whole(text) {
                        *text = address;
                    }
                }
                Value::Object(members) => {
                    members.iter_mut().for_each(|member| walk(&mut member.value, whole))
                }
                Value::List(items) => items.iter_mut().for_each(|item| walk(item, whole)),
                _ => {}
            }
        }
        walk(&mut self.resource, whole);
    }

    pub(crate) fn cursor(&self) -> Cursor<'_> {
        Cursor { node: &self.resource, pointer: self.pointer.clone() }
    }
}

/// A node as JSON, numbers as they were written.
fn plain(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        // What is no JSON number is reported by the check.
        Value::Number(text) => text.parse().map_or(serde_json::Value::Null, serde_json::Value::Number),
        Value::String(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(plain).collect(),
        Value::Object(members) => {
            members.iter().map(|member| (member.key.clone(), plain(&member.value))).collect()
        }
    }
}

fn is_deployment(root: &Node) -> bool {
    let by_schema = root
        .get_ignoring_case("$schema")
        .and_then(Node::as_str)
        .is_some_and(|schema| schema.to_ascii_lowercase().contains("deploymenttemplate.json"));
    by_schema
        || (root.get_ignoring_case("resources").is_some() && root.get_ignoring_case("properties").is_none())
}

/// Takes the one image template out of a deployment template.
fn take_out(root: &Node, text: &Text, notes: &mut Vec<Problem>) -> Result<(Node, String), Problems> {
    let top = Cursor::root(root);
    let resources = root.members().iter().find(|member| member.key.eq_ignore_ascii_case("resources"));
    let list: Vec<Cursor<'_>> = resources.map_or_else(Vec::new, |member| {
        let cursor = top.member(member);
        match &member.value.value {
            Value::List(items) => items.iter().enumerate().map(|(i, item)| cursor.item(i, item)).collect(),
            // languageVersion 2.0: resources by symbolic name.
            Value::Object(members) => members.iter().map(|resource| cursor.member(resource)).collect(),
            _ => Vec::new(),
        }
    });
    let mut found: Vec<Cursor<'_>> = Vec::new();
    for resource in list {
        let kind = resource.node.get_ignoring_case("type").and_then(Node::as_str).unwrap_or_default();
        if kind.eq_ignore_ascii_case(RESOURCE_TYPE) {
            found.push(resource);
        } else {
            notes.push(Problem::note(
                Code::NoLocalMeaning,
                &resource.place(text),
                format!(
                    "no local meaning: the deployment's resource of type \"{}\" is not made here",
                    shown(kind)
                ),
            ));
        }
    }
    let resource = match found.as_slice() {
        [one] => one,
        [] => {
            return Err(Problem::error(
                Code::NotATemplate,
                &top.place(text),
                format!("the deployment template has no resource of type {RESOURCE_TYPE}"),
            )
            .into());
        }
        [_, second, ..] => {
            return Err(Problem::error(
                Code::SeveralTemplates,
                &second.place(text),
                format!("the deployment template has {} image templates; one file builds one", found.len()),
            )
            .help("put each into a file of its own")
            .into());
        }
    };
    if let Some((place, expression)) = first_expression(resource, text) {
        return Err(Problem::error(
            Code::Expression,
            &place,
            format!(
                "the deployment template uses expressions, which are not evaluated; the first is {expression}"
            ),
        )
        .help(
            "replace the expressions by their values, or take the image template out into a file of its own",
        )
        .into());
    }
    for member in resource.node.members() {
        if member.key.eq_ignore_ascii_case("copy") {
            return Err(Problem::error(
                Code::Expression,
                &resource.member(member).place(text),
                "the image template is in a \"copy\" loop, which is not evaluated",
            )
            .help("write the image template out once")
            .into());
        }
        if member.key.eq_ignore_ascii_case("condition") && member.value.value != Value::Bool(true) {
            notes.push(Problem::warning(
                Code::NoLocalMeaning,
                &resource.member(member).place(text),
                "\"condition\" is not looked at: the image template is used",
            ));
        }
    }
    let pointer = resource.pointer.clone();
    let mut resource = resource.node.clone();
    unescape(&mut resource);
    Ok((resource, pointer))
}

/// ARM's rule: `[…]` is an expression, `[[…]` a literal.
fn is_expression(text: &str) -> bool {
    text.starts_with('[') && text.ends_with(']') && !text.starts_with("[[")
}

/// In the order of the file. Keys may be expressions, too.
fn first_expression(cursor: &Cursor<'_>, text: &Text) -> Option<(Place, String)> {
    match &cursor.node.value {
        Value::String(value) if is_expression(value) => Some((cursor.place(text), shown(value))),
        Value::Object(members) => members.iter().find_map(|member| {
            let at = cursor.member(member);
            if is_expression(&member.key) {
                return Some((text.place(&at.pointer, member.key_span.start), shown(&member.key)));
            }
            first_expression(&at, text)
        }),
        Value::List(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| first_expression(&cursor.item(index, item), text)),
        _ => None,
    }
}

fn unescape(node: &mut Node) {
    match &mut node.value {
        Value::String(value) if value.starts_with("[[") && value.ends_with(']') => {
            value.remove(0);
        }
        Value::Object(members) => members.iter_mut().for_each(|member| unescape(&mut member.value)),
        Value::List(items) => items.iter_mut().for_each(unescape),
        _ => {}
    }
}

/// `<region>` and the like, as they stand in the text, in order.
///
/// A placeholder starts with a letter and ends with a letter or digit; between there are
/// letters, digits, blanks, `-`, `_` and `.`. That leaves `sort <in >out` and `a<b` alone.
pub(crate) fn placeholders_in(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('<') {
        rest = &rest[open + 1..];
        let end = rest
            .char_indices()
            .take(MAX_PLACEHOLDER)
            .find(|(_, c)| !(c.is_alphanumeric() || matches!(c, ' ' | '-' | '_' | '.')));
        if let Some((end, '>')) = end {
            let name = &rest[..end];
            let good_start = name.starts_with(char::is_alphabetic);
            if good_start && name.ends_with(char::is_alphanumeric) {
                found.push(format!("<{name}>"));
            }
        }
    }
    found
}

/// Characters of the longest placeholder that is looked for.
const MAX_PLACEHOLDER: usize = 64;

/// A value of the template for a message: short, and without what may be secret in an address.
pub(crate) fn shown(value: &str) -> String {
    let value =
        if value.contains("://") || value.contains('?') { redact_url(value) } else { value.to_owned() };
    let mut characters = value.chars().map(|c| if c.is_control() { ' ' } else { c });
    let start: String = characters.by_ref().take(MAX_SHOWN).collect();
    if characters.next().is_some() { format!("{start}…") } else { start }
}

/// Characters of a value that a message repeats.
const MAX_SHOWN: usize = 160;

/// The file's name without folder and extensions, as far as it makes a template name.
fn name_from_file(file_name: &str) -> String {
    let base = file_name.rsplit(['/', '\\']).next().unwrap_or_default();
    let stem = match base.rsplit_once('.') {
        Some((stem, "json" | "jsonc" | "yaml" | "yml" | "JSON")) => stem,
        _ => base,
    };
    let name: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .take(64)
        .collect();
    let name = name.trim_matches(['-', '.']).to_owned();
    if name.is_empty() { "template".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_told_from_code() {
        for (text, found) in [
            ("<region>", vec!["<region>"]),
            ("/subscriptions/<subscriptionID>/x/<a b>", vec!["<subscriptionID>", "<a b>"]),
            ("sort <in >out", vec![]),
            ("cat <<EOF", vec![]),
            ("a<b && c>d", vec![]),
            ("<#comment#>", vec![]),
            ("<<name>>", vec!["<name>"]),
            ("<ürgend-was>", vec!["<ürgend-was>"]),
            ("<", vec![]),
        ] {
            assert_eq!(placeholders_in(text), found, "{text}");
        }
    }

    #[test]
    fn a_file_becomes_a_body() {
        let yaml = "name: x\ntype: t\nAPIVERSION: '2020-02-14'\nlocation: here\nproperties:\n  a: [1, 2.50, true, null]\n  name: kept\n";
        let body = Document::parse(yaml.as_bytes(), "t.yaml").unwrap().body();
        assert_eq!(
            body.to_string(),
            r#"{"location":"here","properties":{"a":[1,2.5,true,null],"name":"kept"}}"#
        );
        let deployment = format!(
            r#"{{ "resources": [ {{ "type": "{RESOURCE_TYPE}", "scope": "s", "tags": {{ "a": "[[b]" }} }} ] }}"#
        );
        let body = Document::parse(deployment.as_bytes(), "t.json").unwrap().body();
        assert_eq!(body.to_string(), r#"{"tags":{"a":"[b]"}}"#);
    }

    #[test]
    fn names_come_from_files() {
        for (file, name) in [
            ("images/examples/hello.json", "hello"),
            ("C:\\t\\my image (1).yaml", "my-image--1"),
            ("-", "template"),
            ("", "template"),
            ("a.b.jsonc", "a.b"),
        ] {
            assert_eq!(name_from_file(file), name);
        }
    }

    #[test]
    fn values_are_shown_short_and_without_secrets() {
        assert_eq!(shown("https://h/a?sig=SECRET"), "https://h/a?<redacted>");
        assert_eq!(shown("a\nb"), "a b");
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), MAX_SHOWN + 1);
    }
}
