//! The bare repository behind the project: who pushed what, commits, common ancestors, merges.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::model::{Commit, MergeRequest};
use crate::git::git;

/// A branch that got a new commit.
pub struct Push {
    pub branch: String,
    pub commit: String,
    pub at: Instant,
}

/// Pushes as the repository's hook notes them, one line each.
pub struct Pushes {
    notes: PathBuf,
    read: usize,
    waiting: VecDeque<Push>,
}

impl Pushes {
    /// From now on; what is in the repository already gets no pipeline.
    pub fn watch(repository: &Path, dir: &Path) -> Result<Self> {
        let notes = dir.join("pushes");
        fs::write(&notes, "").with_context(|| format!("write {}", notes.display()))?;
        let hook = repository.join("hooks/post-receive");
        fs::create_dir_all(repository.join("hooks"))?;
        fs::write(&hook, format!("#!/bin/sh\nexec cat >> '{}'\n", notes.display()))?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
        Ok(Self { notes, read: 0, waiting: VecDeque::new() })
    }

    /// The next push that `is_due`.
    pub fn take(&mut self, is_due: impl Fn(&Push) -> bool) -> Option<Push> {
        let text = fs::read_to_string(&self.notes).unwrap_or_default();
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        let new = text.get(self.read..complete).unwrap_or_default();
        self.read = self.read.max(complete);
        self.waiting.extend(new.lines().filter_map(push_in));
        let due = self.waiting.front().is_some_and(is_due);
        due.then(|| self.waiting.pop_front()).flatten()
    }
}

/// A line of git's: old commit, new commit, reference. Deleted branches and tags are nothing to us.
fn push_in(line: &str) -> Option<Push> {
    let mut words = line.split(' ');
    let (commit, reference) = (words.nth(1)?, words.next()?);
    let branch = reference.strip_prefix("refs/heads/")?;
    let is_deletion = commit.bytes().all(|digit| digit == b'0');
    (!is_deletion).then(|| Push { branch: branch.to_owned(), commit: commit.to_owned(), at: Instant::now() })
}

/// A commit's words.
pub fn commit(repository: &Path, id: &str) -> Result<Commit> {
    let text = git(repository, &["show", "--no-patch", "--format=%H%n%an%n%ae%n%B", id])?;
    let mut parts = text.splitn(4, '\n').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Ok(Commit { id: next(), author_name: next(), author_email: next(), message: next().trim_end().to_owned() })
}

/// The commit of a branch, a tag, or an id.
pub fn resolve(repository: &Path, name: &str) -> Option<String> {
    // Neither options nor expressions: only names.
    let is_name = !name.is_empty() && !name.starts_with('-') && !name.contains(['^', '~', ':', '@', ' ']);
    let wanted = format!("{name}^{{commit}}");
    let found = is_name.then(|| git(repository, &["rev-parse", "--verify", "--quiet", &wanted]).ok()).flatten()?;
    Some(found.trim_end().to_owned())
}

/// The commit of a branch.
pub fn tip(repository: &Path, branch: &str) -> Option<String> {
    resolve(repository, &format!("refs/heads/{branch}"))
}

/// The common ancestor of some commits.
pub fn merge_base(repository: &Path, commits: &[String]) -> Option<String> {
    let commits = commits.iter().map(String::as_str);
    let arguments: Vec<&str> = ["merge-base", "--octopus"].into_iter().chain(commits).collect();
    git(repository, &arguments).ok().map(|base| base.trim_end().to_owned())
}

/// Merges with a merge commit, as projects do unless told otherwise; the commit. An error if the two are in conflict.
pub fn merge(repository: &Path, request: &MergeRequest) -> Result<String> {
    let branch = |name: &str| tip(repository, name).with_context(|| format!("there is no branch {name}"));
    let (source, target) = (branch(&request.source)?, branch(&request.target)?);
    let tree = git(repository, &["merge-tree", "--write-tree", &target, &source]).context("Branch cannot be merged")?;
    let message = format!("Merge branch '{}' into '{}'\n\n{}", request.source, request.target, request.title);
    let merged = git(repository, &["commit-tree", tree.trim_end(), "-p", &target, "-p", &source, "-m", &message])?;
    let merged = merged.trim_end().to_owned();
    git(repository, &["update-ref", &format!("refs/heads/{}", request.target), &merged, &target])?;
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_commits_of_branches_are_pushes() {
        let (old, new, none) = ("a".repeat(40), "b".repeat(40), "0".repeat(40));
        let push = push_in(&format!("{old} {new} refs/heads/machines/web01")).unwrap();
        assert_eq!((push.branch.as_str(), push.commit.as_str()), ("machines/web01", new.as_str()));
        assert!(push_in(&format!("{old} {none} refs/heads/main")).is_none(), "deleted");
        assert!(push_in(&format!("{none} {new} refs/tags/v1")).is_none(), "a tag");
    }
}
