//! How a step's script gets into the guest.

use super::nonce;

/// A step's script.
#[derive(Clone)]
pub enum StepScript {
    /// Travels with the command that starts the step: no round of its own, and all of it in memory here.
    Bytes(Vec<u8>),
    /// Lies in the guest already.
    Placed(PlacedScript),
}

/// A script that was put into the guest before its step begins, by [`Guest::upload`](crate::Guest::upload) to
/// [`path`](Self::path): of any size, and its digest checked where it lies.
///
/// Its name has the step's nonce, so whatever becomes of the step, removing that removes this. Without a step that is
/// run it stays.
#[derive(Debug, Clone)]
pub struct PlacedScript {
    nonce: String,
    path: String,
    bytes: u64,
    runs_itself: bool,
}

impl PlacedScript {
    /// The place for a script of so many `bytes` in `directory`, which is [`GuestFacts::script_dir`] or another of the
    /// directories where steps look for a place. `head` is how the script begins, its first four bytes at least.
    ///
    /// [`GuestFacts::script_dir`]: crate::GuestFacts::script_dir
    pub fn new(directory: &str, bytes: u64, head: &[u8]) -> Self {
        let nonce = nonce();
        let path = format!("{directory}/script_{nonce}_placed");
        Self { nonce, path, bytes, runs_itself: runs_itself(head) }
    }

    /// Where the script is to be put.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl StepScript {
    pub(super) fn nonce(&self) -> String {
        match self {
            Self::Bytes(_) => nonce(),
            Self::Placed(placed) => placed.nonce.clone(),
        }
    }

    /// How large it is.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Placed(placed) => placed.bytes,
        }
    }

    /// Whether the kernel knows by itself what runs it.
    pub(super) fn runs_itself(&self) -> bool {
        match self {
            Self::Bytes(bytes) => runs_itself(bytes),
            Self::Placed(placed) => placed.runs_itself,
        }
    }

    /// What travels with the command, and the path of what does not.
    pub(super) fn parts(&self) -> (&[u8], &str) {
        match self {
            Self::Bytes(bytes) => (bytes, ""),
            Self::Placed(placed) => (&[], &placed.path),
        }
    }
}

fn runs_itself(head: &[u8]) -> bool {
    head.starts_with(b"#!") || head.starts_with(b"\x7fELF")
}

impl From<Vec<u8>> for StepScript {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<String> for StepScript {
    fn from(text: String) -> Self {
        Self::Bytes(text.into_bytes())
    }
}

impl From<&str> for StepScript {
    fn from(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

impl From<PlacedScript> for StepScript {
    fn from(placed: PlacedScript) -> Self {
        Self::Placed(placed)
    }
}
