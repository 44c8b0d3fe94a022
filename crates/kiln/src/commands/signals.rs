//! Being asked to stop.
//!
//! The first Ctrl-C (SIGINT), SIGTERM or SIGHUP asks for a clean end, the second Ctrl-C
//! or SIGTERM for an end at once. A terminal that goes away (SIGHUP) never makes it worse.

use std::io;

use kiln_host::wait::Control;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    CleanUp,
    AtOnce,
}

/// What a signal means, after those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Interrupt,
    Terminate,
    HangUp,
}

pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    asked: bool,
}

impl Signals {
    /// From here on the signals are ours; before, they end the process.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            asked: false,
        })
    }

    /// The next request to stop.
    pub async fn next(&mut self) -> Stop {
        loop {
            let kind = tokio::select! {
                _ = self.interrupt.recv() => Kind::Interrupt,
                _ = self.terminate.recv() => Kind::Terminate,
                _ = self.hang_up.recv() => Kind::HangUp,
            };
            if let Some(stop) = meaning(kind, self.asked) {
                self.asked = true;
                return stop;
            }
        }
    }
}

fn meaning(kind: Kind, asked_before: bool) -> Option<Stop> {
    match (kind, asked_before) {
        (_, false) => Some(Stop::CleanUp),
        (Kind::Interrupt | Kind::Terminate, true) => Some(Stop::AtOnce),
        (Kind::HangUp, true) => None,
    }
}

/// A control that a signal cancels: for commands whose work ends cleanly by itself then.
pub fn control() -> io::Result<Control> {
    let mut signals = Signals::listen()?;
    let cancel = CancellationToken::new();
    let control = Control::new(cancel.clone(), None);
    tokio::spawn(async move {
        signals.next().await;
        cancel.cancel();
    });
    Ok(control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_means_at_once_but_not_from_a_lost_terminal() {
        for kind in [Kind::Interrupt, Kind::Terminate, Kind::HangUp] {
            assert_eq!(meaning(kind, false), Some(Stop::CleanUp), "{kind:?}");
        }
        assert_eq!(meaning(Kind::Interrupt, true), Some(Stop::AtOnce));
        assert_eq!(meaning(Kind::Terminate, true), Some(Stop::AtOnce));
        assert_eq!(meaning(Kind::HangUp, true), None);
    }
}
