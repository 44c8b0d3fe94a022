//! `kiln images`: base images in the catalog and in the library.

mod bring;
mod list;
mod recipe;

use kiln_model::catalog::CatalogEntry;
use kiln_qemu::qemu_img::QemuImg;

use super::shelves::Shelves;
use super::{End, Surroundings};
use crate::args::ImagesCommand;
use crate::exit::{ExitStatus, Failure};
use crate::settings::Folders;

pub async fn run(around: &Surroundings<'_>, command: ImagesCommand) -> End {
    let folders = Folders::resolve(around.environment).map_err(Failure::host)?;
    match command {
        ImagesCommand::List(args) => list::list(around, &Shelves::look(&folders)?, args.json),
        ImagesCommand::Show(args) => list::show(around, &Shelves::look(&folders)?, &args.name, args.json),
        ImagesCommand::Build(args) => recipe::build(around, &folders, &args.name).await,
        ImagesCommand::Pull(args) => bring::pull(around, &folders, &args.name).await,
        ImagesCommand::Import(args) => bring::import(around, &folders, args).await,
        ImagesCommand::Remove(args) => remove(around, &folders, &args.name, args.version.as_deref()),
    }
}

fn remove(around: &Surroundings<'_>, folders: &Folders, name: &str, version: Option<&str>) -> End {
    let shelves = Shelves::open(folders)?;
    let stored: Vec<&str> = shelves
        .stored
        .iter()
        .filter(|image| image.name == name)
        .map(|image| image.version.as_str())
        .collect();
    let version = match (version, stored.as_slice()) {
        (Some(version), _) => version,
        (None, [only]) => only,
        (None, []) => {
            return Err(Failure::input(anyhow::anyhow!("no image named {name} lies in the library")));
        }
        (None, several) => {
            return Err(Failure::input(anyhow::anyhow!(
                "the library has {} versions of {name}: say which one to remove ({})",
                several.len(),
                several.join(", ")
            )));
        }
    };
    shelves.library()?.remove(name, version).map_err(|error| Failure::new(error.fault(), error))?;
    around.printer.talk(&format!("removed {name} {version}"));
    Ok(ExitStatus::Done)
}

/// The entry of that name, or an error that shows the names there are.
fn entry<'a>(shelves: &'a Shelves, name: &str) -> Result<&'a CatalogEntry, Failure> {
    shelves.catalog.entry(name).ok_or_else(|| {
        let names: Vec<&str> = shelves.catalog.entries().iter().map(|entry| entry.name.as_str()).collect();
        Failure::input(anyhow::anyhow!("the catalog has no image named {name:?}"))
            .hint(format!("it has: {}", names.join(", ")))
    })
}

/// The version of an image that comes with none: the time, as pulled images have theirs
/// (`20261123.1722`, UTC), so that a later one is higher.
fn version_of_now() -> String {
    jiff::Timestamp::now().strftime("%Y%m%d.%H%M").to_string()
}

/// qemu-img, which reads and converts disks on their way in.
fn qemu_img(around: &Surroundings<'_>) -> Result<QemuImg, Failure> {
    let path = around.environment.search_path();
    QemuImg::find(&path).ok_or_else(|| {
        Failure::host(anyhow::anyhow!("qemu-img is not installed"))
            .hint("`kiln doctor` shows the command that installs what is missing")
    })
}
