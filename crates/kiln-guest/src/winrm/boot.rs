//! Which boot the guest is in.
//!
//! A restart is proven by two things: the ids of shells and commands are unknown afterwards
//! ([`WinrmError::ShellGone`]), and the boot id is another one. Neither sleeping nor a connection that breaks proves
//! anything.

use kiln_host::wait::Control;

use super::error::WinrmError;
use super::guest::WinrmGuest;
use crate::os::windows::facts::{self, BootId};

impl WinrmGuest {
    /// The boot that the guest is in. Asked over a connection of its own: one into an earlier boot may stay silent
    /// for long.
    pub async fn boot_id(&self, control: &Control) -> Result<BootId, WinrmError> {
        const ACT: &str = "asking for the boot id";
        self.forget_idle();
        let output = self.ask_powershell(ACT, &facts::boot_id(), control).await?;
        match BootId::parse(&output.text()) {
            Some(boot) if output.success() => Ok(boot),
            _ => Err(WinrmError::inside(ACT, output.excerpt())),
        }
    }
}
