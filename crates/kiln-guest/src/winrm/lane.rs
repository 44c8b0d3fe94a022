//! What one command at a time runs on: a shell and up to two connections to it.
//!
//! A Receive is answered only when there is output, so its connection is busy for as long as the command is quiet.
//! What must get through meanwhile (Send, Signal) has a second connection, made when first needed. Requests and
//! their repetition are here; what a command is, in [`super::guest`].

use std::time::Duration;

use kiln_host::wait::Control;
use tokio::time::Instant;

use super::answer::{self, Answer};
use super::channel::Channel;
use super::command::CommandLine;
use super::connect;
use super::error::{LinkFailure, PostFailure, WinrmError};
use super::fault::{Fault, FaultCode, Remedy};
use super::guest::WinrmGuest;
use super::soap::{Frame, Request, ShellOptions};
use super::xml::Element;

#[derive(Default)]
pub(crate) struct Lane {
    /// Carries what is asked one after the other, and the waiting for output.
    pub(crate) main: Option<Channel>,
    /// Carries what must get through while `main` waits.
    pub(crate) aside: Option<Channel>,
    pub(crate) shell: Option<Shell>,
}

pub(crate) struct Shell {
    pub(crate) id: String,
    /// Started in it so far.
    pub(crate) commands: u32,
}

/// Whether a request whose answer was lost may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Freely,
    /// Only when the server certainly did not take it.
    Never,
}

/// What came of a request.
pub(crate) struct Called {
    pub(crate) outcome: Result<Element, Fault>,
    /// Answers that were lost on the way, with whatever they carried.
    pub(crate) lost: u32,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For saying that something is over: longer is not waited.
pub(crate) const CLEANUP_LIMIT: Duration = Duration::from_secs(10);
/// A shell that was only just made may be gone again this often, when the guest goes down.
const RENEWALS: u32 = 3;
/// Our shells end by themselves when nobody asks for them: longer than a lost guest may stay away.
const SHELL_IDLE: Duration = Duration::from_secs(15 * 60);

impl LinkFailure {
    /// The server certainly did not act on the request.
    fn was_not_taken(&self) -> bool {
        match self {
            Self::Refused
            | Self::NoConnection(_)
            | Self::Tls(_)
            | Self::WrongCertificate { .. }
            | Self::NotSent
            | Self::NoNegotiate { .. }
            | Self::LoginRefused { .. }
            | Self::LoginLost
            // Not WinRM's answer: it was not asked, or could not read the request.
            | Self::Status { .. } => true,
            Self::Silent { .. }
            | Self::Http(_)
            | Self::NotWinrm { .. }
            | Self::Ntlm(_)
            | Self::Sealed(_)
            | Self::TooLong { .. }
            | Self::Fault(_)
            | Self::Answer(_) => false,
        }
    }
}

impl WinrmGuest {
    /// A new logged-in connection, within the limit for a lost guest.
    pub(crate) async fn dial(&self, control: &Control) -> Result<Channel, WinrmError> {
        let within = control.within(self.limits.reconnect);
        let dialed = connect::connect(&self.login, &self.limits, &mut |_| (), &within).await;
        if dialed.is_err() {
            // The caller's own deadline is an interruption; only ours is the guest's failure to answer.
            control.check()?;
        }
        dialed
    }

