//! Whether a server's ssh host key is the one that people vouch for: OpenSSH's `known_hosts` format, names hashed or not.
//!
//! A key that is not listed is never accepted. `@cert-authority` lines are passed over: certificates of hosts are not asked for.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::hmac;
use sha2::{Digest, Sha256};

/// What the lines say about a server's key.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Known,
    /// No line is about this server.
    Unknown,
    /// Others are listed for this server: type and fingerprint of each.
    Changed(Vec<String>),
    Revoked,
}

struct Line<'a> {
    marker: Option<&'a str>,
    names: &'a str,
    key_type: &'a str,
    key: Vec<u8>,
}

/// How a server is named in the file.
pub fn name(host: &str, port: u16) -> String {
    if port == 22 { host.into() } else { format!("[{host}]:{port}") }
}

/// Judges the key that the server named `name` has shown.
pub fn judge(known_hosts: &str, name: &str, key: &[u8]) -> Verdict {
    let about_it: Vec<Line<'_>> = lines(known_hosts).filter(|line| line.is_about(name)).collect();
    let has = |marker: Option<&str>| about_it.iter().any(|line| line.marker == marker && line.key == key);
    let known: Vec<String> = about_it.iter().filter(|line| line.marker.is_none()).map(|it| shown(&it.key)).collect();
    match (has(Some("@revoked")), has(None)) {
        (true, _) => Verdict::Revoked,
        (false, true) => Verdict::Known,
        (false, false) if known.is_empty() => Verdict::Unknown,
        (false, false) => Verdict::Changed(known),
    }
}

/// The types of the keys that are listed for a server: it has to be asked for one of these.
pub fn key_types<'a>(known_hosts: &'a str, name: &str) -> Vec<&'a str> {
    lines(known_hosts).filter(|line| line.marker.is_none() && line.is_about(name)).map(|line| line.key_type).collect()
}

/// Type and fingerprint of a key, as `ssh-keygen -l` prints the latter.
pub fn shown(key: &[u8]) -> String {
    format!("{} SHA256:{}", key_type(key), STANDARD_NO_PAD.encode(Sha256::digest(key)))
}

/// The line that makes a key known.
pub fn line(name: &str, key: &[u8]) -> String {
    format!("{name} {} {}", key_type(key), STANDARD.encode(key))
}

/// A key's encoding begins with its type: four bytes of length, then the text.
fn key_type(key: &[u8]) -> &str {
    let text = key.first_chunk::<4>().and_then(|length| key.get(4..)?.get(..u32::from_be_bytes(*length) as usize));
    text.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or("unknown")
}

/// The lines that hold a key.
fn lines(known_hosts: &str) -> impl Iterator<Item = Line<'_>> {
    known_hosts.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().peekable();
        let marker = fields.next_if(|field| field.starts_with('@'));
        let (names, key_type) = (fields.next()?, fields.next()?);
        let key = STANDARD.decode(fields.next()?).ok()?;
        (!names.starts_with('#')).then_some(Line { marker, names, key_type, key })
    })
}

impl Line<'_> {
    fn is_about(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        match self.names.strip_prefix("|1|") {
            Some(hashed) => is_hash_of(hashed, &name),
            None => {
                let (but, of): (Vec<&str>, Vec<&str>) = self.names.split(',').partition(|it| it.starts_with('!'));
                let is_it = |pattern: &str| {
                    let pattern = pattern.trim_start_matches('!').to_ascii_lowercase();
                    matches(pattern.as_bytes(), name.as_bytes())
                };
                let any = |patterns: &[&str]| patterns.iter().any(|pattern| is_it(pattern));
                any(&of) && !any(&but)
            }
        }
    }
}

/// `salt|HMAC-SHA1 of the name under the salt`, each in base64.
fn is_hash_of(hashed: &str, name: &str) -> bool {
    let Some((salt, hash)) = hashed.split_once('|') else { return false };
    let (Ok(salt), Ok(hash)) = (STANDARD.decode(salt), STANDARD.decode(hash)) else { return false };
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &salt);
    hmac::verify(&key, name.as_bytes(), &hash).is_ok()
}

/// `*` is any text, `?` any one character. Goes back to the last `*` only: the work stays bounded whatever the pattern.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut seen, mut last_star) = (0, 0, None);
    while seen < name.len() {
        match (pattern.get(at), last_star) {
            (Some(b'*'), _) => {
                last_star = Some((at, seen));
                at += 1;
            }
            (Some(&expected), _) if expected == b'?' || expected == name[seen] => {
                at += 1;
                seen += 1;
            }
            (_, Some((star, from))) => {
                last_star = Some((star, from + 1));
                at = star + 1;
                seen = from + 1;
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(key_type: &str, rest: &[u8]) -> Vec<u8> {
        let length = u32::try_from(key_type.len()).expect("short").to_be_bytes();
        [&length, key_type.as_bytes(), rest].concat()
    }

    fn ed25519() -> Vec<u8> {
        key("ssh-ed25519", &[7; 36])
    }

    #[test]
    fn a_listed_key_is_known_under_that_name_only() {
        let file = format!("# ours\n\n{}\n", line("git.example.com,192.0.2.1", &ed25519()));
        assert_eq!(judge(&file, "git.example.com", &ed25519()), Verdict::Known);
        assert_eq!(judge(&file, "GIT.example.com", &ed25519()), Verdict::Known);
        assert_eq!(judge(&file, "192.0.2.1", &ed25519()), Verdict::Known);
        assert_eq!(judge(&file, "example.com", &ed25519()), Verdict::Unknown);
        assert_eq!(judge(&file, &name("git.example.com", 2222), &ed25519()), Verdict::Unknown);
        assert_eq!(judge("", "git.example.com", &ed25519()), Verdict::Unknown);
    }

    #[test]
    fn another_key_of_a_listed_server_has_changed() {
        let file = line("[git.example.com]:2222", &ed25519());
        let shown_now = key("ssh-ed25519", &[8; 36]);
        let verdict = judge(&file, &name("git.example.com", 2222), &shown_now);
        assert_eq!(verdict, Verdict::Changed(vec![shown(&ed25519())]));
        // A second line for the same server: any of them will do.
        let both = format!("{file}\n{}", line("[git.example.com]:2222", &shown_now));
        assert_eq!(judge(&both, "[git.example.com]:2222", &shown_now), Verdict::Known);
        assert_eq!(judge(&both, "[git.example.com]:2222", &ed25519()), Verdict::Known);
    }

    #[test]
    fn revoked_wins_and_authorities_do_not_count() {
        let good = line("git.example.com", &ed25519());
        assert_eq!(judge(&format!("{good}\n@revoked {good}"), "git.example.com", &ed25519()), Verdict::Revoked);
        assert_eq!(judge(&format!("@cert-authority {good}"), "git.example.com", &ed25519()), Verdict::Unknown);
        assert!(key_types(&format!("@revoked {good}"), "git.example.com").is_empty());
        assert_eq!(key_types(&good, "git.example.com"), ["ssh-ed25519"]);
    }

    #[test]
    fn patterns_and_negations() {
        let file = line("*.example.com,!old.example.com", &ed25519());
        assert_eq!(judge(&file, "git.example.com", &ed25519()), Verdict::Known);
        assert_eq!(judge(&file, "old.example.com", &ed25519()), Verdict::Unknown);
        assert_eq!(judge(&file, "example.com", &ed25519()), Verdict::Unknown);
        assert!(matches(b"git?.example.com", b"git1.example.com") && !matches(b"git?.example.com", b"git.example.com"));
    }
}
