//! `kiln version`: the version, and with `--json` the file formats it reads and writes.

use serde_json::json;

use super::End;
use crate::exit::ExitStatus;
use crate::ui::Printer;

/// The newest format of `kiln version --json`.
const VERSION_FORMAT: u32 = 1;

pub fn run(printer: &Printer, as_json: bool) -> End {
    let version = env!("CARGO_PKG_VERSION");
    if as_json {
        let object = json!({
            "format": VERSION_FORMAT,
            "version": version,
            "formats": {
                "catalog": kiln_model::catalog::CATALOG_FORMAT,
                "claim": kiln_build::run_dir::CLAIM_FORMAT,
                "events": kiln_model::event::EVENTS_FORMAT,
                "library": kiln_library::LIBRARY_FORMAT,
                "plan": kiln_model::plan::PLAN_FORMAT,
                "problems": kiln_model::problem::PROBLEMS_FORMAT,
                "request": kiln_build::run_dir::REQUEST_FORMAT,
                "result": crate::progress::RESULT_FORMAT,
                "runOutput": kiln_model::event::RUN_OUTPUT_FORMAT,
                "transcript": kiln_build::transcript::TRANSCRIPT_FORMAT,
            },
        });
        printer.data(&format!("{object:#}"));
    } else {
        printer.data(&format!("kiln {version}"));
    }
    Ok(ExitStatus::Done)
}
