//! What to start, as data, and how it reads.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One call of an external program. Standard input is empty.
///
/// `Display` and `Debug` print the command quoted as one could type it into a shell, without its environment.
#[derive(Clone, PartialEq, Eq)]
pub struct Invocation {
    pub(super) program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    pub(super) current_dir: Option<PathBuf>,
}

impl Invocation {
    /// A program by path, or by name to be looked up in `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { program: program.as_ref().to_owned(), args: Vec::new(), envs: Vec::new(), current_dir: None }
    }

    /// Adds one argument. It will be shown in errors and logs: never a secret.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable on top of the inherited environment. Its value is never shown.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.current_dir = Some(dir.as_ref().to_owned());
        self
    }

    pub fn program(&self) -> &OsStr {
        &self.program
    }

    pub fn arguments(&self) -> &[OsString] {
        &self.args
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one door")]
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.envs.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.current_dir {
            command.current_dir(dir);
        }
        command
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        quote(&self.program, f)?;
        for arg in &self.args {
            f.write_str(" ")?;
            quote(arg, f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Quotes one word for a POSIX shell: bare where that is safe, else in single quotes.
fn quote(word: &OsStr, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let bare = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(byte);
    if !word.is_empty() && word.as_bytes().iter().all(bare) {
        return write!(f, "{}", word.to_string_lossy());
    }
    write!(f, "'{}'", word.to_string_lossy().replace('\'', r"'\''"))
}

/// Looks a program up in `search_path` (the form of `PATH`). A name with a slash is taken as a path. `None` when there
/// is no such file, or none that may be executed.
pub fn find_program(name: impl AsRef<OsStr>, search_path: &OsStr) -> Option<PathBuf> {
    let name = Path::new(name.as_ref());
    if name.components().count() > 1 || name.is_absolute() {
        return is_executable(name).then(|| name.to_owned());
    }
    std::env::split_paths(search_path)
        // An empty entry means the working directory to a shell; a program found there by accident is none.
        .filter(|dir| !dir.as_os_str().is_empty())
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_reads_as_one_could_type_it() {
        let invocation = Invocation::new("qemu-img")
            .args(["convert", "-f", "qcow2"])
            .arg("a disk's.qcow2")
            .arg("")
            .arg("size=1,$x")
            .env("TOKEN", "canary");
        assert_eq!(invocation.to_string(), r"qemu-img convert -f qcow2 'a disk'\''s.qcow2' '' 'size=1,$x'");
        assert!(!format!("{invocation:?}").contains("canary"));
    }

    #[test]
    fn a_quoted_command_means_the_same_to_a_shell() {
        let words = ["a b", "it's", "", "$HOME", "`x`", "new\nline", "\"", "\\", "ü", "*"];
        let printed = Invocation::new("printf").arg("<%s>").args(words).to_string();
        let output = Invocation::new("sh").arg("-c").arg(printed).run_blocking().unwrap();
        let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }

    #[test]
    fn programs_are_found_only_where_they_can_be_executed() {
        let dir = tempfile::tempdir().unwrap();
        let (empty, full) = (dir.path().join("empty"), dir.path().join("full"));
        std::fs::create_dir_all(empty.join("tool")).unwrap();
        std::fs::create_dir(&full).unwrap();
        std::fs::write(full.join("plain"), "").unwrap();
        std::fs::write(full.join("tool"), "").unwrap();
        std::fs::set_permissions(full.join("tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let search_path = std::env::join_paths([&empty, &full]).unwrap();
        assert_eq!(find_program("tool", &search_path), Some(full.join("tool")));
        assert_eq!(find_program("plain", &search_path), None);
        assert_eq!(find_program("absent", &search_path), None);
        assert_eq!(find_program(full.join("tool"), OsStr::new("")), Some(full.join("tool")));
    }
}
