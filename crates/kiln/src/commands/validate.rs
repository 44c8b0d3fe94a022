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
    let (found, _) = check_template(&settings.template, &bytes, &shelves, settings.azure);
    let file = settings.template.shown();
    if settings.json {
        printer.raw_data(found.to_json(&file).as_bytes());
    } else {
        // The list is what was asked for: it is data.
        for problem in found.iter() {
            problems::lines(&file, problem, printer.out).iter().for_each(|line| printer.data(line));
        }
        printer.talk(&format!("{file}: {}", problems::tally(&found)));
    }
    Ok(if found.has_errors() { ExitStatus::Failed } else { ExitStatus::Done })
}
