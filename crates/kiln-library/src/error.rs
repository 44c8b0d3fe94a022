//! What can go wrong on the shelves, and whose fault it is.
//!
//! Each error names the act and the place; its cause is its `source`. Addresses are always redacted, and errors of the
//! HTTP client are stripped of theirs before they are kept.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_host::wait::Interrupted;
use kiln_model::Sha256;
use kiln_model::run::Fault;
use kiln_qemu::qemu_img::QemuImgError;

use crate::background::Ended;

/// A shelf cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("cannot {act} {}", .path.display())]
    Disk { act: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{} has format {found}, this Kiln knows {known}; it was left untouched: use a newer Kiln",
        .path.display()
    )]
    NewerFormat { path: PathBuf, found: u64, known: u32 },
    #[error("{} is damaged", .path.display())]
    Unreadable { path: PathBuf, source: serde_json::Error },
    #[error("{} cannot be used: {what}", .path.display())]
    Contradiction { path: PathBuf, what: String },
    #[error("the library has no image {name} {version}; `kiln images list` shows what it has")]
    NoSuchImage { name: String, version: String },
    #[error("image {name} {version} is in use by a run; remove it when the run has ended")]
    InUse { name: String, version: String },
    #[error(
        "image {name} {version} is already in the library with other contents; give the new one another version, or run `kiln images remove {name} {version}`"
    )]
    AlreadyStored { name: String, version: String },
    #[error(
        "\"{text}\" cannot name an image: use 1 to 64 lower-case letters, digits, `.`, `-` or `_`, beginning with a letter or digit"
    )]
    BadName { text: String },
    #[error("\"{text}\" is no image version: use numbers separated by dots, such as 12.20250101.0")]
    BadVersion { text: String },
    #[error(
        "{} is damaged: its SHA-256 is {actual}, not {expected}; remove the image and pull, build or import it again",
        .path.display()
    )]
    Damaged { path: PathBuf, expected: Sha256, actual: Sha256 },
    #[error("the library has no checkpoint {id}")]
    NoSuchCheckpoint { id: String },
    /// Not what it was when it was published. Whoever meets it takes another checkpoint, or none.
    #[error("{} of checkpoint {id} is damaged: {what}", .path.display())]
    DamagedCheckpoint { id: String, path: PathBuf, what: String },
    #[error("stopped before the library's work was done")]
    Interrupted(#[from] Interrupted),
}

impl LibraryError {
    pub(crate) fn disk(act: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Disk { act, path, source }
    }

    /// For work that [`crate::background::run`] did.
    pub(crate) fn ended(act: &'static str, path: impl AsRef<Path>) -> impl FnOnce(Ended) -> Self {
        let path = path.as_ref().to_owned();
        move |ended| match ended {
            Ended::Interrupted(why) => Self::Interrupted(why),
            Ended::Failed(source) => Self::Disk { act, path, source },
        }
    }

    pub fn fault(&self) -> Fault {
        Fault::Host
    }

    pub fn interrupted(&self) -> Option<Interrupted> {
        match self {
            Self::Interrupted(why) => Some(*why),
            _ => None,
        }
    }
}

