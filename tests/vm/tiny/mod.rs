//! Every way a build can end, with a guest that is up in seconds.

mod builds;
mod checkpoints;
mod daemon;
mod debug;
mod faults;
mod host;
mod steps;
