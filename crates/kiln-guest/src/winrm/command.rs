//! Command lines, and PowerShell texts as command lines.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::error::WinrmError;
use super::soap::unwritable;

/// What cmd.exe takes at most, in characters. A longer line is refused by the guest with a message that speaks of
/// file names (2147942606), so it is found here.
pub const LINE_LIMIT: usize = 8191;
/// What the shell itself puts around a command (`%COMSPEC% /C "…"` with a full path).
const LINE_FRAME: usize = 64;

/// A command as the guest's text shell starts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    pub(crate) command: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) skip_cmd_shell: bool,
    /// What errors and logs call it. Never holds what the line holds unless the caller says so.
    pub(crate) act: String,
}

impl CommandLine {
    /// A line for cmd.exe (`cmd /c line`). `act` names it in errors, as in "lost during ACT".
    pub fn cmd(act: impl Into<String>, line: impl Into<String>) -> Self {
        Self { command: line.into(), arguments: Vec::new(), skip_cmd_shell: false, act: act.into() }
    }

    /// A program by its full path, without cmd.exe between. Arguments are joined by spaces, and quoting is the
    /// caller's.
    pub fn program(act: impl Into<String>, path: impl Into<String>, arguments: Vec<String>) -> Self {
        Self { command: path.into(), arguments, skip_cmd_shell: true, act: act.into() }
    }

    /// The same for cmd.exe with arguments apart.
    pub fn cmd_with(act: impl Into<String>, command: impl Into<String>, arguments: Vec<String>) -> Self {
        Self { command: command.into(), arguments, skip_cmd_shell: false, act: act.into() }
    }

    /// Characters of the whole line, in UTF-16 units as Windows counts.
    fn length(&self) -> usize {
        let units = |text: &String| text.encode_utf16().count();
        units(&self.command) + self.arguments.iter().map(|argument| units(argument) + 1).sum::<usize>()
    }

    /// # Errors
    /// [`WinrmError::LineTooLong`] and [`WinrmError::Unwritable`], before anything is sent.
    pub(crate) fn check(&self) -> Result<(), WinrmError> {
        let all = || std::iter::once(&self.command).chain(&self.arguments);
        if let Some(character) = all().find_map(|text| unwritable(text)) {
            return Err(WinrmError::Unwritable { what: self.act.clone(), character });
        }
        let length = self.length();
        if !self.skip_cmd_shell && length > LINE_LIMIT - LINE_FRAME {
            return Err(WinrmError::LineTooLong {
                act: self.act.clone(),
                length,
                limit: LINE_LIMIT - LINE_FRAME,
            });
        }
        Ok(())
    }
}

/// Put before each text: a progress record is nothing for a log, and slows some commands down a lot.
const QUIET: &str = "$ProgressPreference='SilentlyContinue';";
/// Takes a text that is too long for a command line from its standard input, as one line of base64. Windows
/// PowerShell reads a redirected input itself and gives it to the pipeline; where it does not, it is read here.
pub(super) const FROM_STDIN: &str = "begin{$kilnText=''}process{if($null -ne $_){$kilnText+=$_}}\
     end{if(-not $kilnText){$kilnText=[Console]::In.ReadToEnd()};\
     & ([scriptblock]::Create([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String($kilnText.Trim()))))}";

/// A PowerShell text, ready to be run.
pub(crate) struct PowerShellCall {
    pub(crate) line: CommandLine,
    pub(crate) stdin: Option<Vec<u8>>,
}

/// The call for `text`: in the line where it fits, else by standard input.
pub(crate) fn powershell(act: &str, text: &str) -> PowerShellCall {
    let line = CommandLine::cmd(act, encoded(&format!("{QUIET}\n{text}")));
    if line.check().is_ok() {
        return PowerShellCall { line, stdin: None };
    }
    let mut stdin = BASE64.encode(format!("{QUIET}\n{text}")).into_bytes();
    stdin.extend_from_slice(b"\r\n");
    PowerShellCall { line: CommandLine::cmd(act, encoded(FROM_STDIN)), stdin: Some(stdin) }
}

/// The line that runs `text`: base64 of UTF-16LE (`powershell -?`).
pub(crate) fn encoded(text: &str) -> String {
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    format!(
        "powershell -NoProfile -NonInteractive -ExecutionPolicy Bypass -EncodedCommand {}",
        BASE64.encode(units)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cmd_does_not_take_is_found_here() {
        let fits = CommandLine::cmd("a test", "x".repeat(LINE_LIMIT - LINE_FRAME));
        assert!(fits.check().is_ok());
        let long = CommandLine::cmd("a test", "secret".repeat(2000));
        let error = long.check().unwrap_err().to_string();
        assert!(error.contains("12000 characters") && error.contains("a test"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        // Counted as Windows counts: two units each.
        assert!(CommandLine::cmd("a test", "\u{1f600}".repeat(4100)).check().is_err());
        assert!(CommandLine::program("a test", r"C:\x.exe", vec!["x".repeat(9000)]).check().is_ok());
        assert!(matches!(
            CommandLine::cmd("a test", "a\u{7}").check(),
            Err(WinrmError::Unwritable { character: '\u{7}', .. })
        ));
    }

    #[test]
    fn a_text_goes_in_the_line_or_by_standard_input() {
        let short = powershell("a test", "'é'");
        assert!(short.stdin.is_none());
        let packed = short.line.command.rsplit(' ').next().unwrap();
        let units: Vec<u16> = BASE64
            .decode(packed)
            .unwrap()
            .chunks(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        assert_eq!(String::from_utf16(&units).unwrap(), format!("{QUIET}\n'é'"));

        let text = format!("# {}\n'end'", "é".repeat(5000));
        let long = powershell("a test", &text);
        assert!(long.line.check().is_ok());
        let stdin = String::from_utf8(long.stdin.unwrap()).unwrap();
        assert_eq!(stdin.lines().count(), 1);
        assert_eq!(BASE64.decode(stdin.trim()).unwrap(), format!("{QUIET}\n{text}").as_bytes());
    }
}
