//! The catalog and the library, as commands and the daemon find them, and the way
//! from a checked template to a plan over both.
//!
//! ```text
//!  shipped catalog ─ overlaid by the user's own ─ completed by the library ─► Shelves ─ plan(template, host) ─► BuildPlan
//! ```
//! The shipped catalog comes from the first of these that is there: the folder given
//! by name; `images/` of the checkout the binary was built in; `share/kiln/images`
//! beside the binary's folder; `/usr/share/kiln/images`; else the copy inside the
//! binary, which has no recipes.

use std::io;
use std::path::{Path, PathBuf};

use kiln_build::share;
use kiln_library::{Library, LibraryError};
use kiln_model::catalog::{Catalog, CatalogError, ChooseError, StoredImage};
use kiln_model::plan::{BuildPlan, HostLimits};
use kiln_model::run::Fault;
use kiln_model::template::{CheckedTemplate, TemplateSource};
use kiln_model::{Problem, Problems};

/// The catalog as it was when this binary was built.
const BUILT_IN: &str = include_str!("../../../images/catalog.yaml");

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShelvesSettings {
    pub library: PathBuf,
    /// A folder with `catalog.yaml` and recipes; it must be there. None: the shipped one is looked for.
    pub images: Option<PathBuf>,
    /// Overlays the shipped catalog where it is there.
    pub user_catalog: Option<PathBuf>,
}

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

/// Why the shelves cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ShelvesError {
    #[error("the built-in catalog is broken")]
    BuiltIn(#[source] CatalogError),
    #[error("cannot read the catalog {}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Catalog(CatalogError),
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error("the library was not opened")]
    NotOpened,
}

impl ShelvesError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::BuiltIn(_) | Self::NotOpened => Fault::Bug,
            Self::Unreadable { .. } => Fault::Host,
            Self::Catalog(_) => Fault::Template,
            Self::Library(error) => error.fault(),
        }
    }
}

/// Why a checked template does not become a plan here and now.
#[derive(Debug, thiserror::Error)]
pub enum NoPlan {
    /// It cannot be built: by this version, on this image, on this host.
    #[error(transparent)]
    Problems(Problems),
    /// Its base image is not on the shelf.
    #[error(transparent)]
    Image(ChooseError),
}

impl Shelves {
    /// Opens the library, making it where there is none.
    pub fn open(settings: &ShelvesSettings) -> Result<Self, ShelvesError> {
        Self::with_library(settings, true)
    }

    /// Looks without making anything.
    pub fn look(settings: &ShelvesSettings) -> Result<Self, ShelvesError> {
        Self::with_library(settings, settings.library.join("library.json").is_file())
    }

    fn with_library(settings: &ShelvesSettings, open: bool) -> Result<Self, ShelvesError> {
        let (catalog, recipes) = read_catalog(settings)?;
        let library = open.then(|| Library::open(&settings.library)).transpose()?;
        let stored = match &library {
            Some(library) => library.images()?,
            None => Vec::new(),
        };
        let catalog = catalog.with_stored(&stored);
        Ok(Self { catalog, recipes, library, stored })
    }

    /// The library of [`Shelves::open`].
    pub fn library(&self) -> Result<&Library, ShelvesError> {
        self.library.as_ref().ok_or(ShelvesError::NotOpened)
    }

    /// All the way to a plan: what `latest` means is decided here.
    pub fn plan(&self, template: &CheckedTemplate, host: HostLimits) -> Result<BuildPlan, NoPlan> {
        let refused = template.refusals();
        let TemplateSource::Platform { name, version, plan: _ } = &template.source else {
            return Err(NoPlan::Problems(Problems::new(refused)));
        };
        let image = match self.catalog.choose(&self.stored, name, version) {
            Ok(image) => image,
            // Getting an image for a template that cannot be built would be in vain.
            Err(_) if !refused.is_empty() => return Err(NoPlan::Problems(Problems::new(refused))),
            Err(error) => return Err(NoPlan::Image(error)),
        };
        template.plan(&image, host).map_err(NoPlan::Problems)
    }
}

/// What this host can give to one machine of a build without a server: see [`share::largest_guest_mib`].
///
/// # Errors
/// The kernel does not tell how much memory there is.
pub fn host_limits(runtime_dir: &Path, budget_mib: u64) -> io::Result<HostLimits> {
    Ok(HostLimits {
        cpus: kiln_host::space::cpus(),
        memory_mib: share::largest_guest_mib(runtime_dir, budget_mib)?,
    })
}

/// Two lists of problems as one.
pub fn joined(first: Problems, second: impl IntoIterator<Item = Problem>) -> Problems {
    Problems::new(first.into_iter().chain(second).collect())
}

fn read_catalog(settings: &ShelvesSettings) -> Result<(Catalog, Option<PathBuf>), ShelvesError> {
    let shipped = match &settings.images {
        // Given by name: it must be there.
        Some(given) => Some(given.clone()),
        None => images_folders().into_iter().find(|folder| folder.join("catalog.yaml").is_file()),
    };
    let mut catalog = match &shipped {
        Some(folder) => read_one(&folder.join("catalog.yaml"))?,
        None => Catalog::parse(BUILT_IN, "inside this program").map_err(ShelvesError::BuiltIn)?,
    };
    if let Some(own) = settings.user_catalog.as_deref().filter(|path| path.exists()) {
        catalog = catalog.overlaid(read_one(own)?);
    }
    Ok((catalog, shipped))
}

fn read_one(path: &Path) -> Result<Catalog, ShelvesError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ShelvesError::Unreadable { path: path.to_owned(), source })?;
    Catalog::parse(&text, &path.display().to_string()).map_err(ShelvesError::Catalog)
}

/// Where the shipped catalog and recipes may lie, unless they are given by name.
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

    #[test]
    fn a_catalog_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let settings = ShelvesSettings {
            library: dir.path().join("library"),
            images: Some(dir.path().join("gone")),
            user_catalog: None,
        };
        let error = Shelves::look(&settings).unwrap_err();
        assert!(error.to_string().contains("gone/catalog.yaml"), "{error}");
        assert_eq!(error.fault(), Fault::Host);
        assert!(!settings.library.exists(), "looking makes nothing");
    }
}
