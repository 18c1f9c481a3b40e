//! How a git child can end, and which reason that is for callers.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use stoker_core::reason::{Code, Reason};

/// Why a git command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// It did not start.
    #[error("git does not start: {0}; install git 2.39 or newer")]
    Start(#[source] std::io::Error),
    /// It is too old, or not git.
    #[error("git must be 2.39 or newer, this is {0:?}")]
    Version(String),
    /// It was not started, for a reason of its own.
    #[error("{}", .0.message)]
    Refused(Reason),
    /// What stands around a command failed on the disk.
    #[error("{0}")]
    Disk(#[source] std::io::Error),
    /// It took too long and was ended.
    #[error("git was ended after {} s", .0.as_secs())]
    TimedOut(Duration),
    /// It was ended because the agent stops.
    #[error("git was ended because the agent stops")]
    Cancelled,
    /// It printed more than it may.
    #[error("git printed more than {0} bytes")]
    TooMuch(usize),
    /// It ended with a status other than 0.
    #[error("git: {line} ({status})")]
    Failed {
        /// Its status.
        status: ExitStatus,
        /// What its last lines mean.
        code: Code,
        /// The line that tells people most; no secrets in it.
        line: String,
        /// The last lines of standard error.
        stderr: String,
        /// What it printed before.
        stdout: Vec<u8>,
    },
}

/// What is said of an upstream that redirects.
const MOVED: &str = "; it redirects: use the address that it redirects to (often the same with .git)";
/// How git tells that a child of its own was killed.
const KILLED: &str = "died of signal";

/// What git and its helpers say (in `LC_ALL=C`), in lower case, and what that means. The first that matches wins.
const SIGNS: [(&str, Code); 53] = [
    ("cannot be contained", Code::ContainmentReduced),
    ("no user exists for uid", Code::ContainmentReduced),
    ("out of memory", Code::GitMemoryLimit),
    ("cannot allocate memory", Code::GitMemoryLimit),
    ("no space left on device", Code::DiskFloor),
    ("out of diskspace", Code::DiskFloor),
    // A store's first file: git writes it and does not say why it could not.
    ("could not set 'core.", Code::DiskFloor),
    ("disk quota exceeded", Code::DiskFloor),
    ("read-only file system", Code::PoolNotReady),
    // Of a work tree: git does not say why either.
    ("unable to write file", Code::DiskFloor),
    // One that was killed says nothing of what it was looking at, whatever git makes of its silence.
    (KILLED, Code::GitKilled),
    ("dubious ownership", Code::RepositoryForeignOwner),
    ("source repository is shallow", Code::RepositoryShallow),
    ("shallow update not allowed", Code::RepositoryShallow),
    ("not our ref", Code::CommitNotFound),
    ("unadvertised object", Code::CommitNotFound),
    ("couldn't find remote ref", Code::RefNotFound),
    ("mismatched algorithms", Code::ObjectFormatUnsupported),
    ("unsupported object format", Code::ObjectFormatUnsupported),
    ("unknown repository extension", Code::ObjectFormatUnsupported),
    // It speaks another protocol than it said.
    ("', received '", Code::UpstreamUnreachable),
    // The store itself, which every command here is in.
    ("not a git repository: '.'", Code::RepositoryCorrupt),
    ("fatal: object ", Code::RepositoryCorrupt),
    ("fsck error", Code::RepositoryCorrupt),
    ("object corrupt or missing", Code::RepositoryCorrupt),
    ("loose object", Code::RepositoryCorrupt),
    ("object file", Code::RepositoryCorrupt),
    ("unable to read tree", Code::RepositoryCorrupt),
    ("bad object", Code::RepositoryCorrupt),
    ("packfile", Code::RepositoryCorrupt),
    ("did not send all necessary objects", Code::RepositoryCorrupt),
    ("did not receive expected object", Code::RepositoryCorrupt),
    ("not found", Code::UpstreamNotFound),
    ("does not appear to be a git repository", Code::UpstreamNotFound),
    ("does not exist", Code::UpstreamNotFound),
    ("no such file or directory", Code::UpstreamNotFound),
    ("error: 401", Code::UpstreamUnauthorized),
    ("error: 403", Code::UpstreamUnauthorized),
    ("error: 404", Code::UpstreamNotFound),
    ("error: 301", Code::UpstreamNotFound),
    ("error: 302", Code::UpstreamNotFound),
    ("error: 307", Code::UpstreamNotFound),
    ("error: 308", Code::UpstreamNotFound),
    ("authentication failed", Code::UpstreamUnauthorized),
    ("could not read username", Code::UpstreamUnauthorized),
    ("terminal prompts disabled", Code::UpstreamUnauthorized),
    ("permission denied (", Code::UpstreamUnauthorized),
    ("host key verification failed", Code::UpstreamUntrusted),
    ("ssl certificate problem", Code::UpstreamUntrusted),
    ("certificate verification failed", Code::UpstreamUntrusted),
    ("timed out", Code::UpstreamTimeout),
    ("operation too slow", Code::UpstreamTimeout),
    ("timeout", Code::UpstreamTimeout),
];

impl GitError {
    pub(super) fn failed(status: ExitStatus, stderr: String, stdout: Vec<u8>) -> Self {
        // Who was killed itself says nothing, or half of what it had to say.
        let code = if status.signal().is_some() { Code::GitKilled } else { classify(&stderr) };
        // What git makes of the silence of a child that was killed (objects that upstream did not send) is not so.
        let killed = stderr.lines().map(str::trim).find(|line| code == Code::GitKilled && line.contains(KILLED));
        let line = redact(killed.or_else(|| telling_line(&stderr)).unwrap_or("ended without a word"));
        Self::Failed { status, code, line, stderr: redact(&stderr), stdout }
    }

    /// What it means.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Start(_) | Self::Version(_) | Self::Cancelled => Code::UpstreamUnreachable,
            Self::Disk(error) if error.kind() == std::io::ErrorKind::StorageFull => Code::DiskFloor,
            Self::Disk(_) => Code::PoolNotReady,
            Self::TimedOut(_) => Code::UpstreamTimeout,
            Self::TooMuch(_) => Code::UpstreamUnreachable,
            Self::Refused(reason) => reason.code,
            Self::Failed { code, .. } => *code,
        }
    }

    /// Whether this reason is that upstream redirects.
    #[must_use]
    pub(in crate::repository) fn tells_of_a_move(reason: &Reason) -> bool {
        reason.message.ends_with(MOVED)
    }

    /// The reason for callers; `doing` begins the sentence: `asking https://host/path for its refs`.
    #[must_use]
    pub fn reason(&self, subject: &str, doing: &str) -> Reason {
        let hint = match self {
            Self::Refused(reason) => return reason.clone(),
            Self::Failed { code: Code::GitMemoryLimit, .. } => {
                "; it needs more than `repositories.git.memory` allows: raise that"
            }
            Self::Failed { code: Code::GitKilled, .. } => "; the kernel's log says whether memory was short",
            Self::Failed { code: Code::UpstreamUnauthorized, .. } => {
                "; declare who we are to it in `repositories.credentials` for the repository's trust class, or renew \
                 the secret that is there"
            }
            Self::Failed { code: Code::UpstreamUntrusted, .. } => "; it is not who it should be, or its key is new",
            Self::Failed { code: Code::ContainmentReduced, stderr, .. } if stderr.contains("No user exists") => {
                "; ssh wants its user in /etc/passwd: add one with that number, or name another in \
                 `repositories.git.user`"
            }
            Self::Failed { line, .. }
                if ["301", "302", "307", "308"].iter().any(|s| line.contains(&format!("error: {s}"))) =>
            {
                MOVED
            }
            Self::Failed { code: Code::RepositoryShallow, .. } => "; run `git fetch --unshallow` there",
            Self::Failed { code: Code::RepositoryForeignOwner, .. } => "; make the agent's user its owner",
            Self::Failed { code: Code::ObjectFormatUnsupported, .. } => {
                "; only repositories with SHA-1 names are served"
            }
            _ => "",
        };
        Reason::new(self.code(), subject, format!("{doing}: {self}{hint}"))
    }

    /// Whether the machine kept it from its end: it says nothing of the objects that it was looking at.
    #[must_use]
    pub(in crate::repository) fn is_of_the_machine(&self) -> bool {
        match self {
            Self::Failed { code, .. } => {
                matches!(code, Code::GitKilled | Code::GitMemoryLimit | Code::DiskFloor | Code::PoolNotReady)
            }
            _ => true,
        }
    }

    /// Whether what failed may be damage in our own store, rather than in what upstream sent.
    #[must_use]
    pub(in crate::repository) fn is_store_damage(&self) -> bool {
        let Self::Failed { code: Code::RepositoryCorrupt, stderr, .. } = self else { return false };
        let stderr: String =
            stderr.lines().filter(|line| !is_of_upstream(line)).flat_map(|line| [line, "\n"]).collect();
        // A ref of ours names what is not there. Git then says that upstream sent too little, for it looks at both together.
        if stderr.contains("bad object refs/") {
            return true;
        }
        // What `index-pack` says of the pack that comes.
        let came = [
            "fsck error",
            "did not send all necessary objects",
            "did not receive expected object",
            "pack has bad object",
            "fatal: object of unexpected type",
            "fatal: object type mismatch",
            "pack is corrupted",
        ];
        !came.iter().any(|sign| stderr.contains(sign))
    }
}

