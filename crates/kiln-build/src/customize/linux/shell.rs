//! The Shell customizer.
//!
//! `inline` is one script: its entries joined by line feeds, under `#!/bin/sh -e`
//! unless the first brings an interpreter, run as the build's account (whose sudo
//! needs no password). A `scriptUri` script runs as root. Public templates rely on
//! both. Exit code 0 alone is success.

use kiln_guest::DetachedStep;
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, Script};

use super::{environment, fetched, origin, run_script};
use crate::context::Run;
use crate::error::BuildError;
use crate::guest::LinuxGuest;

pub(super) async fn run(
    run: &Run,
    guest: &mut LinuxGuest,
    customizer: &Customizer,
    script: &Script,
    input: Option<&StoredInput>,
) -> Result<String, BuildError> {
    let (text, privileged) = match script {
        Script::Inline(lines) => (inline_script(lines).into_bytes(), false),
        Script::Fetched(source) => (unix_lines(fetched(customizer, source, input)?), true),
    };
    run.log.say(format!("Provisioning with shell script: {}", origin(script)));
    let step = DetachedStep {
        privileged,
        env: environment(),
        ..DetachedStep::new(format!("step-{}", customizer.position), text)
    };
    run_script(run, guest, &customizer.title(), step, &[0]).await
}

/// The entries of `inline` as one script.
pub(super) fn inline_script(lines: &[String]) -> String {
    let body = lines.join("\n").replace("\r\n", "\n");
    let interpreter = if body.starts_with("#!") { "" } else { "#!/bin/sh -e\n" };
    format!("{interpreter}{body}\n")
}

/// Scripts written on Windows: CRLF would end up in every command.
pub(super) fn unix_lines(bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.windows(2).any(|pair| pair == b"\r\n") {
        return bytes;
    }
    let mut unix = Vec::with_capacity(bytes.len());
    let mut rest = bytes.as_slice();
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        unix.extend_from_slice(&rest[..at]);
        unix.push(b'\n');
        rest = &rest[at + 2..];
    }
    unix.extend_from_slice(rest);
    unix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_entries_are_one_script() {
        for (lines, script) in [
            (vec!["a=1", "echo $a"], "#!/bin/sh -e\na=1\necho $a\n"),
            (vec!["#!/bin/bash", "echo x"], "#!/bin/bash\necho x\n"),
            (vec!["#", "", "\necho x"], "#!/bin/sh -e\n#\n\n\necho x\n"),
            (vec!["echo a\r\necho b"], "#!/bin/sh -e\necho a\necho b\n"),
        ] {
            let lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
            assert_eq!(inline_script(&lines), script);
        }
    }

    #[test]
    fn only_crlf_changes() {
        for (from, to) in [
            (&b"a\r\nb\r\n"[..], &b"a\nb\n"[..]),
            (b"a\rb\n", b"a\rb\n"),
            (b"\r\r\n", b"\r\n"),
            (b"", b""),
            (b"\xff\r\n\xfe", b"\xff\n\xfe"),
        ] {
            assert_eq!(unix_lines(from.to_vec()), to);
        }
    }
}
