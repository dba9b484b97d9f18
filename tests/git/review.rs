//! Commits to a branch that somebody merges.

use drover::edge::git::{GitError, Publication, ReviewBranch, find, publish};
use drover_lab::git::GitServer;

use super::publish::commits_first;
use super::{ask, by_hand, publication, refused, server};

const BRANCH: &str = "drover/web01";

fn for_review(server: &GitServer) -> Publication {
    let review = Some(ReviewBranch { name: BRANCH.into(), merge_request: false });
    Publication { review, ..publication(server, "web01") }
}

fn tip(server: &GitServer) -> String {
    ask(server, &["rev-parse", BRANCH])
}

/// The files that the branch changes against `main`.
fn differs(server: &GitServer) -> String {
    ask(server, &["diff", "--name-only", "main", BRANCH])
}

#[test]
fn it_waits_on_a_branch_until_it_is_merged() {
    let (_dir, server) = server();
    let wanted = for_review(&server);
    let main = server.head().unwrap();
    let published = publish(&wanted).unwrap();
    assert!(published.changed);
    assert_eq!((published.branch.as_str(), published.commit.clone()), (BRANCH, tip(&server)));
    assert_eq!(differs(&server), "vms/web01.tf");
    assert_eq!((server.head().unwrap(), find(&wanted).unwrap()), (main, None));
    assert!(!publish(&wanted).unwrap().changed);

    by_hand(
        server.repository(),
        "git merge --quiet --squash origin/drover/web01; git commit --quiet -m Merged; git push --quiet origin main :drover/web01",
    );
    assert_eq!(find(&wanted).unwrap(), Some(server.head().unwrap()));
    let merged = publish(&wanted).unwrap();
    assert_eq!((merged.branch.as_str(), merged.changed), ("main", false));
    assert_eq!(ask(&server, &["branch", "--format=%(refname:short)"]), "main", "the branch is not made again");
}

#[test]
fn it_is_moved_on_top_when_the_branch_below_it_moved() {
    let (_dir, server) = server();
    let wanted = for_review(&server);
    publish(&wanted).unwrap();
    for text in ["one\n", "two\n"] {
        server.commit_by_hand("README.md", text).unwrap();
        assert!(publish(&wanted).unwrap().changed);
        assert_eq!(ask(&server, &["rev-parse", &format!("{BRANCH}^")]), server.head().unwrap());
        assert_eq!(differs(&server), "vms/web01.tf");
    }
}

#[test]
fn what_others_have_put_on_it_is_never_lost() {
    let (_dir, server) = server();
    let wanted = for_review(&server);
    publish(&wanted).unwrap();
    by_hand(
        server.repository(),
        "git checkout --quiet drover/web01; echo more > more.tf; git add .; git commit --quiet -m More; git push --quiet origin HEAD",
    );
    let theirs = tip(&server);
    assert!(!publish(&wanted).unwrap().changed);
    server.commit_by_hand("README.md", "moved\n").unwrap();
    let published = publish(&wanted).unwrap();
    assert_eq!((published.commit, published.changed), (theirs.clone(), false));
    assert_eq!(tip(&server), theirs);

    // Taken off it by somebody: it cannot be put back without taking something from them.
    by_hand(
        server.repository(),
        "git checkout --quiet drover/web01; git rm --quiet vms/web01.tf; git commit --quiet -m No; git push --quiet origin HEAD",
    );
    let theirs = tip(&server);
    assert!(matches!(refused(&wanted), GitError::BranchNotOurs { .. }));
    assert_eq!(tip(&server), theirs);
}

#[test]
fn a_commit_of_ours_that_somebody_moved_or_amended_is_theirs() {
    for change in
        ["git rebase --quiet --onto theirs main HEAD", "echo x > x.tf; git add .; git commit --quiet --amend --no-edit"]
    {
        let (_dir, server) = server();
        let wanted = for_review(&server);
        publish(&wanted).unwrap();
        by_hand(
            server.repository(),
            &format!(
                "git checkout --quiet -b theirs; echo a > a.tf; git add .; git commit --quiet -m Theirs; git checkout --quiet drover/web01
                {change}; git push --quiet --force origin HEAD:drover/web01"
            ),
        );
        server.commit_by_hand("README.md", "moved\n").unwrap();
        let theirs = tip(&server);
        assert!(!publish(&wanted).unwrap().changed, "{change}");
        assert_eq!(tip(&server), theirs, "{change}");
    }
}

