//! The shelves: base images and input files, content-addressed.

mod background;
mod checksums;
mod error;
mod fetch;
mod hold;
mod images;
mod import;
mod inputs;
mod library;
mod probe;
mod pull;

pub use error::{FetchError, ImageError, InputError, LibraryError};
pub use fetch::settings::{FetchSettings, ProxySettings};
pub use images::{Check, Checked, IMAGE_FORMAT, ImageLease, ImageOrigin, ImageRecord};
pub use import::{BuiltImage, ImageProgress, ImportRequest, Imported};
pub use inputs::{InputProgress, StoredInput, file_address};
pub use library::{LIBRARY_FORMAT, Library};
pub use probe::{DiskProbe, PartitionTable};
