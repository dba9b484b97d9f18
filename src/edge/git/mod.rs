//! The git repository that defines a team's machines, over http(s) or ssh: libgit2 speaks git, [`transport`] carries it. Everything here blocks.
//!
//! Drover touches exactly one file per machine. A rejected push is answered by looking at the branch again and redoing that one change.

mod address;
mod http;
mod known_hosts;
mod ssh;
mod transport;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use git2::build::{CheckoutBuilder, TreeUpdateBuilder};
use git2::{
    Commit, ErrorClass, ErrorCode, FetchOptions, FileMode, Oid, PushOptions, RemoteCallbacks, Repository, Signature,
};

use crate::api::terraform_repository::CommitAuthor;
use crate::render::commit::MIGRATION_TRAILER;
use crate::render::terraform::{HEADER, is_as_written};
use transport::{CallError, Server};

/// Tries of a push that others get in the way of.
const PUSH_TRIES: u32 = 16;
/// What a server's refusal of a branch says when a hook was the reason: asking again changes nothing.
const HOOK_DECLINED: &str = "hook declined";
/// libgit2's words for a server that does not offer them.
const NO_PUSH_OPTIONS: &str = "push-options not supported";
/// Trailer of a commit on a branch that is to be merged: what it was put on top of. A commit that somebody else moved has another parent.
const BASE_TRAILER: &str = "Drover-Base";

/// What a Secret holds to enter a git server, and to know it. The values are in no error and no log.
#[derive(Clone, Default)]
pub struct Access {
    /// For http(s): user name, and password or token.
    pub password: Option<(String, String)>,
    /// For https: the authorities, PEM, that the server's certificate is checked against; `None` = the public ones.
    pub ca: Option<String>,
    /// For ssh.
    pub private_key: Option<String>,
    pub passphrase: Option<String>,
    /// For ssh: the host keys that are accepted.
    pub known_hosts: Option<String>,
}

impl Access {
    /// From the keys of a Secret. The error is the key that it lacks.
    pub fn from_keys(get: impl Fn(&str) -> Option<String>) -> Result<Self, &'static str> {
        let password = match get("username") {
            Some(username) => Some((username, get("password").ok_or("password")?)),
            None => None,
        };
        Ok(Self {
            password,
            ca: get("ca.crt"),
            private_key: get("ssh-privatekey"),
            passphrase: get("passphrase"),
            known_hosts: get("known_hosts"),
        })
    }

    /// Accepts these host keys, too.
    pub fn add_known_hosts(&mut self, more: Option<&str>) {
        let all = [self.known_hosts.as_deref(), more];
        self.known_hosts = Some(all.into_iter().flatten().collect::<Vec<&str>>().join("\n"));
    }
}

/// A branch beside the one that is applied, for somebody to merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReviewBranch {
    pub name: String,
    /// The push asks the server to open a merge request.
    pub merge_request: bool,
}

/// One file that is to be on a branch.
#[derive(Clone)]
pub struct Publication {
    pub url: String,
    /// The branch that is applied.
    pub branch: String,
    pub path: String,
    pub content: String,
    pub message: String,
    pub author: CommitAuthor,
    pub committer: CommitAuthor,
    /// Must be in the header of an existing file for it to be replaced: uid of the `VmMigration`.
    pub owner: String,
    /// `None` = the file is committed to `branch` itself.
    pub review: Option<ReviewBranch>,
    pub access: Access,
}

/// What a publication came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// A commit on `branch` that holds the file.
    pub commit: String,
    /// The branch of the publication, or its review branch.
    pub branch: String,
    /// Whether anything had to be pushed.
    pub changed: bool,
}

