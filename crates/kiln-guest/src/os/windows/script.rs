//! The PowerShell customizer's own texts: what Azure VM Image Builder makes of `inline` and `scriptUri`.
//!
//! | | here | behaviour |
//! |--|--|--|
//! | `inline` | [`inline`], started by [`file_command`] | progress silenced; the entries in one try block; a terminating error is shown and ends the script with 1; otherwise a last native exit code other than 0 counts |
//! | `scriptUri` | the file untouched, started by [`call_command`] | progress silenced; the environment file dot-sourced; the last native exit code counts |
//!
//! In both `$ErrorActionPreference` stays as it is, so errors that do not terminate fail nothing, `exit N` in the
//! middle of a script ends it with N, and one that throws ends with 1. An `inline` that cannot be parsed ends with 1
//! too. The service's trap, kept: a *fetched* script that cannot be parsed shows its error and ends with 0, as
//! `exit $LastExitCode` comes after it and nothing set that.
//!
//! `-NonInteractive` is ours: a script that asks a question fails at once, where it would wait out the build.
//! Nobody is there to answer.

use std::fmt;

use super::text::literal;

/// The name Windows PowerShell has on every Windows.
pub const POWERSHELL: &str = "powershell";
const WITHOUT_PROGRESS: &str =
    "if (Test-Path variable:global:ProgressPreference) { $global:ProgressPreference = 'SilentlyContinue' }";

/// The full path of a file that Kiln itself puts into the guest.
///
/// Only letters, digits, spaces and `: / \ . _ - ~ ( )`: a name that needs no quoting beyond quotes, in PowerShell,
/// in cmd.exe, and in an argument list. Windows' own folders for temporary files are of this kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPath(String);

