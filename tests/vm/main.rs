//! Tests with real guests.
