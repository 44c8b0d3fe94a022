//! The Shell customizer.
//!
//! `inline` is one script: its entries joined by line feeds, under `#!/bin/sh -e`
//! unless the first brings an interpreter, run as the build's account (whose sudo
//! needs no password). A `scriptUri` script runs as root. Public templates rely on
//! both. Exit code 0 alone is success.

use kiln_guest::DetachedStep;
use kiln_library::StoredInput;
use kiln_model::plan::{Customizer, Script};

use super::{Fetched, environment, origin, run_fetched};
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
    run.log.say(format!("Provisioning with shell script: {}", origin(script)));
    let (Fetched { script, placed }, privileged) = match script {
        Script::Inline(lines) => (Fetched::inline(inline_script(lines)), false),
        Script::Fetched(source) => (Fetched::of(run, guest, customizer, source, input).await?, true),
    };
    let step = DetachedStep {
        privileged,
        env: environment(),
        ..DetachedStep::new(format!("step-{}", customizer.position), script)
    };
    run_fetched(run, guest, customizer, step, &[0], placed).await
}

/// The entries of `inline` as one script.
pub(super) fn inline_script(lines: &[String]) -> String {
    let body = lines.join("\n").replace("\r\n", "\n");
    let interpreter = if body.starts_with("#!") { "" } else { "#!/bin/sh -e\n" };
    format!("{interpreter}{body}\n")
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
}
