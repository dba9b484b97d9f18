//! Where a git repository is: `https://host/path`, `ssh://user@host:port/path` or `user@host:path`.

use reqwest::Url;

/// A repository's URL, taken apart. It holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Http(Url),
    Ssh(SshAddress),
}

/// A repository reached over ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshAddress {
    pub user: String,
    pub host: String,
    pub port: u16,
    pub path: String,
}

impl Address {
    /// The error does not repeat the URL: a password may be in it.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let address = match url.split_once("://") {
            Some(("http" | "https", _)) => http(url),
            Some(("ssh", rest)) => ssh(rest),
            Some(_) => None,
            None => scp(url),
        };
        address.ok_or(
            "it is not of the form https://host/path, ssh://user@host/path or user@host:path, without a password",
        )
    }
}

fn http(url: &str) -> Option<Address> {
    let url = Url::parse(url).ok()?;
    (url.username().is_empty() && url.password().is_none()).then_some(Address::Http(url))
}

/// `user@host:port/path`
fn ssh(rest: &str) -> Option<Address> {
    let (authority, path) = rest.split_at(rest.find('/')?);
    let (user, host) = authority.split_once('@')?;
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        Some(_) | None => (host, 22),
    };
    // `/~user/path` is below that user's home.
    let path = if path.starts_with("/~") { &path[1..] } else { path };
    address(user, host, port, path)
}

/// `user@host:path`
fn scp(url: &str) -> Option<Address> {
    let (user, rest) = url.split_once('@')?;
    let (host, path) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once("]:")?,
        None => rest.split_once(':')?,
    };
    address(user, host, 22, path)
}

fn address(user: &str, host: &str, port: u16, path: &str) -> Option<Address> {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let is_whole = !user.is_empty() && !user.contains(':') && !host.is_empty() && !host.contains('@') && path.len() > 1;
    is_whole.then(|| Address::Ssh(SshAddress { user: user.into(), host, port, path: path.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(user: &str, host: &str, port: u16, path: &str) -> Result<Address, &'static str> {
        Ok(Address::Ssh(SshAddress { user: user.into(), host: host.into(), port, path: path.into() }))
    }

    #[test]
    fn every_form_is_taken_apart() {
        let https = "https://git.example.com/team/machines.git";
        assert_eq!(Address::parse(https), Ok(Address::Http(Url::parse(https).expect("valid"))));
        assert_eq!(Address::parse("ssh://git@Example.com/a.git"), ssh("git", "example.com", 22, "/a.git"));
        assert_eq!(Address::parse("ssh://git@example.com:2222/a.git"), ssh("git", "example.com", 2222, "/a.git"));
        assert_eq!(Address::parse("ssh://git@[2001:db8::1]:2222/a"), ssh("git", "2001:db8::1", 2222, "/a"));
        assert_eq!(Address::parse("ssh://git@[2001:db8::1]/a"), ssh("git", "2001:db8::1", 22, "/a"));
        assert_eq!(Address::parse("ssh://git@example.com/~me/a"), ssh("git", "example.com", 22, "~me/a"));
        assert_eq!(Address::parse("git@example.com:team/a.git"), ssh("git", "example.com", 22, "team/a.git"));
        assert_eq!(Address::parse("git@[2001:db8::1]:a.git"), ssh("git", "2001:db8::1", 22, "a.git"));
    }

    #[test]
    fn what_holds_a_password_or_is_no_address_is_refused_without_repeating_it() {
        for url in [
            "https://me:secret@example.com/a",
            "https://secret@example.com/a",
            "ssh://git:secret@example.com/a",
            "git:secret@example.com:a",
            "ssh://example.com/a",
            "ssh://git@example.com",
            "file:///secret",
            "/secret",
            "",
        ] {
            let why = Address::parse(url).expect_err(url);
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
