//! `kiln completions`: a script that completes commands and flags in a shell.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::End;
use crate::args::Cli;
use crate::exit::ExitStatus;
use crate::ui::Printer;

pub fn run(printer: &Printer, shell: Shell) -> End {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
    printer.raw_data(&script);
    Ok(ExitStatus::Done)
}
