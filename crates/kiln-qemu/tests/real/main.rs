//! The machine with the real QEMU, and guests of one sector that are up in a fifth of a second.

#[cfg(test)]
mod disks;
#[cfg(test)]
mod freeze;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod vm;
