//! Why a run failed: the cause in one sentence, and whose fault it is.

use std::path::PathBuf;

use kiln_guest::GuestError;
use kiln_guest::winrm::WinrmError;
use kiln_host::wait::Interrupted;
use kiln_library::{InputError, LibraryError};
use kiln_model::run::Fault;
use kiln_qemu::vm::VmError;

use crate::password_file::PasswordFileError;
use crate::share::ShareError;

/// What went wrong on the way to a guest or in it, by the way it is reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    #[error(transparent)]
    Ssh(#[from] GuestError),
    #[error(transparent)]
    Winrm(#[from] WinrmError),
}

/// A run's end that is not success. Messages are whole sentences' beginnings: the
/// chain of sources is printed once, where the failure is shown.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the run was interrupted")]
    Interrupted(#[from] Interrupted),
    #[error("the input of {title} could not be fetched")]
    Input { title: String, source: InputError },
    #[error("could not use the library")]
    Library(#[from] LibraryError),
    #[error("could not {act}")]
    Disk { act: &'static str, source: kiln_qemu::disk::DiskError },
    #[error("could not {act} {}", path.display())]
    Io { act: &'static str, path: PathBuf, source: std::io::Error },
    #[error("a checkpoint cannot be used: {detail}")]
    Checkpoint { detail: String },
    #[error("not enough room on this host")]
    Room(#[from] kiln_host::space::SpaceError),
    #[error("could not get memory for the guest")]
    Memory(#[source] ShareError),
    #[error("the virtual machine failed")]
    Vm(#[from] VmError),
    #[error("could not make the build's keys")]
    Keys(#[source] kiln_guest::keys::KeyError),
    #[error("could not write the machine's medium")]
    Media(#[source] kiln_qemu::media::MediaError),
    #[error("could not prepare the UEFI firmware")]
    Firmware(#[from] kiln_qemu::firmware::FirmwareError),
    #[error(transparent)]
    Tpm(#[from] kiln_qemu::tpm::NoTpm),
    #[error("could not make the answer file")]
    AnswerFile(#[source] kiln_guest::os::windows::bootstrap::AnswerFileError),
    #[error("could not read the Windows on the disk")]
    Offline(#[source] kiln_qemu::offline::OfflineError),
    #[error(
        "the base image {image} may not be generalized once more: Windows has no rearm left for it; take one that was \
         generalized less often"
    )]
    NoRearm { image: String },
    #[error("{0}")]
    Qemu(#[from] kiln_qemu::host::HostError),
    #[error("could not connect to the guest")]
    Connect(#[source] ReachError),
    #[error(transparent)]
    Password(#[from] PasswordFileError),
    #[error(
        "the Windows does not let \"{user}\" in with the password in {}; put the right one there, or import the image \
         with another --user",
        .password_file.display()
    )]
    Credentials { user: String, password_file: PathBuf, source: ReachError },
    #[error("could not {act} in the guest")]
    Guest { act: &'static str, source: ReachError },
    /// One of Kiln's own texts failed inside the guest.
    #[error("could not {act} in the guest: {detail}")]
    Inside { act: &'static str, detail: String },
    #[error("{path:?} is no name for a file of a build in a Windows guest")]
    GuestPath { path: String },
    #[error("{title}: {detail}")]
    Customizer {
        title: String,
        detail: String,
        #[source]
        source: Option<ReachError>,
    },
    #[error("deprovisioning failed: {detail}")]
    Deprovision {
        detail: String,
        #[source]
        source: Option<ReachError>,
    },
    #[error("could not write the VHD of \"{name}\"")]
    Vhd { name: String, source: kiln_qemu::vhd::VhdError },
    #[error("could not write the run output of \"{name}\"")]
    Output { name: String, source: std::io::Error },
    #[error("the run's files could not be written")]
    Journal(#[source] std::io::Error),
}

impl BuildError {
    pub fn io(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { act, path, source }
    }

    /// The one function that says whose fault a failure is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Interrupted(_) => Fault::Template,
            Self::Input { source, .. } => source.fault(),
            Self::Library(error) => error.fault(),
            Self::Customizer { .. }
            | Self::Deprovision { .. }
            | Self::Connect(_)
            | Self::Credentials { .. }
            | Self::Guest { .. }
            | Self::Inside { .. } => Fault::Guest,
            Self::Vm(
                VmError::GuestPanicked { .. } | VmError::GuestShutDown | VmError::ShutdownTimeout { .. },
            ) => Fault::Guest,
            Self::Disk { .. }
            | Self::Io { .. }
            | Self::Room(_)
            | Self::Checkpoint { .. }
            | Self::Vm(_)
            | Self::Firmware(_)
            | Self::Media(_)
            | Self::Tpm(_)
            | Self::Password(_)
            | Self::Offline(_)
            | Self::Qemu(_)
            | Self::Vhd { .. }
            | Self::Output { .. }
            | Self::Journal(_) => Fault::Host,
            Self::Memory(error) => match error {
                ShareError::TooLarge { .. } | ShareError::Interrupted(_) => Fault::Template,
                ShareError::Io { .. } | ShareError::Gate(_) => Fault::Host,
            },
            Self::NoRearm { .. } => Fault::Template,
            Self::Keys(_) | Self::GuestPath { .. } | Self::AnswerFile(_) => Fault::Bug,
        }
    }

    /// Whether it was a cancel or the deadline that ended the run, wherever it was noticed.
    pub fn interrupted(&self) -> Option<Interrupted> {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(current) = error {
            if let Some(interrupted) = current.downcast_ref::<Interrupted>() {
                return Some(*interrupted);
            }
            error = current.source();
        }
        None
    }

    /// The cause in one sentence, on one line.
    pub fn sentence(&self) -> String {
        sentence(self)
    }

    /// Every message from the outermost to the first cause, without repetitions.
    pub fn chain(&self) -> Vec<String> {
        chain(self)
    }
}

/// An error with its causes in one sentence, on one line.
pub fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    let mut messages: Vec<String> = Vec::new();
    let mut error = Some(error);
    while let Some(current) = error {
        let message = current.to_string();
        if messages.last() != Some(&message) {
            messages.push(message);
        }
        error = current.source();
    }
    messages
}
