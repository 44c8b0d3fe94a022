//! What is wrong with a template, and where: every problem at once, never only the first.
//!
//! A [`Problem`] names its place twice: by JSON pointer for programs, by line and
//! column for people. Codes are stable words a script may depend on.

use std::fmt;

use serde::Serialize;

/// The problem list format that [`Problems::to_json`] writes.
pub const PROBLEMS_FORMAT: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The template cannot be used.
    Error,
    /// It can, but probably does not do what its author meant.
    Warning,
    /// Worth knowing: no local meaning, or not portable to Azure.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

/// The stable words for what is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The text is not JSON or YAML, or not text at all.
    Syntax,
    TooLarge,
    TooDeep,
    /// The same key twice in one object.
    RepeatedKey,
    NotATemplate,
    /// A deployment template with expressions.
    Expression,
    /// `<region>` and the like were never filled in.
    Placeholder,
    /// More than one image template in a deployment.
    SeveralTemplates,
    UnknownApiVersion,
    DefaultApiVersion,
    WrongResourceType,
    /// An object, list, number or boolean was expected.
    WrongType,
    MissingField,
    UnknownField,
    /// The property exists under another letter case.
    WrongCase,
    ReadOnlyField,
    UnknownType,
    BadValue,
    BadName,
    DuplicateName,
    OutOfRange,
    /// Two properties that exclude each other, or two of which one is needed.
    Exclusive,
    BadChecksum,
    UnknownVmSize,
    Gpu,
    /// `CustomizerNotSupportedForImage`.
    CustomizerNotSupported,
    UnknownImage,
    /// Works here, not in Azure.
    NotPortable,
    /// Valid, and without effect on this host.
    NoLocalMeaning,
    Deprecated,
    Advice,
    /// Valid, and not built by this version.
    NotBuiltYet,
    ShrinkingDisk,
    /// A change would take a distribution target away.
    MissingTarget,
    /// The machine gets less than the template asks for.
    Capped,
}

/// Where in the file: RFC 6901 pointer, and 1-based line and column (in characters).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Place {
    pub pointer: String,
    pub line: u32,
    pub column: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    pub severity: Severity,
    pub code: Code,
    /// JSON pointer (RFC 6901) into the file; empty for the whole of it.
    pub pointer: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Problem {
    pub fn new(severity: Severity, code: Code, place: &Place, message: impl Into<String>) -> Self {
        Self {
            severity,
            code,
            pointer: place.pointer.clone(),
            line: place.line,
            column: place.column,
            message: message.into(),
            help: None,
        }
    }

    pub fn error(code: Code, place: &Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, code, place, message)
    }

    pub fn warning(code: Code, place: &Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, code, place, message)
    }

    pub fn note(code: Code, place: &Place, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, code, place, message)
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// `12:5: error: … (/properties/source/type)`, without the file's name and the help.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.line, self.column, self.severity, self.message)?;
        if self.pointer.is_empty() { Ok(()) } else { write!(f, " ({})", self.pointer) }
    }
}

/// All problems of one file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub fn new(mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|p| (p.line, p.column, p.severity));
        Self(list)
    }

    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|p| p.severity == Severity::Error)
    }

    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter().filter(|p| p.severity == Severity::Error)
    }

    /// The document `kiln validate --json` prints: one JSON object, pretty, with a line feed at its end.
    pub fn to_json(&self, file: &str) -> String {
        #[derive(Serialize)]
        struct Report<'a> {
            format: u32,
            file: &'a str,
            valid: bool,
            problems: &'a [Problem],
        }
        let report = Report { format: PROBLEMS_FORMAT, file, valid: !self.has_errors(), problems: &self.0 };
        crate::json::pretty(&report)
    }
}

impl std::ops::Deref for Problems {
    type Target = [Problem];

    fn deref(&self) -> &[Problem] {
        &self.0
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// The first error in one sentence, and how many there are besides.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut errors = self.errors();
        match errors.next() {
            None => write!(f, "no errors"),
            Some(first) => {
                write!(f, "line {}: {}", first.line, first.message)?;
                match errors.count() {
                    0 => Ok(()),
                    more => write!(f, " (and {more} more)"),
                }
            }
        }
    }
}

impl std::error::Error for Problems {}
