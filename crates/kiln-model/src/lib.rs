//! WHAT a build is: templates and their checks, plans, run states and events.
//!
//! INVARIANT: this crate does no I/O, reads no clock and is not async.
//!
//! ```text
//!  bytes ─ tree ─► Document ─ check ─► CheckedTemplate ─ plan(image, host) ─► BuildPlan ─► plan.json
//!                     │        │             │                 ▲
//!                     └── Problems ──────────┘        Catalog ─┘ choose(name, version)
//!
//!  events.jsonl ─ read_events ─► RunEvent… ─ RunView::apply ─► where a run is
//! ```
//! Everything a person wrote wrong comes out as [`Problems`], all at once and with its
//! places; an `Err` elsewhere is about files of Kiln's own ([`FormatError`]).

pub mod api;
pub mod catalog;
mod check;
mod digest;
mod document;
pub mod event;
mod json;
pub mod plan;
mod planning;
pub mod policy;
pub mod problem;
pub mod run;
mod suggest;
pub mod template;
mod tree;
mod view;
mod vmsize;

pub use check::{CheckContext, Checked, CheckedBody, check, check_body, resource_for};
pub use digest::{InvalidDigest, Sha256};
pub use document::{Document, MAX_TEMPLATE_BYTES};
pub use event::{EventLog, read_events};
pub use json::FormatError;
pub use problem::{Problem, Problems, Severity};
pub use view::{IllegalEvent, PhaseView, Progress, RunView, StepView};
