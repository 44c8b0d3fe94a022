//! The one door to external programs.
//!
//! ```text
//!   Invocation  (plain data: program, arguments, environment, folder)
//!      │ run_blocking()                 on the calling thread, until it ends
//!      │ run(&Control)                  the same on a thread of its own; an interruption kills the group
//!      │ run_in_front(&Control)         with our terminal, for a person to talk to
//!      │ spawn(SpawnOptions)            a child to keep: QEMU. Dies with us
//!      │ spawn_session(SpawnOptions)    a child to leave: a worker. Survives us
//!      ▼
//!   thread "child PROGRAM": fork, wait for the leader's end, kill what is left of its group, reap, tell
//! ```
//!
//! Who owns what: every program leads a process group of its own, so it and whatever it started can be ended
//! together, and a Ctrl-C on our terminal reaches only us; only one that runs in front shares our group. The thread that forked a program lives exactly as long as the
//! program, because `PR_SET_PDEATHSIG` fires when that *thread* ends: so if we are killed, even by `SIGKILL`, the program
//! dies in the same moment, and not earlier.
//!
//! A [`Process`] is the handle on one that somebody else started: it tells its end and can be killed, and never means
//! another process that got the same number later.
//!
//! How it fails: [`ProcessError`] names the command as one could type it, the exit status or signal, and the end of
//! what the program wrote to stderr. Arguments appear in errors and logs, so a secret never goes into one; values of
//! environment variables are never shown.
//!
//! INVARIANT: no process outlives its run. Guarded here by the process group, by `PDEATHSIG`, and by [`Child`]'s drop.

mod child;
mod error;
mod identity;
mod invocation;
mod other;
mod run;

pub use child::{Child, Sink, SpawnOptions};
pub use error::{ProcessError, describe_status, signal_name};
pub use identity::{Identity, IdentityError};
pub use invocation::{Invocation, find_program};
pub use other::{Process, ProcessMark};
pub use run::Output;
