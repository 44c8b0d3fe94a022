//! Files from a medium in the machine's drive: one command, whatever their size, and nothing of them over the link.
//!
//! INVARIANT: as for every upload, the checksum is checked on the bytes as they lie on the guest's disk, before the file
//! gets its name. Guarded by `medium.ps1` and [`WinrmGuest::take`], and their tests.

use kiln_host::digest::hex;
use kiln_host::wait::Control;

use super::error::WinrmError;
use super::guest::WinrmGuest;
use super::upload::{MARKER, read_answer};
use crate::error::excerpt;
use crate::os::windows::medium;
use crate::session::Stream;
use crate::upload::UploadFailure;

/// Until the guest has noticed a new medium.
const WAIT_SECONDS: u64 = 30;
/// More than the text ever says.
const ANSWER_LIMIT: usize = 256 * 1024;

/// A file on a medium.
#[derive(Debug, Clone, Copy)]
pub struct MediumFile<'a> {
    /// Its path on the medium, with slashes: one that no other drive of the guest has.
    pub name: &'a str,
    pub bytes: u64,
    pub sha256: [u8; 32],
}

impl WinrmGuest {
    /// Puts a file of the medium at `remote`, a full path in a directory that exists. A file that was there keeps owner
    /// and rights. `progress` hears how many bytes are there.
    ///
    /// # Errors
    /// [`WinrmError::Upload`] with the [`UploadFailure`], which is [`UploadFailure::NoMedium`] where the guest finds none;
    /// those of a lost guest.
    pub async fn take(
        &self,
        file: MediumFile<'_>,
        remote: &str,
        mut progress: impl FnMut(u64) + Send,
        control: &Control,
    ) -> Result<(), WinrmError> {
        let failed = |failure| WinrmError::Upload {
            local: format!("{} on the medium", file.name),
            remote: remote.to_owned(),
            failure,
        };
        if remote.is_empty() || remote.ends_with(['/', '\\']) || remote.contains(['\0', '\r', '\n']) {
            return Err(failed(UploadFailure::BadDestination { remote: remote.to_owned() }));
        }
        let expected = hex(&file.sha256);
        let mut answer = Vec::new();
        let hear = |stream, bytes: &[u8]| {
            if stream == Stream::Stdout && answer.len() < ANSWER_LIMIT {
                answer.extend_from_slice(bytes);
                if let Some(at) = reached(&String::from_utf8_lossy(&answer)) {
                    progress(at);
                }
            }
        };
        let text = medium::take(file.name, remote, &expected, WAIT_SECONDS);
        self.powershell(&format!("taking {remote} from the medium"), &text, hear, control).await?;
        let said = String::from_utf8_lossy(&answer).into_owned();
        let result = said.lines().rev().find_map(|line| line.trim().strip_prefix(MARKER));
        match result {
            Some(result) => read_answer(result, &expected, file.bytes, remote).map_err(failed),
            None => Err(failed(UploadFailure::Unclear { said: excerpt(said.as_bytes()) })),
        }
    }
}

/// The last whole word of progress.
fn reached(said: &str) -> Option<u64> {
    let (whole, _) = said.rsplit_once('\n')?;
    whole.lines().rev().find_map(|line| line.trim().strip_prefix(MARKER)?.strip_prefix("at ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_progress() {
        for (said, at) in [
            ("", None),
            ("kiln-upload at 67108864", None),
            ("kiln-upload at 67108864\r\n", Some(67_108_864)),
            ("kiln-upload at 1\r\nnoise\r\nkiln-upload at 2\r\nkiln-upload at 3", Some(2)),
        ] {
            assert_eq!(reached(said), at, "{said:?}");
        }
    }
}
