//! git over ssh: one connection, on which the server runs git's other half.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};
use ssh2::{Channel, ErrorCode, MethodType, Session};

use super::GitError;
use super::address::SshAddress;
use super::known_hosts::{self, Verdict};
use super::transport::{ANSWER_LIMIT, CONNECT_LIMIT, Server, Told};

/// libssh2: the server took none of what was offered; it took the key but not the signature.
const REFUSED: [ErrorCode; 2] = [ErrorCode::Session(-18), ErrorCode::Session(-19)];

/// How a repository's server is reached.
pub struct Ssh {
    server: Arc<Server>,
    address: SshAddress,
}

impl Ssh {
    pub fn new(server: Arc<Server>, address: SshAddress) -> Self {
        Self { server, address }
    }

    /// Has the server run `program` on the repository. Nothing is told to a server whose host key is not known.
    fn run(&self, program: &str) -> Result<Conversation, GitError> {
        let mut session = self.connect()?;
        self.prefer_known_key_types(&session);
        session.handshake().map_err(self.failed("agree on an ssh connection"))?;
        self.check_host_key(&session)?;
        self.log_in(&session)?;
        let mut channel = session.channel_session().map_err(self.failed("open an ssh channel"))?;
        channel.exec(&format!("{program} {}", quoted(&self.address.path))).map_err(self.failed("have git run"))?;
        Ok(Conversation { server: self.server.clone(), channel })
    }

    fn connect(&self) -> Result<Session, GitError> {
        let SshAddress { host, port, .. } = &self.address;
        let failed = |why: &str| self.server.failed("connect", why);
        let addresses = (host.as_str(), *port).to_socket_addrs().map_err(|error| failed(&error.to_string()))?;
        let mut why = format!("{host} has no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
                Ok(stream) => {
                    let mut session = Session::new().map_err(self.failed("prepare an ssh connection"))?;
                    session.set_timeout(u32::try_from(ANSWER_LIMIT.as_millis()).unwrap_or(u32::MAX));
                    session.set_tcp_stream(stream);
                    return Ok(session);
                }
                Err(error) => why = format!("{address}: {error}"),
            }
        }
        Err(failed(&why))
    }

    fn failed(&self, tried: &'static str) -> impl Fn(ssh2::Error) -> GitError + '_ {
        move |error| self.server.failed(tried, error.message())
    }

    fn known_hosts(&self) -> &str {
        self.server.access.known_hosts.as_deref().unwrap_or_default()
    }

    /// A server has a key of each type, and shows the one that it is asked for first: it has to be one that is listed.
    fn prefer_known_key_types(&self, session: &Session) {
        let name = known_hosts::name(&self.address.host, self.address.port);
        let listed = known_hosts::key_types(self.known_hosts(), &name);
        let supported = session.supported_algs(MethodType::HostKey).unwrap_or_default();
        // An RSA key signs in several ways, of which that with SHA-1 is not to be trusted any more. Certificates cannot be listed.
        let usable = supported.into_iter().filter(|it| !it.contains("-cert-") && *it != "ssh-rsa" && *it != "ssh-dss");
        let is_listed = |algorithm: &str| {
            let key_type = if algorithm.starts_with("rsa-sha2-") { "ssh-rsa" } else { algorithm };
            listed.contains(&key_type)
        };
        let (first, last): (Vec<&str>, Vec<&str>) = usable.partition(|algorithm| is_listed(algorithm));
        let order = [first, last].concat().join(",");
        if let Err(error) = session.method_pref(MethodType::HostKey, &order) {
            // The key is judged all the same.
            tracing::debug!(%error, order, "host key types keep the library's own order");
        }
    }

    fn check_host_key(&self, session: &Session) -> Result<(), GitError> {
        let Some((key, _)) = session.host_key() else {
            return Err(self.server.failed("check the host key", "the server shows none"));
        };
        let name = known_hosts::name(&self.address.host, self.address.port);
        let shown = known_hosts::shown(key);
        let line = known_hosts::line(&name, key);
        let why = match known_hosts::judge(self.known_hosts(), &name, key) {
            Verdict::Known => return Ok(()),
            Verdict::Unknown => format!(
                "the host key that {name} shows is not known: {shown}. If its administrators confirm that fingerprint, add this line to known_hosts in the TerraformRepository's Secret, or to spec.knownHosts: {line}"
            ),
            Verdict::Changed(known) => format!(
                "{name} shows another host key than is known: {shown} instead of {}. Somebody may be in between. If its administrators confirm that the key was replaced, replace the line in known_hosts or spec.knownHosts by: {line}",
                known.join(" or ")
            ),
            Verdict::Revoked => {
                format!("{name} shows a host key that known_hosts marks as revoked, {shown}: nothing is sent to it")
            }
        };
        Err(GitError::HostKeyRefused { url: self.server.url.clone(), why })
    }

    /// By the key of the Secret, and nothing else: no agent, no files, no password.
    fn log_in(&self, session: &Session) -> Result<(), GitError> {
        let user = &self.address.user;
        let unauthorized = |why: String| GitError::Unauthorized { url: self.server.url.clone(), why };
        let Some(key) = &self.server.access.private_key else {
            let why = "ssh needs a private key: put it under ssh-privatekey into the TerraformRepository's Secret";
            return Err(unauthorized(why.into()));
        };
        let passphrase = self.server.access.passphrase.as_deref();
        session.userauth_pubkey_memory(user, None, key, passphrase).map_err(|error| {
            if REFUSED.contains(&error.code()) {
                let why = format!(
                    "the server refuses the Secret's ssh-privatekey for user {user}: register its public half there, with write access (a deploy key)"
                );
                unauthorized(why)
            } else {
                let why = format!(
                    "the Secret's ssh-privatekey cannot be used ({}): is it a private key, and passphrase its passphrase?",
                    error.message()
                );
                unauthorized(why)
            }
        })
    }
}

impl SmartSubtransport for Ssh {
    fn action(&self, _url: &str, service: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let program = match service {
            Service::UploadPackLs | Service::UploadPack => "git-upload-pack",
            Service::ReceivePackLs | Service::ReceivePack => "git-receive-pack",
        };
        let server = self.server.clone();
        match self.run(program) {
            Ok(stream) => Ok(Box::new(Told { server, stream })),
            Err(error) => Err(server.note_failure(error)),
        }
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// The program's input and output.
struct Conversation {
    server: Arc<Server>,
    channel: Channel,
}

impl Read for Conversation {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.channel.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            // Why it ended, if it ended early: "project not found", and the like.
            let mut words = Vec::new();
            self.channel.stderr().take(4096).read_to_end(&mut words)?;
            self.server.note_words(&words);
        }
        Ok(count)
    }
}

impl Write for Conversation {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.channel.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.channel.flush()
    }
}

/// As a shell takes it for one word, whatever is in it.
fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''"))
}