/// Why a repository could not be read or changed. Passwords and keys are in none of these.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("the TerraformRepository's url cannot be used: {why}")]
    BadUrl { why: &'static str },
    #[error("{url}: {why}")]
    Unauthorized { url: String, why: String },
    #[error("{url}: {why}")]
    HostKeyRefused { url: String, why: String },
    #[error("{url} has no branch {branch}: create it, or correct the TerraformRepository")]
    NoBranch { url: String, branch: String },
    #[error(
        "{path} on {branch} was not written by this migration: move or remove it, Drover never overwrites what others wrote"
    )]
    NotOurs { path: String, branch: String },
    #[error(
        "{path} on {branch} was edited by hand after Drover wrote it: undo the edit there, for this migration goes by its plan. Drover never overwrites what others wrote"
    )]
    EditedByHand { path: String, branch: String },
    #[error(
        "branch {branch} has commits that this migration did not make, and cannot be moved without losing them: merge it, or delete it"
    )]
    BranchNotOurs { branch: String },
    #[error(
        "{url} refuses the push to {branch}: {why}. Let the Secret's user push there, or choose another spec.delivery in the TerraformRepository"
    )]
    PushRefused { url: String, branch: String, why: String },
    #[error("{url}: {tried}: {why}")]
    Failed { url: String, tried: &'static str, why: String },
    #[error("no directory for a clone: {0}")]
    NoDirectory(#[from] std::io::Error),
}

impl GitError {
    /// One CamelCase word for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            GitError::BadUrl { .. } => "GitUrlInvalid",
            GitError::Unauthorized { .. } => "GitUnauthorized",
            GitError::HostKeyRefused { .. } => "GitHostKeyRefused",
            GitError::NoBranch { .. } => "GitBranchMissing",
            GitError::NotOurs { .. } => "FileNotOurs",
            GitError::EditedByHand { .. } => "FileEditedByHand",
            GitError::BranchNotOurs { .. } => "GitBranchNotOurs",
            GitError::PushRefused { .. } => "GitPushRefused",
            GitError::Failed { .. } | GitError::NoDirectory(_) => "GitFailed",
        }
    }
}

/// The newest commit of the branch that is applied, if it holds the file as it is to be. Reads only.
pub fn find(publication: &Publication) -> Result<Option<String>, GitError> {
    let clone = Clone::open(publication)?;
    let head = clone.applied()?;
    Ok(clone.holds(&head, &publication.branch)?.then(|| head.id().to_string()))
}

/// Makes sure that the branch holds the file, or the review branch if there is one and the branch does not.
pub fn publish(publication: &Publication) -> Result<Published, GitError> {
    let clone = Clone::open(publication)?;
    let mut refusal = None;
    for _ in 0..PUSH_TRIES {
        let change = match clone.next_change()? {
            Next::Holds(published) => return Ok(published),
            Next::Push(change) => change,
        };
        match clone.push(&change)? {
            Pushed::Done => {
                let (commit, branch) = (change.commit.id().to_string(), change.branch.into());
                return Ok(Published { commit, branch, changed: true });
            }
            Pushed::Moved => {}
            Pushed::Refused(why) => {
                let is_final = why.contains(HOOK_DECLINED);
                refusal = Some(why);
                if is_final {
                    break;
                }
            }
        }
    }
    let branch = publication.review.as_ref().map_or(&publication.branch, |review| &review.name).clone();
    let why = refusal.unwrap_or_else(|| "others push all the time".into());
    Err(GitError::PushRefused { url: publication.url.clone(), branch, why })
}

/// Puts the files of the branch's newest commit into `directory`, which is made, and names that commit.
pub fn check_out(url: &str, branch: &str, access: &Access, directory: &Path) -> Result<String, GitError> {
    let server = Server::new(url, access.clone())?;
    let failed = |error: git2::Error| server.failed("check out", error.message());
    let repository = Repository::init(directory).map_err(failed)?;
    let head = fetch(&server, &repository, branch)?;
    let head = head.ok_or_else(|| GitError::NoBranch { url: url.into(), branch: branch.into() })?;
    repository.checkout_tree(head.as_object(), Some(CheckoutBuilder::new().force())).map_err(failed)?;
    Ok(head.id().to_string())
}

/// A branch's newest commit, and nothing before it.
fn fetch<'r>(server: &Arc<Server>, repository: &'r Repository, branch: &str) -> Result<Option<Commit<'r>>, GitError> {
    let failed = |tried: &'static str| move |error: git2::Error| server.failed(tried, error.message());
    let name = format!("refs/heads/{branch}");
    // A branch that is gone meanwhile would stay as it was.
    if let Ok(mut reference) = repository.find_reference(&name) {
        reference.delete().map_err(failed("forget a branch"))?;
    }
    let fetched = server.call(repository, "fetch", |remote| {
        let mut options = FetchOptions::new();
        options.depth(1);
        remote.fetch(&[format!("+{name}:{name}")], Some(&mut options), None)
    });
    match fetched {
        Ok(()) => {}
        Err(CallError::Git(error)) => return Err(error),
        Err(CallError::Moved) => return Err(server.failed("fetch", "the branch moved")),
    }
    let Ok(reference) = repository.find_reference(&name) else { return Ok(None) };
    reference.peel_to_commit().map(Some).map_err(failed("read the branch"))
}

