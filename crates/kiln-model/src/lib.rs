//! WHAT a build is: templates and their checks, plans, run states and events.
//!
//! INVARIANT: this crate does no I/O, reads no clock and is not async.
//!
//! ```text
//!  text ─ tree ─► Document ─ check(&Document, &CheckContext) ─► CheckedTemplate
//!                                │                                  │ plan(image, host)
//!                                ▼                                  ▼
//!                             Problems                          BuildPlan ─► plan.json
//! ```

pub mod api;
pub mod catalog;
mod digest;
pub mod event;
pub mod plan;
pub mod run;

pub use digest::{InvalidDigest, Sha256};
