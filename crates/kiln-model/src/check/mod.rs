//! Template checks: everything at once, in AIB's own wording where that is known.

use crate::catalog::Catalog;
use crate::document::Document;
use crate::problem::Problems;
use crate::template::CheckedTemplate;

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

/// Checks a whole template and reports every problem.
pub fn check(document: &Document, context: &CheckContext<'_>) -> Checked {
    let _ = (document, context);
    todo!()
}