#[test]
fn a_rebase_that_keeps_our_name_is_told_by_its_base() {
    let (_dir, server) = server();
    let wanted = for_review(&server);
    publish(&wanted).unwrap();
    by_hand(
        server.repository(),
        "git checkout --quiet -b theirs; echo a > a.tf; git add .; git commit --quiet -m Theirs; git checkout --quiet drover/web01
        GIT_COMMITTER_NAME=Drover GIT_COMMITTER_EMAIL=drover@localhost.invalid git rebase --quiet --onto theirs main HEAD
        git push --quiet --force origin HEAD:drover/web01",
    );
    server.commit_by_hand("README.md", "moved\n").unwrap();
    let theirs = tip(&server);
    assert!(!publish(&wanted).unwrap().changed);
    assert_eq!(tip(&server), theirs);
}

#[test]
fn an_edit_in_review_is_reported() {
    let (_dir, server) = server();
    let wanted = for_review(&server);
    publish(&wanted).unwrap();
    by_hand(
        server.repository(),
        "git checkout --quiet drover/web01; echo '# more' >> vms/web01.tf; git commit --quiet -am Edit; git push --quiet origin HEAD",
    );
    let error = refused(&wanted);
    assert!(matches!(&error, GitError::EditedByHand { branch, .. } if branch == BRANCH), "{error}");
}

#[test]
fn a_branch_of_that_name_that_was_there_before_is_left_alone() {
    let (_dir, server) = server();
    by_hand(
        server.repository(),
        "git checkout --quiet -b drover/web01; echo a > a.tf; git add .; git commit --quiet -m Mine; git push --quiet origin HEAD",
    );
    let theirs = tip(&server);
    assert!(matches!(refused(&for_review(&server)), GitError::BranchNotOurs { .. }));
    assert_eq!(tip(&server), theirs);
}

#[test]
fn one_who_commits_to_it_at_the_same_moment_loses_nothing() {
    let (_dir, server) = server();
    let wanted = for_review(&server);
    let ours = publish(&wanted).unwrap().commit;
    server.commit_by_hand("README.md", "moved\n").unwrap();
    server.set_hook("update", &commits_first(BRANCH)).unwrap();
    let published = publish(&wanted).unwrap();
    assert_eq!((published.commit, published.changed), (tip(&server), false));
    assert_eq!(ask(&server, &["rev-parse", &format!("{BRANCH}^")]), ours, "theirs is on top of ours");
}

/// Between our look at the branches and our push.
#[test]
fn one_who_is_faster_than_our_push_loses_nothing() {
    for (does, theirs) in [
        (
            "git checkout --quiet drover/web01; echo a > a.tf; git add .; git commit --quiet -m Theirs; git push --quiet origin HEAD",
            true,
        ),
        ("git push --quiet origin :drover/web01", false),
    ] {
        let (_dir, server) = server();
        let wanted = for_review(&server);
        publish(&wanted).unwrap();
        server.commit_by_hand("README.md", "moved\n").unwrap();
        let repository = server.repository().to_owned();
        server.before_next_push(move || by_hand(&repository, does));
        let published = publish(&wanted).unwrap();
        assert_eq!(published.commit, tip(&server), "{does}");
        assert_eq!(published.changed, !theirs, "{does}");
        assert_eq!(ask(&server, &["log", "-1", "--format=%s", BRANCH]) == "Theirs", theirs, "{does}");
    }
}

#[test]
fn a_merge_request_is_asked_for_with_the_push() {
    let (_dir, server) = server();
    let mut wanted = for_review(&server);
    wanted.review = Some(ReviewBranch { name: BRANCH.into(), merge_request: true });
    let error = refused(&wanted);
    assert!(matches!(&error, GitError::PushRefused { why, .. } if why.contains("push options")), "{error}");

    ask(&server, &["config", "receive.advertisePushOptions", "true"]);
    let each = "for i in $(seq 0 $((GIT_PUSH_OPTION_COUNT - 1))); do eval echo \\\"\\$GIT_PUSH_OPTION_$i\\\" >> \"$GIT_DIR/options\"; done\n";
    server.set_hook("post-receive", each).unwrap();
    assert!(publish(&wanted).unwrap().changed);
    assert_eq!(
        std::fs::read_to_string(server.repository().join("options")).unwrap(),
        "merge_request.create\nmerge_request.target=main\nmerge_request.remove_source_branch\n"
    );
    assert_eq!(differs(&server), "vms/web01.tf");
}
