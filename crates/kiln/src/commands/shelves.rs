//! The shelves, as the command's folders have them.

use std::ops::Deref;

use kiln_daemon::shelves::{self, ShelvesError};
use kiln_library::Library;

use crate::exit::Failure;
use crate::settings::Folders;

/// [`shelves::Shelves`], with failures of the command's kind.
#[derive(Debug)]
pub struct Shelves(shelves::Shelves);

impl Shelves {
    /// Opens the library, making it where there is none.
    pub fn open(folders: &Folders) -> Result<Self, Failure> {
        shelves::Shelves::open(&folders.shelves()).map(Self).map_err(failure)
    }

    /// Looks without making anything.
    pub fn look(folders: &Folders) -> Result<Self, Failure> {
        shelves::Shelves::look(&folders.shelves()).map(Self).map_err(failure)
    }

    /// The library of [`Shelves::open`].
    pub fn library(&self) -> Result<&Library, Failure> {
        self.0.library().map_err(failure)
    }
}

impl Deref for Shelves {
    type Target = shelves::Shelves;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

fn failure(error: ShelvesError) -> Failure {
    Failure::new(error.fault(), error)
}
