//! The inside of a machine: SSH, detached commands, files.
