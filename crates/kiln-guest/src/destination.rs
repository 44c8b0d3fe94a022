//! Where a file customizer's file goes: the destination rule of the template, as a pure function.

/// A destination that names no file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DestinationError {
    #[error("the destination is empty; give a full path such as /tmp/name")]
    Empty,
    #[error("the destination {destination:?} is not absolute; give a full path such as /tmp/name")]
    NotAbsolute { destination: String },
    #[error("the destination {destination:?} ends in {last:?}, which names no file")]
    NoFileName { destination: String, last: String },
    #[error("the destination {destination:?} is a directory and the source has no file name; add one")]
    SourceWithoutName { destination: String },
    #[error("the destination {destination:?} holds a NUL byte or a line end")]
    BadCharacter { destination: String },
}

/// The full path of the file: `destination` itself, or with a trailing slash the directory it names plus
/// `source_name` (the last part of the source's address).
///
/// Whether the directory exists is found out in the guest; it is never made.
/// Source: Azure VM Image Builder, File customizer; Packer's file provisioner has the rule of the trailing slash.
pub fn resolve_destination(destination: &str, source_name: &str) -> Result<String, DestinationError> {
    let owned = || destination.to_owned();
    if destination.is_empty() {
        return Err(DestinationError::Empty);
    }
    if destination.contains(['\0', '\n', '\r']) {
        return Err(DestinationError::BadCharacter { destination: owned() });
    }
    if !destination.starts_with('/') {
        return Err(DestinationError::NotAbsolute { destination: owned() });
    }
    if destination.ends_with('/') {
        let named = !matches!(source_name, "" | "." | "..") && !source_name.contains(['/', '\0', '\n', '\r']);
        if !named {
            return Err(DestinationError::SourceWithoutName { destination: owned() });
        }
        return Ok(format!("{destination}{source_name}"));
    }
    match destination.rsplit('/').next() {
        Some(last @ ("." | "..")) => {
            Err(DestinationError::NoFileName { destination: owned(), last: last.to_owned() })
        }
        _ => Ok(owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is_and_a_directory_gets_the_sources_name() {
        let table: &[(&str, &str, &str)] = &[
            ("/tmp/a.txt", "b.txt", "/tmp/a.txt"),
            ("/tmp/", "b.txt", "/tmp/b.txt"),
            ("/", "b.txt", "/b.txt"),
            ("/tmp//", "b.txt", "/tmp//b.txt"),
            ("/opt/with space/", "o'brien.tar.gz", "/opt/with space/o'brien.tar.gz"),
            ("/tmp/.hidden", "b", "/tmp/.hidden"),
            ("/tmp/..data", "b", "/tmp/..data"),
        ];
        for (destination, source, expected) in table {
            assert_eq!(resolve_destination(destination, source).as_deref(), Ok(*expected), "{destination}");
        }
    }

    #[test]
    fn what_names_no_file_is_refused() {
        for (destination, source) in [
            ("", "a"),
            ("tmp/a", "a"),
            ("~/a", "a"),
            ("c:\\temp\\a", "a"),
            ("/tmp/..", "a"),
            ("/tmp/.", "a"),
            ("/tmp/", ""),
            ("/tmp/", ".."),
            ("/tmp/", "a/b"),
            ("/tmp/a\nb", "a"),
            ("/tmp/\0", "a"),
        ] {
            assert!(resolve_destination(destination, source).is_err(), "{destination:?} {source:?}");
        }
    }
}
