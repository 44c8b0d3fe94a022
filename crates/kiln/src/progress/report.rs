//! The end of a run in words: what came out and where it lies, or what went wrong,
//! with the lines that show it.

use std::path::Path;

use kiln_build::resume::NOT_KEPT;
use kiln_build::run_dir::RunDir;
use kiln_model::catalog::{Generation, Os};
use kiln_model::event::{Failure, RunOutput, StepOutcome};
use kiln_model::run::{Phase, RunState};
use kiln_model::{PhaseView, RunView};

use super::log_lines::text_of;
use super::outcome::{End, Outcome};
use crate::ui::guest_text::neutralize;
use crate::ui::{Paint, text};

/// Where a run lies.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    Here(&'a RunDir),
    /// On a server, under a template.
    Server {
        server: &'a str,
        template: &'a str,
    },
}

/// What the end of a run is shown with.
#[derive(Debug)]
pub struct Report<'a> {
    pub outcome: &'a Outcome,
    pub place: Place<'a>,
    /// Where the artifacts lie, absolute; none where they are still on the server.
    pub output_dir: Option<&'a Path>,
    pub kept_on_error: bool,
    pub paint: Paint,
}

impl Report<'_> {
    /// The lines, hints last.
    pub fn lines(&self) -> Vec<String> {
        let Some(end) = &self.outcome.end else {
            return vec![format!("{} the run left no end", self.paint.bad("error:"))];
        };
        let mut lines = Vec::new();
        let time = text::milliseconds(end.ms);
        match end.state {
            RunState::Succeeded => lines.push(format!("{} in {time}", self.paint.good("done"))),
            RunState::PartiallySucceeded => {
                lines.push(format!(
                    "{} after {time}: {}",
                    self.paint.attention("partly done"),
                    neutralize(&end.message)
                ));
            }
            RunState::Canceled => {
                lines.push(format!(
                    "{} after {time}: {}",
                    self.paint.attention("canceled"),
                    neutralize(&end.message)
                ));
            }
            RunState::Failed | RunState::Running | RunState::Canceling => {
                lines.extend(self.failure(end, &time));
            }
        }
        for output in &self.outcome.run.outputs {
            lines.push(String::new());
            lines.extend(self.output(output));
        }
        if end.state != RunState::Failed {
            lines.extend(self.phases(end.ms));
        }
        if let Some(contradiction) = &self.outcome.contradiction {
            lines.push(format!(
                "{} the run's events do not fit together: {contradiction}",
                self.paint.attention("warning:")
            ));
        }
        lines.extend(self.logs());
        lines.extend(self.hints(end).into_iter().map(|hint| format!("{} {hint}", self.paint.faint("hint:"))));
        lines
    }

    fn output(&self, output: &RunOutput) -> Vec<String> {
        let RunOutput { name, file, size, virtual_size, sha256, source, generation, status, .. } = output;
        let path = self.output_dir.map(|folder| folder.join(file));
        let mut lines = vec![
            row(
                name,
                &match &path {
                    Some(path) => self.paint.heading(path.display()),
                    None => format!("{file} on the server"),
                },
            ),
            row(
                "size",
                &format!(
                    "{size} bytes: a disk of {}, generation {}",
                    text::bytes(*virtual_size),
                    number(*generation)
                ),
            ),
            row("sha256", &sha256.to_string()),
            row(
                "made from",
                &format!("{} {} (sha256 {})", source.name, source.version, source.sha256.short()),
            ),
            row("status", status),
        ];
        lines.extend(path.map(|path| row("record", &path.with_extension("json").display().to_string())));
        lines
    }

    fn phases(&self, end_ms: u64) -> Option<String> {
        let phases: Vec<String> = self
            .outcome
            .run
            .phases
            .iter()
            .map(|phase| format!("{} {}", phase.phase, text::milliseconds(lasted(phase, end_ms))))
            .collect();
        (!phases.is_empty()).then(|| row("phases", &phases.join(", ")))
    }

    fn logs(&self) -> Vec<String> {
        match self.place {
            Place::Here(run_dir) => {
                let logs = [("log", run_dir.customization_log()), ("console", run_dir.serial_log())];
                logs.into_iter().map(|(name, path)| row(name, &path.display().to_string())).collect()
            }
            Place::Server { server, template } => {
                let run = &self.outcome.run.run_id;
                let command = format!("kiln run logs {} --run {run}", text::shell_word(template));
                vec![row("log", &command), row("server", server)]
            }
        }
    }

    fn failure(&self, end: &End, time: &str) -> Vec<String> {
        let Some(failure) = &end.failure else {
            return vec![format!(
                "{} the run failed after {time}: {}",
                self.paint.bad("error:"),
                neutralize(&end.message)
            )];
        };
        let Failure { fault: _, phase, step, cause, chain, log_tail, console_tail } = failure;
        let what = match step {
            Some(step) => format!("{} failed", neutralize(&step.title)),
            None => format!("the run failed in {phase}"),
        };
        let mut lines = vec![format!("{} {what}: {}", self.paint.bad("error:"), neutralize(cause))];
        lines.extend(
            chain
                .iter()
                .filter(|inner| !cause.contains(inner.trim()))
                .map(|inner| format!("  caused by: {}", neutralize(inner))),
        );
        let log: Vec<String> = log_tail.iter().filter_map(|line| text_of(line)).map(neutralize).collect();
        lines.push(format!("  after {time}, in {phase}"));
        lines.extend(self.tail("last lines of customization.log:", &log));
        let console: Vec<String> = console_tail.iter().map(|line| neutralize(line)).collect();
        lines.extend(self.tail("last lines of the serial console:", &console));
        lines
    }

    fn tail(&self, title: &str, tail: &[String]) -> Vec<String> {
        if tail.is_empty() {
            return Vec::new();
        }
        let bar = self.paint.faint("  |");
        let lines = tail.iter().map(|line| format!("{bar} {line}").trim_end().to_owned());
        std::iter::once(title.to_owned()).chain(lines).collect()
    }

    /// The end of the run's id, by which it is found.
    fn short_name(&self) -> &str {
        self.outcome.run.run_id.rsplit('-').next().unwrap_or_default()
    }

    /// How to go on at the step that failed, where that can be.
    fn retry(&self, end: &End) -> Option<String> {
        let in_a_step = end.failure.as_ref().is_some_and(|failure| failure.phase == Phase::Customizing);
        if !in_a_step || !kept_something(&self.outcome.run) {
            return None;
        }
        let what = match (self.place, self.output_dir) {
            (Place::Here(_), _) => self.short_name().to_owned(),
            // The template of a build on a server is gone when the build has ended.
            (Place::Server { .. }, Some(_)) => return None,
            (Place::Server { template, .. }, None) => format!("{} --file FILE", text::shell_word(template)),
        };
        Some(format!("correct it, then `kiln run retry {what}` goes on at the failed step"))
    }

    fn hints(&self, end: &End) -> Vec<String> {
        let outputs = &self.outcome.run.outputs;
        match (end.state, self.place, self.output_dir) {
            (RunState::Failed, Place::Here(run_dir), _) => {
                let left = kiln_build::debug::is_left(run_dir);
                let open = format!("`kiln debug {}` opens the machine as it was", self.short_name());
                let look = if self.kept_on_error || left {
                    format!("what the failed build left lies in {}", run_dir.work().display())
                } else {
                    "`--keep-on-error` keeps the machine of a failed build for a look at it".to_owned()
                };
                self.retry(end).into_iter().chain(left.then_some(open)).chain([look]).collect()
            }
            (RunState::Failed, Place::Server { .. }, _) => self.retry(end).into_iter().collect(),
            (_, _, Some(folder)) => outputs.iter().map(|output| boot_hint(output, folder)).collect(),
            (_, Place::Server { template, .. }, None) if !outputs.is_empty() => {
                vec![format!("`kiln output download {}` brings it here", text::shell_word(template))]
            }
            (_, _, None) => Vec::new(),
        }
    }
}

