//! A guest reached over WinRM, as its callers hold it.
//!
//! ```text
//!   run ── take a lane ── start ──┬── Receive … Receive ──► output as it comes, exit code
//!                                 └── Send … (second connection)
//!        └ Signal terminate, always ── lane back, its shell replaced now and then
//! ```
//!
//! Each command has a lane to itself, so several may run at once; a lane that is free is used again. A connection
//! that breaks under a running command is replaced, and the command asked for again: the guest's shell does not
//! depend on connections. What an answer carried that was lost on the way is gone, though; the end of the command
//! says so ([`CommandEnd::gaps`]).

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_host::wait::{Control, Interrupted};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::answer;
use super::channel::Channel;
use super::clixml::ClixmlDecoder;
use super::command::{self, CommandLine};
use super::connect::{self, WinrmAttempt};
use super::error::WinrmError;
use super::fault::Remedy;
use super::lane::{Lane, Repeat};
use super::login::{Transport, WinrmLimits, WinrmLogin};
use super::soap::{Frame, SMALLEST_SEND};
use crate::guest::{EXEC_CAPTURE_LIMIT, ExecOutput};
use crate::session::Stream;

/// A guest that has answered once, by the pinned certificate or by sealed messages, and let us in.
pub struct WinrmGuest {
    pub(crate) login: WinrmLogin,
    pub(crate) limits: WinrmLimits,
    pub(crate) frame: Frame,
    idle: Mutex<Vec<Lane>>,
    /// Bytes of input in one Send: halved for good when the guest says it is too much.
    send_size: AtomicUsize,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandEnd {
    /// As the guest gives it; Windows shows codes such as 0xC0000005 as negative numbers.
    pub code: u32,
    /// How many answers were lost on the way since the command started, and with them perhaps output.
    pub gaps: u32,
}

/// What a command reads.
pub(crate) enum Input<'a> {
    /// Nothing: its input is a console where nobody types.
    None,
    Bytes(&'a [u8]),
    /// Pieces from a reader of its own; the callback hears how many bytes were taken.
    Pieces(mpsc::Receiver<Vec<u8>>, &'a mut (dyn FnMut(u64) + Send)),
}

/// Takes output; a break means that no more is wanted.
pub(crate) type Sink<'a> = &'a mut (dyn FnMut(Stream, &[u8]) -> ControlFlow<()> + Send);

pub(crate) enum Ended {
    Exited(CommandEnd),
    /// The sink wanted no more.
    Stopped,
}

impl WinrmGuest {
    /// Connects, trying until the guest answers or `control` ends. `on_attempt` hears of each failed attempt.
    ///
    /// # Errors
    /// [`WinrmError::NoAnswer`] with what was seen last, [`WinrmError::WrongCertificate`],
    /// [`WinrmError::LoginRefused`], [`WinrmError::Interrupted`] when canceled.
    pub async fn connect(
        login: WinrmLogin,
        on_attempt: impl FnMut(WinrmAttempt<'_>) + Send,
        control: &Control,
    ) -> Result<Self, WinrmError> {
        Self::connect_with(login, WinrmLimits::default(), on_attempt, control).await
    }

    /// The same with other limits than those of a build.
    pub async fn connect_with(
        login: WinrmLogin,
        limits: WinrmLimits,
        mut on_attempt: impl FnMut(WinrmAttempt<'_>) + Send,
        control: &Control,
    ) -> Result<Self, WinrmError> {
        let channel = connect::connect(&login, &limits, &mut on_attempt, control).await?;
        let scheme = match login.transport {
            Transport::Https { .. } => "https",
            Transport::Http => "http",
        };
        let frame = Frame {
            to: format!("{scheme}://{}/wsman", login.addr),
            operation_timeout: limits.operation_timeout,
            session: Uuid::new_v4(),
        };
        let send_size = AtomicUsize::new(Frame::send_capacity(limits.max_envelope));
        let lane = Lane { main: Some(channel), ..Lane::default() };
        Ok(Self { login, limits, frame, idle: Mutex::new(vec![lane]), send_size })
    }

    pub fn login(&self) -> &WinrmLogin {
        &self.login
    }

    pub fn limits(&self) -> &WinrmLimits {
        &self.limits
    }

    /// Ends our shells in the guest and closes the connections.
    pub async fn close(self) {
        let control = Control::ending_in(super::lane::CLEANUP_LIMIT);
        self.close_idle(&control).await;
    }

    /// Runs a command to its end and hands over both outputs as they come. `stdin`, when there is one, is sent
    /// whole and then closed.
    ///
    /// When `control` ends, the command is terminated in the guest.
    ///
    /// # Errors
    /// [`WinrmError::ShellGone`] when the guest restarted meanwhile, [`WinrmError::EndLost`] when the command ended
    /// and its exit code was lost; [`WinrmError::LinkLost`] when whether the command started is unknown, and it is
    /// not repeated.
    pub async fn run(
        &self,
        line: &CommandLine,
        stdin: Option<&[u8]>,
        mut on_output: impl FnMut(Stream, &[u8]) + Send,
        control: &Control,
    ) -> Result<CommandEnd, WinrmError> {
        let input = stdin.map_or(Input::None, Input::Bytes);
        let mut sink = |stream, bytes: &[u8]| {
            on_output(stream, bytes);
            ControlFlow::Continue(())
        };
        match self.run_with(line, input, &mut sink, control).await? {
            Ended::Exited(end) => Ok(end),
            // Only a sink that breaks stops a command.
            Ended::Stopped => Err(Interrupted::Canceled.into()),
        }
    }

    /// Runs a short command and captures what it prints.
    pub async fn exec(
        &self,
        line: &CommandLine,
        stdin: Option<&[u8]>,
        control: &Control,
    ) -> Result<ExecOutput, WinrmError> {
        let mut capture = Capture::default();
        let input = stdin.map_or(Input::None, Input::Bytes);
        let ended =
            self.run_with(line, input, &mut |stream, bytes| capture.take(stream, bytes), control).await?;
        capture.output(ended, &line.act)
    }

    /// Runs a PowerShell text (Windows PowerShell's language, any length) and hands over both outputs as they come,
    /// standard error as readable text. `act` names it in errors, as in "lost during ACT".
    pub async fn powershell(
        &self,
        act: &str,
        text: &str,
        mut on_output: impl FnMut(Stream, &[u8]) + Send,
        control: &Control,
    ) -> Result<CommandEnd, WinrmError> {
        let mut sink = |stream, bytes: &[u8]| {
            on_output(stream, bytes);
            ControlFlow::Continue(())
        };
        match self.powershell_with(act, text, &mut sink, control).await? {
            Ended::Exited(end) => Ok(end),
            Ended::Stopped => Err(Interrupted::Canceled.into()),
        }
    }

    /// Runs a short PowerShell text and captures what it prints.
    pub async fn ask_powershell(
        &self,
        act: &str,
        text: &str,
        control: &Control,
    ) -> Result<ExecOutput, WinrmError> {
        let mut capture = Capture::default();
        let ended = self
            .powershell_with(act, text, &mut |stream, bytes| capture.take(stream, bytes), control)
            .await?;
        capture.output(ended, act)
    }

    async fn powershell_with(
        &self,
        act: &str,
        text: &str,
        sink: Sink<'_>,
        control: &Control,
    ) -> Result<Ended, WinrmError> {
        let call = command::powershell(act, text);
        let input = call.stdin.as_deref().map_or(Input::None, Input::Bytes);
        let mut decoder = ClixmlDecoder::new();
        let mut decoding = |stream, bytes: &[u8]| match stream {
            Stream::Stdout => sink(stream, bytes),
            Stream::Stderr => {
                let mut wanted = ControlFlow::Continue(());
                decoder.push(bytes, |text| {
                    if wanted.is_continue() {
                        wanted = sink(stream, text);
                    }
                });
                wanted
            }
        };
        let ended = self.run_with(&call.line, input, &mut decoding, control).await?;
        decoder.finish(|text| {
            let _at_its_end_anyway = sink(Stream::Stderr, text);
        });
        Ok(ended)
    }

    pub(crate) async fn run_with(
        &self,
        line: &CommandLine,
        input: Input<'_>,
        sink: Sink<'_>,
        control: &Control,
    ) -> Result<Ended, WinrmError> {
        line.check()?;
        let mut lane = self.take_lane();
        let ended = self.run_on(&mut lane, line, input, sink, control).await;
        let worn = |shell: &super::lane::Shell| shell.commands >= self.limits.commands_per_shell;
        if lane.shell.as_ref().is_some_and(worn) {
            self.delete_shell(&mut lane, control).await;
        }
        self.give_back(lane);
        ended
    }

    async fn run_on(
        &self,
        lane: &mut Lane,
        line: &CommandLine,
        input: Input<'_>,
        sink: Sink<'_>,
        control: &Control,
    ) -> Result<Ended, WinrmError> {
        let console = matches!(input, Input::None);
        let (shell, command) = self.start(lane, line, console, control).await?;
        let running = Running { guest: self, shell: &shell, command: &command, act: &line.act };
        let ended = running.attend(lane, input, sink, control).await;
        match ended {
            // Its shell tells a restart from an end that was told in an answer that was lost.
            Err(WinrmError::ShellGone { act, fault }) => {
                if self.delete_shell(lane, control).await {
                    return Err(WinrmError::EndLost { act, fault });
                }
                Err(WinrmError::ShellGone { act, fault })
            }
            // Nobody there to tell.
            Err(
                WinrmError::NoAnswer { .. }
                | WinrmError::WrongCertificate { .. }
                | WinrmError::LoginRefused { .. },
            ) => ended,
            // Also after its end: only then does the server give back what it kept of the command.
            ended => {
                running.terminate(lane, control).await;
                ended
            }
        }
    }

    fn take_lane(&self) -> Lane {
        self.lanes().pop().unwrap_or_default()
    }

    fn give_back(&self, lane: Lane) {
        self.lanes().push(lane);
    }

    fn lanes(&self) -> std::sync::MutexGuard<'_, Vec<Lane>> {
        // A lane is pushed or popped; a panic in between leaves the list as it was.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the shells of all lanes that are free, and closes their connections.
    pub(crate) async fn close_idle(&self, control: &Control) {
        let lanes = std::mem::take(&mut *self.lanes());
        for mut lane in lanes {
            self.delete_shell(&mut lane, control).await;
        }
    }

    /// Gives up the free lanes as they are: their shells die with the guest's boot.
    pub(crate) fn forget_idle(&self) {
        self.lanes().clear();
    }
}

impl std::fmt::Debug for WinrmGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WinrmGuest").field("login", &self.login).finish_non_exhaustive()
    }
}

/// A command that was started.
struct Running<'a> {
    guest: &'a WinrmGuest,
    shell: &'a str,
    command: &'a str,
    act: &'a str,
}

impl Running<'_> {
    /// Feeds the command and takes its output until it ends.
    async fn attend(
        &self,
        lane: &mut Lane,
        input: Input<'_>,
        sink: Sink<'_>,
        control: &Control,
    ) -> Result<Ended, WinrmError> {
        let receiving = self.receive(&mut lane.main, sink, control);
        let feeding = self.feed(&mut lane.aside, input, control);
        tokio::pin!(receiving, feeding);
        let mut fed = false;
        loop {
            tokio::select! {
                biased;
                // A command may end without reading its input: its end tells more than a failed Send.
                ended = &mut receiving => return ended,
                outcome = &mut feeding, if !fed => {
                    outcome?;
                    fed = true;
                }
            }
        }
    }

