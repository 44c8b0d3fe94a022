//! What a client needs to know to connect to this server.
