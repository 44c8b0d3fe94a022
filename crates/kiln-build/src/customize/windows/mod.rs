//! Customizers in a Windows guest, over WinRM.
//!
//! ```text
//!  PowerShell   script into the guest ─► powershell -File / -Command              output as it comes   powershell
//!               runElevated           ─► a scheduled task, followed by offsets                          task
//!               a large script  ─► as a file, before that                                             file
//!  File         one file, its digest checked again inside                                               file
//!  WindowsRestart                     ─► restartCommand, until another boot id is seen                  restart
//!  WindowsUpdate                      ─► rounds as SYSTEM's task, restarts between                      update
//! ```
//! What is asked and what the answers mean is `kiln_guest::os::windows`, which does nothing itself; here it is done,
//! under the machine's watch and the run's control.

mod file;
mod powershell;
pub(crate) mod restart;
mod task;
mod update;

use kiln_guest::ExecOutput;
use kiln_guest::Stream as GuestStream;
use kiln_guest::lines::LineSplitter;
use kiln_guest::winrm::{CommandEnd, CommandLine, WinrmError};
use kiln_host::wait::Control;
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, CustomizerAction};

use super::unsupported;
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::WindowsGuest;
use crate::log::{CustomizationLog, LINE_LIMIT, Stream};

pub(super) async fn run(
    run: &Run,
    guest: &mut WindowsGuest,
    customizer: &Customizer,
    input: Option<&StoredInput>,
) -> Result<String, BuildError> {
    match &customizer.action {
        CustomizerAction::Shell { .. } => Err(unsupported(customizer, "Windows")),
        CustomizerAction::PowerShell { script, run_elevated, run_as_system, valid_exit_codes } => {
            let rights = match (run_elevated, run_as_system) {
                (_, true) => powershell::Rights::System,
                (true, false) => powershell::Rights::Elevated,
                (false, false) => powershell::Rights::Login,
            };
            powershell::run(run, guest, customizer, script, input, rights, valid_exit_codes).await
        }
        CustomizerAction::File { source, destination } => {
            file::run(run, guest, customizer, source, destination, input).await
        }
        CustomizerAction::WindowsRestart { command, check_command, timeout_ms } => {
            let wanted = restart::Wanted {
                command,
                check: (!check_command.is_empty()).then_some(check_command.as_str()),
                timeout: std::time::Duration::from_millis(*timeout_ms),
            };
            restart::run(run, guest, &customizer.title(), &wanted).await
        }
        CustomizerAction::WindowsUpdate { search_criteria, filters, limit } => {
            update::run(run, guest, customizer, search_criteria, filters, *limit).await
        }
    }
}

/// Where a script's output goes: line by line into the log, and what has no line end when it is dropped.
pub(crate) struct OutputLog<'a> {
    log: &'a CustomizationLog,
    out: LineSplitter,
    err: LineSplitter,
}

impl<'a> OutputLog<'a> {
    pub(crate) fn new(log: &'a CustomizationLog) -> Self {
        Self { log, out: LineSplitter::new(LINE_LIMIT), err: LineSplitter::new(LINE_LIMIT) }
    }

    pub(crate) fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let (log, splitter) = match stream {
            Stream::Out => (self.log, &mut self.out),
            Stream::Err => (self.log, &mut self.err),
        };
        splitter.push(bytes, |line, _| log.guest_line(stream, line));
    }
}

impl Drop for OutputLog<'_> {
    fn drop(&mut self) {
        let Self { log, out, err } = self;
        out.finish(|line, _| log.guest_line(Stream::Out, line));
        err.finish(|line, _| log.guest_line(Stream::Err, line));
    }
}

/// Which of the log's streams an output of WinRM is.
pub(crate) fn stream_of(stream: GuestStream) -> Stream {
    match stream {
        GuestStream::Stdout => Stream::Out,
        GuestStream::Stderr => Stream::Err,
    }
}

/// Runs a command with its output in the log, under the machine's watch. `control` bounds the command alone.
pub(crate) async fn run_command(
    run: &Run,
    guest: &WindowsGuest,
    line: &CommandLine,
    control: &Control,
) -> Result<Result<CommandEnd, WinrmError>, BuildError> {
    let mut output = OutputLog::new(&run.log);
    let sink = |stream, bytes: &[u8]| output.take(stream_of(stream), bytes);
    Ok(guest.vm.guard(&run.control, guest.guest.run(line, None, sink, control)).await?)
}

/// Asks with one of our own texts, under the machine's watch.
pub(crate) async fn ask(
    run: &Run,
    guest: &WindowsGuest,
    act: &'static str,
    text: &str,
    control: &Control,
) -> Result<Result<ExecOutput, WinrmError>, BuildError> {
    Ok(guest.vm.guard(&run.control, guest.guest.ask_powershell(act, text, control)).await?)
}

/// The same, where no answer ends the run.
pub(crate) async fn answer(
    run: &Run,
    guest: &WindowsGuest,
    act: &'static str,
    text: &str,
) -> Result<ExecOutput, BuildError> {
    ask(run, guest, act, text, &run.control)
        .await?
        .map_err(|source| BuildError::Guest { act, source: source.into() })
}
