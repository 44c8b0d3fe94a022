//! The command, driven as a person drives it.
