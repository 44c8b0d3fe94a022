//! A guest as its callers hold it: one session at a time, replaced when it is lost.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use kiln_host::wait::Control;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::connect::{self, ConnectAttempt, Limits, Login};
use crate::error::{GuestError, excerpt};
use crate::quote::sh_quote;
use crate::session::{Broken, CommandEnd, Session, Stdin, Stream};

/// A guest that has answered once with the right host key and let us in.
pub struct Guest {
    login: Login,
    limits: Limits,
    /// INVARIANT: at most one session; whoever finds it closed replaces it, holding the lock meanwhile.
    session: Mutex<Arc<Session>>,
}

/// What a short command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub code: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl ExecOutput {
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// Standard output as text without surrounding white space.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// The first words of what the command said, standard error first: for a message.
    pub fn excerpt(&self) -> String {
        excerpt(if self.stderr.trim_ascii().is_empty() { &self.stdout } else { &self.stderr })
    }
}

/// The most that [`Guest::exec`] captures of each output.
pub const EXEC_CAPTURE_LIMIT: usize = 4 * 1024 * 1024;
/// How often one of our scripts may be killed in the guest before that is its end.
const KILLS_LIMIT: u32 = 5;
/// A goodbye that takes longer is left unsaid.
const GOODBYE_LIMIT: Duration = Duration::from_secs(5);

