//! The daemon's settings: one YAML file.
