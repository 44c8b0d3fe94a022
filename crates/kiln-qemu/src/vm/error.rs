//! How a machine fails, in words for whoever has to help it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kiln_host::process::ProcessError;
use kiln_host::wait::Interrupted;

use crate::qmp::QmpError;

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("cannot start QEMU")]
    Start(#[from] ProcessError),
    #[error("cannot prepare {}", .path.display())]
    Prepare { path: PathBuf, source: io::Error },
    #[error("cannot control QEMU")]
    Qmp(#[from] QmpError),
    /// QEMU itself ended, be it that it did not like its arguments or that somebody killed it.
    #[error("QEMU ended with {status}{}; its log is {}", said(.stderr), .log.display())]
    Exited { status: String, stderr: String, log: PathBuf },
    #[error("QEMU stopped the machine by itself ({status}); its log is {}", .log.display())]
    Stopped { status: String, log: PathBuf },
    /// With the stop code where a Windows told it (QEMU's GuestPanicInformationHyperV: the first crash register).
    #[error("the guest panicked{}", stop(.stop_code))]
    GuestPanicked { stop_code: Option<u64> },
    /// While something was to be done with it.
    #[error("the guest shut itself down")]
    GuestShutDown,
    #[error("the machine ended without a clean shutdown of the guest: {how}")]
    NotShutDown { how: String },
    #[error("the guest did not shut down within {} s of being asked to", .limit.as_secs())]
    ShutdownTimeout { limit: Duration },
    #[error(
        "no room left for the guest's disk {}, and none was made in {} s; make room on its file system",
        .path.display(), .waited.as_secs()
    )]
    DiskFull { path: PathBuf, waited: Duration },
    #[error("the guest's disk {} failed to {operation}: {reason}", .path.display())]
    DiskFailed { path: PathBuf, operation: String, reason: String },
    #[error("QEMU forwards no port to the guest's port {guest_port}")]
    NoForward { guest_port: u16 },
    #[error("QEMU cannot forward a port to the guest's port {guest_port}: {reason}")]
    Forward { guest_port: u16, reason: String },
    #[error("QEMU cannot keep or read the machine's memory in {}: {reason}", .path.display())]
    Memory { path: PathBuf, reason: String },
    #[error("the machine's memory was not written within {} s", .limit.as_secs())]
    MemorySlow { limit: Duration },
    #[error("this QEMU does not write memory files (mapped-ram, since QEMU 9.0)")]
    NoMemoryFiles,
    #[error("swtpm ended with {status}{}; its log is {}", said(.stderr), .log.display())]
    Tpm { status: String, stderr: String, log: PathBuf },
    #[error("waiting for the guest")]
    Interrupted(#[from] Interrupted),
}

impl VmError {
    /// Why the wait ended, if nothing failed but time or patience.
    pub fn interrupted(&self) -> Option<Interrupted> {
        match self {
            Self::Interrupted(why) => Some(*why),
            Self::Qmp(QmpError::Interrupted { source }) => Some(*source),
            _ => None,
        }
    }
}

fn stop(code: &Option<u64>) -> String {
    code.map(|code| format!(" with the stop code {code:#010X}")).unwrap_or_default()
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        words => format!("; it said: {words}"),
    }
}
