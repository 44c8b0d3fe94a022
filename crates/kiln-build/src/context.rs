//! What every part of a run is given: the plan, the places, the journal, the log
//! and the bound that ends every wait.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use kiln_host::wait::Control;
use kiln_library::{FetchSettings, Library};
use kiln_model::plan::BuildPlan;
use kiln_qemu::host::{Accelerator, Qemu};
use kiln_qemu::machine::Drivers;
use tokio::sync::OnceCell;

use crate::journal::Journal;
use crate::log::CustomizationLog;
use crate::run_dir::{RunDir, RunRequest};
use crate::transcript::Transcript;
use crate::workspace::Workspace;

/// What a worker takes from its surroundings; read once, by the command.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// `PATH`: where QEMU and qemu-img are looked for.
    pub search_path: OsString,
    /// Short, host-local, private: sockets lie below it.
    pub runtime_dir: PathBuf,
    /// Verdicts worth remembering between runs (the accelerator's).
    pub cache_dir: PathBuf,
    pub fetch: FetchSettings,
    /// How long a guest stays paused on a full disk before the run fails.
    pub disk_full_wait: Duration,
    /// All guests of this user on this host together may have so much, MiB; see [`crate::share`].
    pub memory_mib: u64,
    pub kiln_version: String,
}

/// One run under way.
#[derive(Debug)]
pub struct Run {
    pub dir: RunDir,
    pub request: RunRequest,
    pub plan: BuildPlan,
    pub settings: WorkerSettings,
    pub workspace: Workspace,
    pub library: Library,
    pub qemu: Qemu,
    /// Found out when first wanted.
    pub accelerator: OnceCell<Accelerator>,
    /// What a Windows base image starts on; found out when first wanted.
    pub drivers: OnceCell<Drivers>,
    pub journal: Journal,
    pub log: CustomizationLog,
    /// Where one was asked for.
    pub transcript: Option<Transcript>,
    /// INVARIANT: every wait of a run is bounded by this, or by something shorter.
    pub control: Control,
}