/// What there is to do.
enum Next<'a> {
    Holds(Published),
    Push(Change<'a>),
}

/// A commit that a branch is to be set to.
struct Change<'a> {
    branch: &'a str,
    commit: Commit<'a>,
    /// What the branch is at. `None` = it does not exist.
    from: Option<Oid>,
}

enum Pushed {
    Done,
    /// Others were faster.
    Moved,
    /// The server took the commit but not the change of the branch.
    Refused(String),
}

/// A bare clone of the branches' tips in a directory of its own.
struct Clone<'a> {
    publication: &'a Publication,
    server: Arc<Server>,
    repository: Repository,
    _directory: tempfile::TempDir,
}

impl<'a> Clone<'a> {
    fn open(publication: &'a Publication) -> Result<Self, GitError> {
        let server = Server::new(&publication.url, publication.access.clone())?;
        let directory = tempfile::tempdir()?;
        let repository = Repository::init_bare(directory.path())
            .map_err(|error| server.failed("prepare a clone", error.message()))?;
        Ok(Self { publication, server, repository, _directory: directory })
    }

    fn failed(&self, tried: &'static str) -> impl Fn(git2::Error) -> GitError + '_ {
        move |error| self.server.failed(tried, error.message())
    }

    /// The newest commit of the branch that is applied.
    fn applied(&self) -> Result<Commit<'_>, GitError> {
        let Publication { url, branch, .. } = self.publication;
        let head = self.fetch(branch)?;
        head.ok_or_else(|| GitError::NoBranch { url: url.clone(), branch: branch.clone() })
    }

