//! A run in lines that stay: for pipes and logs, and for what the live view has done with.
//!
//! ```text
//! [   0.0s] run 20261123T172233Z-hello-3f9a1c: template hello on debian-12 12.20250101.0
//! [   0.1s] Building
//! [   0.1s]   fetch inputs
//! [   0.4s]   fetch inputs: done in 0.3s, 2 files
//! [  38.3s] Customizing
//! [  38.3s]   Shell "install nginx"
//!           |   Setting up nginx …
//! ```

use std::collections::HashMap;

use kiln_model::event::{NoticeLevel, RunEvent, RunEventKind, StepOutcome, Unit};

use super::log_lines::LogLines;
use crate::ui::guest_text::neutralize;
use crate::ui::{Paint, text};

/// Between two lines about how far a step is, milliseconds of the run.
const PROGRESS_EVERY_MS: u64 = 10_000;

#[derive(Debug)]
pub struct Plain {
    paint: Paint,
    log: LogLines,
    /// When a step's progress was last shown, by its id.
    progress_shown: HashMap<String, u64>,
}

impl Plain {
    pub fn new(paint: Paint) -> Self {
        Self { paint, log: LogLines::default(), progress_shown: HashMap::new() }
    }

    /// The lines an event is worth.
    pub fn event(&mut self, event: &RunEvent) -> Vec<String> {
        let at = event.elapsed_ms;
        match &event.event {
            RunEventKind::StepStarted { step } => {
                self.progress_shown.insert(step.id.clone(), at);
                vec![self.stamped(at, &format!("  {}", neutralize(&step.title)))]
            }
            RunEventKind::StepProgress { step, done, total, unit } => {
                let last = self.progress_shown.entry(step.id.clone()).or_insert(at);
                if at.saturating_sub(*last) < PROGRESS_EVERY_MS {
                    return Vec::new();
                }
                *last = at;
                let far = how_far(*done, *total, *unit);
                vec![self.stamped(at, &format!("  {}: {far}", neutralize(&step.title)))]
            }
            other => settled(other, self.paint).iter().map(|line| self.stamped(at, line)).collect(),
        }
    }

    /// The guest's lines.
    pub fn log(&mut self, bytes: &[u8]) -> Vec<String> {
        self.log.push(bytes).iter().map(|line| self.marked(line)).collect()
    }

    /// What is left when the run has ended.
    pub fn finish(mut self) -> Option<String> {
        self.log.finish().map(|line| self.marked(&line))
    }

    fn marked(&self, line: &str) -> String {
        format!("{}   {}", self.paint.faint("          |"), self.paint.faint(line))
    }

    fn stamped(&self, elapsed_ms: u64, line: &str) -> String {
        format!("{} {line}", self.paint.faint(format!("[{:>7}]", text::milliseconds(elapsed_ms))))
    }
}

/// The lines about what has happened and will not change; nothing for steps under way.
///
/// Texts of events may come from a template or a guest: they are made harmless here.
pub fn settled(event: &RunEventKind, paint: Paint) -> Vec<String> {
    match event {
        RunEventKind::RunStarted { run_id, template_name, source, attempt, .. } => {
            let again = if *attempt > 1 { format!(", attempt {attempt}") } else { String::new() };
            let (template, source) = (neutralize(template_name), neutralize(source));
            vec![format!("run {run_id}: template {template} on {source}{again}")]
        }
        RunEventKind::PhaseStarted { phase } => vec![paint.heading(phase)],
        RunEventKind::StepStarted { .. } | RunEventKind::StepProgress { .. } => Vec::new(),
        RunEventKind::StepEnded { step, outcome, message, ms } => {
            let time = text::milliseconds(*ms);
            let how = match outcome {
                StepOutcome::Succeeded => format!("done in {time}"),
                StepOutcome::Failed => paint.bad(format!("failed after {time}")),
                StepOutcome::Canceled => paint.attention(format!("canceled after {time}")),
            };
            let said = if message.is_empty() { String::new() } else { format!(", {}", neutralize(message)) };
            vec![format!("  {}: {how}{said}", neutralize(&step.title))]
        }
        RunEventKind::Notice { level, text } => {
            let text = neutralize(text);
            match level {
                NoticeLevel::Info => vec![format!("  {text}")],
                NoticeLevel::Warning => vec![format!("  {} {text}", paint.attention("warning:"))],
            }
        }
        RunEventKind::OutputPublished { output } => {
            let size = text::bytes(output.size);
            vec![format!("  {} published: {} ({size})", neutralize(&output.name), neutralize(&output.file))]
        }
        // The report says it, with everything that belongs to it.
        RunEventKind::RunEnded { .. } => Vec::new(),
    }
}

