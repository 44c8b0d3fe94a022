//! Generalizing: from a guest that is used to an image that is not.
//!
//! INVARIANT: only a guest that shut down cleanly yields an image.

mod linux;
mod windows;

use kiln_guest::os::windows::bootstrap::Undoing;
use kiln_library::ImageLease;
use kiln_model::Sha256;
use kiln_model::catalog::Login;
use kiln_qemu::disk::{Image, Overlay, StoppedMachine};

use crate::boot;
use crate::checkpoint::Earlier;
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::ConnectedGuest;
use crate::seed::BUILD_USER;

/// What stays of a guest: its disks, cleanly shut down.
#[derive(Debug)]
pub struct Generalized {
    pub image: Image,
    /// Of all that led to it, where that is known.
    pub key: Option<Sha256>,
    /// An earlier run made it.
    pub reused: bool,
    /// An overlay is nothing without its base image, which must stay until the last target has it.
    _lease: ImageLease,
}

impl Generalized {
    fn new(stopped: StoppedMachine, lease: ImageLease) -> Self {
        Self { image: stopped.into_image(), key: None, reused: false, _lease: lease }
    }
}

/// What a guest is cleaned by, for whoever has to tell whether it is still the same.
pub fn fingerprint(login: &Login) -> String {
    match login {
        Login::CloudInit => linux::CLEAN_UP.to_owned(),
        Login::AnswerFile => windows::fingerprint(Undoing::Bootstrap { user: BUILD_USER }),
        Login::Credentials(_) => windows::fingerprint(Undoing::BuildOnly),
    }
}

/// The image that an earlier run made of the same, in this run's own folder.
pub async fn kept(run: &Run, earlier: &Earlier) -> Result<Generalized, BuildError> {
    let lease = boot::base_in_use(run).await?;
    let disk = Overlay::reopen(run.qemu.img(), earlier.disk(run))
        .map_err(|source| BuildError::Disk { act: "open the finished image", source })?;
    let key = Some(earlier.manifest().key);
    Ok(Generalized { image: Image::kept(disk), key, reused: true, _lease: lease })
}

pub async fn run(run: &Run, guest: ConnectedGuest) -> Result<Generalized, BuildError> {
    match guest {
        ConnectedGuest::Linux(guest) => linux::run(run, *guest).await,
        ConnectedGuest::Windows(guest) => windows::run(run, *guest).await,
    }
}
