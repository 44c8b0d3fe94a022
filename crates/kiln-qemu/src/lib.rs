//! The machine: QEMU, its disks and media. Knows no templates.
