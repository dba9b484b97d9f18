//! The git edge against git's own server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on is to panic, in its helpers too")]

use drover::edge::git::{Credentials, GitError, Publication, find, publish};
use drover::render::terraform::HEADER;
use drover_lab::git::{GitConfig, GitServer};

fn server() -> (tempfile::TempDir, GitServer) {
    let dir = tempfile::tempdir().unwrap();
    let seed_files = vec![("README.md".to_owned(), "machines\n".to_owned())];
    let config = GitConfig { seed_files, username: "drover".into(), password: "secret".into() };
    let server = GitServer::start(dir.path(), config).unwrap();
    (dir, server)
}

fn publication(server: &GitServer, host: &str) -> Publication {
    Publication {
        url: server.url(),
        branch: "main".into(),
        path: format!("vms/{host}.tf"),
        content: format!("{HEADER} for {host} uid uid-{host}\n"),
        message: format!("Add VM {host}\n"),
        author_name: "Drover".into(),
        author_email: "drover@localhost.invalid".into(),
        owner: format!("uid-{host}"),
        credentials: Some(Credentials { username: "drover".into(), password: "secret".into() }),
    }
}

#[test]
fn publishes_once_and_finds_it_again() {
    let (_dir, server) = server();
    let wanted = publication(&server, "web01");
    assert_eq!(find(&wanted).unwrap(), None);
    let published = publish(&wanted).unwrap();
    assert!(published.changed);
    assert_eq!(server.head().unwrap(), published.commit);
    assert_eq!(server.file("vms/web01.tf").unwrap(), wanted.content);
    assert_eq!(server.file("README.md").unwrap(), "machines\n", "nothing else was touched");
    assert!(!publish(&wanted).unwrap().changed);
    assert_eq!(find(&wanted).unwrap(), Some(published.commit));
    assert_eq!(server.commit_count().unwrap(), 2);
}

#[test]
fn many_at_once_lose_none() {
    let (_dir, server) = server();
    std::thread::scope(|scope| {
        for host in 0..8 {
            let wanted = publication(&server, &format!("web{host}"));
            scope.spawn(move || publish(&wanted).unwrap());
        }
    });
    assert_eq!(server.commit_count().unwrap(), 9);
    for host in 0..8 {
        assert!(server.file(&format!("vms/web{host}.tf")).is_ok());
    }
}

#[test]
fn a_file_that_others_wrote_is_left_alone() {
    let (_dir, server) = server();
    server.commit_by_hand("vms/web01.tf", "# mine\n").unwrap();
    assert!(matches!(publish(&publication(&server, "web01")), Err(GitError::NotOurs { .. })));
    assert_eq!(server.file("vms/web01.tf").unwrap(), "# mine\n");
}

#[test]
fn a_wrong_password_is_said_and_not_repeated() {
    let (_dir, server) = server();
    let mut wanted = publication(&server, "web01");
    wanted.credentials = Some(Credentials { username: "drover".into(), password: "wrong".into() });
    let error = publish(&wanted).unwrap_err();
    assert!(matches!(error, GitError::Unauthorized { .. }), "{error}");
    assert!(!error.to_string().contains("wrong"));
}

#[test]
fn a_missing_branch_and_a_refusing_hook_are_named() {
    let (_dir, server) = server();
    let mut wanted = publication(&server, "web01");
    wanted.branch = "production".into();
    assert!(matches!(publish(&wanted), Err(GitError::NoBranch { .. })));
    server.refuse_pushes(Some("no pushes on Fridays")).unwrap();
    assert!(matches!(
        publish(&publication(&server, "web01")),
        Err(GitError::PushRefused { .. } | GitError::Failed { .. })
    ));
    server.refuse_pushes(None).unwrap();
    assert!(publish(&publication(&server, "web01")).is_ok());
}
