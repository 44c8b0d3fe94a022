//! Executors: where a worker runs. There is one so far; a cluster's scheduler is
//! the next, with the same run directory on a shared file system.

pub mod local;
