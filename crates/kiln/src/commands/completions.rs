//! `kiln completions`: a script that completes commands and flags in a shell.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::End;
use crate::args::Cli;
use crate::exit::ExitStatus;
use crate::ui::Printer;

pub fn run(printer: &Printer, shell: Shell) -> End {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut for_people(), "kiln", &mut script);
    printer.raw_data(&script);
    Ok(ExitStatus::Done)
}

/// The command tree without what is hidden: clap_complete would offer that, too.
fn for_people() -> clap::Command {
    let whole = Cli::command();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("kiln")
        .args(whole.get_arguments().cloned())
        .subcommands(shown)
        .version(env!("CARGO_PKG_VERSION"))
}