/// What only an upstream or the way to it makes git say.
const NETWORK_SIGNS: [&str; 8] = [
    "could not resolve host",
    "unable to access",
    "rpc failed",
    "remote error",
    "hung up",
    "failed to connect",
    "early eof",
    "could not read from remote",
];

impl GitError {
    /// Whether it is about upstream, or the way there.
    pub(in crate::repository) fn speaks_of_network(&self) -> bool {
        let Self::Failed { stderr, .. } = self else { return true };
        let text = stderr.to_lowercase();
        NETWORK_SIGNS.iter().any(|sign| text.contains(sign))
    }
}

/// Whether a line is what upstream said, and git only passes on.
fn is_of_upstream(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("remote:") || line.starts_with("fatal: remote error:")
}

/// What upstream says is believed of what it has, and whether it shows it. Of our own disk, store and limits git tells.
fn classify(stderr: &str) -> Code {
    let own: String = stderr.lines().filter(|line| !is_of_upstream(line)).flat_map(|line| [line, "\n"]).collect();
    let told = match classify_all(&own) {
        Code::UpstreamUnreachable => classify_all(stderr),
        code => return code,
    };
    match told {
        Code::UpstreamNotFound | Code::UpstreamUnauthorized | Code::CommitNotFound | Code::RefNotFound => told,
        _ => Code::UpstreamUnreachable,
    }
}

