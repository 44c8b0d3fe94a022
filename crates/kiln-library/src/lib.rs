//! The shelves: base images and input files, content-addressed.
