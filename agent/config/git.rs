//! How git children are kept, and who we are to upstreams: validated.

use std::path::PathBuf;
use std::str::FromStr;

use stoker_core::source::{ForgeKind, Protocol, RepositoryUrl};

/// As whom git runs where the agent is root and nothing else is said: the number that images call `nonroot`.
pub const USER_DEFAULT: GitUser = GitUser { uid: 65532, gid: 65532 };

/// What git children may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitChild {
    /// As whom it runs, where the configuration says so.
    pub user: Option<GitUser>,
    /// What each may allocate, in bytes.
    pub memory_bytes: u64,
    /// How many processes its user may have on the machine.
    pub processes: u64,
    /// The socket of the helper that git runs in; it is the agent's child where unset.
    pub helper: Option<PathBuf>,
    /// A person's own command: git runs as that person, reads what that person may read, and uses that person's keys.
    pub personal: bool,
}

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GitUser {
    /// The user.
    pub uid: u32,
    /// The group; there are no further ones.
    pub gid: u32,
}

impl std::fmt::Display for GitUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

impl FromStr for GitUser {
    type Err = ();

    /// `uid:gid`, or `uid` for both.
    fn from_str(text: &str) -> Result<Self, ()> {
        // The highest number means "leave as it is" to the kernel.
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|id| digits && *id != u32::MAX)
        };
        let (uid, gid) = text.split_once(':').unwrap_or((text, text));
        Ok(Self { uid: number(uid).ok_or(())?, gid: number(gid).ok_or(())? })
    }
}

/// Who we are to some upstreams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The field, as `repositories.credentials[0]`: what is wrong with its files is told by it.
    pub field: String,
    /// To which upstreams.
    pub matches: CredentialMatch,
    /// For repositories of these trust classes.
    pub trust: Vec<String>,
    /// Where the secret is.
    pub secret: SecretFiles,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFiles {
    /// A user name, and a file with a token or password.
    Basic {
        /// The user name.
        username: String,
        /// The file.
        file: PathBuf,
        /// The file's field below [`Credential::field`]: `token.file`.
        field: &'static str,
    },
    /// A key, and the hosts that it may be shown to.
    Ssh {
        /// The private key.
        key_file: PathBuf,
        /// See sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT".
        known_hosts_file: PathBuf,
        /// The user where a URL names none.
        user: String,
    },
}

/// A forge's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forge {
    /// Where its repositories are, as [`RepositoryUrl::key`] begins: `github.com`, `git.example.org:8443`.
    pub host: String,
    /// Whose API it is.
    pub kind: ForgeKind,
    /// The URL that the API's paths begin with; http or https, without credentials and without a slash at its end.
    pub api: String,
}

impl Forge {
    /// Whether `url` is one of its repositories. One without a port is for all ports: ssh has another than https.
    #[must_use]
    pub fn serves(&self, url: &RepositoryUrl) -> bool {
        let authority = url.key().split_once('/').map_or("", |(authority, _)| authority);
        authority == self.host || url.host() == Some(self.host.trim_matches(['[', ']']))
    }
}

/// The beginning of upstreams' addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialMatch {
    /// Only this protocol; https and ssh where unset.
    pub protocol: Option<Protocol>,
    /// What [`RepositoryUrl::key`] begins with: `github.com`, `git.example.org:8443/team`.
    pub key: String,
}

impl CredentialMatch {
    /// Whether it is for `url`. A path ends where a segment ends: `/team` is not for `/teams`.
    #[must_use]
    pub fn covers(&self, url: &RepositoryUrl) -> bool {
        let spoken = match self.protocol {
            Some(protocol) => url.protocol() == protocol,
            None => matches!(url.protocol(), Protocol::Https | Protocol::Ssh),
        };
        let rest = url.key().strip_prefix(&self.key);
        spoken && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for CredentialMatch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let protocol = match scheme {
            None => None,
            Some("https") => Some(Protocol::Https),
            Some("http") => Some(Protocol::Http),
            Some("ssh") => Some(Protocol::Ssh),
            Some(_) => return Err("names none of https, http and ssh".to_owned()),
        };
        if rest.contains('@') {
            return Err("names a user".to_owned());
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (whole, added) = match rest.contains('/') {
            true => (rest.to_owned(), ""),
            // A repository's address has a path.
            false => (format!("{rest}/x"), "/x"),
        };
        let spoken = protocol.unwrap_or(Protocol::Https).word();
        let url: RepositoryUrl = format!("{spoken}://{whole}")
            .parse()
            .map_err(|error: <RepositoryUrl as FromStr>::Err| error.to_string())?;
        let key = url.key().strip_suffix(added).unwrap_or(url.key()).to_owned();
        Ok(Self { protocol, key })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_match_is_for_what_begins_so_and_nothing_else() {
        let covers = |matches: &str, url: &str| {
            let matches: CredentialMatch = matches.parse().unwrap();
            matches.covers(&url.parse().unwrap())
        };
        for (matches, url) in [
            ("github.com", "https://github.com/a/b"),
            ("GitHub.com/Owner/", "https://github.com/owner/b.git"),
            ("github.com", "git@github.com:a/b.git"),
            ("https://git.example.org/team", "https://git.example.org/team/x"),
            ("https://git.example.org:443/team/x", "https://git.example.org/team/x.git"),
            ("git.example.org:8443", "https://git.example.org:8443/x"),
            ("http://127.0.0.1:80", "http://127.0.0.1/x"),
        ] {
            assert!(covers(matches, url), "{matches} {url}");
        }
        for (matches, url) in [
            ("github.com", "http://github.com/a/b"),
            ("github.com", "https://github.com.example.org/a/b"),
            ("github.com", "https://xgithub.com/a/b"),
            ("github.com", "https://github.com:8443/a/b"),
            ("https://git.example.org/team", "https://git.example.org/teams/x"),
            ("https://git.example.org/team", "ssh://git.example.org/team/x"),
            ("https://git.example.org", "http://git.example.org/team"),
            ("git.example.org:8443", "https://git.example.org/x"),
        ] {
            assert!(!covers(matches, url), "{matches} {url}");
        }
        for wrong in ["", "ftp://x", "https://me:pw@x/", "me@x", "a b", "https://", "x/../y"] {
            assert!(wrong.parse::<CredentialMatch>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_user_is_two_numbers() {
        assert_eq!("65532".parse(), Ok(USER_DEFAULT));
        assert_eq!("1:2".parse(), Ok(GitUser { uid: 1, gid: 2 }));
        for wrong in ["", "git", "1:", ":1", "1:2:3", "-1", "+1", "4294967295"] {
            assert!(wrong.parse::<GitUser>().is_err(), "{wrong}");
        }
    }
}
