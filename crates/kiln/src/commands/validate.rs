//! `kiln validate`: every problem of a template, at once.

use super::prepare::{check_template, read};
use super::shelves::Shelves;
use super::{End, Surroundings};
use crate::exit::ExitStatus;
use crate::exit::Failure;
use crate::settings::{Folders, ValidateSettings};
use crate::ui::problems;

pub fn run(around: &Surroundings<'_>, settings: &ValidateSettings) -> End {
    let printer = around.printer;
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    let shelves = Shelves::look(&folders)?;
    let bytes = read(&settings.template)?;
    let (found, template) = check_template(&settings.template, &bytes, &shelves, settings.azure);
    let file = settings.template.shown();
    if settings.json {
        printer.raw_data(found.to_json(&file).as_bytes());
    } else {
        // The list is what was asked for: it is data.
        for problem in found.iter() {
            problems::lines(&file, problem, printer.out).iter().for_each(|line| printer.data(line));
        }
        printer.talk(&format!("{file}: {}", problems::tally(&found)));
        // Not a fault of the template, and better known before a build is tried.
        for refusal in template.iter().flat_map(|template| template.refusals()) {
            let kiln_model::Problem { line, column, message, .. } = refusal;
            printer.talk(&format!("{file}:{line}:{column}: valid, but not built by this version: {message}"));
        }
    }
    Ok(if found.has_errors() { ExitStatus::Failed } else { ExitStatus::Done })
}
