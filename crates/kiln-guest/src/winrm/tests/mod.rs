//! The client against a server in this process, and against exchanges recorded from real machines.

mod acceptor;
mod faults;
mod files;
mod recorded;
mod running;
mod server;
mod transcripts;

pub(super) use acceptor::Acceptor;
