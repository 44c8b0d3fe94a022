//! A run on a terminal: settled lines scroll, the steps under way are redrawn below them.
//!
//! ```text
//!   Connected to SSH!                          guest and build output, dimmed
//!   boot the guest: done in 37.9s
//! Customizing
//!     Setting up nginx (1.22.1-9) ...
//! ⠹ Shell "install nginx"  12s · silent for 8s
//! ```
//!
//! Drawing is indicatif's: it asks for the window's size each time it draws, and a
//! thread of its own keeps the clocks going between two events.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use kiln_model::event::{RunEvent, RunEventKind, Unit};

use super::log_lines::LogLines;
use super::plain;
use crate::ui::guest_text::neutralize;
use crate::ui::{Printer, text};

/// A customizer that has said nothing for this long is called silent. Kiln's own steps
/// have nothing to say until they end.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// Clocks show seconds; four times as often makes the spinner turn.
const TICK: Duration = Duration::from_millis(250);
/// Redraws a second, at most.
const DRAWS: u8 = 10;
/// Columns of the bar, where there is one.
const BAR: &str = "{spinner} {msg}  {bar:24} {state}";
const NO_BAR: &str = "{spinner} {msg}  {state}";

#[derive(Debug)]
pub struct Live<'a> {
    printer: &'a Printer,
    screen: MultiProgress,
    steps: HashMap<String, Running>,
    log: LogLines,
    /// When anything was last heard of the run.
    heard: Arc<Mutex<Instant>>,
}

#[derive(Debug)]
struct Running {
    bar: ProgressBar,
    far: Far,
}

/// How far a step is: done, total (0 where not known) and in what.
type Far = Arc<Mutex<Option<(u64, u64, Unit)>>>;

impl<'a> Live<'a> {
    pub fn new(printer: &'a Printer) -> Self {
        Self {
            printer,
            screen: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(DRAWS)),
            steps: HashMap::new(),
            log: LogLines::default(),
            heard: Arc::new(Mutex::new(Instant::now())),
        }
    }

    pub fn event(&mut self, event: &RunEvent) {
        self.hear();
        match &event.event {
            RunEventKind::StepStarted { step } => self.start(&step.id, &step.title),
            RunEventKind::StepProgress { step, done, total, unit } => {
                if let Some(running) = self.steps.get(&step.id) {
                    running.advance(*done, *total, *unit);
                }
            }
            RunEventKind::StepEnded { step, .. } => {
                if let Some(running) = self.steps.remove(&step.id) {
                    running.bar.finish_and_clear();
                    self.screen.remove(&running.bar);
                }
            }
            RunEventKind::RunStarted { .. }
            | RunEventKind::PhaseStarted { .. }
            | RunEventKind::Notice { .. }
            | RunEventKind::OutputPublished { .. }
            | RunEventKind::RunEnded { .. } => {}
        }
        self.print(plain::settled(&event.event, self.printer.err));
    }

    pub fn log(&mut self, bytes: &[u8]) {
        self.hear();
        let lines = self.log.push(bytes);
        self.print(lines.iter().map(|line| self.dimmed(line)).collect());
    }

    fn dimmed(&self, line: &str) -> String {
        self.printer.err.faint(format!("    {line}"))
    }

    pub fn talk(&self, line: &str) {
        self.print(vec![line.to_owned()]);
    }

    pub fn finish(mut self) {
        if let Some(line) = self.log.finish() {
            self.print(vec![self.dimmed(&line)]);
        }
        for running in self.steps.values() {
            running.bar.finish_and_clear();
        }
        // A terminal that is gone is no reason to fail.
        let _ = self.screen.clear();
    }

    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn print(&self, lines: Vec<String>) {
        if !lines.is_empty() {
            // All at once: the steps below are drawn anew after it. Written by us, a line
            // stays as long as it is (indicatif fills it up to the window's width, which
            // looks broken in a window that becomes narrower).
            self.screen.suspend(|| self.printer.talk(&lines.join("\n")));
        }
    }

    fn start(&mut self, id: &str, title: &str) {
        let far = Arc::new(Mutex::new(None));
        let bar = self.screen.add(ProgressBar::no_length());
        let heard = id.starts_with("customize/").then(|| Arc::clone(&self.heard));
        bar.set_style(style(NO_BAR, heard, &far));
        bar.set_message(neutralize(title));
        bar.enable_steady_tick(TICK);
        self.steps.insert(id.to_owned(), Running { bar, far });
    }
}

/// `heard` is when anything was last heard of a step that may talk.
fn style(template: &str, heard: Option<Arc<Mutex<Instant>>>, far: &Far) -> ProgressStyle {
    let far = Arc::clone(far);
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()).with_key(
        "state",
        move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let silence = heard.as_ref().map_or(Duration::ZERO, |heard| {
                heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
            });
            let far = *far.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = out.write_str(&state_text(state.elapsed(), silence, far));
        },
    )
}

impl Running {
    fn advance(&self, done: u64, total: u64, unit: Unit) {
        *self.far.lock().unwrap_or_else(PoisonError::into_inner) = Some((done, total, unit));
        if total > 0 {
            if self.bar.length() != Some(total) {
                self.bar.set_length(total);
                let style = self.bar.style();
                if let Ok(style) = with_template(style, BAR) {
                    self.bar.set_style(style);
                }
            }
            self.bar.set_position(done.min(total));
        }
    }
}

fn with_template(
    style: ProgressStyle,
    template: &str,
) -> Result<ProgressStyle, indicatif::style::TemplateError> {
    style.template(template)
}

/// `12s`, `12s · 3 MiB of 10 MiB`, `1m 02s · silent for 8s`.
fn state_text(elapsed: Duration, silence: Duration, far: Option<(u64, u64, Unit)>) -> String {
    let mut parts = vec![whole_seconds(elapsed)];
    parts.extend(far.map(|(done, total, unit)| plain::how_far(done, total, unit)));
    // A step that has just begun has not been silent, whatever was before it.
    if silence.min(elapsed) >= SILENT_AFTER {
        parts.push(if silence >= elapsed {
            "silent since it began".to_owned()
        } else {
            format!("silent for {}", whole_seconds(silence))
        });
    }
    parts.join(" · ")
}

fn whole_seconds(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds => text::duration(Duration::from_secs(seconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_step_tells_time_distance_and_silence() {
        let seconds = Duration::from_secs;
        assert_eq!(state_text(seconds(12), Duration::ZERO, None), "12s");
        assert_eq!(state_text(seconds(12), seconds(1), None), "12s");
        assert_eq!(state_text(seconds(62), seconds(8), None), "1m 02s · silent for 8s");
        assert_eq!(state_text(seconds(12), seconds(30), None), "12s · silent since it began");
        assert_eq!(
            state_text(seconds(3), seconds(900), Some((3 << 20, 10 << 20, Unit::Bytes))),
            "3s · 3 MiB of 10 MiB"
        );
    }
}
