//! Reading an object of the template by its table of fields.
//!
//! [`Object::open`] reports what does not belong; the getters report what has the wrong
//! type, with the corrected text. A value that was reported comes back as [`Got::Bad`],
//! so that one mistake makes one problem.

use super::report::Report;
use super::schema::{Field, FieldKind, Kind};
use crate::document::{placeholders_in, shown};
use crate::problem::{Code, Problem, Severity};
use crate::suggest;
use crate::tree::{Cursor, Member, Node, Value};

/// What a getter found.
#[derive(Debug, Clone)]
pub(super) enum Got<T> {
    /// Not there, or null.
    Absent,
    /// There, wrong, and reported.
    Bad,
    Is(T),
}

impl<T> Got<T> {
    pub fn value(self) -> Option<T> {
        match self {
            Got::Is(value) => Some(value),
            Got::Absent | Got::Bad => None,
        }
    }

    /// The value, a default where there is none, nothing where it is bad.
    pub fn or(self, default: T) -> Option<T> {
        match self {
            Got::Is(value) => Some(value),
            Got::Absent => Some(default),
            Got::Bad => None,
        }
    }

    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Got<U> {
        match self {
            Got::Is(value) => Got::Is(change(value)),
            Got::Absent => Got::Absent,
            Got::Bad => Got::Bad,
        }
    }
}

/// A string and where it is.
pub(super) type At<'a> = (&'a str, Cursor<'a>);

#[derive(Debug, Clone)]
pub(super) struct Object<'a> {
    pub cursor: Cursor<'a>,
    fields: Vec<(&'static str, Cursor<'a>)>,
}