/// Whether a machine was kept after some step, or one that was kept went on.
fn kept_something(run: &RunView) -> bool {
    run.steps.iter().any(|step| {
        let done = step.outcome == Some(StepOutcome::Succeeded);
        let kept = step.step.id.starts_with("checkpoint/") && step.message != NOT_KEPT;
        done && (kept || step.step.id == "restore")
    })
}

/// Milliseconds of a phase; one that was cut off lasted to the run's end.
pub fn lasted(phase: &PhaseView, end_ms: u64) -> u64 {
    // An end before the start is another clock's (see `Outcome`).
    let ended = phase.ended_ms.filter(|ended| *ended >= phase.started_ms).unwrap_or(end_ms);
    ended.saturating_sub(phase.started_ms)
}

/// How to see the image boot, as a command to paste.
fn boot_hint(output: &RunOutput, output_dir: &Path) -> String {
    // In an option's value a comma is written twice (qemu(1), "-drive").
    let path = output_dir.join(&output.file).display().to_string().replace(',', ",,");
    let firmware = match output.generation {
        Generation::V1 => "",
        Generation::V2 => "-bios /usr/share/ovmf/OVMF.fd ",
    };
    match output.os {
        Os::Linux => {
            let machine = if firmware.is_empty() { "" } else { "-machine q35 " };
            let drive = text::shell_word(&format!("file={path},format=vpc,if=virtio"));
            format!(
                "see it boot, leaving the file as it is (it has no account until cloud-init makes one): \
                 qemu-system-x86_64 -m 1024 -nographic -snapshot {machine}{firmware}-drive {drive}"
            )
        }
        // The disk of a q35 is AHCI's, for which every Windows has a driver.
        Os::Windows => {
            let drive = text::shell_word(&format!("file={path},format=vpc"));
            format!(
                "see its first start, leaving the file as it is: \
                 qemu-system-x86_64 -machine q35 -cpu max -smp 2 -m 4096 -snapshot {firmware}-drive {drive}"
            )
        }
    }
}