impl GuestPath {
    /// `None` when the path has a character that cmd.exe or PowerShell could read as something else.
    pub fn new(path: impl Into<String>) -> Option<Self> {
        let path = path.into();
        let plain = |c: char| c.is_ascii_alphanumeric() || " :/\\._-~()".contains(c);
        (!path.is_empty() && path.chars().all(plain)).then_some(Self(path))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The entries of `inline` as one script. `environment` is a file made by [`environment`], read first.
///
/// The entries are not indented: a here-string ends only at the start of a line.
pub fn inline(lines: &[String], environment: Option<&GuestPath>) -> String {
    let environment = environment.map(|file| format!(". '{file}'\n")).unwrap_or_default();
    fill_inline(&environment, &lines.join("\n"))
}

/// The wrapper is a text of its own with two marked lines.
fn fill_inline(environment: &str, entries: &str) -> String {
    const WRAPPER: &str = include_str!("inline.ps1");
    let mut script = String::new();
    for line in WRAPPER.lines() {
        match line {
            "# <environment>" => script.push_str(environment),
            "# <entries>" => {
                script.push_str(entries);
                script.push('\n');
            }
            line if line.starts_with('#') => {}
            line => {
                script.push_str(line);
                script.push('\n');
            }
        }
    }
    script
}

/// The bytes of a script's file: with a byte order mark where there is anything but ASCII, as Windows PowerShell 5.1
/// reads a file without one in the machine's code page. For texts of ours and of `inline`; a fetched script is
/// placed as it is.
pub fn file_bytes(script: &str) -> Vec<u8> {
    let mark = if script.is_ascii() { "" } else { "\u{feff}" };
    [mark.as_bytes(), script.as_bytes()].concat()
}

/// The script that sets environment variables, to be dot-sourced.
pub fn environment(variables: &[(String, String)]) -> String {
    let set = |(name, value): &(String, String)| {
        format!("[Environment]::SetEnvironmentVariable({}, {}, 'Process')\n", literal(name), literal(value))
    };
    variables.iter().map(set).collect()
}

/// The command line that runs `script` by its name, as the service runs `inline`.
pub fn file_command(script: &GuestPath) -> String {
    format!("{POWERSHELL} {}", file_arguments(script))
}

/// The arguments of [`file_command`], for a program started without cmd.exe.
pub fn file_arguments(script: &GuestPath) -> String {
    format!("-NonInteractive -ExecutionPolicy Bypass -File \"{script}\"")
}

/// The command line that calls `script` as the service calls a `scriptUri`.
pub fn call_command(script: &GuestPath, environment: Option<&GuestPath>) -> String {
    format!("{POWERSHELL} {}", call_arguments(script, environment))
}

/// The arguments of [`call_command`], for a program started without cmd.exe.
pub fn call_arguments(script: &GuestPath, environment: Option<&GuestPath>) -> String {
    let environment = environment.map(|file| format!(" . '{file}';")).unwrap_or_default();
    format!(
        "-NonInteractive -ExecutionPolicy Bypass -Command \
         \"& {{ {WITHOUT_PROGRESS};{environment} & '{script}'; exit $LastExitCode }}\""
    )
}

/// The command line that reads one of our own texts from standard input and runs it: see `loader.ps1`.
///
/// Nothing lies in the guest, and no text is too long for a command line. Standard input is [`loader_input`], then,
/// for a text that reads a secret, [`super::secret_line`].
pub fn loader_command() -> String {
    let code: Vec<u8> = LOADER
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.encode_utf16().chain([u16::from(b'\n')]))
        .flat_map(u16::to_le_bytes)
        .collect();
    format!(
        "{POWERSHELL} -NoProfile -NonInteractive -ExecutionPolicy Bypass -OutputFormat Text -EncodedCommand {}",
        encode(&code)
    )
}

/// Standard input of [`loader_command`]: the text in one line of base64.
pub fn loader_input(text: &str) -> String {
    format!("{}\n", encode(text.as_bytes()))
}

const LOADER: &str = include_str!("loader.ps1");

fn encode(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn path(text: &str) -> GuestPath {
        GuestPath::new(text).unwrap()
    }

    #[test]
    fn inline_is_wrapped_once() {
        let lines = ["Write-Output @'".into(), "a".into(), "'@".into(), "throw 'x' # last".into()];
        expect![[r#"
            if (Test-Path variable:global:ProgressPreference) { $global:ProgressPreference = 'SilentlyContinue' }
            . 'c:/Windows/Temp/vars.ps1'
            try {
            Write-Output @'
            a
            '@
            throw 'x' # last
            } catch {
                Write-Error -ErrorRecord $_ -ErrorAction Continue
                exit 1
            }
            if ((Test-Path variable:global:LASTEXITCODE) -and $LASTEXITCODE -ne 0) { exit $LASTEXITCODE }
        "#]]
        .assert_eq(&inline(&lines, Some(&path("c:/Windows/Temp/vars.ps1"))));
    }

    #[test]
    fn entries_that_look_like_our_marks_stay_entries() {
        let script = inline(&["# <environment>".into(), "# <entries>".into()], None);
        assert!(script.contains("try {\n# <environment>\n# <entries>\n}"), "{script}");
    }

    #[test]
    fn command_lines() {
        let script = path("c:/Windows/Temp/script-1.ps1");
        expect![[
            r#"powershell -NonInteractive -ExecutionPolicy Bypass -File "c:/Windows/Temp/script-1.ps1""#
        ]]
        .assert_eq(&file_command(&script));
        expect![[r#"powershell -NonInteractive -ExecutionPolicy Bypass -Command "& { if (Test-Path variable:global:ProgressPreference) { $global:ProgressPreference = 'SilentlyContinue' }; . 'c:/Windows/Temp/vars.ps1'; & 'c:/Windows/Temp/script-1.ps1'; exit $LastExitCode }""#]]
        .assert_eq(&call_command(&script, Some(&path("c:/Windows/Temp/vars.ps1"))));
    }

    #[test]
    fn paths_that_would_need_more_than_quotes_are_none() {
        for bad in [
            "",
            "c:\\a'b",
            "c:\\%TEMP%\\x",
            "c:\\a&b",
            "c:\\a\"b",
            "c:\\$x",
            "c:\\a`b",
            "c:\\\u{e4}",
            "a;b",
            "a\nb",
        ] {
            assert_eq!(GuestPath::new(bad), None, "{bad}");
        }
        assert!(GuestPath::new(r"C:\Program Files (x86)\Kiln~1\a_b-c.ps1").is_some());
    }

    #[test]
    fn only_texts_that_need_it_get_a_mark() {
        assert_eq!(file_bytes("exit 0"), b"exit 0");
        assert_eq!(file_bytes("'\u{e4}'"), b"\xef\xbb\xbf'\xc3\xa4'");
    }

    #[test]
    fn the_environment_is_set_by_literals() {
        expect![[r#"
            [Environment]::SetEnvironmentVariable('PACKER_BUILD_NAME', 'it''s $x', 'Process')
        "#]]
        .assert_eq(&environment(&[("PACKER_BUILD_NAME".into(), "it's $x".into())]));
    }

    #[test]
    fn the_loader_fits_a_command_line() {
        // Of cmd.exe: 8191 characters.
        assert!(loader_command().len() < 4000, "{}", loader_command().len());
    }
}
