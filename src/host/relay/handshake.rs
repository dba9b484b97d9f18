//! NBD: how a client chooses an export (fixed newstyle negotiation).
//!
//! Why not a crate: `nbd` 0.3 serves one blocking stream with one request at a time and has no flush or zeroes; `tokio-nbd` 0.3 is
//! GPL; `nbdkit` 0.3 makes plugins for another program. What a mirror needs of the protocol is small, and how requests wait is the
//! heart of the relay. Protocol: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Structured replies are not offered.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::export::Life;
use super::exports::{DURABLE_SUFFIX, Exports, Opened};
use super::memory::MAX_REQUEST_BYTES;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
const REP_ERR_POLICY: u32 = (1 << 31) + 2;
const REP_ERR_INVALID: u32 = (1 << 31) + 3;
const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const HAS_FLAGS: u16 = 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
/// A flush on one connection covers writes acknowledged on all of them.
const CAN_MULTI_CONN: u16 = 1 << 8;
const TRANSMISSION_FLAGS: u16 = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | CAN_MULTI_CONN;

/// A name and a few requests for information; NBD names have at most 4096 bytes.
const OPTION_MAX_BYTES: u32 = 16 << 10;

/// What a client chose.
pub struct Chosen {
    pub opened: Arc<Opened>,
    /// It wants honest flushes.
    pub durable: bool,
}

/// Talks to a client until it has chosen an export; `None` when it left without.
pub async fn negotiate<S>(stream: &mut S, exports: &Exports) -> io::Result<Option<Chosen>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_u64(NBD_MAGIC).await?;
    stream.write_u64(OPTION_MAGIC).await?;
    stream.write_u16(FIXED_NEWSTYLE | NO_ZEROES).await?;
    stream.flush().await?;
    let client_flags = stream.read_u32().await?;
    if client_flags & u32::from(FIXED_NEWSTYLE) == 0 {
        return Err(invalid("the client does not speak fixed newstyle"));
    }
    let zeroes = client_flags & u32::from(NO_ZEROES) == 0;
    loop {
        let (option, data) = read_option(stream).await?;
        match option {
            OPT_EXPORT_NAME => return choose_oldstyle(stream, exports, &data, zeroes).await,
            OPT_ABORT => {
                // The client may have hung up already.
                let _ = reply(stream, option, REP_ACK, &[]).await;
                return Ok(None);
            }
            OPT_LIST => list(stream, exports, &data).await?,
            OPT_INFO | OPT_GO => {
                if let Some(chosen) = inform(stream, exports, option, &data).await?
                    && option == OPT_GO
                {
                    return Ok(Some(chosen));
                }
            }
            _ => reply(stream, option, REP_ERR_UNSUP, &[]).await?,
        }
        stream.flush().await?;
    }
}

async fn read_option<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(u32, Vec<u8>)> {
    if stream.read_u64().await? != OPTION_MAGIC {
        return Err(invalid("the client sent no option magic"));
    }
    let option = stream.read_u32().await?;
    let len = stream.read_u32().await?;
    if len > OPTION_MAX_BYTES {
        return Err(invalid("the client sent an option that is too long"));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data).await?;
    Ok((option, data))
}

async fn reply<S: AsyncWrite + Unpin>(stream: &mut S, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(20 + data.len());
    message.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    message.extend(option.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend(u32::try_from(data.len()).expect("replies are short").to_be_bytes());
    message.extend(data);
    stream.write_all(&message).await
}

/// The old way to choose: there is no way to refuse but to hang up.
async fn choose_oldstyle<S: AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &Exports,
    name: &[u8],
    zeroes: bool,
) -> io::Result<Option<Chosen>> {
    let found = std::str::from_utf8(name).ok().and_then(|name| exports.find(name));
    let Some((opened, durable)) = found.filter(|(opened, _)| opened.export.life() == Life::Running) else {
        return Err(invalid("the client asked for an export that is not open"));
    };
    stream.write_u64(opened.export.size_bytes).await?;
    stream.write_u16(TRANSMISSION_FLAGS).await?;
    if zeroes {
        stream.write_all(&[0; 124]).await?;
    }
    stream.flush().await?;
    Ok(Some(Chosen { opened, durable }))
}

async fn list<S: AsyncWrite + Unpin>(stream: &mut S, exports: &Exports, data: &[u8]) -> io::Result<()> {
    if !data.is_empty() {
        return reply(stream, OPT_LIST, REP_ERR_INVALID, b"LIST takes no data").await;
    }
    for name in exports.names() {
        for name in [name.clone(), format!("{name}{DURABLE_SUFFIX}")] {
            let mut entry = u32::try_from(name.len()).expect("names are short").to_be_bytes().to_vec();
            entry.extend(name.as_bytes());
            reply(stream, OPT_LIST, REP_SERVER, &entry).await?;
        }
    }
    reply(stream, OPT_LIST, REP_ACK, &[]).await
}

/// Answers INFO and GO: size, flags and block sizes of the export, or why there is none.
async fn inform<S: AsyncWrite + Unpin>(
    stream: &mut S,
    exports: &Exports,
    option: u32,
    data: &[u8],
) -> io::Result<Option<Chosen>> {
    let Some(name) = wanted_name(data) else {
        reply(stream, option, REP_ERR_INVALID, b"the name does not fit the option's length").await?;
        return Ok(None);
    };
    let Some((opened, durable)) = exports.find(name) else {
        reply(stream, option, REP_ERR_UNKNOWN, format!("export {name} is not open").as_bytes()).await?;
        return Ok(None);
    };
    if let Life::Broken(reason) = opened.export.life() {
        reply(stream, option, REP_ERR_POLICY, format!("export {name} is broken: {reason}").as_bytes()).await?;
        return Ok(None);
    }
    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
    info.extend(opened.export.size_bytes.to_be_bytes());
    info.extend(TRANSMISSION_FLAGS.to_be_bytes());
    reply(stream, option, REP_INFO, &info).await?;
    let mut info = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    let most = u32::try_from(MAX_REQUEST_BYTES).expect("a few MiB");
    for size in [1, 64 << 10, most] {
        info.extend(u32::to_be_bytes(size));
    }
    reply(stream, option, REP_INFO, &info).await?;
    reply(stream, option, REP_ACK, &[]).await?;
    Ok(Some(Chosen { opened, durable }))
}

/// The name in the data of INFO and GO: length, name, number of information requests, requests.
fn wanted_name(data: &[u8]) -> Option<&str> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let (count, requests) = rest.split_first_chunk::<2>()?;
    if requests.len() != 2 * usize::from(u16::from_be_bytes(*count)) {
        return None;
    }
    std::str::from_utf8(name).ok()
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_fit_its_option_exactly() {
        assert_eq!(wanted_name(b"\0\0\0\x03vda\0\x01\0\x03"), Some("vda"));
        assert_eq!(wanted_name(b"\0\0\0\x03vda\0\0"), Some("vda"));
        assert_eq!(wanted_name(b"\0\0\0\x04vda\0\0"), None);
        assert_eq!(wanted_name(b"\xff\xff\xff\xffvda\0\0"), None);
        assert_eq!(wanted_name(b"\0\0\0\x03vda\0\x01"), None);
        assert_eq!(wanted_name(b"\0\0"), None);
    }
}