    /// A branch's newest commit.
    fn fetch(&self, branch: &str) -> Result<Option<Commit<'_>>, GitError> {
        fetch(&self.server, &self.repository, branch)
    }

    fn next_change(&self) -> Result<Next<'_>, GitError> {
        let wanted = self.publication;
        let head = self.applied()?;
        let holds = |commit: &Commit<'_>, branch: &str| {
            Next::Holds(Published { commit: commit.id().to_string(), branch: branch.into(), changed: false })
        };
        if self.holds(&head, &wanted.branch)? {
            return Ok(holds(&head, &wanted.branch));
        }
        let Some(ReviewBranch { name, .. }) = &wanted.review else {
            let commit = self.commit_on(&head, &wanted.message)?;
            return Ok(Next::Push(Change { branch: &wanted.branch, commit, from: Some(head.id()) }));
        };
        let tip = self.fetch(name)?;
        if let Some(tip) = &tip {
            let is_there = match self.holds(tip, name) {
                Err(GitError::NotOurs { .. }) => false,
                other => other?,
            };
            // What others have put on top is theirs to bring up to date.
            match (is_there, self.parent_if_ours(tip)) {
                (true, Some(parent)) if parent == head.id() => return Ok(holds(tip, name)),
                (true, None) => return Ok(holds(tip, name)),
                (false, None) => return Err(GitError::BranchNotOurs { branch: name.clone() }),
                (_, Some(_)) => {}
            }
        }
        let message = format!("{}{BASE_TRAILER}: {}\n", wanted.message, head.id());
        let commit = self.commit_on(&head, &message)?;
        Ok(Next::Push(Change { branch: name, commit, from: tip.map(|tip| tip.id()) }))
    }

    /// What a commit is on top of, if this migration put it there and nobody has changed or moved it since.
    fn parent_if_ours(&self, commit: &Commit<'_>) -> Option<Oid> {
        let message = commit.message().ok()?;
        let trailer = |name: &str| message.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        // The commit's own text: libgit2 hides the parents of a shallow clone's commits.
        let parent = commit.header_field_bytes("parent").ok()?;
        let parent = std::str::from_utf8(&parent).ok()?;
        let committer = commit.committer();
        let is_ours = trailer(MIGRATION_TRAILER)?.ends_with(&self.publication.owner)
            && trailer(BASE_TRAILER)? == parent
            && committer.name().ok()? == self.publication.committer.name
            && committer.email().ok()? == self.publication.committer.email;
        is_ours.then(|| Oid::from_str(parent).ok()).flatten()
    }

    /// Whether the file is there as it is to be; an error if what is there is not ours to replace.
    fn holds(&self, head: &Commit<'_>, branch: &str) -> Result<bool, GitError> {
        let tree = head.tree().map_err(self.failed("read the tree"))?;
        let Ok(entry) = tree.get_path(Path::new(&self.publication.path)) else { return Ok(false) };
        let blob = self.repository.find_blob(entry.id()).map_err(self.failed("read the file"))?;
        let text = String::from_utf8_lossy(blob.content());
        let header = text.lines().next().unwrap_or_default();
        let is_ours = header.starts_with(HEADER) && header.contains(&self.publication.owner);
        let (path, branch) = (self.publication.path.clone(), branch.to_owned());
        match (text == self.publication.content, is_ours) {
            (true, _) => Ok(true),
            (false, false) => Err(GitError::NotOurs { path, branch }),
            (false, true) if is_as_written(&text) => Ok(false),
            (false, true) => Err(GitError::EditedByHand { path, branch }),
        }
    }

    fn commit_on(&self, head: &Commit<'_>, message: &str) -> Result<Commit<'_>, GitError> {
        let wanted = self.publication;
        let make = || {
            let blob = self.repository.blob(wanted.content.as_bytes())?;
            let tree = TreeUpdateBuilder::new()
                .upsert(&wanted.path, blob, FileMode::Blob)
                .create_updated(&self.repository, &head.tree()?)?;
            let author = Signature::now(&wanted.author.name, &wanted.author.email)?;
            let committer = Signature::now(&wanted.committer.name, &wanted.committer.email)?;
            let tree = self.repository.find_tree(tree)?;
            let id = self.repository.commit(None, &author, &committer, message, &tree, &[head])?;
            self.repository.find_commit(id)
        };
        make().map_err(self.failed("commit"))
    }

    fn push(&self, change: &Change<'_>) -> Result<Pushed, GitError> {
        let Change { branch, commit, from } = change;
        // Pushing needs a name for the commit.
        let ours = "refs/drover/push";
        self.repository.reference(ours, commit.id(), true, "push").map_err(self.failed("name the commit"))?;
        // Only the review branch is ever moved to a commit that does not follow what it was at.
        let force = if *branch == self.publication.branch { "" } else { "+" };
        let options = self.push_options();
        let refusal = RefCell::new(None);
        let pushed = self.server.call(&self.repository, "push", |remote| {
            let mut callbacks = RemoteCallbacks::new();
            callbacks.sideband_progress(|words| {
                self.server.note_words(words);
                true
            });
            callbacks.push_negotiation(|updates| match updates {
                [update] if update.src() == from.unwrap_or(Oid::ZERO_SHA1) => Ok(()),
                _ => Err(git2::Error::new(ErrorCode::NotFastForward, ErrorClass::Reference, "the branch moved")),
            });
            callbacks.push_update_reference(|_, status| {
                // A rejected ref is no error of the call.
                *refusal.borrow_mut() = status.map(str::to_owned);
                Ok(())
            });
            let mut push = PushOptions::new();
            push.remote_callbacks(callbacks);
            push.remote_push_options(&options.iter().map(String::as_str).collect::<Vec<&str>>());
            remote.push(&[format!("{force}{ours}:refs/heads/{branch}")], Some(&mut push))
        });
        match (pushed, refusal.into_inner()) {
            (Ok(()), None) => Ok(Pushed::Done),
            (Ok(()), Some(status)) => Ok(Pushed::Refused(self.server.with_words(&status))),
            (Err(CallError::Moved), _) => Ok(Pushed::Moved),
            (Err(CallError::Git(GitError::Failed { why, .. })), _) if why.contains(NO_PUSH_OPTIONS) => {
                let why = "it takes no push options, by which the merge request would be opened".into();
                Err(GitError::PushRefused { url: self.publication.url.clone(), branch: (*branch).into(), why })
            }
            (Err(CallError::Git(error)), _) => Err(error),
        }
    }

    /// As GitLab has them: without any token of its API, they open a merge request, or leave one that is open as it is.
    fn push_options(&self) -> Vec<String> {
        match &self.publication.review {
            Some(ReviewBranch { merge_request: true, .. }) => vec![
                "merge_request.create".into(),
                format!("merge_request.target={}", self.publication.branch),
                "merge_request.remove_source_branch".into(),
            ],
            Some(ReviewBranch { merge_request: false, .. }) | None => Vec::new(),
        }
    }
}
