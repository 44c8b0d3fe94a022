//! The store: SQLite, one writer, many readers.

mod records;

pub use records::*;