    /// Asks over the connection in `slot`, which is replaced when it is lost. Faults that are only about the
    /// connection or about a busy server are dealt with here; the others are the caller's.
    pub(crate) async fn call(
        &self,
        slot: &mut Option<Channel>,
        act: &str,
        repeat: Repeat,
        request: impl Fn(&Frame) -> Request,
        control: &Control,
    ) -> Result<Called, WinrmError> {
        let limit = self.limits.operation_timeout + self.limits.answer_grace;
        let begin = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut renewed = false;
        let mut lost = 0;
        loop {
            let good = |channel: &Channel| match repeat {
                Repeat::Freely => channel.is_usable(),
                Repeat::Never => channel.is_fresh(),
            };
            if slot.as_ref().is_some_and(|channel| !good(channel)) {
                *slot = None;
            }
            let channel = match slot {
                Some(channel) => channel,
                None => slot.insert(self.dial(control).await?),
            };
            let posted = control.guard(channel.post(request(&self.frame), limit)).await?;
            match posted {
                Ok(Answer::Body(body)) => return Ok(Called { outcome: Ok(body), lost }),
                Ok(Answer::Fault(fault)) => match fault.code.remedy() {
                    Remedy::NewConnection if !renewed => {
                        renewed = true;
                        *slot = None;
                        continue;
                    }
                    Remedy::RetryTransport if begin.elapsed() < self.limits.reconnect => *slot = None,
                    Remedy::BackOff if begin.elapsed() < self.limits.busy => {
                        tracing::debug!(act, %fault, "the guest is busy");
                    }
                    Remedy::BackOff => {
                        return Err(WinrmError::Busy { act: act.to_owned(), waited: begin.elapsed(), fault });
                    }
                    Remedy::WrongCredential => {
                        return Err(WinrmError::LoginRefused {
                            addr: self.login.addr,
                            user: self.login.user.clone(),
                            waited: begin.elapsed(),
                            last: Box::new(LinkFailure::Fault(fault)),
                        });
                    }
                    _ => return Ok(Called { outcome: Err(fault), lost }),
                },
                Err(PostFailure::Answer(answer)) => {
                    *slot = None;
                    return Err(WinrmError::Answer { act: act.to_owned(), answer });
                }
                // HTTP's own word for the same fault.
                Err(PostFailure::Link(LinkFailure::Status { status: 413, said })) => {
                    *slot = None;
                    let code = FaultCode::EnvelopeTooLarge;
                    let fault = Fault { code, subcode: None, reason: said, provider: None };
                    return Ok(Called { outcome: Err(fault), lost });
                }
                Err(PostFailure::Link(failure)) => {
                    *slot = None;
                    let taken = !failure.was_not_taken();
                    lost += u32::from(taken);
                    tracing::debug!(act, %failure, taken, "no answer");
                    if (taken && repeat == Repeat::Never) || begin.elapsed() >= self.limits.reconnect {
                        return Err(WinrmError::LinkLost { act: act.to_owned(), last: Box::new(failure) });
                    }
                }
            }
            // Nothing tells when a server is free again, or back: asking does.
            control.sleep(pause).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Starts a command in the lane's shell, making the shell where there is none. Gives the ids of both.
    pub(crate) async fn start(
        &self,
        lane: &mut Lane,
        line: &CommandLine,
        console_stdin: bool,
        control: &Control,
    ) -> Result<(String, String), WinrmError> {
        let act = || line.act.clone();
        let begin = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut renewals = 0;
        loop {
            let fault = match self.try_start(lane, line, console_stdin, control).await? {
                Ok(ids) => return Ok(ids),
                Err(fault) => fault,
            };
            tracing::debug!(act = line.act, %fault, "a command was not started");
            match fault.code.remedy() {
                // The command did not start: the id of its shell was already unknown.
                Remedy::ShellGone if renewals < RENEWALS => {
                    renewals += 1;
                    lane.shell = None;
                    continue;
                }
                Remedy::ShellGone => return Err(WinrmError::ShellGone { act: act(), fault }),
                Remedy::RenewShell => {
                    self.delete_shell(lane, control).await;
                    renewals += 1;
                    if renewals == 1 {
                        continue;
                    }
                }
                Remedy::CloseOursAndBackOff => self.close_idle(control).await,
                Remedy::Terminated => return Err(WinrmError::Terminated { act: act(), fault }),
                _ => return Err(WinrmError::Fault { act: act(), fault }),
            }
            if begin.elapsed() >= self.limits.busy {
                return Err(WinrmError::Busy { act: act(), waited: begin.elapsed(), fault });
            }
            control.sleep(pause).await?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn try_start(
        &self,
        lane: &mut Lane,
        line: &CommandLine,
        console_stdin: bool,
        control: &Control,
    ) -> Result<Result<(String, String), Fault>, WinrmError> {
        let nonsense = |answer| WinrmError::Answer { act: line.act.clone(), answer };
        let shell = match &mut lane.shell {
            Some(shell) => shell,
            none => {
                let options = ShellOptions { idle_timeout: Some(SHELL_IDLE), ..ShellOptions::default() };
                // One made by an answer that was lost ends by itself.
                let create = |frame: &Frame| frame.create(&options);
                let made = self.call(&mut lane.main, &line.act, Repeat::Freely, create, control).await?;
                match made.outcome {
                    Ok(body) => {
                        let id = answer::shell_id(&body).map_err(nonsense)?;
                        none.insert(Shell { id, commands: 0 })
                    }
                    Err(fault) => return Ok(Err(fault)),
                }
            }
        };
        let command = |frame: &Frame| {
            frame.command(&shell.id, &line.command, &line.arguments, console_stdin, line.skip_cmd_shell)
        };
        let started = self.call(&mut lane.main, &line.act, Repeat::Never, command, control).await?;
        Ok(match started.outcome {
            Ok(body) => {
                shell.commands += 1;
                Ok((shell.id.clone(), answer::command_id(&body).map_err(nonsense)?))
            }
            Err(fault) => Err(fault),
        })
    }

    /// Ends the lane's shell and all in it; true when the guest still had it. What goes wrong is not asked: the shell
    /// ends by itself a while later.
    pub(crate) async fn delete_shell(&self, lane: &mut Lane, control: &Control) -> bool {
        let Some(shell) = lane.shell.take() else { return false };
        let cleanup = self.cleanup(control);
        let delete = |frame: &Frame| frame.delete(&shell.id);
        match self.call(&mut lane.main, "closing a shell", Repeat::Freely, delete, &cleanup).await {
            Ok(Called { outcome: Ok(_), .. }) => return true,
            Ok(Called { outcome: Err(fault), .. }) => tracing::debug!(%fault, "a shell was not closed"),
            Err(error) => tracing::debug!(%error, "a shell was not closed"),
        }
        false
    }

    /// A control for cleaning up: also when the caller's has ended.
    pub(crate) fn cleanup(&self, control: &Control) -> Control {
        if control.check().is_ok() {
            control.within(CLEANUP_LIMIT)
        } else {
            Control::ending_in(CLEANUP_LIMIT)
        }
    }
}
