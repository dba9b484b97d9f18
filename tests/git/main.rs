//! The git edge against git's own servers: over http(s) with `git http-backend`, over ssh with OpenSSH.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

mod https;
mod publish;
mod review;
mod ssh;

use std::path::Path;
use std::process::Command;

use drover::api::terraform_repository::CommitAuthor;
use drover::edge::git::{Access, GitError, Publication, publish};
use drover::render::terraform::{HEADER, sealed};
use drover_lab::git::{GitConfig, GitServer, git};

/// Nothing that is said may hold it.
const PASSWORD: &str = "pass-word-of-the-lab";

fn config() -> GitConfig {
    let seed_files = vec![("README.md".to_owned(), "machines\n".to_owned())];
    GitConfig { seed_files, username: "drover".into(), password: PASSWORD.into() }
}

/// A server over http with one commit.
fn server() -> (tempfile::TempDir, GitServer) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let server = GitServer::start(dir.path(), config()).unwrap();
    (dir, server)
}

fn password(password: &str) -> Access {
    Access { password: Some(("drover".into(), password.into())), ..Access::default() }
}

/// What is to be there for a host, by a migration whose uid is `uid-<host>`.
fn publication(server: &GitServer, host: &str) -> Publication {
    Publication {
        url: server.url(),
        branch: "main".into(),
        path: format!("vms/{host}.tf"),
        content: sealed(&format!("{HEADER} for {host} uid uid-{host}"), "\nresource {}\n"),
        message: format!("Add VM {host}\n\nDrover-Migration: team-a/{host} uid-{host}\n"),
        author: CommitAuthor::default(),
        committer: CommitAuthor::default(),
        owner: format!("uid-{host}"),
        review: None,
        access: password(PASSWORD),
    }
}

/// The error of a publication; no secret may be in it.
fn refused(wanted: &Publication) -> GitError {
    let error = publish(wanted).unwrap_err();
    let text = format!("{error} {error:?}");
    let Access { password, ca: _, private_key, passphrase, known_hosts: _ } = &wanted.access;
    let secrets = [password.as_ref().map(|(_, password)| password), private_key.as_ref(), passphrase.as_ref()];
    for secret in secrets.into_iter().flatten() {
        assert!(!text.contains(secret.as_str()), "a secret is told: {text}");
    }
    error
}

/// Does something to a branch as somebody else would: a script of the shell in a clone, whose last line pushes.
fn by_hand(repository: &Path, script: &str) {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["clone", "--quiet", &repository.display().to_string(), "work"]).unwrap();
    let mut shell = Command::new("sh");
    shell.current_dir(dir.path().join("work")).args(["-ec", script]);
    for role in ["AUTHOR", "COMMITTER"] {
        shell.env(format!("GIT_{role}_NAME"), "Ann").env(format!("GIT_{role}_EMAIL"), "ann@localhost");
    }
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One line of git about the server's repository.
fn ask(server: &GitServer, arguments: &[&str]) -> String {
    git(server.repository(), arguments).unwrap().trim().to_owned()
}
