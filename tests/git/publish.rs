//! Commits to the branch that is applied.

use drover::api::terraform_repository::CommitAuthor;
use drover::edge::git::{Access, GitError, Publication, find, publish};
use drover::render::terraform::{HEADER, sealed};

use super::{ask, by_hand, password, publication, refused, server};

#[test]
fn publishes_once_and_finds_it_again() {
    let (_dir, server) = server();
    let wanted = publication(&server, "web01");
    assert_eq!(find(&wanted).unwrap(), None);
    let published = publish(&wanted).unwrap();
    assert!(published.changed);
    assert_eq!((server.head().unwrap(), "main"), (published.commit.clone(), published.branch.as_str()));
    assert_eq!(server.file("vms/web01.tf").unwrap(), wanted.content);
    assert_eq!(server.file("README.md").unwrap(), "machines\n", "nothing else was touched");
    assert!(!publish(&wanted).unwrap().changed);
    assert_eq!(find(&wanted).unwrap(), Some(published.commit));
    assert_eq!(server.commit_count().unwrap(), 2);
}

/// On the threads that the controller has for what blocks.
#[tokio::test]
async fn many_at_once_lose_none() {
    let (_dir, server) = server();
    let pushes = (0..8).map(|host| {
        let wanted = publication(&server, &format!("web{host}"));
        tokio::task::spawn_blocking(move || publish(&wanted).unwrap())
    });
    for push in pushes.collect::<Vec<_>>() {
        push.await.unwrap();
    }
    assert_eq!(server.commit_count().unwrap(), 9);
    for host in 0..8 {
        assert!(server.file(&format!("vms/web{host}.tf")).is_ok());
    }
}

/// A script for the server's hook `update`, that commits to `branch` itself before it lets a first push go on.
pub fn commits_first(branch: &str) -> String {
    format!(
        "[ -e raced ] && exit 0
touch raced
export GIT_AUTHOR_NAME=Ann GIT_AUTHOR_EMAIL=ann@localhost GIT_COMMITTER_NAME=Ann GIT_COMMITTER_EMAIL=ann@localhost
commit=$(echo 'By hand' | git commit-tree -p {branch} '{branch}^{{tree}}')
git update-ref refs/heads/{branch} $commit
"
    )
}

#[test]
fn one_who_pushes_at_the_same_moment_loses_nothing() {
    let (_dir, server) = server();
    server.set_hook("update", &commits_first("main")).unwrap();
    let published = publish(&publication(&server, "web01")).unwrap();
    assert_eq!(server.head().unwrap(), published.commit);
    assert_eq!(ask(&server, &["log", "--format=%s", "--reverse", "main"]), "By hand\nBy hand\nAdd VM web01");
}

#[test]
fn a_file_that_others_wrote_is_left_alone() {
    let (_dir, server) = server();
    server.commit_by_hand("vms/web01.tf", "# mine\n").unwrap();
    assert!(matches!(refused(&publication(&server, "web01")), GitError::NotOurs { .. }));
    assert_eq!(server.file("vms/web01.tf").unwrap(), "# mine\n");
    // Nor is one of ours that is another migration's.
    let mut theirs = publication(&server, "web02");
    publish(&theirs).unwrap();
    theirs.owner = "uid-other".into();
    theirs.content = sealed(&format!("{HEADER} for web02 uid uid-other"), "\nresource {}\n");
    assert!(matches!(refused(&theirs), GitError::NotOurs { .. }));
}

#[test]
fn a_file_that_somebody_edited_is_left_alone_until_the_edit_is_undone() {
    let (_dir, server) = server();
    let wanted = publication(&server, "web01");
    publish(&wanted).unwrap();
    let edited = format!("{}# 4 GiB are not enough\n", wanted.content);
    server.commit_by_hand("vms/web01.tf", &edited).unwrap();
    let error = find(&wanted).unwrap_err();
    assert!(matches!(error, GitError::EditedByHand { .. }), "{error}");
    assert_eq!(error.reason(), "FileEditedByHand");
    assert!(matches!(refused(&wanted), GitError::EditedByHand { .. }));
    assert_eq!(server.file("vms/web01.tf").unwrap(), edited);
    server.commit_by_hand("vms/web01.tf", &wanted.content).unwrap();
    assert_eq!(find(&wanted).unwrap(), Some(server.head().unwrap()));
}

