//! Templates from the request to the plan: a real store, a real library, real HTTP servers that fail and lie.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bodies;
mod change;
mod fetching;
mod home;
mod leaving;
mod plans;