/// `12 MiB of 40 MiB`, `3 of 7`, `12 MiB`.
pub fn how_far(done: u64, total: u64, unit: Unit) -> String {
    let number = |count| match unit {
        Unit::Bytes => text::bytes(count),
        Unit::Items => count.to_string(),
    };
    if total == 0 { number(done) } else { format!("{} of {}", number(done), number(total)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::report::tests::{FAILED_RUN, GOOD_RUN, events};
    use expect_test::expect;

    fn shown(stream: &str) -> String {
        let mut plain = Plain::new(Paint { on: false });
        events(stream).iter().flat_map(|event| plain.event(event)).map(|line| line + "\n").collect()
    }

    #[test]
    fn a_good_run() {
        expect![[r#"
            [   0.0s] run 20261123T172233Z-hello-3f9a1c: template hello on debian-12 12.20250101.0
            [   0.0s]   warning: Standard_D4_v3 has 4 vCPUs; this host gives 2
            [   0.0s] Building
            [   0.0s]   fetch inputs
            [   0.0s]   overlay of the base image
            [   0.1s]   overlay of the base image: done in 0.1s
            [  12.4s]   fetch inputs: 20 MiB of 40 MiB
            [  15.0s]   fetch inputs: done in 15.0s, 2 files, 40 MiB
            [  15.0s]   boot the guest
            [  52.8s]   boot the guest: done in 37.8s
            [  52.8s] Customizing
            [  52.8s]   Shell "greet"
            [  54.1s]   Shell "greet": done in 1.3s
            [  54.1s]   File #2
            [  54.9s]   File #2: done in 0.8s, /tmp/motd, 12 B
            [  54.9s]   deprovision with waagent
            [  58.0s]   deprovision with waagent: done in 3.1s
            [ 1m 01s] Optimizing
            [ 1m 02s] Distributing
            [ 1m 02s]   VHD hello-vhd
            [ 1m 04s]   VHD hello-vhd: done in 2.0s
            [ 1m 04s]   hello-vhd published: hello-vhd.vhd (4 GiB)
        "#]]
        .assert_eq(&shown(GOOD_RUN));
    }

    #[test]
    fn a_failed_run() {
        expect![[r#"
            [   0.0s] run 20261123T172233Z-web-3f9a1c: template web on debian-12 12.20250101.0
            [   0.0s] Building
            [   0.0s]   boot the guest
            [  38.0s]   boot the guest: done in 38.0s
            [  38.0s] Customizing
            [  38.0s]   Shell "red"
            [  39.0s]   Shell "red": done in 1.0s
            [  39.0s]   Shell "install nginx"
            [  41.5s]   Shell "install nginx": failed after 2.5s, Script exited with non-zero exit status: 100. Allowed exit codes are: [0]
        "#]].assert_eq(&shown(FAILED_RUN));
    }

    #[test]
    fn guest_output_is_marked_and_harmless() {
        let mut plain = Plain::new(Paint { on: false });
        let mut lines = plain.log(b"[1] PACKER OUT     azure-arm: Setting \x1b[31mup\x1b[0m ng");
        assert!(lines.is_empty());
        lines.extend(plain.log(b"inx\n"));
        assert_eq!(lines, ["          |   Setting up nginx"]);
    }
}