fn number(generation: Generation) -> u8 {
    match generation {
        Generation::V1 => 1,
        Generation::V2 => 2,
    }
}

fn row(name: &str, value: &str) -> String {
    format!("  {name:<10} {value}")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use expect_test::expect;
    use kiln_model::event::RunEvent;

    /// Recorded event streams, as a worker writes them.
    pub const GOOD_RUN: &str = include_str!("../../tests/events/good.jsonl");
    pub const FAILED_RUN: &str = include_str!("../../tests/events/failed.jsonl");
    pub const SETTLED_RUN: &str = include_str!("../../tests/events/settled.jsonl");
    pub const CANCELED_RUN: &str = include_str!("../../tests/events/canceled.jsonl");

    pub fn events(stream: &str) -> Vec<RunEvent> {
        stream.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn outcome(stream: &str) -> Outcome {
        let mut outcome = Outcome::default();
        events(stream).iter().for_each(|event| outcome.fold(event));
        outcome
    }

    fn report(stream: &str) -> String {
        let home = tempfile::tempdir().unwrap();
        let run_dir = RunDir::open(home.path()).unwrap();
        let report = Report {
            outcome: &outcome(stream),
            place: Place::Here(&run_dir),
            output_dir: Some(Path::new("/srv/my images")),
            kept_on_error: false,
            paint: Paint { on: false },
        };
        let place = run_dir.path().display().to_string();
        report.lines().iter().map(|line| line.replace(&place, "/runs/RUN") + "\n").collect()
    }

    #[test]
    fn a_good_end() {
        expect![[r#"
            done in 1m 04s

              hello-vhd  /srv/my images/hello-vhd.vhd
              size       4294967808 bytes: a disk of 4 GiB, generation 1
              sha256     cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc
              made from  debian-12 12.20250101.0 (sha256 aaaaaaaaaaaa)
              status     booted in QEMU; not tried on Azure
              record     /srv/my images/hello-vhd.json
              phases     Building 52.8s, Customizing 8.2s, Optimizing 1.0s, Distributing 2.0s
              log        /runs/RUN/customization.log
              console    /runs/RUN/serial.log
            hint: see it boot, leaving the file as it is (it has no account until cloud-init makes one): qemu-system-x86_64 -m 1024 -nographic -snapshot -drive 'file=/srv/my images/hello-vhd.vhd,format=vpc,if=virtio'
        "#]].assert_eq(&report(GOOD_RUN));
    }

    #[test]
    fn a_windows_is_started_on_a_disk_it_has_a_driver_for() {
        let run = outcome(GOOD_RUN).run;
        let mut output = run.outputs[0].clone();
        (output.os, output.generation) = (Os::Windows, Generation::V2);
        expect!["see its first start, leaving the file as it is: qemu-system-x86_64 -machine q35 -cpu max -smp 2 -m 4096 -snapshot -bios /usr/share/ovmf/OVMF.fd -drive file=/out/hello-vhd.vhd,format=vpc"]
            .assert_eq(&boot_hint(&output, Path::new("/out")));
    }

    #[test]
    fn a_bad_end() {
        expect![[r#"
            error: Shell "install nginx" failed: Script exited with non-zero exit status: 100. Allowed exit codes are: [0]
              after 42.0s, in Customizing
            last lines of customization.log:
              | Reading package lists...
              | E: Unable to locate package nginx
              | Script exited with non-zero exit status: 100. Allowed exit codes are: [0]
            last lines of the serial console:
              | [   12.3] cloud-init: done
              | Debian GNU/Linux 12 localhost ttyS0
              log        /runs/RUN/customization.log
              console    /runs/RUN/serial.log
            hint: `--keep-on-error` keeps the machine of a failed build for a look at it
        "#]].assert_eq(&report(FAILED_RUN));
    }

    #[test]
    fn a_failed_step_is_retried_where_something_was_kept() {
        let kept = |message: &str| {
            let mut outcome = outcome(FAILED_RUN);
            let mut step = outcome.run.steps[0].clone();
            step.step.id = "checkpoint/1".into();
            (step.outcome, step.message) = (Some(StepOutcome::Succeeded), message.into());
            outcome.run.steps.push(step);
            outcome
        };
        let hints = |outcome: &Outcome, place, output_dir| {
            let paint = Paint { on: false };
            let report = Report { outcome, place, output_dir, kept_on_error: false, paint };
            report.lines().into_iter().filter(|line| line.contains("retry")).collect::<Vec<_>>()
        };
        let home = tempfile::tempdir().unwrap();
        let here = RunDir::open(home.path()).unwrap();
        let (here, server) =
            (Place::Here(&here), Place::Server { server: "https://kiln:8441", template: "my hello" });
        assert_eq!(
            hints(&kept(""), here, Some(Path::new("/out"))),
            ["hint: correct it, then `kiln run retry 3f9a1c` goes on at the failed step"]
        );
        assert_eq!(
            hints(&kept(""), server, None),
            ["hint: correct it, then `kiln run retry 'my hello' --file FILE` goes on at the failed step"]
        );
        let none: [&str; 0] = [];
        assert_eq!(hints(&kept(""), server, Some(Path::new("/out"))), none, "its template is gone");
        assert_eq!(hints(&kept(NOT_KEPT), here, None), none);
        assert_eq!(hints(&outcome(FAILED_RUN), here, None), none);
    }

    #[test]
    fn a_canceled_end() {
        expect![[r#"
            canceled after 9.3s: canceled; nothing of it was kept
              phases     Building 9.3s
              log        /runs/RUN/customization.log
              console    /runs/RUN/serial.log
        "#]]
        .assert_eq(&report(CANCELED_RUN));
    }

    #[test]
    fn an_end_that_was_written_for_a_dead_worker() {
        expect![[r#"
            canceled after 14.1s: the run was canceled and its worker killed
              phases     Building 13.9s
              log        /runs/RUN/customization.log
              console    /runs/RUN/serial.log
        "#]]
        .assert_eq(&report(SETTLED_RUN));
    }

    #[test]
    fn an_end_on_a_server() {
        let shown = |stream, output_dir| {
            let outcome = outcome(stream);
            let place = Place::Server { server: "https://kiln:8441", template: "my hello" };
            let paint = Paint { on: false };
            let report = Report { outcome: &outcome, place, output_dir, kept_on_error: false, paint };
            report.lines().iter().map(|line| line.clone() + "\n").collect::<String>()
        };
        expect![[r#"
            done in 1m 04s

              hello-vhd  hello-vhd.vhd on the server
              size       4294967808 bytes: a disk of 4 GiB, generation 1
              sha256     cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc
              made from  debian-12 12.20250101.0 (sha256 aaaaaaaaaaaa)
              status     booted in QEMU; not tried on Azure
              phases     Building 52.8s, Customizing 8.2s, Optimizing 1.0s, Distributing 2.0s
              log        kiln run logs 'my hello' --run 20261123T172233Z-hello-3f9a1c
              server     https://kiln:8441
            hint: `kiln output download 'my hello'` brings it here
        "#]]
        .assert_eq(&shown(GOOD_RUN, None));
        let downloaded = shown(GOOD_RUN, Some(Path::new("/out")));
        assert!(
            downloaded.contains("/out/hello-vhd.vhd") && downloaded.contains("qemu-system"),
            "{downloaded}"
        );
        let failed = shown(FAILED_RUN, None);
        assert!(!failed.contains("keep-on-error"), "{failed}");
    }

    #[test]
    fn the_result_object_is_golden() {
        let status = crate::exit::ExitStatus::Done;
        let text = super::super::final_object(
            &outcome(GOOD_RUN),
            Place::Here(&RunDir::open(Path::new("/")).unwrap()),
            Some(Path::new("/srv/my images")),
            status,
        );
        assert!(!text.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        expect![[r#"
            {
              "format": 1,
              "kind": "result",
              "runId": "20261123T172233Z-hello-3f9a1c",
              "runDir": "/",
              "state": "Succeeded",
              "message": "",
              "exitStatus": 0,
              "ms": 64010,
              "phases": [
                {
                  "phase": "Building",
                  "ms": 52798
                },
                {
                  "phase": "Customizing",
                  "ms": 8199
                },
                {
                  "phase": "Optimizing",
                  "ms": 1000
                },
                {
                  "phase": "Distributing",
                  "ms": 2010
                }
              ],
              "outputs": [
                {
                  "path": "/srv/my images/hello-vhd.vhd",
                  "output": {
                    "format": 1,
                    "name": "hello-vhd",
                    "type": "VHD",
                    "runId": "20261123T172233Z-hello-3f9a1c",
                    "file": "hello-vhd.vhd",
                    "size": 4294967808,
                    "virtualSize": 4294967296,
                    "sha256": "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
                    "source": {
                      "name": "debian-12",
                      "version": "12.20250101.0",
                      "sha256": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                      "requested": "Debian:debian-12:12:latest"
                    },
                    "templateName": "hello",
                    "templateSha256": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
                    "generation": "V1",
                    "os": "linux",
                    "tags": {
                      "team": "images"
                    },
                    "createdAt": "2026-11-23T17:23:45.000Z",
                    "kilnVersion": "0.1.0",
                    "status": "booted in QEMU; not tried on Azure"
                  }
                }
              ]
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&value).unwrap());
    }
}
