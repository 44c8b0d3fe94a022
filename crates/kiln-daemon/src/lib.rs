//! MANY RUNS: where workers are started, followed, asked and settled.
//!
//! ```text
//!  prepare ─► run directory ─► start ─► worker process (kiln worker RUN_DIR)
//!                                          │ appends events.jsonl, customization.log
//!                 follow ◄─────────────────┘
//!                    │ the worker is gone and its run has not ended
//!                    ▼
//!                 settle: takes the lock, cleans up, writes the end
//! ```
//!
//! The worker is the unit of work; an [`executor`] only decides where it runs and
//! answers whether it lives. Whoever follows a run may itself end: the worker goes
//! on, and the next follower reads the same events from the start.

pub mod access;
pub mod config;
pub mod daemon;
pub mod executor;
mod follow;
pub mod gc;
pub mod http;
pub mod runs;
pub mod serve;
mod settle;
pub mod setup;
pub mod shelves;
pub mod store;
pub mod templates;
pub mod tls;

pub use follow::{FollowError, Followed, News, follow, follow_events};
pub use settle::{SettleError, settle};
