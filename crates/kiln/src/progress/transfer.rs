//! Bytes on their way, outside of a run: pulling, importing, fetching for a plan.
//!
//! On a terminal one bar a transfer, redrawn in place; elsewhere a line now and then.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use kiln_model::event::Unit;

use super::plain::how_far;
use crate::ui::Printer;
use crate::ui::guest_text::neutralize;

/// Between two lines about one transfer, where lines stay.
const LINE_EVERY: Duration = Duration::from_secs(10);
const BAR: &str = "{spinner} {msg}  {bar:24} {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}";
const PERCENT_BAR: &str = "{spinner} {msg}  {bar:24} {percent} %";
const NO_BAR: &str = "{spinner} {msg}  {binary_bytes}  {binary_bytes_per_sec}";

/// Transfers under way, by a number of the caller's. Shared by threads.
pub struct Transfers<'a> {
    printer: &'a Printer,
    screen: Option<MultiProgress>,
    running: Mutex<HashMap<usize, Running>>,
}

struct Running {
    bar: Option<ProgressBar>,
    shown: Instant,
}

impl<'a> Transfers<'a> {
    pub fn new(printer: &'a Printer, verbose: bool) -> Self {
        let screen = (printer.is_live() && !verbose)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { printer, screen, running: Mutex::new(HashMap::new()) }
    }

    /// How far a transfer is; the first call begins it.
    pub fn advance(&self, id: usize, name: &str, done: u64, total: Option<u64>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let one = running.entry(id).or_insert_with(|| Running {
            bar: self.screen.as_ref().map(|screen| begin(screen, name)),
            shown: Instant::now(),
        });
        match &one.bar {
            Some(bar) => {
                if let Some(total) = total.filter(|total| bar.length() != Some(*total)) {
                    bar.set_length(total);
                    bar.set_style(style(BAR));
                }
                bar.set_position(done);
            }
            None if one.shown.elapsed() >= LINE_EVERY => {
                one.shown = Instant::now();
                let far = how_far(done, total.unwrap_or(0), Unit::Bytes);
                self.printer.talk(&format!("  {}: {far}", neutralize(name)));
            }
            None => {}
        }
    }

    /// The same in hundredths of a percent, for work that is not counted in bytes.
    pub fn percent(&self, id: usize, name: &str, hundredths: u16) {
        if let Some(screen) = &self.screen {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let one = running.entry(id).or_insert_with(|| {
                let bar = begin(screen, name);
                bar.set_length(10_000);
                bar.set_style(style(PERCENT_BAR));
                Running { bar: Some(bar), shown: Instant::now() }
            });
            one.bar.iter().for_each(|bar| bar.set_position(hundredths.into()));
        }
    }

    /// Ends a transfer's drawing.
    pub fn end(&self, id: usize) {
        let ended = self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let (Some(screen), Some(bar)) = (&self.screen, ended.and_then(|running| running.bar)) {
            bar.finish_and_clear();
            screen.remove(&bar);
        }
    }

    /// One line that stays.
    pub fn talk(&self, line: &str) {
        let line = neutralize(line);
        match &self.screen {
            Some(screen) => screen.suspend(|| self.printer.talk(&line)),
            None => self.printer.talk(&line),
        }
    }
}

impl Drop for Transfers<'_> {
    fn drop(&mut self) {
        if let Some(screen) = &self.screen {
            let _ = screen.clear();
        }
    }
}

fn begin(screen: &MultiProgress, name: &str) -> ProgressBar {
    let bar = screen.add(ProgressBar::no_length());
    bar.set_style(style(NO_BAR));
    bar.set_message(neutralize(name));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_good() {
        for template in [BAR, PERCENT_BAR, NO_BAR] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
