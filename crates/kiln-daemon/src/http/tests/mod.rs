//! The API through its router: real rooms in a temporary folder, no network.

mod routes;
