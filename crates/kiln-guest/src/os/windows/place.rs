//! A step's own small files, all of them with one start of PowerShell: a script, its environment, a task's runner.
//!
//! A start costs a guest a second, an upload each one start; these files travel inside the text that writes them.
//! Files of any size go by [`crate::winrm::WinrmGuest::upload`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_host::digest::{hex, sha256};
use serde::Deserialize;

use super::script::GuestPath;
use super::text::{Value, answers, fill};

/// Above this many bytes a file is no small one: it would be a third longer in the text.
pub const SMALL_FILE: usize = 128 * 1024;

/// The text that makes `folder`, which must not be there, and writes `files`, which must not be there either.
/// Exit code 0, or 1; its answer is for [`placed`].
pub fn place(folder: Option<&GuestPath>, files: &[(&GuestPath, &[u8])]) -> String {
    let list =
        |value: fn(&(&GuestPath, &[u8])) -> String| -> Vec<String> { files.iter().map(value).collect() };
    fill(
        include_str!("place.ps1"),
        &[
            ("Folder", Value::Text(folder.map_or("", GuestPath::as_str))),
            ("Paths", Value::List(&list(|(path, _)| path.as_str().to_owned()))),
            ("Contents", Value::List(&list(|(_, bytes)| STANDARD.encode(bytes)))),
            ("Digests", Value::List(&list(|(_, bytes)| hex(&sha256(bytes))))),
        ],
    )
}

/// What became of the files: whether all `count` lie there, checked.
///
/// # Errors
/// The path and the reason, or `None` for output that says neither.
pub fn placed(stdout: &str, count: usize) -> Result<(), Option<(String, String)>> {
    #[derive(Deserialize)]
    struct Said {
        count: Option<usize>,
        path: Option<String>,
        error: Option<String>,
    }
    match answers::<Said>(stdout).next_back() {
        Some(Said { count: Some(said), error: None, .. }) if said == count => Ok(()),
        Some(Said { path: Some(path), error: Some(error), .. }) => Err(Some((path, error))),
        _ => Err(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_count_is_success() {
        assert_eq!(placed("kiln:{\"kind\":\"placed\",\"count\":2}\r\n", 2), Ok(()));
        assert_eq!(placed("kiln:{\"kind\":\"placed\",\"count\":1}", 2), Err(None));
        assert_eq!(placed("The term is not recognized", 2), Err(None));
        let said = r#"kiln:{"kind":"placed","path":"C:\\a","error":"full"}"#;
        assert_eq!(placed(said, 2), Err(Some((r"C:\a".to_owned(), "full".to_owned()))));
    }

    #[test]
    fn contents_are_in_the_text_as_base64_with_their_digests() {
        let path = GuestPath::new("c:/Windows/Temp/a.ps1").unwrap();
        let text = place(None, &[(&path, b"exit 3")]);
        let digest = hex(&sha256(b"exit 3"));
        let values = format!(
            "$Folder = ''\n$Paths = @('c:/Windows/Temp/a.ps1')\n$Contents = @('ZXhpdCAz')\n$Digests = @('{digest}')\n"
        );
        assert!(text.starts_with(&values), "{text}");
    }
}
