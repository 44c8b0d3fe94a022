//! The one place that writes to the terminal.
//!
//! INVARIANT: only this module writes to stdout and stderr (lints refuse `print!`
//! and `eprint!` everywhere). stdout is data, for programs; stderr is talk, for
//! people. A closed stdout (`kiln … | head`) is not an error and no reason to end
//! a build; any other failed write of data is remembered and decides the exit code.

pub mod guest_text;
pub mod problems;
pub mod raw;
mod style;
pub mod table;
pub mod text;

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Mutex;

pub use style::{ColorWishes, Paint};

/// What may be shown, and how.
#[derive(Debug)]
pub struct Printer {
    /// Colour on stdout.
    pub out: Paint,
    /// Colour on stderr.
    pub err: Paint,
    /// stderr is a terminal that can redraw lines.
    live: bool,
    stdout: Mutex<Stdout>,
}

#[derive(Debug)]
enum Stdout {
    Open,
    /// Whoever read it is gone.
    Closed,
    Failed(io::Error),
}

impl Printer {
    pub fn new(wishes: ColorWishes) -> Self {
        let stderr_is_terminal = io::stderr().is_terminal();
        Self {
            out: wishes.paint(io::stdout().is_terminal()),
            err: wishes.paint(stderr_is_terminal),
            live: stderr_is_terminal && !wishes.dumb_terminal,
            stdout: Mutex::new(Stdout::Open),
        }
    }

    /// Whether progress can be drawn in place.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Whether data is read by a person, and bytes in it would be acted on.
    pub fn out_is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// One line of data, on stdout.
    pub fn data(&self, line: &str) {
        self.write_stdout(format!("{line}\n").as_bytes());
    }

    /// Bytes of data as they are, on stdout.
    pub fn raw_data(&self, bytes: &[u8]) {
        self.write_stdout(bytes);
    }

    fn write_stdout(&self, bytes: &[u8]) {
        // A poisoned lock means another thread panicked while writing: what it
        // left is still a valid state.
        let mut state = self.stdout.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !matches!(*state, Stdout::Open) {
            return;
        }
        let mut stdout = io::stdout().lock();
        if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            *state = match error.kind() {
                io::ErrorKind::BrokenPipe => Stdout::Closed,
                _ => Stdout::Failed(error),
            };
        }
    }

    /// Whether all data reached stdout, or a reader that wanted no more.
    pub fn stdout_result(&self) -> Result<(), io::Error> {
        let mut state = self.stdout.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match std::mem::replace(&mut *state, Stdout::Open) {
            Stdout::Failed(error) => Err(error),
            Stdout::Open | Stdout::Closed => Ok(()),
        }
    }

    /// One line for people, on stderr. If nobody listens, so be it.
    pub fn talk(&self, line: &str) {
        let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
    }

    pub fn warning(&self, text: &str) {
        self.talk(&self.format_warning(text));
    }

    pub fn format_warning(&self, text: &str) -> String {
        format!("{} {text}", self.err.attention("warning:"))
    }

    pub fn hint(&self, text: &str) {
        self.talk(&format!("{} {text}", self.err.faint("hint:")));
    }

    /// An error with all that led to it, once.
    pub fn error(&self, error: &anyhow::Error) {
        let mut shown = String::new();
        for (depth, cause) in error.chain().enumerate() {
            let text = cause.to_string();
            if depth == 0 {
                self.talk(&format!("{} {text}", self.err.bad("error:")));
            } else if !shown.ends_with(&text) {
                // Some libraries repeat their source in their own text.
                self.talk(&format!("  caused by: {text}"));
            }
            shown = text;
        }
    }
}

/// Where the tracing log goes: stderr, a line at a time.
pub fn log_writer() -> io::Stderr {
    io::stderr()
}

/// Wrong usage, or help and version that were asked for: clap's own words, on its own
/// choice of stream. The exit status is 0 for help, 2 for wrong usage.
pub fn usage(error: &clap::Error) -> std::process::ExitCode {
    let _ = error.print();
    std::process::ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
