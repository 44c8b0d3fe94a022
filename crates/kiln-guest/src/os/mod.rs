//! What is said to a guest depends on its system.
//!
//! What a Linux guest is told lies beside the operations that tell it. What a Windows guest is told lies in
//! [`windows`], apart from the connection that carries it.

pub mod windows;
