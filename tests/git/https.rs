//! Certificates, and where credentials are sent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use drover::edge::git::{Access, GitError, find, publish};
use drover_lab::git::GitServer;

use super::{PASSWORD, config, password, publication, refused, server};

fn tls_server() -> (tempfile::TempDir, GitServer) {
    let dir = tempfile::tempdir().unwrap();
    let server = GitServer::start_tls(dir.path(), config()).unwrap();
    (dir, server)
}

fn trusting(server: &GitServer) -> Access {
    Access { ca: server.ca_pem().map(str::to_owned), ..password(PASSWORD) }
}

/// Each repository trusts its own authority and no other, however many there are in one process. Both authorities bear the same name.
#[test]
fn two_repositories_with_an_authority_each_are_told_apart() {
    let ((_dir, one), (_other_dir, other)) = (tls_server(), tls_server());
    let with = |server: &GitServer, access: Access| {
        let mut wanted = publication(server, "web01");
        wanted.access = access;
        wanted
    };
    for server in [&one, &other] {
        assert!(publish(&with(server, trusting(server))).unwrap().changed);
    }
    for (server, access) in [(&one, trusting(&other)), (&other, trusting(&one)), (&one, password(PASSWORD))] {
        let error = refused(&with(server, access));
        assert!(matches!(error, GitError::Failed { .. }) && error.to_string().contains("certificate"), "{error}");
    }
    assert!(find(&with(&one, trusting(&one))).unwrap().is_some());
    let not_pem = Access { ca: Some("-----BEGIN CERTIFICATE-----\nx".into()), ..password(PASSWORD) };
    let error = refused(&with(&one, not_pem));
    assert!(error.to_string().contains("ca.crt"), "{error}");
}

/// Answers every request with a redirect; returns how it was asked.
fn redirects_to(target: String) -> (SocketAddr, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let count = stream.read(&mut request).unwrap();
        write!(stream, "HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        String::from_utf8_lossy(&request[..count]).into_owned()
    });
    (address, thread)
}

#[test]
fn credentials_are_not_carried_to_another_server() {
    let (_dir, server) = server();
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let target = format!("http://{}/machines.git", elsewhere.local_addr().unwrap());
    let (address, asked) = redirects_to(format!("{target}/info/refs?token=hidden"));
    let mut wanted = publication(&server, "web01");
    wanted.url = format!("http://{address}/machines.git");
    let error = refused(&wanted).to_string();
    assert!(asked.join().unwrap().starts_with("GET /machines.git/info/refs?service=git-upload-pack"));
    assert!(error.contains(&format!("redirects to {target}:")), "{error}");
    assert!(!error.contains("hidden"), "{error}");
    assert!(elsewhere.accept().is_err(), "the other server was asked");
}

/// As GitLab has it for a URL without `.git`.
#[test]
fn a_redirect_on_the_same_server_is_followed() {
    let (_dir, server) = server();
    let mut wanted = publication(&server, "web01");
    wanted.url = wanted.url.replace("machines.git", "machines");
    assert!(publish(&wanted).unwrap().changed);
    assert_eq!(server.file("vms/web01.tf").unwrap(), wanted.content);
}

#[test]
fn a_server_that_is_no_git_server_is_said_to_be_none() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/login", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
            )
            .unwrap();
    });
    let (_dir, server) = server();
    let mut wanted = publication(&server, "web01");
    wanted.url = url;
    let error = refused(&wanted);
    thread.join().unwrap();
    assert!(error.to_string().contains("not as a git server"), "{error}");
    // And one that nobody runs.
    let error = refused(&wanted);
    assert!(error.to_string().contains("refused"), "{error}");
}
