//! Being asked to stop.
//!
//! The first Ctrl-C (SIGINT), SIGTERM or SIGHUP asks for a clean end, the second Ctrl-C
//! or SIGTERM for an end at once. A terminal that goes away (SIGHUP) never makes it worse.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use kiln_host::wait::Control;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A terminal sends Ctrl-C to every process of its foreground group, and a wrapper in it
/// (timeout, sudo) passes it on: one press comes twice. Nobody presses twice in this time.
const ONE_PRESS: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    CleanUp,
    AtOnce,
}

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
    /// When the first request came.
    asked: Option<Instant>,
    /// How long after it another one is still the same.
    one_press: Duration,
}

impl Signals {
    /// From here on the signals are ours; before, they end the process.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            asked: None,
            one_press: if io::stdin().is_terminal() || io::stderr().is_terminal() {
                ONE_PRESS
            } else {
                Duration::ZERO
            },
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
            let since = self.asked.map(|asked| asked.elapsed());
            if let Some(stop) = meaning(kind, since, self.one_press) {
                self.asked.get_or_insert_with(Instant::now);
                return stop;
            }
        }
    }
}

/// What a signal means that comes this long after the first request, if there was one.
fn meaning(kind: Kind, since_first: Option<Duration>, one_press: Duration) -> Option<Stop> {
    match (kind, since_first) {
        (_, None) => Some(Stop::CleanUp),
        (_, Some(since)) if since < one_press => None,
        (Kind::Interrupt | Kind::Terminate, Some(_)) => Some(Stop::AtOnce),
        (Kind::HangUp, Some(_)) => None,
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
        let later = Some(Duration::from_secs(1));
        for kind in [Kind::Interrupt, Kind::Terminate, Kind::HangUp] {
            assert_eq!(meaning(kind, None, ONE_PRESS), Some(Stop::CleanUp), "{kind:?}");
        }
        assert_eq!(meaning(Kind::Interrupt, later, ONE_PRESS), Some(Stop::AtOnce));
        assert_eq!(meaning(Kind::Terminate, later, ONE_PRESS), Some(Stop::AtOnce));
        assert_eq!(meaning(Kind::HangUp, later, ONE_PRESS), None);
    }

    #[test]
    fn one_press_that_comes_twice_is_one_request() {
        let at_once = Some(Duration::from_millis(2));
        assert_eq!(meaning(Kind::Interrupt, at_once, ONE_PRESS), None);
        assert_eq!(meaning(Kind::Interrupt, at_once, Duration::ZERO), Some(Stop::AtOnce), "no terminal");
    }
}