fn classify_all(stderr: &str) -> Code {
    let text = stderr.to_lowercase();
    // A host that has no address is not a repository that is not there.
    if text.contains("could not resolve host") || text.contains("name or service not known") {
        return Code::UpstreamUnreachable;
    }
    SIGNS.iter().find(|(sign, _)| text.contains(sign)).map_or(Code::UpstreamUnreachable, |(_, code)| *code)
}

/// The first `fatal:` or `error:` line: those after it are mostly its consequences.
fn telling_line(stderr: &str) -> Option<&str> {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let begins = |word: &'static str| lines().find(move |line| line.starts_with(word));
    begins("fatal:").or_else(|| begins("error:")).or_else(|| begins("ERROR:")).or_else(|| lines().next_back())
}

/// Removes `user:password@` from every URL in the text.
fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = after.find(|c: char| c == '/' || c.is_whitespace() || c == '\'' || c == '"').unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        out.push_str(authority.rsplit('@').next().unwrap_or(authority));
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_says_nothing_of_our_own_disk() {
        for (stderr, code) in [
            ("remote: fatal: write error: No space left on device\nfatal: early EOF", Code::UpstreamUnreachable),
            ("remote: fatal: bad object refs/heads/x\nfatal: protocol error", Code::UpstreamUnreachable),
            ("fatal: remote error: out of memory", Code::UpstreamUnreachable),
            ("remote: Repository not found.\nfatal: it is odd", Code::UpstreamNotFound),
            ("fatal: object 00 not found", Code::RepositoryCorrupt),
            ("fatal: not a git repository: '.'", Code::RepositoryCorrupt),
        ] {
            assert_eq!(classify(stderr), code, "{stderr}");
        }
    }

    #[test]
    fn a_child_that_was_killed_is_told_as_that() {
        let stderr = "error: index-pack died of signal 9\nfatal: remote did not send all necessary objects\n";
        let status = <ExitStatus as std::os::unix::process::ExitStatusExt>::from_raw(128 << 8);
        let error = GitError::failed(status, stderr.to_owned(), Vec::new());
        assert_eq!(error.code(), Code::GitKilled);
        let told = error.reason("x", "fetching x").message;
        assert!(told.contains("index-pack died of signal 9") && !told.contains("necessary"), "{told}");
    }

    #[test]
    fn what_git_says_becomes_a_code() {
        for (stderr, code) in [
            ("fatal: unable to access 'https://x/': Could not resolve host: x", Code::UpstreamUnreachable),
            (
                "fatal: unable to access 'http://x/': Failed to connect to x port 1: Connection refused",
                Code::UpstreamUnreachable,
            ),
            ("fatal: repository 'http://x/a/' not found", Code::UpstreamNotFound),
            (
                "fatal: could not read Username for 'https://github.com': terminal prompts disabled",
                Code::UpstreamUnauthorized,
            ),
            ("fatal: Authentication failed for 'https://x/a/'", Code::UpstreamUnauthorized),
            (
                "fatal: unable to access 'https://x/a/': The requested URL returned error: 403",
                Code::UpstreamUnauthorized,
            ),
            ("git@x: Permission denied (publickey).", Code::UpstreamUnauthorized),
            ("Host key verification failed.\nfatal: Could not read from remote repository.", Code::UpstreamUntrusted),
            ("fatal: unable to access 'https://x/': SSL certificate problem: self-signed", Code::UpstreamUntrusted),
            (
                "fatal: Out of memory, malloc failed (tried to allocate 9 bytes)\nfatal: invalid index-pack output",
                Code::GitMemoryLimit,
            ),
            ("No user exists for uid 65532", Code::ContainmentReduced),
            ("fatal: '/x' does not appear to be a git repository", Code::UpstreamNotFound),
            ("error: Server does not allow request for unadvertised object 0", Code::CommitNotFound),
            ("fatal: remote error: upload-pack: not our ref 00", Code::CommitNotFound),
            ("fatal: write error: No space left on device", Code::DiskFloor),
            ("fatal: fsck error in packed object", Code::RepositoryCorrupt),
            ("error: rev-list died of signal 9\nerror: http://x/a did not send all necessary objects", Code::GitKilled),
            ("ssh: connect to host x port 22: Connection timed out", Code::UpstreamTimeout),
            ("", Code::UpstreamUnreachable),
        ] {
            assert_eq!(classify(stderr), code, "{stderr}");
        }
    }

    #[test]
    fn a_broken_ref_of_the_store_is_its_damage_and_a_poor_pack_is_not() {
        use std::os::unix::process::ExitStatusExt as _;
        let failed = |line: &str| {
            let stderr = format!("{line}\nerror: http://x/a did not send all necessary objects\n");
            GitError::failed(ExitStatus::from_raw(1 << 8), stderr, Vec::new())
        };
        assert!(failed("fatal: bad object refs/namespaces/x-a-0/refs/heads/main").is_store_damage());
        assert!(!failed("fatal: bad object 1234567890123456789012345678901234567890").is_store_damage());
    }

    #[test]
    fn no_password_is_kept() {
        let text = "fatal: unable to access 'https://me:pw@host/a': https://t@x/ ssh://git@h";
        assert_eq!(redact(text), "fatal: unable to access 'https://host/a': https://x/ ssh://h");
    }
}
