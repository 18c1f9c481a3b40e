//! Who we are to upstreams: read from files at each use, given to whom they are meant for, and shown to nobody.
//!
//! A secret lives in the file that the operator mounts, for a moment in the agent, and then in the memory of the git
//! children that need it ([`handover`]): never in arguments, environments, URLs, configurations, logs, or files of ours.

pub(crate) mod handover;
pub(crate) mod helper;

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use serde::{Deserialize, Serialize};
use stoker_core::reason::{Code, Reason};
use stoker_core::source::{Protocol, RepositoryUrl};

use super::fetch::blocking;
use crate::config;
use crate::config::git::{Credential, SecretFiles};

/// The longest token, password or key, and the longest list of hosts. A file of known hosts is read whole.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// The declared credentials of one trust class. Without one that fits, none is used.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    declared: Vec<Credential>,
}

/// A user name and a password. What it is never shows in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Basic {
    /// The user name.
    pub user: String,
    /// The password or token.
    pub password: String,
}

impl fmt::Debug for Basic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Basic").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Basic {
    /// As HTTP takes it (RFC 7617), and as nobody prints it.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let plain = format!("{}:{}", self.user, self.password);
        let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(plain))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// What one git child gets.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum Secret {
    /// For git's question who we are.
    Basic {
        /// The scheme that it may be sent by.
        protocol: String,
        /// What [`RepositoryUrl::key`] must begin with, as in the declaration.
        key: String,
        username: String,
        password: String,
    },
    /// For ssh.
    Ssh { key: String, known_hosts: String, user: String },
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Credentials {
    /// Those that the configuration declares for repositories of this trust class. There is no way to all of them:
    /// who names a repository within one class must not be served with the secret of another.
    #[must_use]
    pub fn of(config: &config::Repositories, trust: &str) -> Self {
        let is_for = |credential: &&Credential| credential.trust.iter().any(|class| class == trust);
        Self { declared: config.credentials.iter().filter(is_for).cloned().collect() }
    }

    /// The user name and password for `url`, where they are declared. Read from their file now; blocks for a moment.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn basic_for(&self, url: &RepositoryUrl) -> Result<Option<Basic>, Reason> {
        match self.secret_for(url)? {
            Some(Secret::Basic { username, password, .. }) => Ok(Some(Basic { user: username, password })),
            Some(Secret::Ssh { .. }) | None => Ok(None),
        }
    }

    /// The header that says to `url` who we are, where that is declared.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(super) async fn header_for(&self, url: &RepositoryUrl) -> Result<Option<HeaderValue>, Reason> {
        if self.for_url(url).is_none() {
            return Ok(None);
        }
        let (own, of) = (self.clone(), url.clone());
        let basic = blocking(url.key(), move || own.basic_for(&of)).await??;
        Ok(basic.and_then(|basic| basic.header()))
    }

    /// The header by which an API at `url` takes a token, where one is declared. A password is for git alone.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(super) async fn bearer_for(&self, url: &RepositoryUrl) -> Result<Option<HeaderValue>, Reason> {
        let is_token = |secret: &SecretFiles| matches!(secret, SecretFiles::Basic { field: "token.file", .. });
        if !self.for_url(url).is_some_and(|credential| is_token(&credential.secret)) {
            return Ok(None);
        }
        let (own, of) = (self.clone(), url.clone());
        let basic = blocking(url.key(), move || own.basic_for(&of)).await??;
        Ok(basic.and_then(|basic| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", basic.password)).ok()?;
            value.set_sensitive(true);
            Some(value)
        }))
    }

    /// What a git child that speaks with `url` gets. Reads files.
    pub(super) fn secret_for(&self, url: &RepositoryUrl) -> Result<Option<Secret>, Reason> {
        let Some(credential) = self.for_url(url) else { return Ok(None) };
        let read = |file: &Path, field: &str| {
            read_text(file).map_err(|why| {
                let message = format!(
                    "{}.{field}: {}: {why}; {url} is not asked without it: mend the file, it is read at each use",
                    credential.field,
                    file.display()
                );
                Reason::new(Code::CredentialUnreadable, url.key(), message)
            })
        };
        Ok(Some(match &credential.secret {
            SecretFiles::Basic { username, file, field } => {
                let password = read(file, field)?;
                let password = password.trim_end_matches(['\n', '\r']);
                if password.is_empty() || password.contains(['\n', '\r']) {
                    let what = if password.is_empty() { "is empty" } else { "has more than one line" };
                    let message =
                        format!("{}.{field}: {} {what}; write the secret alone", credential.field, file.display());
                    return Err(Reason::new(Code::CredentialUnreadable, url.key(), message));
                }
                Secret::Basic {
                    protocol: url.protocol().word().to_owned(),
                    key: credential.matches.key.clone(),
                    username: username.clone(),
                    password: password.to_owned(),
                }
            }
            SecretFiles::Ssh { key_file, known_hosts_file, user } => {
                let mut key = read(key_file, "ssh.keyFile")?;
                // OpenSSH takes no key whose last line does not end.
                if !key.ends_with('\n') {
                    key.push('\n');
                }
                Secret::Ssh { key, known_hosts: read(known_hosts_file, "ssh.knownHostsFile")?, user: user.clone() }
            }
        }))
    }

    /// The declaration for `url`: of those that fit the longest, and of two as long the one that names its scheme.
    fn for_url(&self, url: &RepositoryUrl) -> Option<&Credential> {
        let ssh = url.protocol() == Protocol::Ssh;
        let fits = |credential: &&Credential| {
            credential.matches.covers(url) && ssh == matches!(credential.secret, SecretFiles::Ssh { .. })
        };
        self.declared
            .iter()
            .filter(fits)
            .max_by_key(|credential| (credential.matches.key.len(), credential.matches.protocol.is_some()))
    }
}

