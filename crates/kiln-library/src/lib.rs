//! The shelves: base images and input files, content-addressed.

mod error;
mod fetch;
mod images;
mod import;
mod inputs;
mod library;
mod pull;

pub use error::{FetchError, ImageError, InputError, LibraryError};
pub use fetch::settings::{FetchSettings, ProxySettings};
pub use images::{Check, Checked, ImageLease, ImageOrigin, ImageRecord};
pub use import::{BuiltImage, DiskProbe, ImageProgress, ImportRequest, Imported};
pub use inputs::{InputProgress, StoredInput};
pub use library::{LIBRARY_FORMAT, Library};
