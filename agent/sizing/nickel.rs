//! `.build-spec.ncl`: evaluated by `stoker-nickel`, a program of its own.
//!
//! Nickel is a whole language, so a build spec in it can loop, grow and ask for files. The program bounds its memory and
//! its CPU and opens nothing before it reads a byte (`agent/nickel`); here its time by the clock and its output are
//! bounded, and its end is read. Where it is not installed, `.build-spec.ncl` is refused by name.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;
use stoker_core::reason::{Code, Reason};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::spec::{self, BYTES_MAX, NAME_NICKEL, Value};
use super::{SpecError, SpecFile};
use crate::config::git::USER_DEFAULT;
use crate::config::{NICKEL_PROGRAM, NickelLimits};
use crate::pressure::Configured;

/// Evaluations that run at once; further ones wait.
const AT_ONCE: usize = 2;
/// By the clock, for so many times its CPU: a busy node is slow, but a program that sleeps is ended.
const CLOCK_FACTOR: u32 = 6;
/// The most that it may answer: fields of a source within its bound, and what is around them.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// The evaluator. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nickel {
    config: Configured,
    permits: Arc<Semaphore>,
    /// A commit had a spec for it.
    wanted: Arc<AtomicBool>,
}

/// What the program says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    Fields(Vec<Field>),
    Error { line: Option<u32>, kind: String },
}

#[derive(Debug, Deserialize)]
struct Field {
    name: String,
    line: Option<u32>,
    value: Value,
}

impl Nickel {
    /// As the configuration wants it at each use.
    #[must_use]
    pub fn new(config: Configured) -> Self {
        Self { config, permits: Arc::new(Semaphore::new(AT_ONCE)), wanted: Arc::default() }
    }

    /// That its program is missing, where one is named, or a commit had a spec for it. Looks at the disk.
    #[must_use]
    pub fn fault(&self) -> Option<Reason> {
        let named = self.config.borrow().sizing.nickel.program.clone();
        if named.is_none() && !self.wanted.load(Ordering::Relaxed) {
            return None;
        }
        let program = named.unwrap_or_else(beside_this_program);
        let is_there = std::fs::metadata(&program).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0);
        let place = program.display();
        let message = format!("there is no {NICKEL_PROGRAM} that starts at {place}: {NAME_NICKEL} is refused");
        (!is_there).then(|| Reason::new(Code::SpecUnevaluated, "sizing.nickel.program", message))
    }

    /// The build spec that `source` evaluates to.
    ///
    /// # Errors
    /// When the program is not there, reached a limit, or found something wrong; and for fields that are not valid.
    pub async fn evaluate(&self, source: &[u8]) -> Result<SpecFile, SpecError> {
        self.wanted.store(true, Ordering::Relaxed);
        let limits = self.config.borrow().sizing.nickel.clone();
        if source.len() > BYTES_MAX {
            return Err(refused(format!("has more than {BYTES_MAX} bytes")));
        }
        let Ok(_permit) = self.permits.acquire().await else { return Err(passing("the agent is stopping".into())) };
        let program = limits.program.clone().unwrap_or_else(beside_this_program);
        let child = start(&program, &limits).map_err(|error| cannot_start(&program, &error))?;
        let clock = limits.cpu_time.saturating_mul(CLOCK_FACTOR);
        match tokio::time::timeout(clock, talk(child, source)).await {
            Err(_) => Err(passing(format!("was not evaluated within {}", shown(clock)))),
            Ok(Err(error)) => Err(passing(format!("was not evaluated: {error}"))),
            Ok(Ok((status, answer))) => read(status, &answer, &limits),
        }
    }
}

/// Where an installation puts it.
fn beside_this_program() -> PathBuf {
    std::env::current_exe().map(|own| own.with_file_name(NICKEL_PROGRAM)).unwrap_or_else(|_| NICKEL_PROGRAM.into())
}

fn start(program: &Path, limits: &NickelLimits) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.arg("--memory").arg(limits.memory_bytes.to_string());
    command.arg("--seconds").arg(limits.cpu_time.as_secs().max(1).to_string());
    if nix::unistd::geteuid().is_root() {
        command.arg("--user").arg(USER_DEFAULT.to_string());
    }
    // Its end is enough: what it writes there is for a person who runs it.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.env_clear().current_dir("/").process_group(0).kill_on_drop(true);
    command.spawn()
}

/// Gives it the source, takes its answer, and waits for its end.
async fn talk(mut child: Child, source: &[u8]) -> io::Result<(ExitStatus, Vec<u8>)> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let give = async {
        // One that ended before it read everything says why by its end.
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(source).await;
        }
    };
    let ((), answer) = tokio::join!(give, capture(stdout));
    Ok((child.wait().await?, answer?))
}

async fn capture(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn read(status: ExitStatus, answer: &[u8], limits: &NickelLimits) -> Result<SpecFile, SpecError> {
    // Before its end, which comes of that nobody listens any longer: the same source would say as much again.
    if u64::try_from(answer.len()).is_ok_and(|bytes| bytes >= ANSWER_BYTES_MAX) {
        return Err(refused(format!("says more than {ANSWER_BYTES_MAX} bytes")));
    }
    if let Some(signal) = status.signal().and_then(|signal| Signal::try_from(signal).ok()) {
        return Err(match signal {
            Signal::SIGXCPU => refused(format!("takes more than {} of CPU", shown(limits.cpu_time))),
            Signal::SIGABRT | Signal::SIGSEGV | Signal::SIGBUS => refused(format!(
                "takes more than {} of memory, or is nested too deep",
                bytesize::ByteSize(limits.memory_bytes).display().iec()
            )),
            // The kernel's killer, or a person.
            other => passing(format!("was not evaluated: {NICKEL_PROGRAM} was ended by {other}")),
        });
    }
    match serde_json::from_slice(answer) {
        Ok(Said::Fields(fields)) => {
            let fields = fields.into_iter().map(|field| (field.name, field.line, field.value));
            spec::of_fields(NAME_NICKEL, fields)
        }
        Ok(Said::Error { line, kind }) => Err(SpecError { line, ..refused(kind) }),
        // Its end was its own: the same source would end the same way.
        Err(_) if matches!(status.code(), Some(0 | 1)) => {
            Err(refused("evaluates to what cannot be read: nested too deep?".into()))
        }
        Err(_) => Err(passing(format!("was not evaluated: {NICKEL_PROGRAM} ended with {status} and no answer"))),
    }
}

fn cannot_start(program: &Path, error: &io::Error) -> SpecError {
    let why = match error.kind() {
        io::ErrorKind::NotFound => "is not installed".to_owned(),
        _ => format!("does not start ({error})"),
    };
    passing(format!(
        "needs {NICKEL_PROGRAM}, which {why}: put it at {}, name it in `sizing.nickel.program`, or write .build-spec.yaml",
        program.display()
    ))
}

fn refused(problem: String) -> SpecError {
    SpecError { file: NAME_NICKEL.to_owned(), line: None, field: None, problem, passing: false }
}

fn passing(problem: String) -> SpecError {
    SpecError { passing: true, ..refused(problem) }
}

fn shown(time: Duration) -> String {
    format!("{} s", time.as_secs())
}
