//! How git children are kept, and the credentials that they get.

use std::collections::BTreeMap;
use std::path::PathBuf;

use stoker_core::source::Protocol;

use super::text;
use crate::config::file::{CredentialSection, GitSection};
use crate::config::git::{Credential, CredentialMatch, GitChild, GitUser, SecretFiles};
use crate::config::problem::{Fault, Place, Problems, shown};

/// The most credentials.
const CREDENTIALS_MAX: usize = 256;
/// Less than this, and git cannot even check small packs.
const MEMORY_BYTES_MIN: u64 = 256 << 20;

/// Of a socket's address.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What git children may do.
pub(super) fn child(section: &GitSection, place: &Place<'_>, problems: &mut Problems) -> GitChild {
    let user = section.user.as_deref().and_then(|text| {
        let user = text.parse::<GitUser>().ok();
        if user.is_none() {
            let fault = Fault::new(format!("{} is not a user", shown(text)), "write numbers as \"65532:65532\"");
            problems.add(&place.field("user"), fault);
        }
        user
    });
    let memory = section.memory.bytes().and_then(|bytes| match bytes {
        MEMORY_BYTES_MIN.. => Ok(bytes),
        _ => Err(Fault::new(format!("is {}", section.memory.0), "write 256MiB or more")),
    });
    let processes = match section.processes {
        64..=1_000_000 => Ok(section.processes),
        other => Err(Fault::new(format!("is {other}"), "write a number from 64 to 1000000")),
    };
    let helper = section.helper.as_deref().map(|path| problems.take(&place.field("helper"), socket(path)));
    if let (Some(_), Some(GitUser { uid: 0, .. })) = (&helper, user) {
        let fault = Fault::new("is root, which a helper never is", "name another, or remove `helper`");
        problems.add(&place.field("user"), fault);
    }
    GitChild {
        user,
        helper,
        memory_bytes: problems.take(&place.field("memory"), memory),
        processes: problems.take(&place.field("processes"), processes),
        personal: false,
    }
}

/// A path that an address of a socket holds; see unix(7).
fn socket(path: &str) -> Result<PathBuf, Fault> {
    match text::absolute(path) {
        Ok(path) if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => {
            let fault = format!("has {} bytes", path.as_os_str().len());
            Err(Fault::new(fault, format!("write a path of at most {SOCKET_PATH_BYTES_MAX}")))
        }
        checked => checked,
    }
}

/// The credentials.
pub(super) fn credentials(
    sections: &[CredentialSection],
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<Credential> {
    if sections.len() > CREDENTIALS_MAX {
        let message = format!("has {} credentials", sections.len());
        problems.add(place, Fault::new(message, format!("declare at most {CREDENTIALS_MAX}")));
        return Vec::new();
    }
    let mut lines = BTreeMap::new();
    let mut all = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let here = place.entry(index);
        let at = here.field("match");
        let matches: CredentialMatch = match section.matches.parse() {
            Ok(matches) => matches,
            Err(why) => {
                let message =
                    format!("{} is not the beginning of upstreams' addresses: {why}", shown(&section.matches));
                let remedy = "write a host as `github.com`, or a URL as `https://git.example.org/team`";
                problems.add(&at, Fault::new(message, remedy));
                continue;
            }
        };
        let Some(secret) = secret(section, &here, problems) else { continue };
        let ssh = matches!(secret, SecretFiles::Ssh { .. });
        let fits = match matches.protocol {
            None => true,
            Some(protocol) => ssh == (protocol == Protocol::Ssh),
        };
        if !fits {
            let kind = if ssh { "`ssh` is for ssh://" } else { "`token` and `basic` are for https:// and http://" };
            let message = format!("{} does not go with what is declared for it: {kind}", shown(&section.matches));
            problems.add(&at, Fault::new(message, "write another scheme, or none"));
        }
        let trust = classes(section, &here, problems);
        let key = |class: &String| (matches.protocol.map(Protocol::word), matches.key.clone(), ssh, class.clone());
        let before: Vec<_> = trust.iter().filter_map(|class| lines.insert(key(class), at.line())).collect();
        if let Some(line) = before.first() {
            let message = format!("{} is the match of line {line} too", shown(&section.matches));
            problems.add(&at, Fault::new(message, "keep one of them for each trust class"));
        }
        all.push(Credential { field: here.path().to_owned(), matches, trust, secret });
    }
    all
}

/// The trust classes that it is for, each once.
fn classes(section: &CredentialSection, place: &Place<'_>, problems: &mut Problems) -> Vec<String> {
    let at = place.field("trust");
    let mut trust = text::classes(&section.trust, &at, problems);
    if section.trust.is_empty() {
        problems
            .add(&at, Fault::new("names no trust class", "name those it is for, as `[default]`, or remove `trust`"));
    }
    trust.sort();
    trust.dedup();
    trust
}

/// The one kind that is declared.
fn secret(section: &CredentialSection, place: &Place<'_>, problems: &mut Problems) -> Option<SecretFiles> {
    let mut path = |field: &Place<'_>, text: &str| problems.take::<PathBuf>(field, text::absolute(text));
    let found = match (&section.token, &section.basic, &section.ssh) {
        (Some(token), None, None) => SecretFiles::Basic {
            username: token.username.clone(),
            file: path(&place.field("token").field("file"), &token.file),
            field: "token.file",
        },
        (None, Some(basic), None) => SecretFiles::Basic {
            username: basic.username.clone(),
            file: path(&place.field("basic").field("passwordFile"), &basic.password_file),
            field: "basic.passwordFile",
        },
        (None, None, Some(ssh)) => SecretFiles::Ssh {
            key_file: path(&place.field("ssh").field("keyFile"), &ssh.key_file),
            known_hosts_file: path(&place.field("ssh").field("knownHostsFile"), &ssh.known_hosts_file),
            user: ssh.user.clone(),
        },
        _ => {
            let fault = Fault::new("has not exactly one of `token`, `basic` and `ssh`", "write one of them");
            problems.add(place, fault);
            return None;
        }
    };
    let (name, at) = match &found {
        SecretFiles::Basic { username, field, .. } => {
            let kind = if *field == "token.file" { "token" } else { "basic" };
            (username, place.field(kind).field("username"))
        }
        SecretFiles::Ssh { user, .. } => (user, place.field("ssh").field("user")),
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    let ssh = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fine = match &found {
        SecretFiles::Basic { .. } => name.bytes().all(plain),
        SecretFiles::Ssh { .. } => name.bytes().all(ssh) && !name.starts_with('-'),
    };
    if name.is_empty() || !fine {
        let fault = Fault::new(format!("{} is not a user name", shown(name)), "write visible characters without ':'");
        problems.add(&at, fault);
    }
    Some(found)
}
