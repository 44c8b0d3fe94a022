//! The File customizer: one file, checked again inside the guest.
//!
//! The destination is a full path, or a folder with a trailing slash; folders are
//! not made. INVARIANT: the digest is checked again inside the guest after the copy.

use kiln_guest::{GuestError, UploadFailure, UploadFrom, resolve_destination};
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, InputRef};
use kiln_qemu::media::CLOUD_INIT_LABEL;

use super::{stored, upload_progress};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::LinuxGuest;
use crate::medium::Way;

/// Mode of a file that the template places.
const MODE: u32 = 0o644;

pub(super) async fn run(
    run: &Run,
    guest: &mut LinuxGuest,
    customizer: &Customizer,
    source: &InputRef,
    destination: &str,
    input: Option<&StoredInput>,
) -> Result<String, BuildError> {
    let failed =
        |detail: String, source| BuildError::Customizer { title: customizer.title(), detail, source };
    let input = stored(customizer, source, input)?;
    let target = resolve_destination(destination, &source.location.file_name())
        .map_err(|error| failed(error.to_string(), None))?;
    run.log.say(format!("Uploading {} => {target}", source.location.redacted()));
    let progress = upload_progress(run, customizer, input.size);
    let LinuxGuest { vm, guest, facts, on_medium, .. } = guest;
    // The service writes as its login account; where that account may not, root does.
    let privileged = facts.sudo.gives_root();
    let digest = *input.sha256.as_bytes();
    let failed_upload = |error: GuestError| failed(format!("Error uploading {target}"), Some(error.into()));
    let mut way = Way::Link;
    if let Some(name) = on_medium.name(customizer.position) {
        let from = UploadFrom::Medium { label: CLOUD_INIT_LABEL, name: &name, bytes: input.size };
        let upload = guest.upload(from, &target, MODE, digest, privileged, &progress, &run.control);
        match vm.guard(&run.control, upload).await? {
            Ok(_) => way = Way::Medium,
            Err(GuestError::Upload { failure: UploadFailure::NoMedium { detail }, .. }) => {
                on_medium.give_up(run, &detail);
            }
            Err(error) => return Err(failed_upload(error)),
        }
    }
    if way == Way::Link {
        let from = input.path.as_path().into();
        let upload = guest.upload(from, &target, MODE, digest, privileged, &progress, &run.control);
        vm.guard(&run.control, upload).await?.map_err(failed_upload)?;
    }
    Ok(format!("{} bytes at {target} {way}, digest checked in the guest", input.size))
}
