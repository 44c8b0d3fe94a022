//! The commands. Each takes plain settings, calls the libraries and says what came out.

mod az_setup;
mod build;
mod build_there;
mod certify;
mod checkpoints;
mod completions;
mod debug;
mod doctor;
mod gc;
mod images;
mod manual;
mod output;
mod plan;
mod prepare;
mod retry;
mod run;
mod runs_here;
mod serve;
mod session;
mod shelves;
mod signals;
mod template;
mod validate;
mod version;
mod worker;

use std::future::Future;

use anyhow::Context as _;

use self::prepare::NoPlan;
use crate::args::{Cli, Command};
use crate::exit::{ExitStatus, Failure};
use crate::progress::refusal;
use crate::settings::{BuildSettings, CertifySettings, Environment, PlanSettings, ValidateSettings};
use crate::ui::{Printer, problems};

/// How a command ends, but for a panic.
pub type End = Result<ExitStatus, Failure>;

/// What every command has at hand.
pub struct Surroundings<'a> {
    pub environment: &'a Environment,
    pub printer: &'a Printer,
    /// `-v` was given this often.
    pub verbose: u8,
}

pub fn run(cli: Cli, environment: &Environment, printer: &Printer) -> End {
    let Cli { command, verbose } = cli;
    let around = &Surroundings { environment, printer, verbose };
    match command {
        Command::Build(args) => {
            let settings = BuildSettings::resolve(args, environment).map_err(Failure::input)?;
            wait_for(build::run(around, settings))
        }
        Command::Validate(args) => validate::run(around, &ValidateSettings::resolve(args)),
        Command::Plan(args) => {
            let settings = PlanSettings::resolve(args, environment).map_err(Failure::input)?;
            wait_for(plan::run(around, settings))
        }
        Command::CertifyWindows(args) => {
            let settings = CertifySettings::resolve(args).map_err(Failure::input)?;
            wait_for(certify::run(around, settings))
        }
        Command::Images(args) => wait_for(images::run(around, args)),
        Command::Serve(args) => wait_for(serve::run(around, args)),
        Command::Template(args) => wait_for(template::run(around, args)),
        Command::Run(args) => wait_for(run::run(around, args)),
        Command::Output(args) => wait_for(output::run(around, args)),
        Command::Checkpoints(args) => wait_for(checkpoints::run(around, args)),
        Command::Debug(args) => wait_for(debug::run(around, args)),
        Command::Gc(args) => wait_for(gc::run(around, args)),
        Command::AzSetup(args) => az_setup::run(around, &args),
        Command::Doctor(args) => wait_for(doctor::run(around, args.json)),
        Command::Version(args) => version::run(printer, args.json),
        Command::Completions(args) => completions::run(printer, args.shell),
        Command::Manual(args) => manual::run(&args.dir),
        Command::Worker(args) => wait_for(worker::run(around, args.run_dir)),
    }
}

/// Runs a command that waits for several things at once.
fn wait_for(command: impl Future<Output = End>) -> End {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads this command needs")?;
    let end = runtime.block_on(command);
    // A blocking read that is still under way (standard input, a dead disk) does not hold us up.
    runtime.shutdown_background();
    end
}

/// Says what was found in a template, on stderr.
fn show_problems(around: &Surroundings<'_>, file: &str, found: &kiln_model::Problems) {
    for problem in found.iter() {
        problems::lines(file, problem, around.printer.err).iter().for_each(|line| around.printer.talk(line));
    }
    if found.has_errors() {
        around.printer.talk(&format!("{file}: {}", problems::tally(found)));
    }
}

/// Ends a command whose template became no plan. With `json`, whoever reads stdout learns it there, too.
fn refused(around: &Surroundings<'_>, file: &str, json: bool, why: NoPlan) -> End {
    match why {
        NoPlan::Other(failure) => Err(failure),
        NoPlan::Problems(found) => {
            show_problems(around, file, &found);
            if json {
                around.printer.data(&refusal(&found.to_string(), &found, ExitStatus::Failed));
            }
            Ok(ExitStatus::Failed)
        }
    }
}
