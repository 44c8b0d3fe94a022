//! The File customizer: one file, checked again inside the guest. Large scripts come in the same way.
//!
//! The destination is a full path, or a folder with a trailing slash or backslash; folders are not made.
//! INVARIANT: the digest is checked again inside the guest after the copy.

use kiln_guest::UploadFailure;
use kiln_guest::winrm::{MediumFile, WinrmError};
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, InputRef};

use super::super::{stored, upload_progress};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::WindowsGuest;
use crate::medium::Way;

pub(super) async fn run(
    run: &Run,
    guest: &mut WindowsGuest,
    customizer: &Customizer,
    source: &InputRef,
    destination: &str,
    input: Option<&StoredInput>,
) -> Result<String, BuildError> {
    let input = stored(customizer, source, input)?;
    let target = full_path(destination, &source.location.file_name());
    run.log.say(format!("Uploading {} => {target}", source.location.redacted()));
    let way = put(run, guest, customizer, input, &target).await?;
    Ok(format!("{} bytes at {target} {way}, digest checked in the guest", input.size))
}

/// Puts a customizer's file into the guest: from the medium, or over the connection where that cannot be.
pub(super) async fn put(
    run: &Run,
    guest: &WindowsGuest,
    customizer: &Customizer,
    input: &StoredInput,
    target: &str,
) -> Result<Way, BuildError> {
    let progress = upload_progress(run, customizer, input.size);
    let digest = *input.sha256.as_bytes();
    let failed = |error: WinrmError| BuildError::Customizer {
        title: customizer.title(),
        detail: format!("Error uploading {target}"),
        source: Some(error.into()),
    };
    if let Some(name) = guest.on_medium.name(customizer.position) {
        let file = MediumFile { name: &name, bytes: input.size, sha256: digest };
        let taken = guest.guest.take(file, target, &progress, &run.control);
        match guest.vm.guard(&run.control, taken).await? {
            Ok(()) => return Ok(Way::Medium),
            Err(WinrmError::Upload { failure: UploadFailure::NoMedium { detail }, .. }) => {
                guest.on_medium.give_up(run, &detail);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let upload = guest.guest.upload(&input.path, target, digest, &progress, &run.control);
    guest.vm.guard(&run.control, upload).await?.map_err(failed)?;
    Ok(Way::Link)
}

/// A folder gets the name that the file has at its source.
fn full_path(destination: &str, name: &str) -> String {
    if destination.ends_with(['/', '\\']) { format!("{destination}{name}") } else { destination.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::full_path;

    #[test]
    fn a_folder_gets_the_sources_name() {
        for (destination, path) in [
            (r"c:\buildArtifacts\index.html", r"c:\buildArtifacts\index.html"),
            (r"c:\buildArtifacts\", r"c:\buildArtifacts\a.txt"),
            ("c:/buildArtifacts/", "c:/buildArtifacts/a.txt"),
        ] {
            assert_eq!(full_path(destination, "a.txt"), path);
        }
    }
}
