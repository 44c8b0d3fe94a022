//! The client's side of the Network Block Device protocol, as far as reading goes: fixed newstyle negotiation, GO, READ
//! (the protocol's document is `doc/proto.md` of the NBD project). Numbers are big-endian.
//!
//! It knows no time: whoever calls waits for the end of the server and of its own patience beside it.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, and no padding: the server's and the client's bits are the same.
const FLAGS: u16 = 1 | 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
/// Words of the server that are read for an error, and the longest answer to an option.
const TEXT_LIMIT: u32 = 4096;
/// Answers to one GO: a handful of infos at most.
const ANSWERS: u32 = 64;

/// A connection that negotiated the server's default export.
pub(super) struct Nbd {
    stream: UnixStream,
    size: u64,
    cookie: u64,
}

impl Nbd {
    pub async fn negotiate(mut stream: UnixStream) -> io::Result<Self> {
        if stream.read_u64().await? != MAGIC || stream.read_u64().await? != OPTION_MAGIC {
            return Err(nonsense("it does not speak the NBD protocol"));
        }
        if stream.read_u16().await? & FLAGS != FLAGS {
            return Err(nonsense("it speaks an old form of the NBD protocol"));
        }
        let mut request = Vec::new();
        request.extend(u32::from(FLAGS).to_be_bytes());
        request.extend(OPTION_MAGIC.to_be_bytes());
        request.extend(OPTION_GO.to_be_bytes());
        // An empty name, and no wish for more than the size.
        request.extend(6_u32.to_be_bytes());
        request.extend([0; 6]);
        stream.write_all(&request).await?;
        let mut size = None;
        for _ in 0..ANSWERS {
            let magic = stream.read_u64().await?;
            let option = stream.read_u32().await?;
            if (magic, option) != (OPTION_REPLY_MAGIC, OPTION_GO) {
                return Err(nonsense("it answers what was not asked"));
            }
            let kind = stream.read_u32().await?;
            let length = stream.read_u32().await?;
            if length > TEXT_LIMIT {
                return Err(nonsense("it says too much"));
            }
            let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
            stream.read_exact(&mut data).await?;
            match kind {
                REPLY_ACK => {
                    let size = size.ok_or_else(|| nonsense("it does not tell the size"))?;
                    return Ok(Self { stream, size, cookie: 0 });
                }
                REPLY_INFO => {
                    if let Some((kind, rest)) = data.split_first_chunk()
                        && u16::from_be_bytes(*kind) == INFO_EXPORT
                        && let Some((told, _)) = rest.split_first_chunk()
                    {
                        size = Some(u64::from_be_bytes(*told));
                    }
                }
                _ => {
                    let words = String::from_utf8_lossy(&data);
                    return Err(nonsense(&format!("it refuses the export ({kind:#x}): {words}")));
                }
            }
        }
        Err(nonsense("it does not come to an end"))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// One read. After an error, or when the future was dropped, the connection is good for nothing.
    pub async fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28);
        request.extend(REQUEST_MAGIC.to_be_bytes());
        // No flags; command 0 reads.
        request.extend([0; 4]);
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        self.stream.write_all(&request).await?;
        if self.stream.read_u32().await? != REPLY_MAGIC {
            return Err(nonsense("it answers a read with something else"));
        }
        let error = self.stream.read_u32().await?;
        if self.stream.read_u64().await? != self.cookie {
            return Err(nonsense("it answers another read"));
        }
        if error != 0 {
            // The protocol's numbers are Linux's.
            return Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(i32::MAX)));
        }
        let mut data = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.stream.read_exact(&mut data).await?;
        Ok(data)
    }
}

fn nonsense(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, how)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server's bytes come to; the client's are not looked at.
    async fn told(bytes: Vec<u8>) -> io::Result<Nbd> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&bytes).await.unwrap();
        theirs.shutdown().await.unwrap();
        Nbd::negotiate(ours).await
    }

    fn greeting(flags: u16) -> Vec<u8> {
        [&b"NBDMAGICIHAVEOPT"[..], &flags.to_be_bytes()].concat()
    }

    fn answer(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.extend(OPTION_GO.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[tokio::test]
    async fn a_size_comes_before_the_acknowledgement() {
        let info = [&[0, 0][..], &4096_u64.to_be_bytes(), &[0, 3]].concat();
        let good = [greeting(3), answer(3, &[0, 3, 1, 1]), answer(3, &info), answer(1, &[])].concat();
        assert_eq!(told(good).await.unwrap().size(), 4096);
        let unknown = [greeting(3), answer(1, &[])].concat();
        assert!(told(unknown).await.is_err());
    }

    #[tokio::test]
    async fn a_server_that_talks_nonsense_is_an_error() {
        let endless = [greeting(3), answer(3, &[]).repeat(100)].concat();
        let refused = [greeting(3), answer(0x8000_0006, b"export '' not present")].concat();
        let mut long = [greeting(3), answer(3, &[])].concat();
        let end = long.len();
        long[end - 4..].copy_from_slice(&u32::MAX.to_be_bytes());
        for bytes in
            [endless, long, greeting(0), greeting(3), b"HTTP/1.1 400 Bad Request".to_vec(), Vec::new()]
        {
            assert!(told(bytes.clone()).await.is_err(), "{:?}", String::from_utf8_lossy(&bytes));
        }
        let error = told(refused).await.err().unwrap().to_string();
        assert!(error.contains("export '' not present"), "{error}");
    }

    #[tokio::test]
    async fn a_failed_read_is_told_with_its_cause() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut nbd = Nbd { stream: ours, size: 512, cookie: 0 };
        let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend(5_u32.to_be_bytes());
        reply.extend(1_u64.to_be_bytes());
        theirs.write_all(&reply).await.unwrap();
        assert_eq!(nbd.read(0, 512).await.unwrap_err().raw_os_error(), Some(5));
        let mut request = [0; 28];
        theirs.read_exact(&mut request).await.unwrap();
        assert_eq!(request[..8], [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
        assert_eq!(request[24..], 512_u32.to_be_bytes());
    }
}
