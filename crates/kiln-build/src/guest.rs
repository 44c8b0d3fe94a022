//! A guest that we are logged in to, with the machine it runs in. The machine dies with it.

use kiln_guest::os::windows::facts::{BootId, WindowsFacts};
use kiln_guest::winrm::WinrmGuest;
use kiln_guest::{Guest, GuestFacts};
use kiln_library::ImageLease;
use kiln_qemu::vm::Vm;

use crate::account::BuildAccount;
use crate::medium::OnMedium;

#[derive(Debug)]
pub enum ConnectedGuest {
    Linux(Box<LinuxGuest>),
    Windows(Box<WindowsGuest>),
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
