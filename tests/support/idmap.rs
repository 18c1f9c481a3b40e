//! What a container runtime does with a volume of a pod in a user namespace: it makes the namespace, and binds the volume
//! with owners mapped by it.

// No crate wraps mount_setattr(2).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::libc;
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// The first id outside of the namespace, and how many there are.
pub(crate) const FIRST: u32 = 200_000;
const IDS: u32 = 65_536;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// A user namespace; gone when it is dropped.
pub(crate) struct UserNamespace(Child);

impl UserNamespace {
    pub(crate) fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--user", "sh", "-c", "echo; read end"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut ready = [0];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{}/{map}", child.id()), format!("0 {FIRST} {IDS}\n")).unwrap();
        }
        Self(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/user", self.0.id())
    }

    /// Runs a script in it as one of its users; gives whether it succeeded.
    pub(crate) fn runs(&self, user: u32, script: &str) -> bool {
        let mut command = Command::new("nsenter");
        command.args([format!("--user={}", self.path()), format!("--setuid={user}"), format!("--setgid={user}")]);
        command.args(["sh", "-c", script]).stderr(Stdio::null()).status().unwrap().success()
    }

    /// Binds a directory to another with owners mapped.
    pub(crate) fn bind(&self, from: &Path, to: &Path) -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, from, flags)?;
        let namespace = File::open(self.path())?;
        // `struct mount_attr` of the kernel's `include/uapi/linux/mount.h`: set, clear, propagation, namespace.
        let wanted = [MOUNT_ATTR_IDMAP, 0, 0, u64::try_from(namespace.as_raw_fd()).unwrap()];
        // SAFETY: the descriptors are open, the path is a C string that lives for ever, and the kernel reads as many bytes
        // as it is told.
        let outcome = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                wanted.as_ptr(),
                size_of_val(&wanted),
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(move_mount(&tree, c"", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
