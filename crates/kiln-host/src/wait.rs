//! Waiting with an end.
//!
//! A [`Control`] goes down every call that may wait. It carries the two things that end a wait which nothing else
//! ends: the caller's change of mind (a cancellation) and a deadline on the monotonic clock. Whoever waits does it by
//! [`Control::guard`], or selects on [`Control::interrupted`] beside its own events.
//!
//! A control can only be narrowed on the way down ([`Control::within`], [`Control::child`]), never widened.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The two ends of every wait: cancellation and a deadline. Cheap to clone; clones share the cancellation.
#[derive(Clone, Debug)]
pub struct Control {
    cancel: CancellationToken,
    deadline: Option<Instant>,
}

/// Why a wait ended before its event came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// Somebody asked for an end.
    #[error("canceled")]
    Canceled,
    /// The time given was used up.
    #[error("deadline passed")]
    DeadlinePassed,
}

impl Control {
    pub fn new(cancel: CancellationToken, deadline: Option<Instant>) -> Self {
        Self { cancel, deadline }
    }

    /// A control of its own that nobody cancels and that ends after `limit`: for cleaning up after an
    /// interruption, when the interrupted control can no longer be waited on.
    pub fn ending_in(limit: Duration) -> Self {
        Self::new(CancellationToken::new(), Some(Instant::now() + limit))
    }

    /// The same control with an earlier end: the nearer of its deadline and `limit` from now.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        let end = Instant::now() + limit;
        let deadline = self.deadline.map_or(end, |deadline| deadline.min(end));
        Self { cancel: self.cancel.clone(), deadline: Some(deadline) }
    }

    /// A control that ends when this one does, and that [`Control::cancel`] ends without ending this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { cancel: self.cancel.child_token(), deadline: self.deadline }
    }

    /// Ends every wait on this control, its clones and its children.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    pub fn is_canceled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Time left, zero when the deadline has passed; `None` without a deadline.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Asks without waiting: for loops that compute, between two chunks.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_canceled() {
            return Err(Interrupted::Canceled);
        }
        match self.remaining() {
            Some(Duration::ZERO) => Err(Interrupted::DeadlinePassed),
            _ => Ok(()),
        }
    }

    /// Ends when the control does, and says why. For `select!` beside other events. A cancellation wins over a
    /// deadline that passed meanwhile.
    pub async fn interrupted(&self) -> Interrupted {
        let deadline = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Interrupted::Canceled,
            () = deadline => Interrupted::DeadlinePassed,
        }
    }

    /// Waits for `future`, but no longer than the control allows. An ended control starts nothing: `future` is not
    /// polled then. When the control ends first, `future` is dropped where it stands.
    pub async fn guard<F: Future>(&self, future: F) -> Result<F::Output, Interrupted> {
        tokio::select! {
            biased;
            why = self.interrupted() => Err(why),
            output = future => Ok(output),
        }
    }

    /// Pauses for `duration`, or until the control ends.
    pub async fn sleep(&self, duration: Duration) -> Result<(), Interrupted> {
        self.guard(tokio::time::sleep(duration)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(deadline: Option<Duration>) -> Control {
        Control::new(CancellationToken::new(), deadline.map(|limit| Instant::now() + limit))
    }

    #[tokio::test]
    async fn the_deadline_ends_a_wait_that_nothing_else_ends() {
        let control = control(Some(Duration::from_millis(20)));
        let ended = control.guard(std::future::pending::<()>()).await;
        assert_eq!(ended, Err(Interrupted::DeadlinePassed));
        assert_eq!(control.remaining(), Some(Duration::ZERO));
        assert_eq!(control.check(), Err(Interrupted::DeadlinePassed));
    }

    #[tokio::test]
    async fn cancellation_wins_over_a_passed_deadline() {
        let control = control(Some(Duration::ZERO));
        control.cancel();
        assert_eq!(control.interrupted().await, Interrupted::Canceled);
        assert_eq!(control.check(), Err(Interrupted::Canceled));
    }

    #[tokio::test]
    async fn an_ended_control_starts_nothing() {
        let control = control(None);
        control.cancel();
        let mut started = false;
        let ended = control.guard(async { started = true }).await;
        assert_eq!(ended, Err(Interrupted::Canceled));
        assert!(!started);
    }

    #[tokio::test]
    async fn within_keeps_the_nearer_end() {
        let near = control(Some(Duration::from_secs(1)));
        let far = near.within(Duration::from_secs(100));
        assert_eq!(far.deadline(), near.deadline());
        let nearer = near.within(Duration::from_millis(1));
        assert!(nearer.deadline() < near.deadline());
        assert!(control(None).within(Duration::from_secs(1)).deadline().is_some());
    }

    #[tokio::test]
    async fn a_child_ends_with_its_parent_but_not_the_other_way_round() {
        let parent = control(None);
        let first = parent.child();
        first.cancel();
        assert!(!parent.is_canceled());
        let second = parent.child();
        parent.cancel();
        assert!(second.is_canceled());
    }
}
