//! The git repository that defines a team's machines, over http(s), with libgit2. Everything here blocks.
//!
//! Drover touches exactly one file per machine. A rejected push is answered by looking at the branch again and redoing that one change.

use std::path::Path;

use git2::build::TreeUpdateBuilder;
use git2::{
    Commit, Cred, ErrorClass, ErrorCode, FetchOptions, FileMode, PushOptions, RemoteCallbacks, Repository, Signature,
};

use crate::render::terraform::HEADER;

/// Tries of a push that others get in the way of.
const PUSH_TRIES: u32 = 8;
/// The longest a server may take to answer, in milliseconds.
const SERVER_TIMEOUT_MILLIS: i32 = 30_000;

/// A user name and password (or token).
#[derive(Clone)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

/// One file that is to be on a branch.
#[derive(Clone)]
pub struct Publication {
    pub url: String,
    pub branch: String,
    pub path: String,
    pub content: String,
    pub message: String,
    pub author_name: String,
    pub author_email: String,
    /// Must be in the header of an existing file for it to be replaced: uid of the `VmMigration`.
    pub owner: String,
    pub credentials: Option<Credentials>,
}

/// What a publication came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// A commit on the branch that holds the file.
    pub commit: String,
    /// Whether anything had to be pushed.
    pub changed: bool,
}

/// Why a repository could not be read or changed. Passwords are in none of these.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("{url}: user name or password is refused: check the TerraformRepository's Secret")]
    Unauthorized { url: String },
    #[error("{url} has no branch {branch}: create it, or correct the TerraformRepository")]
    NoBranch { url: String, branch: String },
    #[error(
        "{path} on {branch} was not written by this migration: move or remove it, Drover never overwrites what others wrote"
    )]
    NotOurs { path: String, branch: String },
    #[error("{url} refuses the push to {branch}: {why}")]
    PushRefused { url: String, branch: String, why: String },
    #[error("{url}: {tried}: {source}")]
    Failed { url: String, tried: &'static str, source: git2::Error },
    #[error("no directory for a clone: {0}")]
    NoDirectory(#[from] std::io::Error),
}

impl GitError {
    /// One CamelCase word for a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            GitError::Unauthorized { .. } => "GitUnauthorized",
            GitError::NoBranch { .. } => "GitBranchMissing",
            GitError::NotOurs { .. } => "FileNotOurs",
            GitError::PushRefused { .. } => "GitPushRefused",
            GitError::Failed { .. } | GitError::NoDirectory(_) => "GitFailed",
        }
    }
}

/// The branch's commit if it holds the file as it is to be. Reads only.
pub fn find(publication: &Publication) -> Result<Option<String>, GitError> {
    let clone = Clone::open(publication)?;
    let head = clone.fetch()?;
    Ok(clone.holds(&head)?.then(|| head.id().to_string()))
}

/// Makes sure that the branch holds the file.
pub fn publish(publication: &Publication) -> Result<Published, GitError> {
    let clone = Clone::open(publication)?;
    let mut refusal = None;
    for _ in 0..PUSH_TRIES {
        let head = clone.fetch()?;
        if clone.holds(&head)? {
            return Ok(Published { commit: head.id().to_string(), changed: false });
        }
        let commit = clone.commit_on(&head)?;
        match clone.push(&commit)? {
            None => return Ok(Published { commit: commit.id().to_string(), changed: true }),
            Some(why) => refusal = Some(why),
        }
    }
    Err(GitError::PushRefused {
        url: publication.url.clone(),
        branch: publication.branch.clone(),
        why: refusal.unwrap_or_else(|| "others push all the time".into()),
    })
}

/// A bare clone of the branch's tip in a directory of its own.
struct Clone<'a> {
    publication: &'a Publication,
    repository: Repository,
    _directory: tempfile::TempDir,
}

impl<'a> Clone<'a> {
    fn open(publication: &'a Publication) -> Result<Self, GitError> {
        let directory = tempfile::tempdir()?;
        let repository =
            Repository::init_bare(directory.path()).map_err(|source| failed(publication, "prepare a clone", source))?;
        Ok(Self { publication, repository, _directory: directory })
    }

    fn failed(&self, tried: &'static str) -> impl Fn(git2::Error) -> GitError + '_ {
        move |source| failed(self.publication, tried, source)
    }

    /// The branch's newest commit.
    fn fetch(&self) -> Result<Commit<'_>, GitError> {
        let Publication { url, branch, .. } = self.publication;
        let mut remote = self.repository.remote_anonymous(url).map_err(self.failed("read the URL"))?;
        let mut options = FetchOptions::new();
        options.remote_callbacks(self.callbacks()).depth(1);
        let refspec = format!("+refs/heads/{branch}:refs/heads/{branch}");
        remote.fetch(&[refspec], Some(&mut options), None).map_err(self.failed("fetch"))?;
        let head = self.repository.find_reference(&format!("refs/heads/{branch}"));
        let head = head.map_err(|_| GitError::NoBranch { url: url.clone(), branch: branch.clone() })?;
        head.peel_to_commit().map_err(self.failed("read the branch"))
    }