impl Guest {
    /// Connects, trying until the guest answers or `control` ends. `on_attempt` hears of each failed attempt.
    ///
    /// # Errors
    /// [`GuestError::NoAnswer`] with what was seen last, [`GuestError::WrongHostKey`], [`GuestError::LoginRefused`],
    /// [`GuestError::Interrupted`] when canceled.
    pub async fn connect(
        login: Login,
        on_attempt: impl FnMut(ConnectAttempt<'_>),
        control: &Control,
    ) -> Result<Self, GuestError> {
        Self::connect_with(login, Limits::default(), on_attempt, control).await
    }

    /// The same with other limits than those of a build.
    pub async fn connect_with(
        login: Login,
        limits: Limits,
        on_attempt: impl FnMut(ConnectAttempt<'_>),
        control: &Control,
    ) -> Result<Self, GuestError> {
        let session = connect::connect(&login, &limits, on_attempt, control).await?;
        Ok(Self { login, limits, session: Mutex::new(session) })
    }

    pub fn login(&self) -> &Login {
        &self.login
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Gives up the present session and makes a new one, within the limit for a lost guest.
    pub async fn reconnect(&self, control: &Control) -> Result<(), GuestError> {
        let mut slot = self.session.lock().await;
        *slot = self.dial(control).await?;
        Ok(())
    }

    /// Ends when the present session does: by a break, by silence, or because the guest went down.
    pub async fn link_lost(&self) {
        let session = Arc::clone(&*self.session.lock().await);
        session.closed().await;
    }

    /// Closes the connection from this side and waits until it is closed.
    pub async fn close(self) {
        let session = self.session.into_inner();
        if tokio::time::timeout(GOODBYE_LIMIT, session.disconnect()).await.is_err() {
            tracing::debug!("the guest did not take our goodbye");
        }
    }

    /// Runs a short command by the login shell and captures what it prints.
    ///
    /// The command may not have an end of its own: it is given up, not killed, when `control` ends. It shows in
    /// errors and in the guest's process list, so a secret goes through `stdin`.
    ///
    /// # Errors
    /// [`GuestError::LinkLost`] when the connection broke after the command was sent: whether it ran is unknown, and
    /// it is not repeated. A session that was already lost is replaced first.
    pub async fn exec(
        &self,
        command: &str,
        stdin: &[u8],
        control: &Control,
    ) -> Result<ExecOutput, GuestError> {
        loop {
            let session = self.session(control).await?;
            match control.guard(capture(&session, command, command, stdin)).await? {
                Captured::Output(output) => return Ok(output),
                Captured::Failed(error) => return Err(error),
                // The session died unnoticed before the command got onto it; the next one is new.
                Captured::Broken(Broken::BeforeStart) => self.settle(&session, control).await?,
                Captured::Broken(_) => return Err(GuestError::LinkLost { act: shown(command) }),
            }
        }
    }

    /// Runs one of our own scripts, which may be repeated: a lost link is mended and the script run again, until it
    /// has answered or the limit for a lost guest is used up.
    pub(crate) async fn ask(
        &self,
        act: &str,
        command: &str,
        stdin: &[u8],
        control: &Control,
    ) -> Result<ExecOutput, GuestError> {
        let lost_since = Instant::now();
        let mut kills = 0;
        loop {
            let session = self.session(control).await?;
            match control.guard(capture(&session, act, command, stdin)).await? {
                Captured::Output(output) => return Ok(output),
                // By a shutdown, most likely, which takes the link a moment later.
                Captured::Failed(GuestError::CommandKilled { .. }) if kills < KILLS_LIMIT => {
                    kills += 1;
                    self.settle(&session, control).await?;
                }
                Captured::Failed(error) => return Err(error),
                Captured::Broken(broken) => {
                    tracing::debug!(act, ?broken, "link lost, asking again");
                    if lost_since.elapsed() >= self.limits.reconnect {
                        return Err(GuestError::LinkLost { act: act.to_owned() });
                    }
                    self.settle(&session, control).await?;
                }
            }
        }
    }

    /// The boot that the guest is in. Asked once in each session: none outlives a boot.
    pub(crate) async fn boot_id(&self, control: &Control) -> Result<String, GuestError> {
        const ACT: &str = "asking for the boot id";
        let session = self.session(control).await?;
        if let Some(boot_id) = session.boot_id.get() {
            return Ok(boot_id.clone());
        }
        let output = self.ask(ACT, "cat /proc/sys/kernel/random/boot_id", b"", control).await?;
        let boot_id = output.text();
        if !output.success() || boot_id.is_empty() {
            return Err(GuestError::inside(ACT.to_owned(), output.excerpt()));
        }
        // The answer may have come by a newer session; then this one is closed and is not asked again.
        Ok(session.boot_id.get_or_init(|| boot_id).clone())
    }

    /// What was told of the boot that the guest is in: it need not be asked again.
    pub(crate) async fn boot_id_seen(&self, boot_id: &str) {
        // Of a session that was closed meanwhile it is never asked.
        self.session.lock().await.boot_id.get_or_init(|| boot_id.to_owned());
    }

    /// The live session, or a new one.
    pub(crate) async fn session(&self, control: &Control) -> Result<Arc<Session>, GuestError> {
        let mut slot = self.session.lock().await;
        if slot.is_closed() {
            tracing::debug!(addr = %self.login.addr, "the connection to the guest was lost, connecting again");
            *slot = self.dial(control).await?;
        }
        Ok(Arc::clone(&slot))
    }

    /// After a command broke: a link that breaks is seen to be closed a moment later. A server that only dropped
    /// the channel keeps its link; the pause keeps us from asking it in a tight loop.
    pub(crate) async fn settle(&self, session: &Session, control: &Control) -> Result<(), GuestError> {
        const DROPPED_CHANNEL: Duration = Duration::from_secs(1);
        let closed = control.within(DROPPED_CHANNEL).guard(session.closed()).await;
        if closed.is_err() {
            control.check()?;
        }
        Ok(())
    }

    async fn dial(&self, control: &Control) -> Result<Arc<Session>, GuestError> {
        let within = control.within(self.limits.reconnect);
        let dialed = connect::connect(&self.login, &self.limits, |_| (), &within).await;
        if dialed.is_err() {
            // The caller's own deadline is an interruption; only ours is the guest's failure to answer.
            control.check()?;
        }
        dialed
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("login", &self.login).finish_non_exhaustive()
    }
}

enum Captured {
    Output(ExecOutput),
    Broken(Broken),
    Failed(GuestError),
}

async fn capture(session: &Session, act: &str, command: &str, stdin: &[u8]) -> Captured {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let run = session.run(command, Stdin::Bytes(stdin), |stream, bytes| {
        let into = match stream {
            Stream::Stdout => &mut stdout,
            Stream::Stderr => &mut stderr,
        };
        if into.len() + bytes.len() > EXEC_CAPTURE_LIMIT {
            return ControlFlow::Break(());
        }
        into.extend_from_slice(bytes);
        ControlFlow::Continue(())
    });
    match run.await {
        Ok(CommandEnd::Exited(code)) => Captured::Output(ExecOutput { code, stdout, stderr }),
        Ok(CommandEnd::Signaled(signal)) => {
            Captured::Failed(GuestError::CommandKilled { act: shown(act), signal })
        }
        Ok(CommandEnd::Stopped) => {
            Captured::Failed(GuestError::OutputTooLong { command: shown(act), limit: EXEC_CAPTURE_LIMIT })
        }
        Err(Broken::Refused(reason)) => {
            Captured::Failed(GuestError::CommandRefused { act: shown(act), reason })
        }
        Err(broken) => Captured::Broken(broken),
    }
}

/// A command as a message names it: its first line, cut.
fn shown(command: &str) -> String {
    const LIMIT: usize = 80;
    let first = command.lines().next().unwrap_or_default();
    match first.char_indices().nth(LIMIT) {
        Some((at, _)) => format!("{}…", &first[..at]),
        None => first.to_owned(),
    }
}

/// The command that runs one of our scripts with arguments, whatever the account's login shell is.
///
/// `exec` makes the script's shell the very process that the SSH server started, which the detached runner needs
/// (see the step module).
pub(crate) fn script_command(script: &str, args: &[&str]) -> String {
    script_command_by("", script, args)
}

/// The same, run by `prefix`, such as `sudo -n `.
pub(crate) fn script_command_by(prefix: &str, script: &str, args: &[&str]) -> String {
    let mut command = format!("exec {prefix}/bin/sh -c {} kiln", sh_quote(&without_comments(script)));
    for arg in args {
        command.push(' ');
        command.push_str(&sh_quote(arg));
    }
    command
}

/// Our scripts explain themselves to their readers; the guest need not carry that.
pub(crate) fn without_comments(script: &str) -> String {
    script
        .lines()
        .filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty())
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_code_stays() {
        let script = "# what\n\n  # why\nprintf '#!/bin/sh'\n  a # kept\n";
        assert_eq!(without_comments(script), "printf '#!/bin/sh'\n  a # kept\n");
    }

    #[test]
    fn a_command_is_named_by_its_first_line_cut_between_characters() {
        assert_eq!(shown("echo a\nsecret"), "echo a");
        assert_eq!(shown(&"é".repeat(100)), format!("{}…", "é".repeat(80)));
    }
}
