//! The catalog and the library, as commands and daemon find them.
