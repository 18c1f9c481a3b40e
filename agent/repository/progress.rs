//! What git prints to standard error while it works: progress, and the last lines for when it fails.

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

/// How far a fetch is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// `connecting`, `counting`, `receiving`, `resolving`, `checking`, `publishing`; empty where nothing runs.
    pub phase: &'static str,
    /// Objects so far.
    pub done: u64,
    /// Objects in all; 0: not known.
    pub total: u64,
    /// Bytes so far; 0 outside `receiving`.
    pub bytes: u64,
    /// What it is about, where that is one of several: `submodule vendor/library`.
    pub subject: String,
}

impl Progress {
    /// The beginning of a phase.
    #[must_use]
    pub const fn phase(phase: &'static str) -> Self {
        Self { phase, done: 0, total: 0, bytes: 0, subject: String::new() }
    }

    /// From `Receiving objects:  45% (123/456), 1.20 MiB | 3.00 MiB/s`, with or without `remote: ` before it.
    fn parse(line: &str) -> Option<Self> {
        let line = line.strip_prefix("remote: ").unwrap_or(line);
        let (name, rest) = line.split_once(':')?;
        let phase = match name {
            "Enumerating objects" | "Counting objects" | "Compressing objects" => "counting",
            "Receiving objects" | "Unpacking objects" => "receiving",
            "Resolving deltas" | "Checking connectivity" => "resolving",
            "Indexing objects" | "Checking objects" | "Checking object directories" | "Verifying OIDs" => "checking",
            "Updating files" => "checking out",
            _ => return None,
        };
        let Some((_, after)) = rest.split_once('(') else {
            let done = rest.trim().trim_end_matches(", done.").parse().ok()?;
            return Some(Self { done, ..Self::phase(phase) });
        };
        let (counts, after) = after.split_once(')')?;
        let (done, total) = counts.split_once('/')?;
        let bytes = after.strip_prefix(", ").and_then(|text| parse_bytes(text.split(" |").next()?)).unwrap_or(0);
        Some(Self { done: done.parse().ok()?, total: total.parse().ok()?, bytes, ..Self::phase(phase) })
    }
}

/// `1.20 MiB`, `512 bytes`, `3.4 GiB`.
fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.trim().split_once(' ')?;
    let unit = match unit.split(',').next()? {
        "bytes" | "byte" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1_u64 << 30,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let hundredths = format!("{part:0<2}").get(..2)?.parse::<u64>().ok()?;
    Some(whole.parse::<u64>().ok()?.saturating_mul(unit).saturating_add(hundredths.saturating_mul(unit) / 100))
}

/// How much of standard error is kept, in bytes.
const KEPT_BYTES_MAX: usize = 16 << 10;
/// The longest line that is looked at, in bytes.
const LINE_BYTES_MAX: usize = 4 << 10;

/// Reads standard error to its end: progress goes to its channel, the last of the other lines are kept.
#[derive(Debug)]
pub(super) struct StderrReader {
    progress: Option<watch::Sender<Progress>>,
    line: Vec<u8>,
    kept: String,
}

impl StderrReader {
    pub(super) fn new(progress: Option<watch::Sender<Progress>>) -> Self {
        Self { progress, line: Vec::new(), kept: String::new() }
    }

    pub(super) async fn read(&mut self, pipe: Option<impl AsyncRead + Unpin>) {
        let Some(mut pipe) = pipe else { return };
        let mut chunk = vec![0; 4 << 10];
        while let Ok(n @ 1..) = pipe.read(&mut chunk).await {
            for byte in chunk.iter().take(n) {
                match byte {
                    b'\r' | b'\n' => self.end_line(),
                    _ if self.line.len() < LINE_BYTES_MAX => self.line.push(*byte),
                    _ => {}
                }
            }
        }
        self.end_line();
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        match (Progress::parse(line.trim_end()), &self.progress) {
            (Some(progress), Some(channel)) => {
                channel.send_replace(progress);
            }
            (Some(_), None) => {}
            (None, _) if line.trim().is_empty() => {}
            (None, _) => {
                let control = |c: char| c.is_control() && c != '\t';
                self.kept.push_str(&line.replace(control, ""));
                self.kept.push('\n');
                if self.kept.len() > KEPT_BYTES_MAX {
                    let from = self.kept.len() - KEPT_BYTES_MAX;
                    let from = (from..).find(|at| self.kept.is_char_boundary(*at)).unwrap_or(from);
                    self.kept.drain(..from);
                }
            }
        }
    }

    pub(super) fn into_text(self) -> String {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_git_prints() {
        for (line, phase, done, total, bytes) in [
            ("Receiving objects:  45% (123/456), 1.20 MiB | 3.00 MiB/s", "receiving", 123, 456, 1_258_291),
            ("Receiving objects: 100% (3/3), done.", "receiving", 3, 3, 0),
            ("Receiving objects: 100% (9/9), 512 bytes | 512.00 KiB/s, done.", "receiving", 9, 9, 512),
            ("remote: Enumerating objects: 27, done.", "counting", 27, 0, 0),
            ("remote: Counting objects:  50% (5/10)", "counting", 5, 10, 0),
            ("Resolving deltas:   0% (0/7)", "resolving", 0, 7, 0),
        ] {
            assert_eq!(
                Progress::parse(line),
                Some(Progress { done, total, bytes, ..Progress::phase(phase) }),
                "{line}"
            );
        }
        assert_eq!(Progress::parse("fatal: (1/2)"), None);
        assert_eq!(Progress::parse("Receiving objects: x"), None);
    }

    #[tokio::test]
    async fn only_the_last_lines_are_kept() {
        let text = "é".repeat(1000) + "\n";
        let text = text.repeat(20) + "Receiving objects: 100% (3/3)\rfatal: last\n";
        let mut reader = StderrReader::new(None);
        reader.read(Some(text.as_bytes())).await;
        let kept = reader.into_text();
        assert!(kept.len() <= KEPT_BYTES_MAX && kept.ends_with("fatal: last\n") && !kept.contains("Receiving"));
    }
}