impl<'a> Object<'a> {
    /// Takes an object apart. Nothing, if it is none (reported).
    pub fn open(cursor: &Cursor<'a>, table: &[Field], report: &mut Report<'_>) -> Option<Object<'a>> {
        Self::open_with_envelope(cursor, table, &[], report)
    }

    /// The same, with names besides that are skipped.
    pub fn open_with_envelope(
        cursor: &Cursor<'a>,
        table: &[Field],
        envelope: &[&str],
        report: &mut Report<'_>,
    ) -> Option<Object<'a>> {
        if !matches!(cursor.node.value, Value::Object(_)) {
            wrong_type(cursor, "an object", None, report);
            return None;
        }
        let mut object = Object { cursor: cursor.clone(), fields: Vec::new() };
        for member in cursor.node.members() {
            if report.is_hopeless() {
                break;
            }
            let around = |name: &&str| {
                let exact = report.version.is_strict() && report.reading.is_some();
                **name == member.key || (!exact && name.eq_ignore_ascii_case(&member.key))
            };
            if envelope.iter().any(around) {
                report.ignored(&object.cursor.member(member).pointer);
            } else {
                object.take(member, table, report);
            }
        }
        Some(object)
    }

    fn take(&mut self, member: &'a Member, table: &[Field], report: &mut Report<'_>) {
        let at = self.cursor.member(member);
        let exact = table.iter().find(|field| field.name == member.key);
        let found = exact.or_else(|| {
            table
                .iter()
                .find(|field| !report.version.is_strict() && field.name.eq_ignore_ascii_case(&member.key))
        });
        let Some(field) = found else {
            return self.unknown(member, &at, table, report);
        };
        if let FieldKind::BelongsTo(whose) = field.kind {
            let label = report.label(&self.cursor.pointer);
            let problem = Problem::error(
                Code::UnknownField,
                &report.place_at(&at.pointer, member.key_span.start),
                format!("Validation failed: '{label}': Field '{}' belongs to {whose}", field.name),
            );
            report.push(problem.help("take it out, or change the type"));
            return;
        }
        if field.kind == FieldKind::ReadOnly {
            report.note(&at, Code::ReadOnlyField, format!("'{}' is read-only: it is ignored", field.name));
            report.ignored(&at.pointer);
            return;
        }
        if report.version < field.since {
            let help = format!("'{}' exists since api-version {}", field.name, field.since);
            return self.unknown_field(member, &at, Some(help), report);
        }
        if report.version > field.until {
            let help = format!("'{}' existed up to api-version {}", field.name, field.until);
            let help = if field.name == "script" { format!("{help}; it is 'scriptUri' since") } else { help };
            return self.unknown_field(member, &at, Some(help), report);
        }
        if let Some((_, first)) = self.fields.iter().find(|(name, _)| *name == field.name) {
            if first.pointer == at.pointer {
                // The same letters: reported with the file's other repeated keys.
                return;
            }
            let first = report.place(first);
            let place = report.place_at(&at.pointer, member.key_span.start);
            let message = format!(
                "\"{}\" is here for the second time, in other letters: it was given at line {} already",
                member.key, first.line
            );
            report.push(Problem::error(Code::RepeatedKey, &place, message).help("keep one of them"));
            return;
        }
        report.read_as(&at.pointer, field.name);
        self.fields.push((field.name, at));
    }

    fn unknown(&self, member: &Member, at: &Cursor<'_>, table: &[Field], report: &mut Report<'_>) {
        let visible = |field: &&Field| {
            !matches!(field.kind, FieldKind::BelongsTo(_))
                && (field.since..=field.until).contains(&report.version)
        };
        if report.is_full() {
            return self.unknown_field(member, at, None, report);
        }
        let by_case = table.iter().filter(visible).find(|field| field.name.eq_ignore_ascii_case(&member.key));
        if let Some(field) = by_case {
            let help = format!(
                "write '{}': from api-version 2024-02-01 on, the case of property names counts",
                field.name
            );
            return self.unknown_field(member, at, Some(help), report);
        }
        let known = table.iter().filter(visible).map(|field| field.name);
        let help = suggest::nearest(&member.key, known).map(|name| format!("did you mean '{name}'?"));
        self.unknown_field(member, at, help, report);
    }

    /// Unknown: refused from 2024-02-01 on, in AIB's words; a warning before.
    fn unknown_field(&self, member: &Member, at: &Cursor<'_>, help: Option<String>, report: &mut Report<'_>) {
        let place = report.place_at(&at.pointer, member.key_span.start);
        report.ignored(&at.pointer);
        let mut problem = if report.version.is_strict() {
            let message = format!(
                "Unmarshalling entity encountered error: unmarshalling type *v{}.ImageTemplate: {}unknown field \"{}\"",
                report.version.as_str().replace('-', "_"),
                report.struct_path(&self.cursor.pointer),
                shown(&member.key)
            );
            Problem::error(Code::UnknownField, &place, message)
        } else {
            let label = report.label(&self.cursor.pointer);
            Problem::warning(
                Code::UnknownField,
                &place,
                format!("'{label}': unknown field '{}' is ignored", shown(&member.key)),
            )
        };
        problem.help = help;
        report.push(problem);
    }

    /// The field's value, unless absent or null.
    pub fn get(&self, name: &str) -> Option<&Cursor<'a>> {
        self.fields
            .iter()
            .find(|(field, at)| *field == name && at.node.value != Value::Null)
            .map(|(_, at)| at)
    }

    pub fn string(&self, name: &str, report: &mut Report<'_>) -> Got<At<'a>> {
        match self.get(name) {
            None => Got::Absent,
            Some(at) => string(at, report),
        }
    }

    /// Empty strings count as absent: clients send them for "none".
    pub fn text(&self, name: &str, report: &mut Report<'_>) -> Got<At<'a>> {
        match self.string(name, report) {
            Got::Is(("", _)) => Got::Absent,
            other => other,
        }
    }

    /// A string that must be there and not be empty.
    pub fn required(&self, name: &str, report: &mut Report<'_>) -> Option<At<'a>> {
        match self.string(name, report) {
            Got::Absent => {
                report.missing(&self.cursor, name);
                None
            }
            Got::Is(("", at)) => {
                report.bad_value(&at, "", format!("'{name}' must not be empty"));
                None
            }
            Got::Is(found) => Some(found),
            Got::Bad => None,
        }
    }

    pub fn boolean(&self, name: &str, report: &mut Report<'_>) -> Got<bool> {
        let Some(at) = self.get(name) else { return Got::Absent };
        match &at.node.value {
            Value::Bool(value) => Got::Is(*value),
            Value::String(text) if is_placeholder(text) => Got::Bad,
            other => {
                let meant = |words: [&str; 2]| {
                    other_text(other).is_some_and(|text| words.iter().any(|w| w.eq_ignore_ascii_case(text)))
                };
                let corrected = if meant(["true", "yes"]) {
                    Some("true".to_owned())
                } else if meant(["false", "no"]) {
                    Some("false".to_owned())
                } else {
                    None
                };
                wrong_type(at, "true or false", corrected, report);
                Got::Bad
            }
        }
    }

    /// A whole number within `range`.
    pub fn integer(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<i64>,
        report: &mut Report<'_>,
    ) -> Got<i64> {
        match self.get(name) {
            None => Got::Absent,
            Some(at) => integer(at, range, report),
        }
    }

    /// The items of a list.
    pub fn list(&self, name: &str, of: &str, report: &mut Report<'_>) -> Got<Vec<Cursor<'a>>> {
        let Some(at) = self.get(name) else { return Got::Absent };
        match &at.node.value {
            Value::List(items) => {
                Got::Is(items.iter().enumerate().map(|(index, item)| at.item(index, item)).collect())
            }
            Value::String(text) if is_placeholder(text) => Got::Bad,
            _ => {
                wrong_type(at, &format!("a list of {of}"), corrected_list(at.node, of), report);
                Got::Bad
            }
        }
    }

    pub fn strings(&self, name: &str, report: &mut Report<'_>) -> Got<Vec<At<'a>>> {
        match self.list(name, "strings", report) {
            Got::Absent => Got::Absent,
            Got::Bad => Got::Bad,
            Got::Is(items) => {
                let count = items.len();
                let read: Vec<At<'a>> = items
                    .iter()
                    .filter_map(|item| match string(item, report) {
                        Got::Is(found) => Some(found),
                        Got::Bad => None,
                        Got::Absent => {
                            wrong_type(item, "a string", None, report);
                            None
                        }
                    })
                    .collect();
                if read.len() == count { Got::Is(read) } else { Got::Bad }
            }
        }
    }

    /// An object below this one.
    pub fn object(&self, name: &str, table: &[Field], report: &mut Report<'_>) -> Got<Object<'a>> {
        match self.get(name) {
            None => Got::Absent,
            Some(at) => Object::open(at, table, report).map_or(Got::Bad, Got::Is),
        }
    }

    /// One word of a closed set; exact. `""` counts as absent.
    pub fn choice<T: Copy>(&self, name: &str, words: &[(&str, T)], report: &mut Report<'_>) -> Got<T> {
        match self.text(name, report) {
            Got::Absent => Got::Absent,
            Got::Bad => Got::Bad,
            Got::Is((word, at)) => match words.iter().find(|(known, _)| *known == word) {
                Some((_, value)) => Got::Is(*value),
                None => {
                    let names: Vec<&str> = words.iter().map(|(known, _)| *known).collect();
                    let help = match suggest::nearest(word, names.iter().copied()) {
                        Some(near) => format!("did you mean '{near}'?"),
                        None => format!("one of {}", names.join(", ")),
                    };
                    report.bad_value(&at, word, help);
                    Got::Bad
                }
            },
        }
    }

    /// The value of `type` (or `scheme`), if this api-version has it.
    pub fn kind(&self, name: &str, kinds: &[Kind], report: &mut Report<'_>) -> Option<&'static str> {
        kind_of(&self.cursor, name, self.get(name).cloned(), kinds, report)
    }
}

/// Reads the discriminator of a union before its table of fields is known.
pub(super) fn discriminator(
    cursor: &Cursor<'_>,
    kinds: &[Kind],
    report: &mut Report<'_>,
) -> Option<&'static str> {
    if !matches!(cursor.node.value, Value::Object(_)) {
        wrong_type(cursor, "an object", None, report);
        return None;
    }
    let strict = report.version.is_strict();
    let at = cursor
        .node
        .members()
        .iter()
        .find(|member| member.key == "type" || (!strict && member.key.eq_ignore_ascii_case("type")))
        .map(|member| cursor.member(member));
    kind_of(cursor, "type", at, kinds, report)
}

fn kind_of(
    parent: &Cursor<'_>,
    name: &str,
    at: Option<Cursor<'_>>,
    kinds: &[Kind],
    report: &mut Report<'_>,
) -> Option<&'static str> {
    let Some(at) = at.filter(|at| at.node.value != Value::Null) else {
        report.missing(parent, name).help = Some(format!("one of {}", names(kinds, report)));
        return None;
    };
    let (word, at) = string(&at, report).value()?;
    let version = report.version;
    let here = |kind: &&Kind| (kind.since..=kind.until).contains(&version);
    let found = kinds.iter().filter(here).find(|kind| {
        kind.name == word || kind.also.is_some_and(|(spelling, until)| spelling == word && version <= until)
    });
    if let Some(kind) = found {
        report.is_kind(&at.pointer, kind.name);
        return Some(kind.name);
    }
    let help = match kinds.iter().find(|kind| kind.name.eq_ignore_ascii_case(word)) {
        Some(kind) if version < kind.since => {
            format!("'{}' exists since api-version {}", kind.name, kind.since)
        }
        Some(kind) if version > kind.until => {
            format!("'{}' existed up to api-version {} only", kind.name, kind.until)
        }
        Some(kind) => format!("did you mean '{}'? The case of types counts", kind.name),
        None => match suggest::nearest(word, kinds.iter().filter(here).map(|kind| kind.name)) {
            Some(near) => format!("did you mean '{near}'?"),
            None => format!("one of {}", names(kinds, report)),
        },
    };
    let message = report.bad_value_text(&at, word);
    report.error(&at, Code::UnknownType, message).help = Some(help);
    None
}

fn names(kinds: &[Kind], report: &Report<'_>) -> String {
    let here: Vec<&str> = kinds
        .iter()
        .filter(|kind| (kind.since..=kind.until).contains(&report.version))
        .map(|kind| kind.name)
        .collect();
    here.join(", ")
}

fn other_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

pub(super) fn string<'a>(at: &Cursor<'a>, report: &mut Report<'_>) -> Got<At<'a>> {
    match &at.node.value {
        // Reported once for the whole file.
        Value::String(text) if is_placeholder_at(&at.pointer, text) => Got::Bad,
        Value::String(text) => Got::Is((text, at.clone())),
        Value::Null => Got::Absent,
        other => {
            let corrected = match other {
                Value::Number(text) => Some(format!("\"{text}\"")),
                Value::Bool(value) => Some(format!("\"{value}\"")),
                _ => None,
            };
            wrong_type(at, "a string", corrected, report);
            Got::Bad
        }
    }
}

pub(super) fn integer(
    at: &Cursor<'_>,
    range: std::ops::RangeInclusive<i64>,
    report: &mut Report<'_>,
) -> Got<i64> {
    let written = match &at.node.value {
        Value::Number(text) => text,
        Value::String(text) if is_placeholder(text) => return Got::Bad,
        other => {
            let corrected = match other {
                Value::String(text) => whole(text.trim()).map(|number| number.to_string()),
                _ => None,
            };
            wrong_type(at, "a whole number", corrected, report);
            return Got::Bad;
        }
    };
    match whole(written) {
        Some(number) if range.contains(&number) => Got::Is(number),
        Some(_) => {
            let message = report.bad_value_text(at, written);
            report.error(at, Code::OutOfRange, message).help =
                Some(format!("from {} to {}", range.start(), range.end()));
            Got::Bad
        }
        None => {
            let too_long = written.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
            if too_long {
                let message = report.bad_value_text(at, written);
                report.error(at, Code::OutOfRange, message).help =
                    Some(format!("from {} to {}", range.start(), range.end()));
            } else {
                wrong_type(at, "a whole number", None, report);
            }
            Got::Bad
        }
    }
}

/// `20`, and `20.0` or `2e1` as other readers of JSON take them.
fn whole(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| {
        let number: f64 = text.parse().ok()?;
        // Beyond 2^53 a double skips whole numbers.
        (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
    })
}

/// One problem that names the place, the type that belongs there and the corrected text.
pub(super) fn wrong_type(
    at: &Cursor<'_>,
    expected: &str,
    corrected: Option<String>,
    report: &mut Report<'_>,
) {
    if report.counted(Severity::Error) {
        return;
    }
    let (parent, field) = report.label_of_parent(&at.pointer);
    let message =
        format!("Validation failed: '{parent}': Field '{field}' must be {expected}, not {}", at.node.kind());
    let help = corrected.map(|text| {
        if field.ends_with(']') { format!("write {text}") } else { format!("write \"{field}\": {text}") }
    });
    report.error(at, Code::WrongType, message).help = help;
}

fn corrected_list(node: &Node, of: &str) -> Option<String> {
    let quoted = |text: &str| serde_json::Value::from(shown(text)).to_string();
    match (&node.value, of) {
        (Value::String(text), "strings") => Some(format!("[{}]", quoted(text))),
        (Value::String(text), "whole numbers") => {
            let numbers: Option<Vec<i64>> = text.split(',').map(|part| whole(part.trim())).collect();
            let numbers: Vec<String> = numbers?.iter().map(i64::to_string).collect();
            Some(format!("[{}]", numbers.join(", ")))
        }
        (Value::Number(text), "whole numbers") => Some(format!("[{text}]")),
        (Value::Object(members), _) if members.is_empty() => Some("[]".to_owned()),
        (Value::Object(_), "objects" | "customizers" | "validators" | "distributors") => {
            Some("[{ … }]".to_owned())
        }
        _ => None,
    }
}

/// Properties whose text is code, where `<…>` is often no placeholder.
const CODE: &[&str] =
    &["inline", "script", "filters", "restartcommand", "restartcheckcommand", "searchcriteria"];

/// A string that still has a placeholder of its template's author.
pub(super) fn is_placeholder_at(pointer: &str, text: &str) -> bool {
    let in_code =
        pointer.split('/').any(|segment| CODE.iter().any(|code| segment.eq_ignore_ascii_case(code)));
    if in_code {
        matches!(placeholders_in(text).as_slice(), [only] if only == text.trim())
    } else {
        is_placeholder(text)
    }
}

pub(super) fn is_placeholder(text: &str) -> bool {
    !placeholders_in(text).is_empty()
}
