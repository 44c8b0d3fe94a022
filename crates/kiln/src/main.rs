//! The command `kiln`: the only binary.
//!
//! ```text
//!  args ──┐
//!         ├─► settings ─► commands ─► libraries
//!  env ───┘                  │
//!                            ├─► progress   a run's events and log, as they come
//!                            ├─► ui         the only writer to the terminal
//!                            └─► exit       whose fault, and so the exit status
//! ```
//!
//! `kiln build` makes a run directory, starts `kiln worker RUN_DIR` (this same binary)
//! in a session of its own and follows what it writes. The libraries never print.

mod args;
mod client;
mod commands;
mod exit;
mod notify;
mod progress;
mod server;
mod settings;
mod ui;

use std::process::ExitCode;

use clap::Parser as _;

use crate::exit::ExitStatus;
use crate::settings::Environment;
use crate::ui::Printer;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ui::usage(&error),
    };
    let environment = Environment::read();
    let printer = Printer::new(environment.colors());

    // A panic is a bug: the standard library's message has been shown; the exit
    // status is ours (2), not its 101.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        start_log(&environment, &printer, &cli);
        commands::run(cli, &environment, &printer)
    }));
    let status = match outcome {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => {
            printer.error(&failure.error);
            failure.hints.iter().for_each(|hint| printer.hint(hint));
            if failure.status() == ExitStatus::Unexpected {
                printer.hint("this was not expected; `-vv` shows what happened before");
            }
            failure.status()
        }
        Err(_panic) => {
            printer.talk("error: kiln has a bug: it panicked (see above)");
            ExitStatus::Unexpected
        }
    };
    match printer.stdout_result() {
        Ok(()) => status.into(),
        Err(error) => {
            printer.error(&anyhow::Error::new(error).context("cannot write to standard output"));
            ExitStatus::Unexpected.into()
        }
    }
}

fn start_log(environment: &Environment, printer: &Printer, cli: &args::Cli) {
    let default = match cli.command {
        // Its stderr is the run's worker.log.
        args::Command::Worker(_) => "warn",
        args::Command::Serve(_) => "info",
        _ => "off",
    };
    let filter = environment.log_filter(cli.verbose, default);
    match tracing_subscriber::EnvFilter::try_new(&filter) {
        Ok(filter) => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(ui::log_writer)
            .init(),
        Err(error) => printer.warning(&format!("KILN_LOG is ignored: {error}")),
    }
}