    /// Credentials are given once: libgit2 asks again after a refusal, for ever.
    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        let mut asked = false;
        callbacks.credentials(move |_, _, _| match (&self.publication.credentials, asked) {
            (Some(credentials), false) => {
                asked = true;
                Cred::userpass_plaintext(&credentials.username, &credentials.password)
            }
            _ => Err(git2::Error::new(ErrorCode::Auth, ErrorClass::Http, "the credentials are refused")),
        });
        callbacks
    }

    /// Whether the file is there as it is to be; an error if somebody else's file is there.
    fn holds(&self, head: &Commit<'_>) -> Result<bool, GitError> {
        let tree = head.tree().map_err(self.failed("read the tree"))?;
        let Ok(entry) = tree.get_path(Path::new(&self.publication.path)) else { return Ok(false) };
        let blob = self.repository.find_blob(entry.id()).map_err(self.failed("read the file"))?;
        let text = String::from_utf8_lossy(blob.content());
        let header = text.lines().next().unwrap_or_default();
        let is_ours = header.starts_with(HEADER) && header.contains(&self.publication.owner);
        if !is_ours {
            let Publication { path, branch, .. } = self.publication.clone();
            return Err(GitError::NotOurs { path, branch });
        }
        Ok(text == self.publication.content)
    }

    fn commit_on(&self, head: &Commit<'_>) -> Result<Commit<'_>, GitError> {
        let wanted = self.publication;
        let make = || {
            let blob = self.repository.blob(wanted.content.as_bytes())?;
            let tree = TreeUpdateBuilder::new()
                .upsert(&wanted.path, blob, FileMode::Blob)
                .create_updated(&self.repository, &head.tree()?)?;
            let author = Signature::now(&wanted.author_name, &wanted.author_email)?;
            let tree = self.repository.find_tree(tree)?;
            let id = self.repository.commit(None, &author, &author, &wanted.message, &tree, &[head])?;
            self.repository.find_commit(id)
        };
        make().map_err(self.failed("commit"))
    }

    /// Pushes; `Some(why)` = the server took the pack but not the change of the branch.
    fn push(&self, commit: &Commit<'_>) -> Result<Option<String>, GitError> {
        let Publication { url, branch, .. } = self.publication;
        // Pushing needs a name for the commit.
        let ours = "refs/drover/push";
        self.repository.reference(ours, commit.id(), true, "push").map_err(self.failed("name the commit"))?;
        let refusal = std::cell::RefCell::new(None);
        let mut remote = self.repository.remote_anonymous(url).map_err(self.failed("read the URL"))?;
        let mut callbacks = self.callbacks();
        callbacks.push_update_reference(|_, status| {
            // A rejected ref is no error of the call.
            *refusal.borrow_mut() = status.map(str::to_owned);
            Ok(())
        });
        let mut options = PushOptions::new();
        options.remote_callbacks(callbacks);
        let pushed = remote.push(&[format!("{ours}:refs/heads/{branch}")], Some(&mut options));
        drop(options);
        match pushed {
            Ok(()) => Ok(refusal.into_inner()),
            Err(error) if error.code() == ErrorCode::NotFastForward => Ok(Some(error.message().to_owned())),
            Err(error) => Err(failed(self.publication, "push", error)),
        }
    }
}

fn failed(publication: &Publication, tried: &'static str, source: git2::Error) -> GitError {
    let url = publication.url.clone();
    if source.code() == ErrorCode::Auth {
        GitError::Unauthorized { url }
    } else {
        GitError::Failed { url, tried, source }
    }
}

/// Bounds every wait for a git server: one that accepts a connection and says nothing would be waited for without end.
///
/// To be called once, before the process has a second thread.
#[expect(unsafe_code, reason = "libgit2's options are C globals")]
pub fn limit_waiting() {
    // SAFETY: only written here, and the caller promises that no other thread runs yet.
    let limited = unsafe {
        git2::opts::set_server_connect_timeout_in_milliseconds(SERVER_TIMEOUT_MILLIS)
            .and_then(|()| git2::opts::set_server_timeout_in_milliseconds(SERVER_TIMEOUT_MILLIS))
    };
    if let Err(error) = limited {
        tracing::warn!(%error, "waits for git servers cannot be bounded");
    }
}
