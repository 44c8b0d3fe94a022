//! Certificates: the server's own CA and leaf.
