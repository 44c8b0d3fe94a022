//! What a guest says over its first serial port: whole lines of a growing file.

use std::io;
use std::path::Path;

use kiln_host::wait::Control;

use crate::watch::FolderWatch;

/// A console that says more than this before the guest answers is not listened to any further back.
const WINDOW: usize = 4 << 20;

/// The lines of a log so far; a last line without its end is none yet.
pub fn lines(path: &Path) -> io::Result<Vec<String>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        bytes => bytes?,
    };
    let bytes = &bytes[bytes.len().saturating_sub(WINDOW)..];
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok(String::from_utf8_lossy(&bytes[..whole])
        .lines()
        .map(|line| line.trim_end_matches('\r').to_owned())
        .collect())
}

/// Waits for a line that `wanted` knows, or for the control's end.
pub async fn wait_for<T>(
    path: &Path,
    mut wanted: impl FnMut(&str) -> Option<T>,
    control: &Control,
) -> io::Result<Option<T>> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut watch = FolderWatch::new(folder)?;
    let mut seen = 0;
    loop {
        let lines = lines(path)?;
        // The window may have moved; then all of it is looked at again.
        let new = lines.get(seen..).unwrap_or(&lines);
        for line in new {
            if let Some(found) = wanted(line) {
                return Ok(Some(found));
            }
        }
        seen = lines.len();
        match control.guard(watch.changed()).await {
            Ok(changed) => changed?,
            Err(_) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_line_is_found_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        let control = Control::ending_in(Duration::from_secs(20));
        let (file, writing) = (path.clone(), async {
            std::fs::write(&path, "firmware\r\nkiln:o").unwrap();
            tokio::task::yield_now().await;
            std::fs::write(&path, "firmware\r\nkiln:one\r\nkiln:tw").unwrap();
        });
        let wanted = |line: &str| line.strip_prefix("kiln:").map(str::to_owned);
        let (found, ()) = tokio::join!(wait_for(&file, wanted, &control), writing);
        assert_eq!(found.unwrap(), Some("one".to_owned()));
        assert_eq!(lines(&file).unwrap(), ["firmware", "kiln:one"]);
    }

    #[tokio::test]
    async fn the_control_ends_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::ending_in(Duration::from_millis(30));
        let waited = wait_for(&folder.path().join("serial.log"), |_| Some(()), &control).await;
        assert_eq!(waited.unwrap(), None);
    }
}
