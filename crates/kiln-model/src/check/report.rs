//! Where checks put what they find, and the words AIB has for it.

use super::echo::Reading;
use crate::api::ApiVersion;
use crate::document::shown;
use crate::problem::{Code, Place, Problem, Problems, Severity};
use crate::tree::{Cursor, Text};

/// More problems than a person reads: the rest is counted.
const MOST_PROBLEMS: usize = 500;

pub(super) struct Report<'a> {
    text: &'a Text,
    /// Pointer of the resource in the file.
    resource: String,
    pub version: ApiVersion,
    /// Portability notes are errors.
    azure: bool,
    problems: Vec<Problem>,
    errors: usize,
    left_out: usize,
    left_out_errors: bool,
    /// Of a request's body only.
    pub reading: Option<Reading>,
}

impl<'a> Report<'a> {
    pub fn new(text: &'a Text, resource: &str, version: ApiVersion, azure: bool) -> Self {
        Self {
            text,
            resource: resource.to_owned(),
            version,
            azure,
            problems: Vec::new(),
            errors: 0,
            left_out: 0,
            left_out_errors: false,
            reading: None,
        }
    }

    /// The member at `pointer` was read as the field of that name.
    pub fn read_as(&mut self, pointer: &str, name: &'static str) {
        if let Some(reading) = &mut self.reading {
            reading.names.insert(pointer.to_owned(), name);
        }
    }

    /// The member at `pointer` is ignored.
    pub fn ignored(&mut self, pointer: &str) {
        if let Some(reading) = &mut self.reading {
            reading.ignored.insert(pointer.to_owned());
        }
    }

    /// The discriminator at `pointer` was read as this word.
    pub fn is_kind(&mut self, pointer: &str, name: &'static str) {
        if let Some(reading) = &mut self.reading {
            reading.kinds.insert(pointer.to_owned(), name);
        }
    }

    /// The list is full: a problem more is counted, and needs no help.
    pub fn is_full(&self) -> bool {
        self.left_out > 0
    }

    /// Counts a problem for which there is no room on the list, so that it need not be
    /// worded: a hostile file has a million of them. False if there is room.
    pub fn counted(&mut self, severity: Severity) -> bool {
        if self.is_full() {
            self.left_out += 1;
            self.errors += usize::from(severity == Severity::Error);
            self.left_out_errors |= severity == Severity::Error;
        }
        self.is_full()
    }

    /// The list is full, and the template is refused already: the rest need not be looked at.
    pub fn is_hopeless(&self) -> bool {
        self.is_full() && self.errors > 0
    }

    pub fn place(&self, cursor: &Cursor<'_>) -> Place {
        cursor.place(self.text)
    }

    pub fn place_at(&self, pointer: &str, offset: u32) -> Place {
        self.text.place(pointer, offset)
    }

    /// Puts a problem on the list; its help is added to what comes back.
    pub fn push(&mut self, problem: Problem) -> &mut Problem {
        self.errors += usize::from(problem.severity == Severity::Error);
        if self.problems.len() == MOST_PROBLEMS {
            // The list keeps its length: the last place is for the newest.
            self.left_out += 1;
            let last = self.problems.pop();
            self.left_out_errors |= last.is_some_and(|problem| problem.severity == Severity::Error);
        }
        self.problems.push(problem);
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    pub fn error(&mut self, cursor: &Cursor<'_>, code: Code, message: impl Into<String>) -> &mut Problem {
        let place = self.place(cursor);
        self.push(Problem::error(code, &place, message))
    }

    pub fn warning(&mut self, cursor: &Cursor<'_>, code: Code, message: impl Into<String>) -> &mut Problem {
        let place = self.place(cursor);
        self.push(Problem::warning(code, &place, message))
    }

    pub fn note(&mut self, cursor: &Cursor<'_>, code: Code, message: impl Into<String>) -> &mut Problem {
        let place = self.place(cursor);
        self.push(Problem::note(code, &place, message))
    }

    /// AIB: `Field 'x' has a bad value: 'y'`. `cursor` is the value.
    pub fn bad_value(&mut self, cursor: &Cursor<'_>, value: &str, help: impl Into<String>) {
        let message = self.bad_value_text(cursor, value);
        self.error(cursor, Code::BadValue, message).help = Some(help.into());
    }

    pub fn bad_value_text(&self, cursor: &Cursor<'_>, value: &str) -> String {
        let (parent, field) = self.label_of_parent(&cursor.pointer);
        format!("Validation failed: '{parent}': Field '{field}' has a bad value: '{}'", shown(value))
    }

    /// AIB: `Missing field 'x'`. `parent` is the object that lacks it.
    pub fn missing(&mut self, parent: &Cursor<'_>, field: &str) -> &mut Problem {
        let label = self.label(&parent.pointer);
        self.error(
            parent,
            Code::MissingField,
            format!("Validation failed: '{label}': Missing field '{field}'"),
        )
    }

    /// Works here, not in Azure: a note, or an error where Azure is asked for.
    pub fn not_portable(&mut self, cursor: &Cursor<'_>, message: &str, help: impl Into<String>) {
        let problem = if self.azure {
            self.error(cursor, Code::NotPortable, format!("does not work in Azure: {message}"))
        } else {
            self.note(cursor, Code::NotPortable, format!("works here, not in Azure: {message}"))
        };
        problem.help = Some(help.into());
    }

    /// Checked, and without effect on this host.
    pub fn no_local_meaning(&mut self, cursor: &Cursor<'_>, message: &str) {
        self.note(cursor, Code::NoLocalMeaning, format!("no local meaning: {message}"));
    }

    /// `/resources/0/properties/customize/2` → `ImageTemplate.properties.customize[2]`.
    pub fn label(&self, pointer: &str) -> String {
        let mut label = "ImageTemplate".to_owned();
        let inner = pointer.strip_prefix(self.resource.as_str()).unwrap_or(pointer);
        for segment in inner.split('/').skip(1) {
            let segment = segment.replace("~1", "/").replace("~0", "~");
            if !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_digit()) {
                label.push_str(&format!("[{segment}]"));
            } else {
                label.push_str(&format!(".{}", shown(&segment)));
            }
        }
        label
    }

    /// The object's label and the field's name, for a field or a list item below a field.
    pub fn label_of_parent(&self, pointer: &str) -> (String, String) {
        let label = self.label(pointer);
        match label.rsplit_once('.') {
            Some((parent, field)) => (parent.to_owned(), field.to_owned()),
            None => (label.clone(), label),
        }
    }

    /// The path of struct fields of AIB's unmarshalling errors:
    /// `struct field Properties: struct field VMProfile`.
    pub fn struct_path(&self, pointer: &str) -> String {
        let inner = pointer.strip_prefix(self.resource.as_str()).unwrap_or(pointer);
        inner
            .split('/')
            .skip(1)
            .filter(|segment| !segment.bytes().all(|byte| byte.is_ascii_digit()))
            .map(|segment| {
                let mut letters = segment.chars();
                let first: String = letters.next().map(|c| c.to_uppercase().collect()).unwrap_or_default();
                format!("struct field {first}{}: ", letters.as_str())
            })
            .collect()
    }

    pub fn finish(mut self) -> Problems {
        if self.left_out > 0 {
            let place = self.text.place("", u32::MAX);
            let severity = if self.left_out_errors { Severity::Error } else { Severity::Note };
            self.problems.push(Problem::new(
                severity,
                Code::Syntax,
                &place,
                format!("at least {} more problems are not listed", self.left_out),
            ));
        }
        Problems::new(self.problems)
    }
}
