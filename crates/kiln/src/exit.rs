//! How the process ends.
//!
//! Whose fault a failure is decides the exit status, here and nowhere else:
//! 0 done, 1 the build or its input failed, 2 unexpected. Wrong usage is 2 as well
//! (clap's own).

use std::fmt;
use std::process::ExitCode;

use kiln_model::run::{Fault, RunState};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    Done,
    Failed,
    Unexpected,
}

impl ExitStatus {
    pub fn of_fault(fault: Fault) -> Self {
        match fault {
            Fault::Template | Fault::Guest | Fault::Host | Fault::Remote => Self::Failed,
            Fault::Bug => Self::Unexpected,
        }
    }

    pub fn of_run(state: RunState, fault: Option<Fault>) -> Self {
        match state {
            RunState::Succeeded => Self::Done,
            // Some of what was asked for is not there.
            RunState::PartiallySucceeded | RunState::Canceled => Self::Failed,
            RunState::Failed => fault.map_or(Self::Failed, Self::of_fault),
            // A run that says it goes on has not ended: nobody should see this.
            RunState::Running | RunState::Canceling => Self::Unexpected,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Unexpected => 2,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        ExitCode::from(status.number())
    }
}

/// A command that came to no good end: the error to show, whose fault it is, and what may help.
#[derive(Debug)]
pub struct Failure {
    pub fault: Fault,
    pub error: anyhow::Error,
    pub hints: Vec<String>,
}

impl Failure {
    pub fn new(fault: Fault, error: impl Into<anyhow::Error>) -> Self {
        Self { fault, error: error.into(), hints: Vec::new() }
    }

    /// What the user gave is not right.
    pub fn input(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Fault::Template, error)
    }

    /// This machine lacks something.
    pub fn host(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Fault::Host, error)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub fn status(&self) -> ExitStatus {
        ExitStatus::of_fault(self.fault)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)
    }
}

/// What nobody classified is unexpected.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Fault::Bug, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bugs_are_unexpected() {
        for (fault, number) in
            [(Fault::Template, 1), (Fault::Guest, 1), (Fault::Host, 1), (Fault::Remote, 1), (Fault::Bug, 2)]
        {
            assert_eq!(ExitStatus::of_fault(fault).number(), number, "{fault:?}");
            assert_eq!(ExitStatus::of_run(RunState::Failed, Some(fault)).number(), number, "{fault:?}");
        }
    }

    #[test]
    fn only_a_whole_success_is_zero() {
        for (state, number) in [
            (RunState::Succeeded, 0),
            (RunState::PartiallySucceeded, 1),
            (RunState::Canceled, 1),
            (RunState::Running, 2),
        ] {
            assert_eq!(ExitStatus::of_run(state, None).number(), number, "{state:?}");
        }
    }
}
