//! A small blocking NBD client: what real tools do not let a test do (requests past the end, requests without waiting for answers).

use std::io::{Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;

/// A hung relay fails the test instead of hanging it.
const HUNG: Duration = Duration::from_secs(60);

pub struct Client {
    stream: UnixStream,
    pub size_bytes: u64,
    next_cookie: u64,
}

impl Client {
    pub fn connect(socket: &Path, export: &str) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(HUNG))?;
        stream.set_write_timeout(Some(HUNG))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec(); // fixed newstyle, no zeroes
        hello.extend(b"IHAVEOPT\0\0\0\x01");
        hello.extend(u32::try_from(export.len()).expect("short").to_be_bytes());
        hello.extend(export.as_bytes());
        stream.write_all(&hello)?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer)?;
        let size_bytes = u64::from_be_bytes(answer[..8].try_into().expect("eight bytes"));
        Ok(Self { stream, size_bytes, next_cookie: 0 })
    }

    /// Sends a request and returns its cookie.
    pub fn send(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) -> Result<u64> {
        self.next_cookie += 1;
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(self.next_cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        Ok(self.next_cookie)
    }

    /// The next answer: cookie, error (0 = none). The answer to a read is followed by its data.
    pub fn receive(&mut self) -> Result<(u64, u32)> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        let error = u32::from_be_bytes(header[4..8].try_into().expect("four bytes"));
        Ok((u64::from_be_bytes(header[8..].try_into().expect("eight bytes")), error))
    }

    fn ask(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) -> Result<u32> {
        let cookie = self.send(command, offset, len, data)?;
        let (answered, error) = self.receive()?;
        assert_eq!(answered, cookie);
        Ok(error)
    }

    /// Each returns the NBD error, 0 = none.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<u32> {
        self.ask(WRITE, offset, u32::try_from(data.len()).expect("short"), data)
    }

    pub fn zero(&mut self, offset: u64, len: u32) -> Result<u32> {
        self.ask(WRITE_ZEROES, offset, len, &[])
    }

    pub fn trim(&mut self, offset: u64, len: u32) -> Result<u32> {
        self.ask(TRIM, offset, len, &[])
    }

    /// Leaves as NBD wants it. There is no answer.
    pub fn say_goodbye(mut self) -> Result<()> {
        self.send(DISCONNECT, 0, 0, &[]).map(drop)
    }

    pub fn flush(&mut self) -> Result<u32> {
        self.ask(FLUSH, 0, 0, &[])
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<std::result::Result<Vec<u8>, u32>> {
        let error = self.ask(READ, offset, u32::try_from(len).expect("short"), &[])?;
        if error != 0 {
            return Ok(Err(error));
        }
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data)?;
        Ok(Ok(data))
    }
}