    async fn receive(
        &self,
        slot: &mut Option<Channel>,
        sink: Sink<'_>,
        control: &Control,
    ) -> Result<Ended, WinrmError> {
        let mut gaps = 0;
        loop {
            let called = self
                .guest
                .call(
                    slot,
                    self.act,
                    Repeat::Freely,
                    |frame| frame.receive(self.shell, self.command),
                    control,
                )
                .await?;
            gaps += called.lost;
            let body = match called.outcome {
                Ok(body) => body,
                Err(fault) => match fault.code.remedy() {
                    Remedy::PollAgain => continue,
                    Remedy::ShellGone | Remedy::RenewShell => {
                        return Err(WinrmError::ShellGone { act: self.act.to_owned(), fault });
                    }
                    Remedy::Terminated => {
                        return Err(WinrmError::Terminated { act: self.act.to_owned(), fault });
                    }
                    _ => return Err(WinrmError::Fault { act: self.act.to_owned(), fault }),
                },
            };
            let received = answer::received(&body, self.command)
                .map_err(|answer| WinrmError::Answer { act: self.act.to_owned(), answer })?;
            for (stream, bytes) in received.output {
                if sink(stream, &bytes).is_break() {
                    return Ok(Ended::Stopped);
                }
            }
            if let Some(code) = received.exit_code {
                return Ok(Ended::Exited(CommandEnd { code, gaps }));
            }
        }
    }