#[test]
fn what_this_migration_wrote_earlier_is_replaced() {
    let (_dir, server) = server();
    let mut wanted = publication(&server, "web01");
    publish(&wanted).unwrap();
    wanted.content = sealed(&format!("{HEADER} for web01 uid uid-web01"), "\nresource { more = 1 }\n");
    assert_eq!(find(&wanted).unwrap(), None);
    assert!(publish(&wanted).unwrap().changed);
    assert_eq!(server.file("vms/web01.tf").unwrap(), wanted.content);
}

#[test]
fn a_commit_that_a_forced_push_took_away_is_missed_and_made_again() {
    let (_dir, server) = server();
    let wanted = publication(&server, "web01");
    let first = publish(&wanted).unwrap().commit;
    by_hand(
        server.repository(),
        "git checkout --quiet --orphan new; git rm -rf --quiet vms; git commit --quiet -m New; git push --quiet --force origin new:main",
    );
    assert_eq!(find(&wanted).unwrap(), None);
    let again = publish(&wanted).unwrap();
    assert!(again.changed && again.commit != first);
    assert_eq!(server.file("vms/web01.tf").unwrap(), wanted.content);
    assert_eq!(server.commit_count().unwrap(), 2, "on top of the new history");
}

#[test]
fn author_and_committer_are_as_configured_and_the_trailers_are_gits() {
    let (_dir, server) = server();
    let mut wanted = publication(&server, "web01");
    wanted.author = CommitAuthor { name: "Team A".into(), email: "team-a@example.com".into() };
    publish(&wanted).unwrap();
    let format = "--format=%an <%ae> / %cn <%ce> / %(trailers:key=Drover-Migration,valueonly,separator=)";
    assert_eq!(
        ask(&server, &["log", "-1", format, "main"]),
        "Team A <team-a@example.com> / Drover <drover@localhost.invalid> / team-a/web01 uid-web01"
    );
}

#[test]
fn a_wrong_password_or_none_is_said() {
    let (_dir, server) = server();
    let mut wanted = publication(&server, "web01");
    wanted.access = password("wrong-one");
    let error = refused(&wanted);
    assert!(matches!(error, GitError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("is refused"), "{error}");
    wanted.access = Access::default();
    let error = refused(&wanted);
    assert!(error.to_string().contains("asks for a user name"), "{error}");
    wanted.url = wanted.url.replace("http://", "http://drover:hidden@");
    let error = refused(&wanted);
    assert!(matches!(error, GitError::BadUrl { .. }) && !error.to_string().contains("hidden"), "{error}");
}

#[test]
fn a_missing_branch_or_repository_is_named() {
    let (_dir, server) = server();
    let mut wanted = publication(&server, "web01");
    wanted.branch = "production".into();
    assert!(matches!(refused(&wanted), GitError::NoBranch { .. }));
    wanted.url = wanted.url.replace("machines.git", "none.git");
    let error = refused(&wanted);
    assert!(error.to_string().contains("there is no repository"), "{error}");
}

#[test]
fn a_hook_that_refuses_is_quoted_and_asked_once() {
    let (_dir, server) = server();
    let wanted = publication(&server, "web01");
    let says = "GitLab: You are not allowed to push code to protected branches on this project.";
    server
        .set_hook(
            "pre-receive",
            &format!("echo asked >> \"$GIT_DIR/asked\"\nprintf '\\033[31m{says}\\033[0m\\n' >&2\nexit 1\n"),
        )
        .unwrap();
    let error = refused(&wanted);
    let GitError::PushRefused { why, .. } = &error else { panic!("{error}") };
    assert!(why.contains("hook declined") && why.contains(says), "{why}");
    assert!(!why.contains('\u{1b}'), "{why:?}");
    assert_eq!(std::fs::read_to_string(server.repository().join("asked")).unwrap(), "asked\n");
    server.refuse_pushes(None).unwrap();
    assert!(publish(&wanted).is_ok());
}

/// A connection that is taken, and then nothing.
#[test]
#[ignore = "waits for as long as a server may take: a minute"]
fn a_server_that_says_nothing_is_not_waited_for_without_end() {
    let (_dir, server) = server();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    std::thread::scope(|scope| {
        for url in [format!("http://{address}/machines.git"), format!("ssh://git@{address}/machines.git")] {
            let wanted = Publication { url, ..publication(&server, "web01") };
            scope.spawn(move || {
                let error = refused(&wanted);
                assert!(matches!(error, GitError::Failed { .. }), "{error}");
                println!("{error}");
            });
        }
    });
}
