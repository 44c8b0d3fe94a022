//! `kiln debug`: a look into the machine of a run that failed.
//!
//! ```text
//!   run ─► Session (kiln-build::debug) ─┬─ Linux: ssh, with our terminal, or with one command
//!                                       ├─ Windows: one command over WinRM
//!                                       ├─ the serial console
//!                                       ├─ the screen, as a file
//!                                       └─ whoever comes by a forwarded port
//! ```
//! What was left is only read: whatever is done in here is gone at the end.

mod console;

use std::future::pending;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use kiln_build::BuildError;
use kiln_build::debug::{OpenError, Session, Stream, system_of};
use kiln_build::run_dir::RunDir;
use kiln_host::process::{Invocation, find_program};
use kiln_host::wait::Control;
use kiln_model::catalog::Os;
use kiln_model::run::Fault;

use super::{End, Surroundings, runs_here, signals};
use crate::args::DebugArgs;
use crate::exit::{ExitStatus, Failure};
use crate::settings::{self, Folders};
use crate::ui::guest_text::neutralize;

pub async fn run(around: &Surroundings<'_>, args: DebugArgs) -> End {
    let printer = around.printer;
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    settings::ensure_private(&folders.runtime).map_err(Failure::host)?;
    let dir = runs_here::find(&args.run, &folders.runs)?
        .ok_or_else(|| Failure::input(anyhow!("{} has no run {:?}", folders.runs.display(), args.run)))?;
    let way = Way::choose(around, &args, &dir)?;
    let worker = settings::worker(around.environment, &folders).map_err(Failure::host)?;
    let control = signals::control().map_err(|error| Failure::new(Fault::Host, error))?;
    let session = Session::open(&dir, &worker, |act| printer.talk(act), &control).await;
    let session = session.map_err(cannot_open)?;
    let ended = look(around, &args, way, &dir, &session, &control).await;
    session.close().await;
    printer.talk("the look is over; the machine that was left is as it was");
    match ended {
        // A signal ended it.
        Err(_) if control.check().is_err() => Ok(ExitStatus::Failed),
        ended => ended,
    }
}

/// What the look is for.
enum Way {
    Screen(PathBuf),
    Console,
    /// By OpenSSH's client, which lies there.
    Ssh(PathBuf),
    /// Over WinRM.
    Command,
    /// Others come by forwarded ports.
    Hold,
}

impl Way {
    /// Before anything is started.
    fn choose(around: &Surroundings<'_>, args: &DebugArgs, dir: &RunDir) -> Result<Self, Failure> {
        if let Some(path) = &args.screenshot {
            let path = std::path::absolute(path).context("the picture's path cannot be used");
            return path.map(Self::Screen).map_err(Failure::input);
        }
        if args.console {
            return Ok(Self::Console);
        }
        let windows = system_of(dir).map_err(cannot_open)? == Os::Windows;
        match (windows, args.command.is_empty(), args.forward.is_empty()) {
            (false, ..) => match find_program("ssh", &around.environment.search_path()) {
                Some(ssh) => Ok(Self::Ssh(ssh)),
                None => Err(Failure::host(anyhow!("there is no ssh on this host"))
                    .hint("install the package openssh-client; --console does without it")),
            },
            (true, false, _) => Ok(Self::Command),
            (true, true, false) => Ok(Self::Hold),
            (true, true, true) => Err(Failure::input(anyhow!("WinRM has no shell for a person"))
                .hint("give a command after --, or --screenshot FILE, --console, or --forward PORT")),
        }
    }
}

async fn look(
    around: &Surroundings<'_>,
    args: &DebugArgs,
    way: Way,
    dir: &RunDir,
    session: &Session,
    control: &Control,
) -> End {
    let printer = around.printer;
    if let Some(why) = session.booted() {
        printer.warning(&format!("its memory does not go on, and its disk was booted: {}", neutralize(why)));
    }
    printer.talk(&format!("left at {}: {}", session.left_at(), neutralize(session.cause())));
    for port in &args.forward {
        let address = session.forward(*port, control).await.map_err(failed)?;
        printer.talk(&format!("port {port} of the guest: {address}"));
    }
    match way {
        Way::Screen(path) => {
            session.screenshot(&path, control).await.map_err(|error| {
                failed(error).hint("a Linux machine has no screen, but a serial console: --console")
            })?;
            printer.data(&path.display().to_string());
            Ok(ExitStatus::Done)
        }
        Way::Console => {
            let socket = session.console(control).await.map_err(failed)?;
            let before = dir.serial_log();
            let attached = console::attach(around, &socket, &before);
            let shown = session.guard(control, attached).await.map_err(failed)?;
            shown.context("the console").map_err(Failure::host)?;
            Ok(ExitStatus::Done)
        }
        Way::Ssh(ssh) => {
            let arguments = session.ssh_arguments().map_err(failed)?.unwrap_or_default();
            let invocation = Invocation::new(ssh).args(arguments).args(&args.command);
            let ended = session.guard(control, invocation.run_in_front(control)).await.map_err(failed)?;
            let status = ended.map_err(Failure::host)?;
            // A shell ends with its last command's status, which may be any.
            if args.command.is_empty() || status.success() {
                return Ok(ExitStatus::Done);
            }
            let code = status.code().map_or_else(|| status.to_string(), |code| code.to_string());
            printer.talk(&format!("the command ended with {code}"));
            Ok(ExitStatus::Failed)
        }
        Way::Command => {
            let print = |stream, bytes: &[u8]| match stream {
                Stream::Stdout => printer.raw_data(bytes),
                Stream::Stderr => printer.talk(&neutralize(String::from_utf8_lossy(bytes).trim_end())),
            };
            match session.command(&args.command.join(" "), print, control).await.map_err(failed)? {
                Some(0) | None => Ok(ExitStatus::Done),
                Some(code) => {
                    printer.talk(&format!("the command ended with {code}"));
                    Ok(ExitStatus::Failed)
                }
            }
        }
        Way::Hold => {
            printer.talk("Ctrl-C ends the look");
            session.guard(control, pending::<()>()).await.map_err(failed)?;
            Ok(ExitStatus::Done)
        }
    }
}

fn failed(error: BuildError) -> Failure {
    Failure::new(error.fault(), error)
}

fn cannot_open(error: OpenError) -> Failure {
    let fault = match &error {
        OpenError::NothingLeft(_) | OpenError::InUse(_) => Fault::Template,
        OpenError::Record { .. } | OpenError::Plan(_) | OpenError::RunDir(_) => Fault::Host,
        OpenError::Build(error) => error.fault(),
    };
    Failure::new(fault, error)
}