/// A file could not become an image of the library.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{} cannot be imported: {reason}", .path.display())]
    Refused { path: PathBuf, reason: String },
    #[error("{}: the SHA-256 is {actual}, but {expected} was expected; nothing was stored", .path.display())]
    WrongDigest { path: PathBuf, expected: Sha256, actual: Sha256 },
    #[error("cannot {act} {}", .path.display())]
    QemuImg { act: &'static str, path: PathBuf, source: QemuImgError },
    #[error("cannot pull image {name}: {reason}")]
    NotPullable { name: String, reason: String },
    #[error("cannot fetch image {name} from {address}")]
    Fetch { name: String, address: String, source: Box<FetchError> },
    #[error("cannot fetch the checksum file of image {name} from {address}")]
    FetchChecksums { name: String, address: String, source: Box<FetchError> },
    #[error("cannot keep image {name} while it is fetched")]
    Keep { name: String, source: Box<FetchError> },
    #[error("the checksum file {address} has no line for {file}")]
    NoChecksum { address: String, file: String },
    #[error(transparent)]
    NoRoom(#[from] kiln_host::space::SpaceError),
    #[error(transparent)]
    Library(#[from] LibraryError),
}

impl ImageError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Refused { .. } | Self::WrongDigest { .. } | Self::NotPullable { .. } => Fault::Template,
            Self::QemuImg { .. } | Self::NoRoom(_) => Fault::Host,
            Self::Fetch { source, .. } | Self::FetchChecksums { source, .. } | Self::Keep { source, .. } => {
                source.fault()
            }
            Self::NoChecksum { .. } => Fault::Remote,
            Self::Library(error) => error.fault(),
        }
    }

    /// Whether it failed only because it was told to stop.
    pub fn interrupted(&self) -> Option<Interrupted> {
        match self {
            Self::Fetch { source, .. } | Self::FetchChecksums { source, .. } | Self::Keep { source, .. } => {
                source.interrupted()
            }
            Self::QemuImg { source, .. } => source.interrupted(),
            Self::Library(error) => error.interrupted(),
            _ => None,
        }
    }
}

/// An input of a template is not there. Cheap to clone: one failed address may be wanted by several customizers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InputError {
    /// The words of Azure VM Image Builder, for people and scripts that look for them.
    #[error("{}", download_words(.address, .local, *.attempt, *.attempts))]
    Download {
        /// Redacted.
        address: String,
        /// The name it would have had, in the form of that service.
        local: String,
        attempt: u32,
        attempts: u32,
        #[source]
        source: Arc<FetchError>,
    },
    #[error(
        "the file {address} does not match its sha256Checksum: expected {expected}, got {actual}; nothing of it was used"
    )]
    Checksum {
        /// Redacted.
        address: String,
        expected: Sha256,
        actual: Sha256,
    },
    /// A plan relies on a copy that is not there, or not what it was.
    #[error(
        "the stored copy of {address} is gone from the library{}; put the template again",
        .sha256.map(|sha256| format!(" (sha256 {sha256})")).unwrap_or_default()
    )]
    Gone {
        /// Redacted.
        address: String,
        sha256: Option<Sha256>,
    },
    #[error("cannot keep the file {address}")]
    Store {
        address: String,
        #[source]
        source: Arc<LibraryError>,
    },
}

/// A file that was sent cannot be put on the shelf; nothing of it was kept.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("the upload ended before it was complete")]
    Torn(#[source] io::Error),
    #[error("the upload fell silent for {} s", .after.as_secs_f32())]
    Silent { after: Duration },
    #[error("the upload is longer than the {limit} bytes that an input may have")]
    TooLong { limit: u64 },
    #[error("the upload has the SHA-256 {found}, but {expected} was announced")]
    Digest { expected: Sha256, found: Sha256 },
    #[error("cannot keep the upload")]
    Store(#[source] FetchError),
}

impl InputError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Download { source, .. } => source.fault(),
            Self::Checksum { .. } => Fault::Template,
            Self::Gone { .. } => Fault::Host,
            Self::Store { source, .. } => source.fault(),
        }
    }

    /// Whether it failed only because it was told to stop.
    pub fn interrupted(&self) -> Option<Interrupted> {
        match self {
            Self::Download { source, .. } => source.interrupted(),
            Self::Checksum { .. } | Self::Gone { .. } => None,
            Self::Store { source, .. } => source.interrupted(),
        }
    }
}

