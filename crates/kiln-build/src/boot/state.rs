//! What firmware and TPM know of a machine beside disk and memory, in files: made anew, or put back as they were kept.

use std::path::{Path, PathBuf};

use crate::error::BuildError;

/// Without what an earlier machine of this run left, and out of reach of its swtpm.
pub(crate) fn fresh_folder(folder: &Path) -> Result<(), BuildError> {
    use std::os::unix::fs::DirBuilderExt as _;
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(BuildError::io("remove", folder)(error));
        }
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(folder).map_err(BuildError::io("create", folder))
}

/// Copies a file of a kept machine's state. A Windows without it is another machine to itself: a disk that is sealed to
/// a TPM does not open.
pub(crate) fn put_back(kept: Option<PathBuf>, what: &str, to: &Path) -> Result<(), BuildError> {
    let from = kept.ok_or_else(|| BuildError::Checkpoint { detail: format!("its {what} not kept") })?;
    // Read and written, not copied with its mode: nobody writes what is on the shelf.
    std::fs::read(&from).and_then(|bytes| std::fs::write(to, bytes)).map_err(BuildError::io("copy", from))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_the_firmware_or_the_tpm_knew_is_put_back_or_the_machine_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("kept"), folder.path().join("tpm"));
        std::fs::write(&from, "state").unwrap();
        std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o400)).unwrap();
        fresh_folder(&to).unwrap();
        put_back(Some(from), "TPM's state was", &to.join("state")).unwrap();
        assert_eq!(std::fs::read(to.join("state")).unwrap(), b"state");
        assert_ne!(to.join("state").metadata().unwrap().permissions().mode() & 0o200, 0);
        let refused = put_back(None, "TPM's state was", &to).unwrap_err();
        assert!(refused.sentence().contains("its TPM's state was not kept"), "{}", refused.sentence());
        fresh_folder(&to).unwrap();
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0, "nothing of an earlier machine is left");
    }
}
