use std::path::PathBuf;
use std::time::Duration;

use kiln_host::wait::Control;
use kiln_model::Sha256;
use kiln_model::plan::InputRef;

use crate::{FetchSettings, InputError, Library};

/// An input file on the shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredInput {
    pub sha256: Sha256,
    pub size: u64,
    pub path: PathBuf,
}

/// `input` is the place in the list of wants, from 0; addresses are redacted.
#[derive(Debug, Clone)]
pub enum InputProgress {
    /// It was on the shelf.
    Present {
        input: usize,
        address: String,
    },
    Started {
        input: usize,
        address: String,
    },
    /// A few times a second.
    Received {
        input: usize,
        done: u64,
        total: Option<u64>,
    },
    /// `message` is the one of [`InputError::Download`], with its causes.
    Retrying {
        input: usize,
        attempt: u32,
        attempts: u32,
        after: Duration,
        message: String,
    },
    Stored {
        input: usize,
        address: String,
        sha256: Sha256,
        size: u64,
    },
}

impl Library {
    /// Puts every wanted file on the shelf; the answers are in the order of `wants`.
    pub async fn ensure_inputs(
        &self,
        wants: &[InputRef],
        settings: &FetchSettings,
        progress: impl Fn(InputProgress) + Send + Sync,
        control: &Control,
    ) -> Vec<Result<StoredInput, InputError>> {
        let _ = (wants, settings, &progress, control);
        todo!()
    }
}
