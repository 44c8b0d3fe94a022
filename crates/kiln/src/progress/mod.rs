//! A run as it is shown while it happens.
//!
//! ```text
//!  RunEvents ──┬─► Outcome   the run's state, and its end      (always)
//!              └─► Shown     Live   steps redrawn in place     (stderr is a terminal)
//!                            Plain  one line at a time         (a pipe, a dumb terminal)
//!                            Json   the events themselves      (--json, on stdout)
//!  log bytes ─────► Shown    the guest's output, made harmless; not with --json
//! ```
//!
//! What is shown is a function of the events and of nothing else: the same stream
//! gives the same lines (but for the live view's clocks).

mod json;
mod live;
mod log_lines;
mod outcome;
mod plain;
pub mod report;
pub mod transfer;
pub mod waiting;

use kiln_model::event::RunEvent;

use crate::ui::Printer;
pub use json::{RESULT_FORMAT, final_object, refusal};
pub use outcome::{End as Ended, Outcome};

/// A run being shown.
#[derive(Debug)]
pub struct Show<'a> {
    printer: &'a Printer,
    pub outcome: Outcome,
    shown: Shown<'a>,
}

#[derive(Debug)]
enum Shown<'a> {
    Live(live::Live<'a>),
    Plain(plain::Plain),
    Json,
}

impl<'a> Show<'a> {
    /// `verbose` keeps lines in place: the diagnostic log would be drawn over.
    pub fn new(printer: &'a Printer, json: bool, verbose: bool) -> Self {
        let shown = if json {
            Shown::Json
        } else if printer.is_live() && !verbose {
            Shown::Live(live::Live::new(printer))
        } else {
            Shown::Plain(plain::Plain::new(printer.err))
        };
        Self { printer, outcome: Outcome::default(), shown }
    }

    pub fn event(&mut self, event: &RunEvent) {
        self.outcome.fold(event);
        match &mut self.shown {
            Shown::Live(live) => live.event(event),
            Shown::Plain(plain) => plain.event(event).iter().for_each(|line| self.printer.talk(line)),
            Shown::Json => self.printer.data(&json::line(event)),
        }
    }

    /// Bytes of `customization.log`, cut anywhere.
    pub fn log(&mut self, bytes: &[u8]) {
        match &mut self.shown {
            Shown::Live(live) => live.log(bytes),
            Shown::Plain(plain) => plain.log(bytes).iter().for_each(|line| self.printer.talk(line)),
            Shown::Json => {}
        }
    }

    /// Something to say while the run goes on.
    pub fn talk(&mut self, line: &str) {
        match &mut self.shown {
            Shown::Live(live) => live.talk(line),
            Shown::Plain(_) | Shown::Json => self.printer.talk(line),
        }
    }

    /// Ends the drawing; what comes next is printed below it.
    pub fn finish(self) -> Outcome {
        match self.shown {
            Shown::Live(live) => live.finish(),
            Shown::Plain(plain) => plain.finish().iter().for_each(|line| self.printer.talk(line)),
            Shown::Json => {}
        }
        self.outcome
    }
}
