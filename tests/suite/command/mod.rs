//! The command, driven as a person drives it; no guest is booted here.

mod images;
mod refusals;
mod templates;
