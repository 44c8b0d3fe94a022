//! A guest that is kept and goes on later, perhaps several times at once.
//!
//! ```text
//!   put_to_rest   what was written is on the disk, timers are held          before it is kept
//!   renew         clock, randomness, login and host key, in one command     first of all when it goes on
//!     └─► a new connection, by the new keys
//! ```
//! Without the second, clones would make the same random numbers, in a time long past, and whoever has one's key would
//! have all of them. Programs that keep a random state of their own are not reached by it; the SSH server, which is one,
//! reads its keys again and starts anew.
//!
//! Sources: random(4) for RNDRESEEDCRNG; sshd(8) for SIGHUP.

use std::time::{Duration, SystemTime};

use kiln_host::wait::Control;

use crate::connect::{Limits, Login};
use crate::error::GuestError;
use crate::guest::{Guest, script_command, script_command_by};
use crate::keys::{KeyError, KeyPair};
use crate::step::nonce;

/// A guest that was just there answers soon, or something is wrong with it.
const RECONNECT_LIMIT: Duration = Duration::from_secs(60);

/// What a kept guest is given when it goes on.
#[derive(Debug)]
pub struct Renewal<'a> {
    /// The time.
    pub now: SystemTime,
    pub login_key: &'a KeyPair,
    pub host_key: &'a KeyPair,
}

/// What became of the guest's host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKey {
    Renewed,
    /// The SSH server is not OpenSSH: the key stays that which was injected at the first boot.
    Kept,
}

impl Guest {
    /// Puts the guest to rest, so that it can be kept. Returns whether it can be renewed later: without that, only its
    /// disk may serve again.
    pub async fn put_to_rest(&self, control: &Control) -> Result<bool, GuestError> {
        const ACT: &str = "putting the guest to rest";
        let marker = format!("kiln-rest-{}", nonce());
        let command = script_command(include_str!("rest.sh"), &[&marker]);
        let output = self.ask(ACT, &command, b"", control).await?;
        match answer(&output.text(), &marker) {
            Some(("settled", reseed)) => Ok(reseed != "none"),
            _ => Err(GuestError::inside(ACT, output.excerpt())),
        }
    }

    /// Gives a guest that goes on its own time, randomness and keys, and connects anew.
    ///
    /// # Errors
    /// The guest is of no use then: nobody knows how much of it was done.
    pub async fn renew(self, with: Renewal<'_>, control: &Control) -> Result<(Self, HostKey), GuestError> {
        const ACT: &str = "renewing the guest";
        let unusable = |error: KeyError| GuestError::inside(ACT, error.to_string());
        let marker = format!("kiln-renew-{}", nonce());
        let old = self.login();
        let now = with.now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, key) = (now.as_secs().to_string(), with.login_key.public_openssh());
        let (replaced, host) = (old.key.public_openssh(), with.host_key.public_openssh());
        let args = [&marker, &seconds, &old.user, &key, &replaced, &host].map(String::as_str);
        let root = if old.user == "root" { "" } else { "sudo -n " };
        let command = script_command_by(root, include_str!("renew.sh"), &args);
        let private = with.host_key.private_openssh().map_err(unusable)?;
        let fresh = [nonce(), nonce(), nonce(), nonce()].concat();
        let given = zeroize::Zeroizing::new(format!("{fresh}\n{}", private.expose()));
        let output = self.exec(&command, given.as_bytes(), control).await?;
        let text = output.text();
        let (host_key, boot_id) = match answer(&text, &marker) {
            Some(("renewed", what)) => match what.split_once(' ') {
                Some(("new", boot_id)) => (HostKey::Renewed, boot_id),
                Some(("kept", boot_id)) => (HostKey::Kept, boot_id),
                _ => return Err(GuestError::inside(ACT, output.excerpt())),
            },
            Some(("failed", what)) => return Err(GuestError::inside(ACT, what.to_owned())),
            _ => return Err(GuestError::inside(ACT, output.excerpt())),
        };
        let login = Login {
            key: with.login_key.clone(),
            host_key: match host_key {
                HostKey::Renewed => with.host_key.public(),
                HostKey::Kept => old.host_key.clone(),
            },
            ..old.clone()
        };
        let limits: Limits = self.limits().clone();
        // Not said goodbye to: the old connection may be served by a process that no longer listens to anybody.
        drop(self);
        let within = control.within(RECONNECT_LIMIT);
        let guest = Self::connect_with(login, limits, |_| (), &within).await;
        if guest.is_err() {
            control.check()?;
        }
        let guest = guest?;
        guest.boot_id_seen(boot_id).await;
        Ok((guest, host_key))
    }
}

/// `MARKER WORD REST`, whatever a chatty login shell printed before.
fn answer<'a>(text: &'a str, marker: &str) -> Option<(&'a str, &'a str)> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix(marker))?;
    line.trim().split_once(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_behind_whatever_was_printed() {
        assert_eq!(answer("motd\nm settled perl\n", "m"), Some(("settled", "perl")));
        assert_eq!(answer("m failed the clock could not", "m"), Some(("failed", "the clock could not")));
        for nothing in ["", "m", "n settled perl"] {
            assert_eq!(answer(nothing, "m"), None, "{nothing:?}");
        }
    }
}
