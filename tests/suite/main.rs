//! Tests without a guest.
