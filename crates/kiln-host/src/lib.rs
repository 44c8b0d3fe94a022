//! The ground: processes, publishing, locks, digests, disk room.