/// Why bytes did not arrive. Never holds an address unredacted.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the address is not one that can be fetched: {reason}")]
    BadAddress { reason: String },
    /// The server's final word; `meaning` is the usual name of the number.
    #[error("{address} answered {status}{}", meaning(*.status))]
    Status { status: u16, address: String, pause: Option<Duration> },
    #[error("{act} {host}")]
    Transport { act: &'static str, host: String, source: reqwest::Error },
    #[error(
        "the certificate of {host} is not trusted; if its authority is your own, name it in a CA file (caFile) or add it to the host's trust store"
    )]
    Certificate { host: String, source: reqwest::Error },
    /// This server's policy; `what` says which address it is.
    #[error(
        "{host} is at {address}, {what}: this server fetches nothing from there (inputs.allowPrivateAddresses lets it)"
    )]
    Forbidden { host: String, address: std::net::IpAddr, what: &'static str },
    #[error("{host} did not answer within {} s", .after.as_secs_f32())]
    NoAnswer { host: String, after: Duration },
    #[error("the transfer stalled: {received} bytes in {} s", .window.as_secs_f32())]
    Stalled { received: u64, window: Duration },
    #[error("the server sent {received} bytes where {announced} were announced")]
    WrongLength { received: u64, announced: u64 },
    #[error("the server's answer makes no sense: {what}")]
    Protocol { what: String },
    #[error("the answer is longer than the {limit} bytes that such a file may have")]
    TooLong { limit: u64 },
    #[error("{limit} redirects and no end, last to {address}")]
    TooManyRedirects { limit: u32, address: String },
    #[error("a redirect to {address} is not followed: {reason}")]
    Redirect { address: String, reason: &'static str },
    /// Digests in hex, of the kind that was expected; also the SHA-256 of what came.
    #[error("the digest is {found}, but {expected} was expected")]
    WrongDigest { expected: String, found: String, sha256: Sha256 },
    #[error("{} is a directory; pack it into an archive (tar or zip) and name that", .path.display())]
    IsDirectory { path: PathBuf },
    #[error("{} is not a regular file", .path.display())]
    NotRegular { path: PathBuf },
    #[error("{} changed while it was read", .path.display())]
    Changed { path: PathBuf },
    #[error("cannot read {}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(transparent)]
    NoRoom(#[from] kiln_host::space::SpaceError),
    #[error("cannot {act} {}", .path.display())]
    Disk { act: &'static str, path: PathBuf, source: io::Error },
    #[error("the fetch settings cannot be used: {what}")]
    Settings { what: String },
    #[error("stopped while fetching")]
    Interrupted(#[from] Interrupted),
}

impl FetchError {
    /// Whether the same request may succeed in a moment.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => is_trouble(*status),
            Self::Transport { .. }
            | Self::NoAnswer { .. }
            | Self::Stalled { .. }
            | Self::WrongLength { .. }
            | Self::Protocol { .. } => true,
            _ => false,
        }
    }

    /// Whether another address would fail in the same way.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::NoRoom(_) | Self::Disk { .. } | Self::Settings { .. })
    }

    pub fn fault(&self) -> Fault {
        match self {
            Self::Status { status, .. } if (400..500).contains(status) && !self.is_transient() => {
                Fault::Template
            }
            Self::BadAddress { .. }
            | Self::Forbidden { .. }
            | Self::WrongDigest { .. }
            | Self::IsDirectory { .. }
            | Self::NotRegular { .. }
            | Self::Changed { .. }
            | Self::Unreadable { .. } => Fault::Template,
            Self::Status { .. }
            | Self::Transport { .. }
            | Self::Certificate { .. }
            | Self::NoAnswer { .. }
            | Self::Stalled { .. }
            | Self::WrongLength { .. }
            | Self::Protocol { .. }
            | Self::TooLong { .. }
            | Self::TooManyRedirects { .. }
            | Self::Redirect { .. } => Fault::Remote,
            Self::NoRoom(_) | Self::Disk { .. } | Self::Settings { .. } => Fault::Host,
            // Not a fault: `interrupted` tells who ended it.
            Self::Interrupted(_) => Fault::Host,
        }
    }

    /// Whether it failed only because it was told to stop.
    pub fn interrupted(&self) -> Option<Interrupted> {
        match self {
            Self::Interrupted(why) => Some(*why),
            _ => None,
        }
    }
}

/// An error with its causes on one line, for messages that stand alone.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The contract's words for a file that does not come.
pub(crate) fn download_words(address: &str, local: &str, attempt: u32, attempts: u32) -> String {
    format!(
        "Downloading external file ({address}) to local file ({local}) [attempt {attempt} of {attempts}] failed: Error downloading '{address}'"
    )
}

/// Whether a server that answers this may answer otherwise in a moment.
pub(crate) fn is_trouble(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

/// ` (Not Found)` for 404.
fn meaning(status: u16) -> String {
    reqwest::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default()
}
