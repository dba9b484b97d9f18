//! ssh: whose keys are taken, and whose are not.

use std::path::{Path, PathBuf};
use std::process::Command;

use drover::edge::git::{Access, GitError, Publication, find, publish};
use drover_lab::git::{GitServer, git};
use drover_lab::ssh::{KEY_TYPES, SshServer, keygen};

use super::{publication, refused, server};

const PASSPHRASE: &str = "pass-phrase-of-the-lab";

struct Setup {
    dir: tempfile::TempDir,
    _http_dir: tempfile::TempDir,
    git: GitServer,
    ssh: SshServer,
}

/// A server that lets the owner of `client` in.
fn setup() -> Setup {
    let (http_dir, git) = server();
    let dir = tempfile::tempdir().unwrap();
    let ssh = SshServer::start(&dir.path().join("sshd")).unwrap();
    let setup = Setup { dir, _http_dir: http_dir, git, ssh };
    setup.ssh.authorize(&setup.key("client", &["-t", "ed25519"], "")).unwrap();
    setup
}

impl Setup {
    fn key(&self, name: &str, arguments: &[&str], passphrase: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        keygen(arguments, passphrase, &path).unwrap();
        path
    }

    /// What is to be there, over ssh, by the owner of a key.
    fn publication(&self, host: &str, key: &str) -> Publication {
        let access = Access {
            private_key: Some(std::fs::read_to_string(self.dir.path().join(key)).unwrap()),
            known_hosts: Some(self.ssh.known_hosts(&KEY_TYPES).unwrap()),
            ..Access::default()
        };
        Publication { url: self.ssh.url(self.git.repository()), access, ..publication(&self.git, host) }
    }
}

