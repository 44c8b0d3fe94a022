//! Waiting for a server: nothing for the first second, then that it goes on, and since when.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::ui::guest_text::neutralize;
use crate::ui::{Printer, text};

/// Nobody wonders before that.
const UNSAID: Duration = Duration::from_secs(1);
/// Between two lines, where lines stay.
const LINE_EVERY: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(250);

/// Something that is waited for. Dropping it ends the drawing.
pub struct Waiting<'a> {
    printer: &'a Printer,
    what: String,
    began: Instant,
    said: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl<'a> Waiting<'a> {
    /// `what` is a phrase: `storing hello`.
    pub fn new(printer: &'a Printer, what: impl Into<String>) -> Self {
        Self { printer, what: neutralize(&what.into()), began: Instant::now(), said: None, bar: None }
    }

    /// It still goes on.
    pub fn tick(&mut self) {
        let waited = self.began.elapsed();
        if waited < UNSAID || self.bar.is_some() {
            return;
        }
        if self.printer.is_live() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_message(self.what.clone());
            bar.enable_steady_tick(TICK);
            self.bar = Some(bar);
        } else if self.said.is_none_or(|said| said.elapsed() >= LINE_EVERY) {
            self.said = Some(Instant::now());
            self.printer.talk(&format!("{}: {} so far", self.what, text::duration(waited)));
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
