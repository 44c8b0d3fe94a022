//! A file from the medium in one of the machine's drives: the text that takes it.
//!
//! Its answer is that of an upload over the link, for one reader: [`crate::winrm::WinrmGuest::take`].

use super::text::{Value, fill};

/// What this text and an upload's reader share: the last steps of a file to its place, and the words for what went wrong.
pub(crate) const PLACE: &str = include_str!("upload_place.ps1");
/// Where it goes in a text.
pub(crate) const PLACE_MARK: &str = "# <place>";
/// Bytes of the file from one word of progress to the next.
const PIECE: u64 = 64 << 20;

/// The text that takes `name` (on the medium, with slashes) to `path` if its SHA-256 is `digest` (hexadecimal digits). For
/// up to `wait_seconds` it looks for a medium that has it: a Windows looks into its drives every second.
pub fn take(name: &str, path: &str, digest: &str, wait_seconds: u64) -> String {
    fill(
        &include_str!("medium.ps1").replace(PLACE_MARK, PLACE),
        &[
            ("Name", Value::Text(&name.replace('/', "\\"))),
            ("Path", Value::Text(path)),
            ("Digest", Value::Text(digest)),
            ("Piece", Value::Number(PIECE)),
            ("WaitSeconds", Value::Number(wait_seconds)),
        ],
    )
}
