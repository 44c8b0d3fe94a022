//! One run, from plan to artifact.