    /// Sends the input in pieces as large as the guest takes them, the last one with the end.
    async fn feed(
        &self,
        slot: &mut Option<Channel>,
        input: Input<'_>,
        control: &Control,
    ) -> Result<(), WinrmError> {
        match input {
            Input::None => Ok(()),
            Input::Bytes(bytes) => self.send(slot, bytes, true, control).await,
            Input::Pieces(mut pieces, sent) => {
                let mut total = 0;
                let mut next = control.guard(pieces.recv()).await?;
                loop {
                    // The end travels with the last piece, so each one waits for the next.
                    let piece = next.take().unwrap_or_default();
                    next = control.guard(pieces.recv()).await?;
                    self.send(slot, &piece, next.is_none(), control).await?;
                    total += u64::try_from(piece.len()).unwrap_or(u64::MAX);
                    sent(total);
                    if next.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn send(
        &self,
        slot: &mut Option<Channel>,
        bytes: &[u8],
        end: bool,
        control: &Control,
    ) -> Result<(), WinrmError> {
        let mut rest = bytes;
        loop {
            let size = self.guest.send_size.load(Ordering::Relaxed).min(rest.len());
            let (piece, after) = rest.split_at(size);
            let last = end && after.is_empty();
            let request = |frame: &Frame| frame.send(self.shell, self.command, piece, last);
            let called = self.guest.call(slot, self.act, Repeat::Never, request, control).await?;
            match called.outcome {
                Ok(_) if after.is_empty() => return Ok(()),
                Ok(_) => rest = after,
                Err(fault) => match fault.code.remedy() {
                    Remedy::HalveChunk if size > SMALLEST_SEND => {
                        tracing::debug!(size, %fault, "the guest takes less at once");
                        self.guest.send_size.store((size / 2).max(SMALLEST_SEND), Ordering::Relaxed);
                    }
                    // The command is at its end; the other half hears of it.
                    Remedy::ShellGone | Remedy::Terminated => return Ok(()),
                    _ => return Err(WinrmError::Fault { act: self.act.to_owned(), fault }),
                },
            }
        }
    }

    /// Ends the command, or what the server kept of it. Bounded, and never the caller's failure.
    async fn terminate(&self, lane: &mut Lane, control: &Control) {
        let cleanup = self.guest.cleanup(control);
        // The connection that waited for output is out of step when the wait was given up.
        let main_is_free = lane.main.as_ref().is_some_and(Channel::is_usable);
        let slot = if main_is_free { &mut lane.main } else { &mut lane.aside };
        let signal = |frame: &Frame| frame.terminate(self.shell, self.command);
        match self.guest.call(slot, self.act, Repeat::Freely, signal, &cleanup).await {
            Ok(called) => {
                if let Err(fault) = called.outcome {
                    tracing::debug!(act = self.act, %fault, "not terminated");
                }
            }
            Err(error) => tracing::debug!(act = self.act, %error, "not terminated"),
        }
    }
}

#[derive(Default)]
struct Capture {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Capture {
    fn take(&mut self, stream: Stream, bytes: &[u8]) -> ControlFlow<()> {
        let into = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        if into.len() + bytes.len() > EXEC_CAPTURE_LIMIT {
            return ControlFlow::Break(());
        }
        into.extend_from_slice(bytes);
        ControlFlow::Continue(())
    }

    fn output(self, ended: Ended, act: &str) -> Result<ExecOutput, WinrmError> {
        match ended {
            Ended::Exited(end) => Ok(ExecOutput { code: end.code, stdout: self.stdout, stderr: self.stderr }),
            Ended::Stopped => {
                Err(WinrmError::OutputTooLong { command: act.to_owned(), limit: EXEC_CAPTURE_LIMIT })
            }
        }
    }
}
