//! `kiln debug`: a look into the machine of a run that failed.
//!
//! ```text
//!   run ─► Session (kiln-build::debug) ─┬─ ssh, with our terminal, or with one command
//!                                       ├─ the serial console
//!                                       └─ the screen, as a file
//! ```
//! What was left is only read: whatever is done in here is gone at the end.

mod console;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use kiln_build::debug::{OpenError, Session};
use kiln_build::run_dir::RunDir;
use kiln_host::process::{Invocation, find_program};
use kiln_host::wait::Control;
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
    let ssh = match args.console || args.screenshot.is_some() {
        true => None,
        false => Some(ssh(around)?),
    };
    let dir = runs_here::find(&args.run, &folders.runs)?
        .ok_or_else(|| Failure::input(anyhow!("{} has no run {:?}", folders.runs.display(), args.run)))?;
    let worker = settings::worker(around.environment, &folders).map_err(Failure::host)?;
    let control = signals::control().map_err(|error| Failure::new(Fault::Host, error))?;
    let session = Session::open(&dir, &worker, |act| printer.talk(act), &control).await.map_err(|error| {
        let fault = match &error {
            OpenError::NothingLeft(_) | OpenError::InUse(_) => Fault::Template,
            _ => Fault::Host,
        };
        Failure::new(fault, error)
    })?;
    let ended = look(around, &args, ssh.as_deref(), &dir, &session, &control).await;
    session.close().await;
    printer.talk("the look is over; the machine that was left is as it was");
    ended
}

async fn look(
    around: &Surroundings<'_>,
    args: &DebugArgs,
    ssh: Option<&Path>,
    dir: &RunDir,
    session: &Session,
    control: &Control,
) -> End {
    let printer = around.printer;
    let failed = |error: kiln_build::BuildError| Failure::new(error.fault(), error);
    if let Some(why) = session.booted() {
        printer.warning(&format!("its memory does not go on, and its disk was booted: {}", neutralize(why)));
    }
    printer.talk(&format!("left at {}: {}", session.left_at(), neutralize(session.cause())));
    for port in &args.forward {
        let address = session.forward(*port, control).await.map_err(failed)?;
        printer.talk(&format!("port {port} of the guest: {address}"));
    }
    if let Some(path) = &args.screenshot {
        let path = std::path::absolute(path).context("the picture's path cannot be used")?;
        session.screenshot(&path, control).await.map_err(|error| {
            failed(error).hint("a Linux machine has no screen, but a serial console: --console")
        })?;
        printer.data(&path.display().to_string());
        return Ok(ExitStatus::Done);
    }
    if args.console {
        let socket = session.console(control).await.map_err(failed)?;
        let shown = session.guard(control, console::attach(around, &socket, &dir.serial_log())).await;
        return match shown {
            Ok(shown) => shown.context("the console").map(|()| ExitStatus::Done).map_err(Failure::host),
            Err(error) => ended(error, control),
        };
    }
    let Some(ssh) = ssh else { return Ok(ExitStatus::Done) };
    let invocation = Invocation::new(ssh).args(session.ssh_arguments().map_err(failed)?).args(&args.command);
    match session.guard(control, invocation.run_in_front(control)).await {
        Ok(Ok(status)) if status.success() => Ok(ExitStatus::Done),
        Ok(Ok(status)) if args.command.is_empty() => {
            // A shell's last command may have failed.
            tracing::debug!(%status, "ssh has ended");
            Ok(ExitStatus::Done)
        }
        Ok(Ok(status)) => {
            let status = status.code().map_or_else(|| status.to_string(), |code| code.to_string());
            printer.talk(&format!("the command ended with {status}"));
            Ok(ExitStatus::Failed)
        }
        Ok(Err(error)) if control.check().is_err() => {
            tracing::debug!(%error, "interrupted");
            Ok(ExitStatus::Failed)
        }
        Ok(Err(error)) => Err(Failure::new(Fault::Host, error)),
        Err(error) => ended(error, control),
    }
}

/// The machine's end, or ours.
fn ended(error: kiln_build::BuildError, control: &Control) -> End {
    if control.check().is_err() {
        return Ok(ExitStatus::Failed);
    }
    Err(Failure::new(error.fault(), error))
}

fn ssh(around: &Surroundings<'_>) -> Result<PathBuf, Failure> {
    find_program("ssh", &around.environment.search_path()).ok_or_else(|| {
        Failure::host(anyhow!("there is no ssh on this host"))
            .hint("install the package openssh-client; --console does without it")
    })
}