/// The text of a file of bounded size. What it says of a failure never repeats the content.
fn read_text(file: &Path) -> Result<String, String> {
    let opened = fs::File::open(file).map_err(|error| plain(&error))?;
    if !opened.metadata().map_err(|error| plain(&error))?.is_file() {
        return Err("is no file".to_owned());
    }
    let mut bytes = Vec::new();
    // One byte more than the bound shows that there is more.
    opened.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| plain(&error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > SECRET_BYTES_MAX {
        return Err(format!("has more than {SECRET_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not text".to_owned())
}

fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "is not there".to_owned(),
        io::ErrorKind::PermissionDenied => "may not be read by the agent".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn declared(dir: &Path) -> Credentials {
        let basic = |index: usize, matches: &str, name: &str| Credential {
            field: format!("repositories.credentials[{index}]"),
            matches: matches.parse().unwrap(),
            trust: vec!["default".to_owned()],
            secret: SecretFiles::Basic { username: name.to_owned(), file: dir.join(name), field: "token.file" },
        };
        let ssh = Credential {
            field: "repositories.credentials[9]".to_owned(),
            matches: "example.org".parse().unwrap(),
            trust: vec!["default".to_owned()],
            secret: SecretFiles::Ssh {
                key_file: dir.join("key"),
                known_hosts_file: dir.join("hosts"),
                user: "git".to_owned(),
            },
        };
        let all = [
            basic(0, "example.org/team", "team"),
            basic(1, "example.org", "all"),
            basic(2, "https://example.org/team", "scheme"),
            basic(3, "example.org/team/deep/er", "deeper"),
            ssh,
        ];
        Credentials { declared: all.to_vec() }
    }

    fn url(text: &str) -> RepositoryUrl {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_match_wins_and_files_are_read_at_each_use() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = declared(dir.path());
        for name in ["team", "all", "scheme", "deeper"] {
            fs::write(dir.path().join(name), format!("of-{name}\r\n")).unwrap();
        }
        let password = |text: &str| credentials.basic_for(&url(text)).unwrap().map(|basic| basic.password);
        assert_eq!(password("https://example.org/a").as_deref(), Some("of-all"));
        assert_eq!(password("https://example.org/team/a").as_deref(), Some("of-scheme"));
        assert_eq!(password("https://example.org/team/deep/er.git").as_deref(), Some("of-deeper"));
        assert_eq!(password("https://example.org/team/deep/erst").as_deref(), Some("of-scheme"));
        assert_eq!(password("http://example.org/a"), None, "not in the clear");
        assert_eq!(password("https://other.org/a"), None);
        assert_eq!(password("file:///example.org/a"), None);
        fs::write(dir.path().join("all"), "new").unwrap();
        assert_eq!(password("https://example.org/a").as_deref(), Some("new"));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_its_field() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = declared(dir.path());
        let file = dir.path().join("all");
        let refused = || credentials.basic_for(&url("https://example.org/a")).unwrap_err();
        let long = "x".repeat(usize::try_from(SECRET_BYTES_MAX).unwrap() + 1);
        for (content, says) in [
            (None, "is not there"),
            (Some(""), "is empty"),
            (Some("\n"), "is empty"),
            (Some("hidden\nsecond"), "more than one line"),
            (Some(long.as_str()), "more than 65536 bytes"),
        ] {
            if let Some(content) = content {
                fs::write(&file, content).unwrap();
            }
            let reason = refused();
            assert_eq!(reason.code, Code::CredentialUnreadable);
            assert!(reason.message.starts_with("repositories.credentials[1].token.file: "), "{reason:?}");
            assert!(reason.message.contains(says) && !reason.message.contains("hidden"), "{reason:?}");
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(refused().message.contains("is no file"));
    }

    #[test]
    fn ssh_gets_its_key_and_its_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = declared(dir.path());
        let url = url("git@example.org:team/a");
        let reason = credentials.secret_for(&url).unwrap_err();
        assert!(reason.message.contains("repositories.credentials[9].ssh.keyFile"), "{reason:?}");
        fs::write(dir.path().join("key"), "key").unwrap();
        fs::write(dir.path().join("hosts"), "hosts\n").unwrap();
        let Some(Secret::Ssh { key, known_hosts, user }) = credentials.secret_for(&url).unwrap() else { panic!() };
        assert_eq!((key.as_str(), known_hosts.as_str(), user.as_str()), ("key\n", "hosts\n", "git"));
        assert_eq!(credentials.basic_for(&url).unwrap(), None);
    }

    #[test]
    fn no_secret_is_ever_shown() {
        let basic = Basic { user: "ci".to_owned(), password: "hidden".to_owned() };
        assert_eq!(format!("{basic:?}"), "Basic { user: \"ci\", .. }");
        let secret = Secret::Ssh { key: "hidden".to_owned(), known_hosts: String::new(), user: String::new() };
        assert_eq!(format!("{:?}", Some(secret)), "Some(Secret)");
    }
}
