//! The File customizer: one file, checked again inside the guest.
//!
//! The destination is a full path, or a folder with a trailing slash; folders are
//! not made. INVARIANT: the digest is checked again inside the guest after the copy.

use kiln_guest::resolve_destination;
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, InputRef};

use super::{Target, put, stored};
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
    let input = stored(customizer, source, input)?;
    let path = resolve_destination(destination, &source.location.file_name()).map_err(|error| {
        BuildError::Customizer { title: customizer.title(), detail: error.to_string(), source: None }
    })?;
    run.log.say(format!("Uploading {} => {path}", source.location.redacted()));
    // The service writes as its login account; where that account may not, root does.
    let target = Target { path: &path, mode: MODE, privileged: guest.facts.sudo.gives_root() };
    let way = put(run, guest, customizer, input, target).await?;
    Ok(format!("{} bytes at {path} {way}, digest checked in the guest", input.size))
}
