//! The runs of this host, by the names that people give them.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use kiln_build::run_dir::RunDir;

use crate::exit::Failure;

/// The directory of a run of this host that `name` means: a path, an id, or the end of one. None: it may be a template's name.
pub(super) fn find(name: &str, runs: &Path) -> Result<Option<RunDir>, Failure> {
    let open = |path: &Path| RunDir::open(path).map_err(Failure::input);
    if name.contains('/') || name == "." || name == ".." {
        let dir = open(Path::new(name))?;
        if !dir.request().is_file() {
            return Err(Failure::input(anyhow!("{} is not the directory of a run", dir.path().display())));
        }
        return Ok(Some(dir));
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(runs)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| is_named(&entry.file_name().to_string_lossy(), name))
        .map(|entry| entry.path())
        .filter(|path| path.join("request.json").is_file())
        .collect();
    found.sort();
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(open(one)?)),
        several => {
            let names: Vec<String> = several.iter().map(|path| last_part(path)).collect();
            Err(Failure::input(anyhow!("several runs end with {name}: {}", names.join(", "))))
        }
    }
}

/// By the whole id, or by whole parts of its end.
fn is_named(id: &str, name: &str) -> bool {
    id == name || id.strip_suffix(name).is_some_and(|before| before.ends_with('-') && !name.is_empty())
}

fn last_part(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_found_by_its_path_its_id_or_the_end_of_that() {
        let home = tempfile::tempdir().unwrap();
        let runs = home.path();
        for id in [
            "20260102T030405Z-hello-3f9a1c",
            "20260102T030406Z-hello-aaaaaa",
            "20260102T030407Z-other-aaaaaa",
        ] {
            std::fs::create_dir(runs.join(id)).unwrap();
            std::fs::write(runs.join(id).join("request.json"), "{}").unwrap();
        }
        let found = |name: &str| find(name, runs).map(|dir| dir.map(|dir| dir.path().to_owned()));
        let path = runs.join("20260102T030405Z-hello-3f9a1c").canonicalize().unwrap();
        let given = format!("{}/", path.display());
        for name in ["3f9a1c", "hello-3f9a1c", "20260102T030405Z-hello-3f9a1c", given.as_str()] {
            assert_eq!(found(name).unwrap(), Some(path.clone()), "{name}");
        }
        for name in ["hello", "9a1c", "c", "", "-3f9a1c"] {
            assert_eq!(found(name).unwrap(), None, "{name:?}");
        }
        let several = format!("{:#}", found("aaaaaa").unwrap_err().error);
        assert!(several.contains("hello-aaaaaa") && several.contains("other-aaaaaa"), "{several}");
        assert!(found("./nothing-here").is_err());
        let none = format!("{}/", runs.display());
        assert!(format!("{:#}", found(&none).unwrap_err().error).contains("not the directory of a run"));
        assert_eq!(find("x", &runs.join("nothing")).unwrap().map(|_| ()), None);
    }
}