/// `ssh-keygen -l`: length, fingerprint, comment, type.
fn fingerprint(key: &Path) -> String {
    let output = Command::new("ssh-keygen").arg("-lf").arg(key).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn every_type_of_key_gets_in() {
    let setup = setup();
    let keys: [(&str, &[&str], &str); 7] = [
        ("ed25519", &["-t", "ed25519"], ""),
        ("ed25519-locked", &["-t", "ed25519"], PASSPHRASE),
        ("rsa", &["-t", "rsa"], ""),
        ("rsa-locked", &["-t", "rsa"], PASSPHRASE),
        ("rsa-pem", &["-t", "rsa", "-m", "PEM"], ""),
        ("rsa-pem-locked", &["-t", "rsa", "-m", "PEM"], PASSPHRASE),
        ("ecdsa", &["-t", "ecdsa"], ""),
    ];
    for (name, arguments, passphrase) in keys {
        setup.ssh.authorize(&setup.key(name, arguments, passphrase)).unwrap();
        let mut wanted = setup.publication(name, name);
        wanted.access.passphrase = (!passphrase.is_empty()).then(|| passphrase.to_owned());
        // A value in a Secret often lacks the end of its last line.
        wanted.access.private_key = wanted.access.private_key.map(|key| key.trim_end().to_owned());
        let published = publish(&wanted).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(setup.git.head().unwrap(), published.commit, "{name}");
        assert_eq!(find(&wanted).unwrap(), Some(published.commit), "{name}");
    }
}

#[test]
fn many_at_once_lose_none_over_ssh_either() {
    let setup = setup();
    std::thread::scope(|scope| {
        for host in 0..8 {
            let wanted = setup.publication(&format!("web{host}"), "client");
            scope.spawn(move || publish(&wanted).unwrap());
        }
    });
    assert_eq!(setup.git.commit_count().unwrap(), 9);
}

#[test]
fn a_listed_host_key_of_any_type_will_do_hashed_or_not() {
    let setup = setup();
    for key_type in KEY_TYPES {
        let listed = setup.ssh.known_hosts(&[key_type]).unwrap();
        let hashed = setup.dir.path().join(format!("hashed_{key_type}"));
        std::fs::write(&hashed, &listed).unwrap();
        let output = Command::new("ssh-keygen").arg("-Hf").arg(&hashed).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let hashed = std::fs::read_to_string(hashed).unwrap();
        assert!(hashed.starts_with("|1|"), "{hashed}");
        for known_hosts in [listed, hashed] {
            let mut wanted = setup.publication("web01", "client");
            wanted.access.known_hosts = Some(known_hosts.clone());
            find(&wanted).unwrap_or_else(|error| panic!("{known_hosts}: {error}"));
        }
    }
}

#[test]
fn an_unknown_host_key_is_refused_and_shown_and_nobody_logs_in() {
    let setup = setup();
    let mut wanted = setup.publication("web01", "client");
    for known_hosts in [None, Some(String::new()), Some("# 127.0.0.1\nelsewhere ssh-ed25519 AAAA\n".to_owned())] {
        wanted.access.known_hosts = known_hosts;
        let error = refused(&wanted);
        assert!(matches!(error, GitError::HostKeyRefused { .. }), "{error}");
        assert!(error.to_string().contains(&fingerprint(&setup.ssh.host_key("ed25519"))), "{error}");
    }
    assert!(!setup.ssh.log().unwrap().contains("publickey"), "{}", setup.ssh.log().unwrap());
    // What it says to add is what makes it known.
    let error = refused(&wanted).to_string();
    wanted.access.known_hosts = error.rsplit_once("spec.knownHosts: ").map(|(_, line)| line.to_owned());
    assert!(publish(&wanted).unwrap().changed);
}

#[test]
fn a_changed_host_key_is_refused_with_both_fingerprints() {
    let mut setup = setup();
    let wanted = setup.publication("web01", "client");
    let before = fingerprint(&setup.ssh.host_key("ed25519"));
    setup.ssh.replace_host_keys().unwrap();
    let error = refused(&wanted).to_string();
    let now = fingerprint(&setup.ssh.host_key("ed25519"));
    assert!(error.contains("another host key") && error.contains(&before) && error.contains(&now), "{error}");
    assert!(!setup.ssh.log().unwrap().contains("publickey"), "{}", setup.ssh.log().unwrap());

    let mut wanted = setup.publication("web01", "client");
    let known = setup.ssh.known_hosts(&["ed25519"]).unwrap();
    wanted.access.known_hosts = Some(format!("{known}@revoked {known}"));
    let error = refused(&wanted).to_string();
    assert!(error.contains("revoked"), "{error}");
}

#[test]
fn a_key_that_cannot_be_used_is_told_from_one_that_is_refused() {
    let setup = setup();
    setup.key("stranger", &["-t", "rsa"], "");
    setup.ssh.authorize(&setup.key("locked", &["-t", "ed25519"], PASSPHRASE)).unwrap();
    setup.ssh.authorize(&setup.key("locked-pem", &["-t", "rsa", "-m", "PEM"], PASSPHRASE)).unwrap();
    let says = |key: Option<&str>, passphrase: Option<&str>, part: &str| {
        let mut wanted = setup.publication("web01", key.unwrap_or("client"));
        wanted.access.passphrase = passphrase.map(str::to_owned);
        if key.is_none() {
            wanted.access.private_key = None;
        }
        let error = refused(&wanted);
        assert!(matches!(error, GitError::Unauthorized { .. }), "{key:?}: {error}");
        assert!(error.to_string().contains(part), "{key:?}: {error}");
    };
    std::fs::write(setup.dir.path().join("garbage"), "no key at all").unwrap();
    says(Some("stranger"), None, "register its public half");
    says(None, None, "put it under ssh-privatekey");
    says(Some("garbage"), None, "cannot be used");
    for key in ["locked", "locked-pem"] {
        says(Some(key), None, "cannot be used");
        says(Some(key), Some("not-the-passphrase"), "cannot be used");
    }
}

#[test]
fn the_servers_own_words_come_through() {
    let setup = setup();
    let mut wanted = setup.publication("web01", "client");
    setup.git.refuse_pushes(Some("no pushes on Fridays")).unwrap();
    let error = refused(&wanted);
    assert!(matches!(&error, GitError::PushRefused { why, .. } if why.contains("no pushes on Fridays")), "{error}");
    let touched = setup.dir.path().join("touched");
    wanted.url.push_str(&format!("-none'; touch {}; '", touched.display()));
    let error = refused(&wanted).to_string();
    assert!(error.contains("does not appear to be a git repository"), "{error}");
    assert!(!touched.exists(), "a path is a word, not a command");
    wanted.url = "ssh://git@127.0.0.1:1/machines.git".into();
    let error = refused(&wanted).to_string();
    assert!(error.contains("connect") && error.contains("127.0.0.1:1"), "{error}");
    assert_eq!(git(setup.git.repository(), &["rev-list", "--count", "main"]).unwrap().trim(), "1");
}
