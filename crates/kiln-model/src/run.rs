//! The states of a run, in the API's own words.
//!
//! ```text
//!  Running(Queued → Building → Customizing → Optimizing → Validating → Distributing)
//!     │                │             │ any of them
//!     │                ▼             ▼
//!     │            Canceling ──► Canceled
//!     └──► Succeeded | PartiallySucceeded | Failed
//! ```
//! INVARIANT: a run ends once. [`RunState::may_become`] holds all transitions.

use serde::{Deserialize, Serialize};

/// `lastRunStatus.runState` of the API (2020-02-14 and later).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    Running,
    Canceling,
    Succeeded,
    PartiallySucceeded,
    Failed,
    Canceled,
}

impl RunState {
    pub fn is_final(self) -> bool {
        !matches!(self, RunState::Running | RunState::Canceling)
    }

    pub fn may_become(self, next: RunState) -> bool {
        use RunState::*;
        match self {
            Running => next != Running,
            // A run may finish its last step before the cancel reaches it.
            Canceling => next.is_final(),
            Succeeded | PartiallySucceeded | Failed | Canceled => false,
        }
    }
}

/// `lastRunStatus.runSubState` of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    Queued,
    Building,
    Customizing,
    Optimizing,
    Validating,
    Distributing,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// Whose fault a failure is: decides the exit code, the log level and the API's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The template, or a file it names.
    Template,
    /// What a customizer did inside the guest, or the guest itself.
    Guest,
    /// This host: disk room, memory, a missing program.
    Host,
    /// A server somewhere else.
    Remote,
    /// Kiln.
    Bug,
}

#[cfg(test)]
mod tests {
    use super::RunState::{self, *};

    #[test]
    fn a_run_ends_once() {
        let all = [Running, Canceling, Succeeded, PartiallySucceeded, Failed, Canceled];
        for from in all {
            for to in all {
                assert!(!(from.is_final() && RunState::may_become(from, to)), "{from:?} -> {to:?}");
                assert!(!from.may_become(from), "{from:?} twice");
            }
        }
        assert!(!Canceling.may_become(Running));
    }
}
