//! Listeners, limits, connections.

use std::net::SocketAddr;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix { uid: u32, pid: Option<u32> },
}
