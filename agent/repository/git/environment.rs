//! What every git child is told, and what it is not.

use super::Command;

/// What is passed on: where programs are, and how the node reaches the network.
pub(super) const ENVIRONMENT: [&str; 13] = [
    "PATH",
    "https_proxy",
    "HTTPS_PROXY",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];

/// Said to every command, beside what depends on it.
pub(super) const FIXED: [(&str, &str); 10] = [
    ("LC_ALL", "C"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_ATTR_NOSYSTEM", "1"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_ASKPASS", ""),
    ("SSH_ASKPASS", ""),
    ("GIT_NO_LAZY_FETCH", "1"),
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("GIT_DEFAULT_REF_FORMAT", "files"),
    // A directory without a repository is no reason to look above it.
    ("GIT_CEILING_DIRECTORIES", "/"),
];

/// Holds for every command. No hook, no prompt, no helper, no upkeep that nobody asked for.
pub(super) const CONFIG: [(&str, &str); 17] = [
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.askPass", ""),
    ("credential.helper", ""),
    // So that a credential for a path is not given for others.
    ("credential.useHttpPath", "true"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("protocol.version", "2"),
    ("advice.detachedHead", "false"),
    ("init.defaultBranch", "main"),
    ("fetch.unpackLimit", "1"),
    ("fetch.writeCommitGraph", "false"),
    ("submodule.recurse", "false"),
    // An upstream that accepts and then says nothing.
    ("http.lowSpeedLimit", "100"),
    ("http.lowSpeedTime", "60"),
    ("transfer.fsckObjects", "true"),
    // Git syncs packs, and renames refs into their place without: after a power cut one can be there and empty, which is a
    // broken store for git.
    ("core.fsync", "reference"),
];

/// Faults that the history of well-known projects has and that harm nobody; see git-fsck(1). What could harm a checkout
/// (`.git` in trees, `.gitmodules`, symlinks in its place) stays fatal.
pub(super) const HARMLESS_FAULTS: [&str; 12] = [
    "badDateOverflow",
    "badEmail",
    "badName",
    "badTimezone",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "multipleAuthors",
    "nulInCommit",
    "zeroPaddedDate",
    "zeroPaddedFilemode",
];

/// The same command, for which faults that harm nobody are none: `section` is `fsck` or `fetch.fsck`.
pub(in crate::repository) fn harmless(command: Command, section: &str) -> Command {
    HARMLESS_FAULTS.iter().fold(command, |command, fault| command.config(format!("{section}.{fault}"), "ignore"))
}

/// The same as an option's value, for `git index-pack --strict=`.
pub(in crate::repository) fn harmless_types() -> String {
    HARMLESS_FAULTS.map(|fault| format!("{fault}=ignore")).join(",")
}
