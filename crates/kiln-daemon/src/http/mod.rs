//! The API: paths, status codes, bodies.
