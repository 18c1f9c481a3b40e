//! A command whose input and output are streams: what smart HTTP needs. The same environment, group and endings as of
//! every other command.

use nix::fcntl::{FcntlArg, fcntl};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};

use super::super::progress::StderrReader;
use super::group::Group;
use super::runner::Started;
use super::{Command, GitError};

/// What the pipe of standard output holds: fewer turns between a child that writes packs and the agent.
const PIPE_BYTES: i32 = 1 << 20;

/// A child that runs. Dropped, its group is ended as that of every other command.
pub(in crate::repository) struct Streaming {
    group: Group,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Command {
    /// Starts it. Its time limit, its bound on output and its cancellation are the caller's to keep.
    ///
    /// # Errors
    /// When it does not start.
    pub(in crate::repository) async fn stream(self) -> Result<Streaming, GitError> {
        let Started { process, stdin, stdout, stderr } = self.start(true).await?;
        if let Some(stdout) = &stdout {
            // A user that has many pipes already gets no large one; then it works with the small.
            let _ = fcntl(stdout, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        }
        Ok(Streaming { group: self.group(process), stdin, stdout, stderr })
    }
}

impl Streaming {
    /// Where its input goes; once.
    pub(in crate::repository) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Where its output comes from; once.
    pub(in crate::repository) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// Reads standard error to its end while `talk` goes on, then waits for the child. Gives what `talk` gave, and how the
    /// child ended: every end but exit status 0 is an error.
    pub(in crate::repository) async fn finish<T>(mut self, talk: impl Future<Output = T>) -> (T, Result<(), GitError>) {
        let mut lines = StderrReader::new(None);
        // As elsewhere: the child is awaited only after its pipes have closed.
        let (talked, ()) = tokio::join!(talk, lines.read(self.stderr.take()));
        let ended = match self.group.wait().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(GitError::failed(status, lines.into_text(), Vec::new())),
            Err(error) => Err(error),
        };
        (talked, ended)
    }
}
