//! How a program failed, in words that help.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use crate::wait::Interrupted;

/// Why a program could not be run to a good end. `command` is the command as one could type it.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("{program}: no such program; install it or put it on PATH")]
    NotFound { program: String },
    #[error("cannot start {command}")]
    Start { command: String, source: io::Error },
    #[error("lost track of {command}")]
    Wait { command: String, source: io::Error },
    /// The program ran and ended badly. `code` is absent when a signal ended it.
    #[error("{command} failed with {status}{}", said(.stderr))]
    Failed { command: String, code: Option<i32>, status: String, stderr: String },
    #[error("{command} wrote more than {limit} bytes to stdout")]
    OutputTooLong { command: String, limit: usize },
    #[error("{command} was stopped before its end")]
    Interrupted { command: String, source: Interrupted },
}

impl ProcessError {
    /// Why it was stopped, if it was stopped by its [`crate::wait::Control`].
    pub fn interrupted(&self) -> Option<Interrupted> {
        match self {
            Self::Interrupted { source, .. } => Some(*source),
            _ => None,
        }
    }
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        words => format!("; it said: {words}"),
    }
}

/// `exit status 3`, or `signal 9 (SIGKILL)`.
pub fn describe_status(status: ExitStatus) -> String {
    if let Some(code) = status.code() {
        return format!("exit status {code}");
    }
    match status.signal() {
        Some(signal) => match signal_name(signal) {
            Some(name) => format!("signal {signal} ({name})"),
            None => format!("signal {signal}"),
        },
        None => status.to_string(),
    }
}

/// Names of the signals that end processes in practice (signal(7), x86 and ARM numbers).
pub fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}
