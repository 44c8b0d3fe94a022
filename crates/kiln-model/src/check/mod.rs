//! Template checks: everything at once, in AIB's own wording where that is known.
//!
//! ```text
//!  Document ─ envelope ─ source ─ customize ─ validate ─ distribute ─ vmProfile ─ the rest
//!                 │         │         │           │           │           │          │
//!                 └─────────┴─────────┴── Report ─┴───────────┴───────────┴──────────┘
//!                                           │
//!                               no errors?  ▼
//!                                    CheckedTemplate
//! ```
//! Each part reads its objects by the tables of [`schema`] and gives a typed value, or
//! nothing after it reported why. Three sorts of findings that are no errors: warnings
//! (ignored fields), notes "works here, not in Azure" (errors if Azure is asked for), and
//! notes "no local meaning". What is valid but cannot be built by this version is no
//! finding at all here: [`CheckedTemplate::plan`] refuses it.

mod customize;
mod distribute;
mod echo;
mod machine;
mod object;
mod report;
mod resource;
mod schema;
mod source;
mod values;

pub use echo::resource_for;
pub(crate) use schema::{DEPLOYMENT_ENVELOPE, ENVELOPE};
pub(crate) use values::input_location;

use crate::api::ApiVersion;
use crate::catalog::Catalog;
use crate::document::{Document, shown};
use crate::problem::{Code, Problem, Problems};
use crate::suggest;
use crate::template::CheckedTemplate;
use crate::tree::Value;
use report::Report;

/// What a check needs to know besides the template.
#[derive(Debug, Clone, Copy)]
pub struct CheckContext<'a> {
    pub catalog: &'a Catalog,
    /// Would it work in Azure too? Turns portability notes into errors.
    pub azure: bool,
}

/// What a check found.
#[derive(Debug, Clone)]
pub struct Checked {
    pub problems: Problems,
    /// There if and only if no problem is an error.
    pub template: Option<CheckedTemplate>,
}

/// What a check of a request's body found. Addresses in the resource are whole: no `Debug`.
#[derive(Clone)]
pub struct CheckedBody {
    pub problems: Problems,
    /// There if and only if no problem is an error.
    pub template: Option<CheckedTemplate>,
    /// The resource as it was understood, there with the template: names in their exact spelling,
    /// without what is ignored, read-only or null.
    pub resource: Option<serde_json::Value>,
}

/// Checks a whole template and reports every problem.
pub fn check(document: &Document, context: &CheckContext<'_>) -> Checked {
    let CheckedBody { problems, template, resource: _ } = check_body(document, context);
    Checked { problems, template }
}

/// The same for a document of [`Document::from_request`], with the resource to store.
pub fn check_body(document: &Document, context: &CheckContext<'_>) -> CheckedBody {
    let (version, finding) = match document.request {
        Some(version) => (version, None),
        None => api_version(document),
    };
    let mut report = Report::new(&document.text, &document.pointer, version, context.azure);
    report.reading = document.request.map(|_| echo::Reading::default());
    for problem in document.notes.iter().cloned().chain(finding) {
        report.push(problem);
    }
    let template = resource::template(document, context.catalog, &mut report);
    let reading = report.reading.take();
    let problems = report.finish();
    let template = template.filter(|_| !problems.has_errors());
    debug_assert_eq!(template.is_none(), problems.has_errors(), "{problems}");
    let resource = reading.filter(|_| template.is_some()).map(|reading| reading.resource(&document.cursor()));
    CheckedBody { problems, template, resource }
}

/// The file's api-version. An unknown one is an error; the rest is then checked by the newest.
fn api_version(document: &Document) -> (ApiVersion, Option<Problem>) {
    let cursor = document.cursor();
    let member =
        document.resource.members().iter().find(|member| member.key.eq_ignore_ascii_case("apiVersion"));
    let Some(member) = member.filter(|member| member.value.value != Value::Null) else {
        let message = format!("no apiVersion: read as {}", ApiVersion::DEFAULT);
        let place = cursor.place(&document.text);
        return (ApiVersion::DEFAULT, Some(Problem::note(Code::DefaultApiVersion, &place, message)));
    };
    let place = cursor.member(member).place(&document.text);
    let known: Vec<&str> = ApiVersion::ALL.iter().map(|version| version.as_str()).collect();
    let newest = ApiVersion::ALL[ApiVersion::ALL.len() - 1];
    match &member.value.value {
        Value::String(text) => match ApiVersion::find(text) {
            Some(version) => (version, None),
            // Reported with the other placeholders.
            None if object::is_placeholder(text) => (ApiVersion::DEFAULT, None),
            None => {
                let message =
                    format!("unknown api-version '{}'; known are {}", shown(text), known.join(", "));
                let mut problem = Problem::error(Code::UnknownApiVersion, &place, message);
                problem.help = suggest::nearest(text, known).map(|near| format!("did you mean '{near}'?"));
                (newest, Some(problem))
            }
        },
        _ => {
            let message = format!("apiVersion must be a string; known are {}", known.join(", "));
            let problem = Problem::error(Code::WrongType, &place, message)
                .help("write the date in quotes, for example \"2020-02-14\"");
            (newest, Some(problem))
        }
    }
}

#[cfg(test)]
mod tests;
