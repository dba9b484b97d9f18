//! OpenSSH's server on a port of its own, with keys of its own: git over ssh as a real server has it.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Process, free_port};

/// The types of host keys that it has.
pub const KEY_TYPES: [&str; 3] = ["ed25519", "rsa", "ecdsa"];
/// Of an RSA key: making a longer one takes long.
const RSA_BITS: &str = "2048";

/// As root it insists on a directory below `/run`. It gets one that nobody else sees.
const START: &str = r#"
set -e
if [ "$(id -u)" = 0 ]; then
  mount -t tmpfs tmpfs /run
  mkdir /run/sshd
fi
exec /usr/sbin/sshd -D -e -f "$1"
"#;

/// A running server that lets those in whose keys were authorized. Dropping it stops it.
pub struct SshServer {
    dir: PathBuf,
    port: u16,
    user: String,
    process: Process,
}

impl SshServer {
    /// Starts it with new host keys; nobody is authorized yet.
    pub fn start(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        for key_type in KEY_TYPES {
            keygen(&["-t", key_type], "", &dir.join(format!("host_{key_type}")))?;
        }
        fs::write(dir.join("authorized_keys"), "")?;
        let port = free_port()?;
        let user = Command::new("id").arg("--user").arg("--name").output().context("run id")?;
        let user = String::from_utf8(user.stdout)?.trim().to_owned();
        let process = launch(dir, port)?;
        Ok(Self { dir: dir.to_owned(), port, user, process })
    }

    /// URL of a repository at an absolute path of this machine.
    pub fn url(&self, repository: &Path) -> String {
        format!("ssh://{}@127.0.0.1:{}{}", self.user, self.port, repository.display())
    }

    /// Lets the owner of a private key in.
    pub fn authorize(&self, key: &Path) -> Result<()> {
        let public = fs::read_to_string(key.with_extension("pub"))?;
        let path = self.dir.join("authorized_keys");
        let others = fs::read_to_string(&path)?;
        Ok(fs::write(path, format!("{others}{public}"))?)
    }

    /// The lines for `known_hosts` with its host keys of these types.
    pub fn known_hosts(&self, key_types: &[&str]) -> Result<String> {
        let line = |key_type: &&str| {
            let public = fs::read_to_string(self.host_key(key_type).with_extension("pub"))?;
            Ok(format!("[127.0.0.1]:{} {public}", self.port))
        };
        key_types.iter().map(line).collect()
    }

    /// Path of its private host key of this type.
    pub fn host_key(&self, key_type: &str) -> PathBuf {
        self.dir.join(format!("host_{key_type}"))
    }

    /// Starts it again with other host keys.
    pub fn replace_host_keys(&mut self) -> Result<()> {
        self.process.kill();
        for key_type in KEY_TYPES {
            fs::remove_file(self.host_key(key_type))?;
            keygen(&["-t", key_type], "", &self.host_key(key_type))?;
        }
        self.process = launch(&self.dir, self.port)?;
        Ok(())
    }

    /// What it has logged: who tried to get in, and how.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.process.log())?)
    }
}

/// Makes a private key at `path`, and the public one beside it.
pub fn keygen(arguments: &[&str], passphrase: &str, path: &Path) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-C", "lab", "-N", passphrase, "-f"]).arg(path).args(arguments);
    if arguments.contains(&"rsa") {
        command.args(["-b", RSA_BITS]);
    }
    let output = command.output().context("run ssh-keygen")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn launch(dir: &Path, port: u16) -> Result<Process> {
    let keys: String =
        KEY_TYPES.iter().map(|key_type| format!("HostKey {}/host_{key_type}\n", dir.display())).collect();
    let config = format!(
        "ListenAddress 127.0.0.1:{port}
{keys}AuthorizedKeysFile {}/authorized_keys
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
PidFile none
MaxStartups 100
LogLevel VERBOSE
",
        dir.display()
    );
    let path = dir.join("sshd_config");
    fs::write(&path, config)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", START, "sh"]).arg(&path);
    let mut process = Process::spawn("sshd", command, &dir.join("sshd.log"))?;
    let open = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    process.wait_until("an open port", Duration::from_secs(30), open)?;
    Ok(process)
}
