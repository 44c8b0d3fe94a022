//! The File customizer: one file, checked again inside the guest.
//!
//! The destination is a full path, or a folder with a trailing slash; folders are
//! not made. INVARIANT: the digest is checked again inside the guest after the copy.

use kiln_guest::resolve_destination;
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, InputRef};

use super::{stored, upload_progress};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::LinuxGuest;

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
    let LinuxGuest { vm, guest, facts, .. } = guest;
    // The service writes as its login account; where that account may not, root does.
    let privileged = facts.sudo.gives_root();
    let digest = *input.sha256.as_bytes();
    let upload = guest.upload(&input.path, &target, MODE, digest, privileged, progress, &run.control);
    vm.guard(&run.control, upload)
        .await?
        .map_err(|error| failed(format!("Error uploading {target}"), Some(error.into())))?;
    Ok(format!("{} bytes at {target}, digest checked in the guest", input.size))
}
