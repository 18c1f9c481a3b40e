//! A real `stoker controller`, as a process of its own.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;

use super::objects::{NAMESPACE, SERVICE};
use crate::support::stoker::{BINARY, http_get};
use crate::support::{free_port, process_ended};

/// The object of which the leader writes that it leads.
pub(crate) const ELECTION: &str = "stoker-controller";

/// One of the replicas, running, stopped or ended.
pub(crate) struct Controller {
    pub(crate) identity: String,
    home: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    http: u16,
    stopped: bool,
}

impl Controller {
    pub(crate) fn new(home: &Path, identity: &str, more: &[String]) -> Self {
        let http = free_port();
        let mut arguments: Vec<String> = [
            ("--agents", format!("{NAMESPACE}/{SERVICE}")),
            ("--lease", format!("{NAMESPACE}/{ELECTION}")),
            ("--identity", identity.to_owned()),
            ("--http", format!("127.0.0.1:{http}")),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        arguments.extend_from_slice(more);
        Self { identity: identity.to_owned(), home: home.to_owned(), arguments, child: None, http, stopped: false }
    }

    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.identity);
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        // As many files as a container may open at first with the container runtimes of today; and none outlives a bench
        // that is killed.
        let mut command = Command::new("/bin/sh");
        let run = "ulimit -Sn 1024; exec setpriv --pdeathsig KILL \"$0\" \"$@\"";
        command.args(["-c", run, BINARY, "controller"]).args(&self.arguments);
        command.env_clear().env("HOME", &self.home);
        command.env("KUBECONFIG", self.home.join("kubeconfig")).env("RUST_LOG", "info");
        command.process_group(0).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        self.stopped = false;
    }

    fn log_path(&self) -> PathBuf {
        self.home.join(format!("{}.log", self.identity))
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    pub(crate) fn runs(&self) -> bool {
        self.child.as_ref().is_some_and(|child| !process_ended(child.id()))
    }

    /// Nobody ended it, and it runs no more.
    pub(crate) fn ended_by_itself(&self) -> bool {
        self.child.is_some() && !self.runs()
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        }
    }

    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGSTOP);
        self.stopped = true;
    }

    pub(crate) fn go_on(&mut self) {
        self.signal(Signal::SIGCONT);
        self.stopped = false;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            child.wait().unwrap();
        }
    }

    /// Told to end, it gives the lead away before it does.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    pub(crate) fn metrics(&self) -> String {
        http_get(self.http, "/metrics").map(|(_, text)| text).unwrap_or_default()
    }

    fn process(&self) -> Option<Process> {
        Process::new(self.child.as_ref()?.id().cast_signed()).ok()
    }

    /// Resident memory now, and the most so far, in bytes.
    pub(crate) fn memory(&self) -> Option<(u64, u64)> {
        let status = self.process()?.status().ok()?;
        Some((status.vmrss? << 10, status.vmhwm? << 10))
    }

    /// CPU that it used so far, in seconds.
    pub(crate) fn cpu(&self) -> Option<f64> {
        let stat = self.process()?.stat().ok()?;
        Some((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the end of {}'s log", self.identity);
            last.iter().rev().for_each(|line| eprintln!("{line}"));
            eprintln!("---");
        }
    }
}
