//! What git asks when an upstream wants to know who we are; see gitcredentials(7).
//!
//! It answers for the upstreams that the credential is declared for, by the protocol that was meant, and for nothing
//! else: where a redirect leads away, whoever waits there gets nothing.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, Read as _, Write as _};

use stoker_core::source::RepositoryUrl;

use super::Secret;
use crate::config::git::CredentialMatch;

/// The hidden first argument by which git asks this program.
pub(crate) const WORD: &str = "git-credential";
/// More than git ever says of one address.
const QUESTION_BYTES_MAX: u64 = 16 << 10;

/// Answers on standard output, or says nothing. `args` are those after the hidden word: a descriptor, and what git
/// wants. Only `get` has an answer: nothing is stored or forgotten here.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let mut args = args.into_iter().filter_map(|arg| arg.into_string().ok());
    let (Some(descriptor), Some(wanted)) = (args.next().and_then(|text| text.parse().ok()), args.next()) else {
        return 1;
    };
    if wanted != "get" {
        return 0;
    }
    let answer = read(descriptor).map(|secret| answer(&secret, io::stdin().lock()));
    match answer {
        Ok(Some(answer)) => u8::from(io::stdout().write_all(answer.as_bytes()).is_err()),
        Ok(None) => 0,
        Err(_) => 1,
    }
}

/// Through `/proc`, for a description of its own: an inherited descriptor stands where the last reader left it.
fn read(descriptor: u32) -> io::Result<Secret> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/self/fd/{descriptor}"))?.read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The answer to one question, where the secret is meant for it.
fn answer(secret: &Secret, question: impl BufRead) -> Option<String> {
    let Secret::Basic { protocol, key, username, password } = secret else { return None };
    let (mut asked_protocol, mut host, mut path) = (String::new(), String::new(), String::new());
    for line in question.take(QUESTION_BYTES_MAX).lines() {
        let line = line.ok()?;
        match line.split_once('=') {
            Some(("protocol", value)) => value.clone_into(&mut asked_protocol),
            Some(("host", value)) => value.clone_into(&mut host),
            Some(("path", value)) => value.clone_into(&mut path),
            None if line.is_empty() => break,
            _ => {}
        }
    }
    if asked_protocol != *protocol {
        return None;
    }
    let url: RepositoryUrl = format!("{asked_protocol}://{host}/{path}").parse().ok()?;
    let meant = CredentialMatch { protocol: Some(url.protocol()), key: key.clone() };
    meant.covers(&url).then(|| format!("username={username}\npassword={password}\n"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_whom_it_is_meant_for_gets_an_answer() {
        let secret = Secret::Basic {
            protocol: "https".to_owned(),
            key: "git.example.org/team".to_owned(),
            username: "ci".to_owned(),
            password: "hidden".to_owned(),
        };
        let ask = |question: &str| answer(&secret, question.as_bytes());
        let given = Some("username=ci\npassword=hidden\n".to_owned());
        assert_eq!(ask("protocol=https\nhost=git.example.org\npath=team/a.git\n\n"), given);
        assert_eq!(ask("capability[]=authtype\nhost=git.example.org:443\npath=team/a\nprotocol=https\n"), given);
        for other in [
            "protocol=http\nhost=git.example.org\npath=team/a.git\n\n",
            "protocol=https\nhost=evil.example.org\npath=team/a.git\n\n",
            "protocol=https\nhost=git.example.org.evil.org\npath=team/a.git\n\n",
            "protocol=https\nhost=git.example.org:8443\npath=team/a.git\n\n",
            "protocol=https\nhost=git.example.org\npath=teams/a.git\n\n",
            "protocol=https\nhost=git.example.org\npath=team/../other\n\n",
            "protocol=https\nhost=git.example.org\n\n",
            "protocol=https\nhost=x@git.example.org\npath=team/a\n\n",
            "",
        ] {
            assert_eq!(ask(other), None, "{other}");
        }
    }
}
