//! One file on an NFSv3 server, reached from user space: no mount, no kernel client, always killable.
//!
//! Thin over `nfs3_client`. Added here: the path is looked up without creating anything, the size must be the expected one, and
//! - connections close with a reset (zero linger), so that bytes of a writer that ended do not linger in a socket and reach the disk later;
//! - a peer that vanished is noticed within a minute (keep-alive and TCP user timeout), but a server that is merely slow is waited for:
//!   a call repeated over a second connection while the first may still be carried out could put old data over new;
//! - privileged local ports are tried first, as many servers ask for them; without the privilege any port is used;
//! - end of stream is an error. `nfs3_client` 0.9.1 reads on for ever when a read returns 0 bytes.
//!
//! One connection carries one call at a time: whoever wants more in flight opens more connections to the same [`RemoteFile`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nfs3_client::io::{AsyncRead, AsyncWrite};
use nfs3_client::net::Connector;
use nfs3_client::nfs3_types::nfs3::{
    self, FSINFO3args, GETATTR3args, LOOKUP3args, Nfs3Result, READ3args, WRITE3args, diropargs3, fattr3, filename3,
    ftype3, nfs_fh3, nfsstat3, stable_how,
};
use nfs3_client::nfs3_types::portmap::IPPROTO_TCP;
use nfs3_client::nfs3_types::rpc::{auth_unix, opaque_auth};
use nfs3_client::nfs3_types::xdr_codec::Opaque;
use nfs3_client::{
    ConnectError, MountError, Nfs3Client, Nfs3ConnectionBuilder, PortmapError, PortmapperClient, RpcError,
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::api::block_copy::NfsFile;

const PORTMAPPER_PORT: u16 = 111;
/// Local ports that count as privileged, the range that Linux's own RPC clients use.
const PRIVILEGED_PORTS: std::ops::RangeInclusive<u16> = 665..=1023;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long data may stay unacknowledged, or a silent peer unproven, before the connection counts as lost.
const PEER_LOST_SECONDS: u32 = 60;
/// Larger reads and writes bring nothing and make the time of one call long.
const CALL_MAX_BYTES: u32 = 1 << 20;

/// What went wrong with a file on an NFS server.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path} on NFS export {server}:{export}")]
pub struct NfsError {
    pub operation: &'static str,
    pub server: String,
    pub export: String,
    pub path: String,
    #[source]
    pub cause: NfsCause,
}

/// Why.
#[derive(Debug, thiserror::Error)]
pub enum NfsCause {
    #[error("no connection")]
    Connect(#[from] ConnectError),
    #[error("the connection failed")]
    Call(#[from] RpcError),
    #[error("the server answered {}{}", .0, advice(*.0))]
    Status(nfsstat3),
    #[error("it is a {0}, not a regular file")]
    NotAFile(ftype3),
    #[error("its size is {actual_bytes} bytes, expected {expected_bytes}; it is left alone")]
    WrongSize { expected_bytes: u64, actual_bytes: u64 },
    #[error("it ends {missing_bytes} bytes early")]
    EndsEarly { missing_bytes: u64 },
    #[error("the server took {taken} of {asked} bytes with stability {committed}, asked was FILE_SYNC")]
    NotStable { asked: u32, taken: u32, committed: stable_how },
}

/// What to do about an answer that only people can change.
fn advice(status: nfsstat3) -> &'static str {
    match status {
        nfsstat3::NFS3ERR_NOSPC | nfsstat3::NFS3ERR_DQUOT => " (it is full: make room there)",
        nfsstat3::NFS3ERR_IO => " (it failed: look at the storage)",
        nfsstat3::NFS3ERR_ACCES | nfsstat3::NFS3ERR_PERM | nfsstat3::NFS3ERR_ROFS => {
            " (let this host write there: the storage container's filesystem whitelist)"
        }
        nfsstat3::NFS3ERR_NOENT | nfsstat3::NFS3ERR_STALE => {
            " (the file is not there: was the target's disk replaced?)"
        }
        _ => "",
    }
}

impl NfsError {
    /// Whether the same call may succeed later over a new connection: the server or the way to it is away, not the file.
    pub fn is_transient(&self) -> bool {
        match &self.cause {
            NfsCause::Connect(ConnectError::Io(error)) => error.kind() != io::ErrorKind::InvalidInput,
            NfsCause::Connect(ConnectError::Portmap(error)) => !matches!(error, PortmapError::InvalidPortValue(_)),
            NfsCause::Connect(ConnectError::Mount(MountError::Rpc(error))) | NfsCause::Call(error) => {
                !matches!(error, RpcError::Auth(_))
            }
            NfsCause::Connect(ConnectError::Mount(MountError::Denied(_))) => false,
            NfsCause::Status(status) => *status == nfsstat3::NFS3ERR_JUKEBOX,
            NfsCause::NotAFile(_)
            | NfsCause::WrongSize { .. }
            | NfsCause::EndsEarly { .. }
            | NfsCause::NotStable { .. } => false,
        }
    }
}

/// A file that was looked up once. Its handle outlives connections and restarts of the server.
#[derive(Debug)]
pub struct RemoteFile {
    file: NfsFile,
    handle: nfs_fh3,
    max_read_bytes: u32,
    max_write_bytes: u32,
}

/// One connection to a [`RemoteFile`]. After an error it must be dropped: its stream may be out of step.
pub struct NfsConnection {
    file: Arc<RemoteFile>,
    client: Nfs3Client<Stream>,
}

impl RemoteFile {
    /// Mounts the export, looks the path up and checks type and size. Nothing is created or changed.
    pub async fn open(file: &NfsFile) -> Result<(Arc<Self>, NfsConnection), NfsError> {
        let fail = |cause| error("open", file, cause);
        let mut builder = Nfs3ConnectionBuilder::new(TcpConnector, &file.server.address, &file.export)
            .connect_from_privileged_port(false) // the connector itself tries privileged ports
            .credential(root_credential());
        if let Some(port) = file.server.port {
            builder = builder.nfs3_port(port);
        }
        if let Some(port) = file.server.mount_port {
            builder = builder.mount_port(port);
        }
        let mount = builder.mount().await.map_err(|e| fail(e.into()))?;
        let root = mount.root_nfs_fh3();
        let mut client = mount.into_nfs3_client();

        let limits = client.fsinfo(&FSINFO3args { fsroot: root.clone() }).await.map_err(|e| fail(e.into()))?;
        let limits = ok(limits).map_err(fail)?;
        let handle = look_up(&mut client, root, &file.path).await.map_err(fail)?;
        let attributes = attributes(&mut client, &handle).await.map_err(fail)?;
        if attributes.type_ != ftype3::NF3REG {
            return Err(fail(NfsCause::NotAFile(attributes.type_)));
        }
        if attributes.size != file.size_bytes {
            return Err(fail(NfsCause::WrongSize { expected_bytes: file.size_bytes, actual_bytes: attributes.size }));
        }
        let remote = Arc::new(Self {
            file: file.clone(),
            handle,
            max_read_bytes: limits.rtmax.clamp(512, CALL_MAX_BYTES),
            max_write_bytes: limits.wtmax.clamp(512, CALL_MAX_BYTES),
        });
        Ok((Arc::clone(&remote), NfsConnection { file: remote, client }))
    }

    /// Opens another connection. Asks for no mount: the file's handle stays valid.
    pub async fn connect(self: &Arc<Self>) -> Result<NfsConnection, NfsError> {
        match self.connect_stream().await {
            Ok(stream) => {
                let client = Nfs3Client::new_with_auth(stream, root_credential(), opaque_auth::default());
                Ok(NfsConnection { file: Arc::clone(self), client })
            }
            Err(cause) => Err(error("connect to", &self.file, cause.into())),
        }
    }

    async fn connect_stream(&self) -> Result<Stream, ConnectError> {
        let server = &self.file.server;
        let address: IpAddr = server
            .address
            .parse()
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("NFS address {}: {e}", server.address)))?;
        let port = match server.port {
            Some(port) => port,
            None => {
                let stream = TcpConnector.connect(SocketAddr::new(address, PORTMAPPER_PORT)).await?;
                PortmapperClient::new(stream).getport(nfs3::PROGRAM, nfs3::VERSION, IPPROTO_TCP).await?
            }
        };
        Ok(TcpConnector.connect(SocketAddr::new(address, port)).await?)
    }

    /// Size it had when it was opened: the expected one.
    pub fn size_bytes(&self) -> u64 {
        self.file.size_bytes
    }

    /// Most bytes that one write call carries.
    pub fn max_write_bytes(&self) -> u32 {
        self.max_write_bytes
    }
}

