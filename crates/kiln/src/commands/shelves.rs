//! The catalog and the library, as the commands find them.
//!
//! The catalog is the shipped one, overlaid by the user's own, and completed by what
//! lies in the library. The shipped one comes from the first of these that is there:
//! `KILN_IMAGES`; `images/` of the checkout the binary was built in; `share/kiln/images`
//! beside the binary's folder; `/usr/share/kiln/images`; else the copy inside the
//! binary, which has no recipes.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kiln_library::Library;
use kiln_model::catalog::{Catalog, StoredImage};

use crate::exit::Failure;
use crate::settings::Folders;

/// The catalog as it was when this binary was built.
const BUILT_IN: &str = include_str!("../../../../images/catalog.yaml");

/// What there is to build from.
#[derive(Debug)]
pub struct Shelves {
    pub catalog: Catalog,
    /// Where the catalog's recipes lie; none with the built-in catalog.
    pub recipes: Option<PathBuf>,
    /// None where the library was never used and need not be made.
    pub library: Option<Library>,
    pub stored: Vec<StoredImage>,
}

impl Shelves {
    /// Opens the library, making it where there is none.
    pub fn open(folders: &Folders) -> Result<Self, Failure> {
        Self::with_library(folders, true)
    }

    /// Looks without making anything.
    pub fn look(folders: &Folders) -> Result<Self, Failure> {
        Self::with_library(folders, folders.library.join("library.json").is_file())
    }

    fn with_library(folders: &Folders, open: bool) -> Result<Self, Failure> {
        let (catalog, recipes) = read_catalog(folders)?;
        let library = open
            .then(|| Library::open(&folders.library))
            .transpose()
            .map_err(|error| Failure::new(error.fault(), error))?;
        let stored = match &library {
            Some(library) => library.images().map_err(|error| Failure::new(error.fault(), error))?,
            None => Vec::new(),
        };
        let catalog = catalog.with_stored(&stored);
        Ok(Self { catalog, recipes, library, stored })
    }

    /// The library of [`Shelves::open`].
    pub fn library(&self) -> Result<&Library, Failure> {
        self.library.as_ref().ok_or_else(|| anyhow::anyhow!("the library was not opened").into())
    }
}

fn read_catalog(folders: &Folders) -> Result<(Catalog, Option<PathBuf>), Failure> {
    let shipped = match &folders.images {
        // Given by name: it must be there.
        Some(given) => Some(given.clone()),
        None => images_folders().into_iter().find(|folder| folder.join("catalog.yaml").is_file()),
    };
    let mut catalog = match &shipped {
        Some(folder) => read_one(&folder.join("catalog.yaml"))?,
        None => Catalog::parse(BUILT_IN, "inside this program").context("the built-in catalog is broken")?,
    };
    if let Some(own) = folders.user_catalog.as_deref().filter(|path| path.exists()) {
        catalog = catalog.overlaid(read_one(own)?);
    }
    Ok((catalog, shipped))
}

fn read_one(path: &Path) -> Result<Catalog, Failure> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the catalog {}", path.display()))
        .map_err(Failure::host)?;
    Catalog::parse(&text, &path.display().to_string()).map_err(Failure::input)
}

/// Where the shipped catalog and recipes may lie, besides `KILN_IMAGES`.
fn images_folders() -> Vec<PathBuf> {
    let exe = std::env::current_exe().and_then(|exe| exe.canonicalize()).ok();
    let mut folders: Vec<PathBuf> = exe.as_deref().map(beside).unwrap_or_default();
    folders.push("/usr/share/kiln/images".into());
    folders
}

/// The folders that belong to a binary at `exe`: its checkout's, or its prefix's.
fn beside(exe: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    // CHECKOUT/target/release/kiln, or with a target triple between.
    let target =
        exe.ancestors().skip(2).take(2).find(|folder| folder.file_name().is_some_and(|n| n == "target"));
    if let Some(checkout) = target.and_then(Path::parent) {
        folders.push(checkout.join("images"));
    }
    // PREFIX/bin/kiln.
    if let Some(bin) = exe.parent().filter(|bin| bin.ends_with("bin"))
        && let Some(prefix) = bin.parent()
    {
        folders.push(prefix.join("share/kiln/images"));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_lie_beside_the_checkout_or_under_the_prefix() {
        let beside =
            |exe: &str| beside(Path::new(exe)).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(beside("/src/kiln/target/release/kiln"), ["/src/kiln/images"]);
        assert_eq!(beside("/src/kiln/target/x86_64-unknown-linux-musl/release/kiln"), ["/src/kiln/images"]);
        assert_eq!(beside("/opt/kiln/bin/kiln"), ["/opt/kiln/share/kiln/images"]);
        assert_eq!(beside("/home/u/kiln"), Vec::<String>::new());
    }

    #[test]
    fn the_built_in_catalog_is_the_shipped_one_and_good() {
        let catalog = Catalog::parse(BUILT_IN, "built in").unwrap();
        assert!(catalog.entry("debian-12").is_some());
    }
}
