//! `kiln manual DIR`: manual pages, one for each command, for whoever packages Kiln.

use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_mangen::Man;

use super::End;
use crate::args::Cli;
use crate::exit::{ExitStatus, Failure};

pub fn run(dir: &Path) -> End {
    write_pages(whole(), dir)
        .with_context(|| format!("cannot write manual pages to {}", dir.display()))
        .map_err(Failure::host)?;
    Ok(ExitStatus::Done)
}

/// The command tree; built, so that each command knows its full name.
fn whole() -> clap::Command {
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    whole
}

fn write_pages(command: clap::Command, dir: &Path) -> std::io::Result<()> {
    for shown in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        write_pages(shown.clone(), dir)?;
    }
    // No date: the same sources give the same pages.
    Man::new(command)
        .source(concat!("kiln ", env!("CARGO_PKG_VERSION")))
        .manual("Kiln")
        .generate_to(dir)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(command: &clap::Command) -> usize {
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        1 + shown.map(count).sum::<usize>()
    }

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path()).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), count(&whole()), "{names:?}");
        for page in ["kiln.1", "kiln-build.1", "kiln-images-import.1", "kiln-serve.1"] {
            assert!(names.iter().any(|name| name == page), "{page}: {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("worker")), "{names:?}");
        let page = std::fs::read_to_string(dir.path().join("kiln-build.1")).unwrap();
        assert!(page.contains("kiln\\-build \\- Build the image a template describes"), "{page}");
    }
}