impl NfsConnection {
    /// Fills `buffer` from `offset` on, in as many calls as the server's limit asks for.
    pub async fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), NfsError> {
        let mut done = 0;
        while done < buffer.len() {
            let args = READ3args {
                file: self.file.handle.clone(),
                offset: offset + done as u64,
                count: call_len(buffer.len() - done, self.file.max_read_bytes),
            };
            let reply = self.client.read(&args).await.map_err(|e| self.fail("read", e.into()))?;
            let reply = ok(reply).map_err(|cause| self.fail("read", cause))?;
            let data: &[u8] = &reply.data.0;
            if data.is_empty() || data.len() > args.count as usize {
                let missing_bytes = (buffer.len() - done) as u64;
                return Err(self.fail("read", NfsCause::EndsEarly { missing_bytes }));
            }
            buffer[done..done + data.len()].copy_from_slice(data);
            done += data.len();
        }
        Ok(())
    }

    /// Writes `data` at `offset`. When it returns, the server has it on stable storage (FILE_SYNC).
    pub async fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NfsError> {
        let mut done = 0;
        while done < data.len() {
            let count = call_len(data.len() - done, self.file.max_write_bytes);
            let args = WRITE3args {
                file: self.file.handle.clone(),
                offset: offset + done as u64,
                count,
                stable: stable_how::FILE_SYNC,
                data: Opaque::borrowed(&data[done..done + count as usize]),
            };
            let reply = self.client.write(&args).await.map_err(|e| self.fail("write", e.into()))?;
            let reply = ok(reply).map_err(|cause| self.fail("write", cause))?;
            if reply.committed != stable_how::FILE_SYNC || reply.count == 0 || reply.count > count {
                let cause = NfsCause::NotStable { asked: count, taken: reply.count, committed: reply.committed };
                return Err(self.fail("write", cause));
            }
            done += reply.count as usize;
        }
        Ok(())
    }

    /// The file's size now.
    pub async fn size_bytes(&mut self) -> Result<u64, NfsError> {
        let handle = self.file.handle.clone();
        let attributes = attributes(&mut self.client, &handle).await;
        attributes.map(|a| a.size).map_err(|cause| self.fail("get the size of", cause))
    }

    fn fail(&self, operation: &'static str, cause: NfsCause) -> NfsError {
        error(operation, &self.file.file, cause)
    }
}

