//! What a guest is and has, asked in one round trip.

use std::collections::HashMap;

use kiln_host::wait::Control;
use serde::{Deserialize, Serialize};

use crate::error::GuestError;
use crate::guest::{Guest, script_command};
use crate::step::{LETS_RUN, SCRIPT_DIRS, nonce};

/// Facts about a guest when it was asked. What a customizer is likely to change is asked when it is needed, as
/// [`Guest::program`] does. All text is the guest's word: shown, compared, never trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuestFacts {
    /// Differs after every boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// `PRETTY_NAME` of os-release(5), for instance `Debian GNU/Linux 12 (bookworm)`; empty where there is no such file.
    pub os_name: String,
    pub sudo: Sudo,
    /// The first of the usual directories that lets a script run; `None` when none does.
    pub script_dir: Option<String>,
}

/// How the account gets root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Sudo {
    /// It is root.
    Root,
    Passwordless,
    /// sudo is there and wants a password, a terminal, or does not know the account.
    Refused,
    Absent,
}

impl Sudo {
    pub fn gives_root(self) -> bool {
        matches!(self, Self::Root | Self::Passwordless)
    }
}

impl Guest {
    /// Asks the guest about itself.
    pub async fn facts(&self, control: &Control) -> Result<GuestFacts, GuestError> {
        const ACT: &str = "asking the guest about itself";
        let marker = format!("kiln-facts-{}", nonce());
        let mut args = vec![marker.as_str()];
        args.extend(SCRIPT_DIRS);
        let script = [LETS_RUN, include_str!("facts.sh")].concat();
        let output = self.ask(ACT, &script_command(&script, &args), b"", control).await?;
        let facts = parse(&String::from_utf8_lossy(&output.stdout), &marker)
            .ok_or_else(|| GuestError::inside(ACT, output.excerpt()))?;
        self.boot_id_seen(&facts.boot_id).await;
        Ok(facts)
    }

    /// The full path of a program, where there is one. Looks where a login without a profile does not, too.
    pub async fn program(&self, name: &str, control: &Control) -> Result<Option<String>, GuestError> {
        let command = script_command(include_str!("program.sh"), &[name]);
        let output = self.ask("looking for a program", &command, b"", control).await?;
        // The last line: a chatty login shell may print before us.
        Ok(output.text().lines().last().filter(|path| path.starts_with('/')).map(str::to_owned))
    }
}

fn parse(text: &str, marker: &str) -> Option<GuestFacts> {
    // A chatty login shell may print before us.
    let (_, answer) = text.split_once(&format!("{marker}\n"))?;
    let mut found: HashMap<&str, &str> = answer
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    let mut take = |name: &str| found.remove(name).map(str::to_owned);
    Some(GuestFacts {
        boot_id: take("boot_id")?,
        os_name: take("os_name").unwrap_or_default(),
        sudo: match take("sudo").as_deref() {
            Some("root") => Sudo::Root,
            Some("passwordless") => Sudo::Passwordless,
            Some("refused") => Sudo::Refused,
            _ => Sudo::Absent,
        },
        script_dir: take("script_dir"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_past_a_chatty_shell_and_missing_ones_are_none() {
        let text = "Welcome!\nboot_id=fake\nM\nboot_id=abc\n\
                    os_name=Debian GNU/Linux 12 (a=b)\nsudo=passwordless\nscript_dir=\n";
        let facts = parse(text, "M").unwrap();
        assert_eq!(facts.boot_id, "abc");
        assert_eq!(facts.os_name, "Debian GNU/Linux 12 (a=b)");
        assert_eq!(facts.script_dir, None);
        assert!(facts.sudo.gives_root());
    }

    #[test]
    fn an_answer_without_marker_or_boot_id_is_none() {
        assert_eq!(parse("boot_id=abc\n", "M"), None);
        assert_eq!(parse("M\nboot_id=\narch=x\n", "M"), None);
    }
}
