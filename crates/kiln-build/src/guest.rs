//! A guest that we are logged in to, with the machine it runs in. The machine dies with it.
//!
//! What it takes to keep one is the same for every guest but for what is here: how it is put to rest, and what lies in
//! its drive.

use std::path::PathBuf;

use kiln_guest::os::windows::facts::{self, BootId, Flushed, WindowsFacts};
use kiln_guest::winrm::WinrmGuest;
use kiln_guest::{Guest, GuestFacts};
use kiln_host::wait::Control;
use kiln_library::ImageLease;
use kiln_qemu::vm::Vm;

use crate::account::BuildAccount;
use crate::context::Run;
use crate::error::BuildError;
use crate::medium::OnMedium;

#[derive(Debug)]
pub enum ConnectedGuest {
    Linux(Box<LinuxGuest>),
    Windows(Box<WindowsGuest>),
}

/// Whether a guest that was put to rest may go on from its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rested {
    Whole,
    /// Only its disk may serve again: why.
    DiskOnly(&'static str),
}

impl ConnectedGuest {
    pub(crate) fn vm(&self) -> &Vm {
        match self {
            Self::Linux(guest) => &guest.vm,
            Self::Windows(guest) => &guest.vm,
        }
    }

    pub(crate) fn vm_mut(&mut self) -> &mut Vm {
        match self {
            Self::Linux(guest) => &mut guest.vm,
            Self::Windows(guest) => &mut guest.vm,
        }
    }

    /// Ends the machine at once.
    pub(crate) async fn kill(self) {
        match self {
            Self::Linux(guest) => guest.vm.kill().await,
            Self::Windows(guest) => guest.vm.kill().await,
        }
    }

    /// The medium that lies in its drive while customizers run.
    pub(crate) fn medium(&self, run: &Run) -> Option<PathBuf> {
        match self {
            Self::Linux(_) => Some(run.workspace.seed()),
            Self::Windows(guest) => (!guest.on_medium.is_empty()).then(|| run.workspace.inputs_medium()),
        }
    }

    /// Has it write out all that it holds in memory.
    ///
    /// # Errors
    /// Outside, those of the machine; inside, why its disk would not have all of it.
    pub(crate) async fn put_to_rest(
        &self,
        run: &Run,
        control: &Control,
    ) -> Result<Result<Rested, BuildError>, BuildError> {
        const ACT: &str = "put the guest to rest";
        match self {
            Self::Linux(linux) => {
                let asked = linux.guest.put_to_rest(control);
                let asked = linux.vm.guard(control, asked).await?;
                Ok(match asked {
                    Ok(true) => Ok(Rested::Whole),
                    Ok(false) => {
                        Ok(Rested::DiskOnly("the guest has neither perl nor python3 to renew its randomness"))
                    }
                    Err(source) => Err(BuildError::Guest { act: ACT, source: source.into() }),
                })
            }
            Self::Windows(guest) => {
                let flush = facts::flush();
                let asked = guest.guest.ask_powershell(ACT, &flush, control);
                let said = match guest.vm.guard(control, asked).await? {
                    Ok(said) => said,
                    Err(source) => return Ok(Err(BuildError::Guest { act: ACT, source: source.into() })),
                };
                if !said.success() {
                    let problems = Flushed::parse(&said.text()).map(|flushed| flushed.problems.join("; "));
                    let detail = problems.filter(|all| !all.is_empty()).unwrap_or_else(|| said.excerpt());
                    return Ok(Err(BuildError::Inside { act: ACT, detail }));
                }
                // Nothing inside can renew Windows' randomness: the machine's generation ID does.
                Ok(Ok(match run.qemu.features().vmgenid {
                    true => Rested::Whole,
                    false => {
                        Rested::DiskOnly("this QEMU has no vmgenid device to renew the guest's randomness")
                    }
                }))
            }
        }
    }
}

/// Reached over SSH.
#[derive(Debug)]
pub struct LinuxGuest {
    pub vm: Vm,
    pub guest: Guest,
    pub facts: GuestFacts,
    pub(crate) on_medium: OnMedium,
    pub(crate) lease: ImageLease,
}

/// Reached over WinRM.
#[derive(Debug)]
pub struct WindowsGuest {
    pub vm: Vm,
    pub guest: WinrmGuest,
    pub facts: WindowsFacts,
    /// The boot that was last seen, where one was asked for.
    pub boot: Option<BootId>,
    /// Made for this run; it goes before the image is.
    pub account: BuildAccount,
    pub(crate) on_medium: OnMedium,
    pub(crate) lease: ImageLease,
}
