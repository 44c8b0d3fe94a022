//! The shelves: base images and input files, content-addressed, and checkpoints.
//!
//! ```text
//!   kiln images import FILE ─► import ─┐
//!   kiln images build NAME  ─► import ─┼─► images/<name>/<version>/   leased by the runs that use them
//!   kiln images pull NAME ─► pull ─┬───┘
//!                                  │ fetch: one file from an unreliable world
//!   a run's inputs ─────► inputs ──┴─────► inputs/sha256/<digest>     read-only, shared by all runs
//!   a run's machine ────► checkpoints ───► checkpoints/<id>/          leased by the runs that go on from there
//! ```
//!
//! | module      | owns                                                                              |
//! |-------------|-----------------------------------------------------------------------------------|
//! | `library`   | the folder: layout, format number, what is swept                                  |
//! | `images`    | images on the shelf: listing, leases, verification, removal, how one appears      |
//! | `import`    | a disk image on its way in; `probe` tells what it is                              |
//! | `pull`      | an image of the catalog on its way here; `checksums` reads publishers' lists      |
//! | `inputs`    | the files a template names                                                        |
//! | `upload`    | such a file that is sent instead                                                   |
//! | `checkpoints` | machines as they stood after a step: publishing, leases, verification, eviction  |
//! | `fetch`     | HTTP: attempts, ranges, redirects, trust, proxies                                 |
//! | `hold`      | locks on files and folders by name                                                |
//!
//! Several processes may use one library at the same time; there is no server and nothing to repair after a crash. What
//! is unfinished lies in `tmp` and is locked by whoever makes it. Errors tell whose fault they are ([`LibraryError::fault`]
//! and its like); those that are nobody's, because the caller stopped it, tell that by `interrupted`.

mod background;
mod checkpoints;
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
mod upload;

pub use checkpoints::{
    BaseMark, CHECKPOINT_FORMAT, ChainLink, CheckpointDraft, CheckpointKind, CheckpointLease, Evicted,
    MachineMark, Making, Manifest, Removed, ShelvedCheckpoint, StepInput, StepMark, StoredFile, Verify,
};
pub use error::{FetchError, ImageError, InputError, LibraryError, UploadError};
pub use fetch::policy::AddressPolicy;
pub use fetch::settings::{FetchSettings, ProxySettings};
pub use images::{Check, Checked, IMAGE_FORMAT, ImageLease, ImageOrigin, ImageRecord};
pub use import::{BuiltImage, ImageProgress, ImportRequest, Imported};
pub use inputs::{InputProgress, ShelvedInput, StoredInput, file_address};
pub use library::{LIBRARY_FORMAT, Library};
pub use probe::{DiskProbe, PartitionTable};