fn error(operation: &'static str, file: &NfsFile, cause: NfsCause) -> NfsError {
    NfsError {
        operation,
        server: file.server.address.clone(),
        export: file.export.clone(),
        path: file.path.clone(),
        cause,
    }
}

fn ok<T, E>(result: Nfs3Result<T, E>) -> Result<T, NfsCause> {
    match result {
        Nfs3Result::Ok(value) => Ok(value),
        Nfs3Result::Err((status, _)) => Err(NfsCause::Status(status)),
    }
}

fn call_len(wanted: usize, limit: u32) -> u32 {
    u32::try_from(wanted).map_or(limit, |wanted| wanted.min(limit))
}

async fn look_up(client: &mut Nfs3Client<Stream>, root: nfs_fh3, path: &str) -> Result<nfs_fh3, NfsCause> {
    let mut handle = root;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let what = diropargs3 { dir: handle, name: filename3(Opaque::borrowed(name.as_bytes())) };
        handle = ok(client.lookup(&LOOKUP3args { what }).await?)?.object;
    }
    Ok(handle)
}

async fn attributes(client: &mut Nfs3Client<Stream>, handle: &nfs_fh3) -> Result<fattr3, NfsCause> {
    let reply = client.getattr(&GETATTR3args { object: handle.clone() }).await?;
    Ok(ok(reply)?.obj_attributes)
}

/// AUTH_SYS as root: disk files belong to root on the storage side, and the server's export decides whether root may write.
fn root_credential() -> opaque_auth<'static> {
    opaque_auth::auth_unix(&auth_unix { machinename: Opaque::borrowed(b"drover"), ..auth_unix::default() })
}

/// A TCP stream for which end of stream is an error.
struct Stream(TcpStream);

impl AsyncRead for Stream {
    async fn async_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer).await? {
            0 if !buffer.is_empty() => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up")),
            n => Ok(n),
        }
    }
}

impl AsyncWrite for Stream {
    async fn async_write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer).await
    }
}

struct TcpConnector;

impl Connector for TcpConnector {
    type Connection = Stream;

    async fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        let span = u32::from(PRIVILEGED_PORTS.end() - PRIVILEGED_PORTS.start()) + 1;
        let start = rand_u32() % span;
        for step in 0..span {
            let port = PRIVILEGED_PORTS.start() + u16::try_from((start + step) % span).expect("span is below 65536");
            match self.connect_with_port(address, port).await {
                Err(e) if matches!(e.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => break,
                result => return result,
            }
        }
        self.connect_with_port(address, 0).await
    }

    async fn connect_with_port(&self, address: SocketAddr, local_port: u16) -> io::Result<Stream> {
        let (socket, any) = match address {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        if local_port != 0 {
            socket.bind(SocketAddr::new(any, local_port))?;
        }
        socket.set_nodelay(true)?;
        socket.set_zero_linger()?;
        socket.set_keepalive(true)?;
        setsockopt(&socket, sockopt::TcpKeepIdle, &(PEER_LOST_SECONDS / 2))?;
        setsockopt(&socket, sockopt::TcpKeepInterval, &(PEER_LOST_SECONDS / 6))?;
        setsockopt(&socket, sockopt::TcpKeepCount, &3)?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &(PEER_LOST_SECONDS * 1000))?;
        match tokio::time::timeout(CONNECT_LIMIT, socket.connect(address)).await {
            Ok(stream) => Ok(Stream(stream?)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{address} did not answer a connection"))),
        }
    }
}

/// Spreads the search for a free port; needs no quality.
fn rand_u32() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(0) & u64::from(u32::MAX)) as u32
}
