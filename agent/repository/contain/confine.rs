//! Landlock: which files a git child sees at all, and whether it may speak TCP; see landlock(7).
//!
//! By the kernel's means as they are: what it does not know is left out, and a kernel without any of it runs git under
//! its user and limits alone. File rules need Linux 5.13, TCP 6.7, and that no signal leaves the child's own domain
//! 6.12. Children of one user are kept from one another by it: no domain may trace, read or signal another.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, make_bitflags,
};

/// The newest that is known here; less is used where the kernel knows less.
const ABI_MAX: ABI = ABI::V6;

/// Programs and libraries.
const SYSTEM: [&str; 10] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/etc/alternatives"];

/// How hosts, users and certificates are found.
const LOOKUPS: [&str; 24] = [
    "/etc/ca-certificates",
    "/etc/crypto-policies",
    "/etc/gai.conf",
    "/etc/gnutls",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssh/ssh_known_hosts",
    "/etc/ssh/ssh_known_hosts2",
    "/etc/ssl",
    "/var/lib/ca-certificates",
    "/dev/random",
    "/dev/urandom",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
];

/// Names of variables that name certificates.
const CERTIFICATES: [&str; 4] = ["SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"];

/// What one child needs beside the system.
pub(super) struct Files<'a> {
    pub(super) writes: &'a [PathBuf],
    pub(super) reads: &'a [PathBuf],
    pub(super) program: &'a OsStr,
    /// This program, for git asks it for credentials.
    pub(super) binary: Option<&'a OwnedFd>,
}

/// Restricts this process for good, and says how far the kernel did. It gets no new rights by `exec` either.
pub(super) fn enforce(files: &Files<'_>, network: bool) -> Result<&'static str, RulesetError> {
    let ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI_MAX))?;
    // Git never listens; without a network it speaks to nobody at all.
    let tcp = if network { AccessNet::BindTcp.into() } else { AccessNet::from_all(ABI_MAX) };
    let ruleset = ruleset.handle_access(tcp)?.scope(Scope::from_all(ABI_MAX))?;
    let mut rules = ruleset.create()?;
    let data = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let run = data | AccessFs::Execute;
    // No device, no socket and nothing to run is ever made in a store.
    let write = data
        | make_bitflags!(AccessFs::{WriteFile | Truncate | RemoveFile | RemoveDir | MakeDir | MakeReg | MakeSym | Refer});
    let programs = program_dirs(files.program);
    let given = CERTIFICATES.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let certificates: Vec<PathBuf> = given.filter(|path| path.is_absolute()).collect();
    let paths = |list: &[&'static str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
    for (list, access) in [
        (paths(&SYSTEM), run),
        (programs, run),
        (paths(&LOOKUPS), data),
        (certificates, data),
        (paths(&["/dev/null", "/dev/zero"]), data | AccessFs::WriteFile),
        (files.reads.to_vec(), data),
        (files.writes.to_vec(), write),
    ] {
        for path in list {
            rules = allow(rules, &path, access)?;
        }
    }
    if let Some(binary) = files.binary {
        rules = rules.add_rule(PathBeneath::new(binary.as_fd(), AccessFs::Execute | AccessFs::ReadFile))?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => "landlock keeps its files, TCP and signals",
        RulesetStatus::PartiallyEnforced => "landlock keeps its files as far as this kernel can",
        RulesetStatus::NotEnforced => "this kernel has no landlock",
    })
}

/// What is not there needs no rule.
fn allow(
    rules: landlock::RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(opened) => {
            // The kernel refuses rights of directories for a file.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI_MAX) };
            rules.add_rule(PathBeneath::new(opened, access))
        }
        Err(_) => Ok(rules),
    }
}

/// Where programs are, and the rest of a git that does not lie in the system's places.
fn program_dirs(program: &OsStr) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    let named = Path::new(program);
    let found = match named.is_absolute() {
        true => Some(named.to_owned()),
        false => dirs.iter().map(|dir| dir.join(named)).find(|path| path.is_file()),
    };
    let really = found.and_then(|path| path.canonicalize().ok());
    if let Some(dir) = really.as_deref().and_then(Path::parent) {
        dirs.push(dir.to_owned());
        let prefix = dir.parent().filter(|prefix| dir.ends_with("bin") && prefix.parent().is_some());
        dirs.extend(prefix.into_iter().flat_map(|prefix| ["libexec", "lib", "share"].map(|part| prefix.join(part))));
    }
    dirs
}
