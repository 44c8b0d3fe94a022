//! Where a file has data and where it has holes, so that nobody reads gigabytes of zeros.

use std::fs::File;
use std::io;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Where the next data begins at or after `offset`; `end` when only a hole is left. Moves the file's position.
pub fn next_data(file: &File, offset: u64, end: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Ok(data.min(end)),
        Err(Errno::NXIO) => Ok(end),
        // A file system that does not know its holes: everything is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(offset),
        Err(error) => Err(error.into()),
    }
}

/// Where the data at `offset` ends, `end` at the latest. Moves the file's position.
pub fn next_hole(file: &File, offset: u64, end: u64) -> io::Result<u64> {
    if offset >= end {
        return Ok(end);
    }
    match rustix::fs::seek(file, SeekFrom::Hole(offset)) {
        Ok(hole) => Ok(hole.min(end)),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NXIO) => Ok(end),
        Err(error) => Err(error.into()),
    }
}
