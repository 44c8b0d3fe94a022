//! Listeners, limits, connections.
