//! `stoker repo verify`, `import`, `export`: what reads or moves a whole repository.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use stoker_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{named, progress, render_optional};
use crate::cli::ask::{self, Ended, Failure, within};
use crate::cli::client::Client;
use crate::cli::screen::{self, Steps, bytes, counted};
use crate::cli::table::{self, Grid, Tone, View, cell};
use crate::cli::{Common, DONE, Format};
use crate::repository::git::Git;
use crate::repository::{CHUNK_BYTES, Export as Archive, Progress, archive_of_path};

/// Between two looks at what the agent does with what it was sent.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How many messages wait for the agent.
const MESSAGES_WAITING: usize = 4;
/// Standard input or output.
const DASH: &str = "-";
/// A verified repository had something wrong that was not mended.
const UNMENDED: u8 = 1;

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// A URL or a path
    url: String,
    /// Read every object, not only what refers to what
    #[arg(long)]
    full: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Export {
    /// A URL or a path
    url: String,
    /// Where the archive goes; `-`: standard output, also where it is left out and that is no terminal
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// Which repository it is; an archive says so itself
    ///
    /// Then what is brought: an archive or a bundle, `-` for standard input, or the path of a repository on this machine.
    #[arg(value_names = ["URL", "SOURCE"], num_args = 1..=2, required = true)]
    words: Vec<String>,
    /// Never forget it for want of room
    #[arg(long)]
    pin: bool,
    /// Who may read it; default: the repository's class, or the agent's default where it is new
    #[arg(long, value_name = "CLASS", default_value = "", hide_default_value = true)]
    trust: String,
}

fn wire(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Shows the check, then what it found and what was done.
pub(super) async fn verify(common: &Common, verify: &Verify) -> Ended {
    use v1::verify_repository_response::Event;
    let url = named(&verify.url)?;
    let client = Client::of(common).await?;
    let begun = Instant::now();
    let mut steps = Steps::new();
    steps.under_way("verify", "looking", 0, 0);
    let request = within(ask::LONG, v1::VerifyRepositoryRequest { url, full: verify.full });
    let mut events = client.repositories().verify_repository(request).await?.into_inner();
    let answer = loop {
        let Some(event) = events.message().await? else {
            return Err(anyhow::anyhow!("the agent ended the stream before the check was over; ask again").into());
        };
        match &event.event {
            Some(Event::Progress(now)) => {
                steps.under_way("verify", &progress(now), table::positive(now.done), table::positive(now.total));
            }
            Some(Event::Repository(_)) => break event,
            None => {}
        }
    };
    let wrong = answer.findings.len();
    let unmended =
        answer.findings.iter().any(|finding| finding.action.is_empty() || finding.action.starts_with("nothing yet"));
    let what = match (wrong, unmended) {
        (0, _) => "nothing is wrong".to_owned(),
        (_, false) => format!("{}, mended", counted(wire(wrong as u64), "thing was wrong", "things were wrong")),
        (_, true) => {
            format!("{}, not all of it mended", counted(wire(wrong as u64), "thing is wrong", "things are wrong"))
        }
    };
    match unmended {
        true => steps.failed("verify", &what),
        false => steps.done("verify", &what, Some(begun.elapsed())),
    }
    ask::answer(common.output, &answer, render_findings)?;
    Ok(if unmended { UNMENDED } else { DONE })
}

fn render_findings(answer: &v1::VerifyRepositoryResponse, view: &View) -> String {
    use v1::verify_repository_response::Event;
    let mut text = String::new();
    if !answer.findings.is_empty() {
        let mut grid = Grid::new(&["WHERE", "WHAT IS WRONG", "WHAT WAS DONE"]).wraps(&[1, 2]);
        for finding in &answer.findings {
            let done = if finding.action.is_empty() { "nothing" } else { finding.action.as_str() };
            let tone = if finding.action.is_empty() { Tone::Bad } else { Tone::Good };
            grid.row([cell(&finding.subject), cell(&finding.problem), cell(done).tone(tone)]);
        }
        text.push_str(&grid.render(view));
        text.push('\n');
    }
    let repository = match &answer.event {
        Some(Event::Repository(repository)) => Some(repository),
        _ => None,
    };
    text + &render_optional(repository, view)
}

/// Writes the archive whole, or nothing.
pub(super) async fn export(common: &Common, export: &Export) -> Ended {
    let url = named(&export.url)?;
    let file = match &export.file {
        Some(file) if file.as_os_str() == DASH => None,
        Some(file) => Some(file.as_path()),
        None if io::stdout().is_terminal() => {
            return Err(Failure::Usage("name a FILE: an archive is nothing for a terminal".to_owned()));
        }
        None => None,
    };
    let client = Client::of(common).await?;
    let begun = Instant::now();
    let mut steps = Steps::new();
    steps.under_way("export", "reading", 0, 0);
    let request = within(ask::LONG, v1::ExportRepositoryRequest { url: url.clone() });
    let mut chunks = client.repositories().export_repository(request).await?.into_inner();
    let mut target = Target::open(file)?;
    let (mut done, mut total) = (0_u64, 0_u64);
    while let Some(message) = chunks.message().await? {
        total = total.max(table::positive(message.total_bytes));
        target.write(&message.chunk)?;
        done = done.saturating_add(message.chunk.len() as u64);
        steps.under_way("export", &format!("{} of {}", bytes(wire(done)), bytes(wire(total))), done, total);
    }
    if done != total {
        return Err(anyhow::anyhow!("the agent sent {done} of {total} bytes; ask again").into());
    }
    target.finish()?;
    let place = file.map_or("standard output".to_owned(), |file| file.display().to_string());
    steps.done("export", &format!("{} · {} to {place}", screen::safe(&url), bytes(wire(done))), Some(begun.elapsed()));
    if file.is_some() && common.output != Format::Table {
        let answer = serde_json::json!({"export": {"url": url, "file": place, "bytes": done.to_string()}});
        ask::value(common.output, &answer, |_| String::new())?;
    }
    Ok(DONE)
}

/// Where an archive goes: a file is there when it is whole, and not before.
enum Target {
    Stdout,
    File { temporary: tempfile::NamedTempFile, file: PathBuf },
}

impl Target {
    fn open(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(file) = file else { return Ok(Self::Stdout) };
        let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new().prefix(".stoker-export-").tempfile_in(folder);
        let temporary = temporary.with_context(|| format!("{} cannot be written to", folder.display()))?;
        Ok(Self::File { temporary, file: file.to_owned() })
    }

    fn write(&mut self, chunk: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout => io::stdout().lock().write_all(chunk).context("standard output"),
            Self::File { temporary, file } => temporary.write_all(chunk).with_context(|| file.display().to_string()),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Stdout => io::stdout().lock().flush().context("standard output"),
            Self::File { temporary, file } => {
                temporary.as_file().sync_all().with_context(|| file.display().to_string())?;
                temporary.persist(&file).map(drop).with_context(|| file.display().to_string())
            }
        }
    }
}

/// What is sent, and how long it is where that is known.
struct Brought {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    total: u64,
    /// Where a repository was copied to, until it is sent.
    _scratch: Option<tempfile::TempDir>,
}

/// Sends what is brought, and shows what becomes of it.
pub(super) async fn import(common: &Common, import: &Import) -> Ended {
    let (url, source) = match import.words.as_slice() {
        [source] => (String::new(), source.as_str()),
        [url, source] => (named(url)?, source.as_str()),
        _ => return Err(Failure::Usage("name at most a URL and what is brought".to_owned())),
    };
    let mut steps = Steps::new();
    let client = Client::of(common).await?;
    let brought = open(&url, source, &mut steps).await?;
    let begun = Instant::now();
    let target = v1::ImportTarget { url: url.clone(), pin: import.pin, trust: import.trust.clone() };
    let (sender, messages) = mpsc::channel(MESSAGES_WAITING);
    let (told, mut sent) = tokio::sync::watch::channel(0_u64);
    let total = brought.total;
    let feed = tokio::spawn(feed(brought, target, sender, told));
    let mut repositories = client.repositories();
    let mut request = tonic::Request::new(ReceiverStream::new(messages));
    request.set_timeout(ask::LONG);
    let answer = {
        let call = repositories.import_repository(request);
        tokio::pin!(call);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                biased;
                answer = &mut call => break answer,
                _ = looks.tick() => {
                    let now = *sent.borrow_and_update();
                    show(&client, &url, now, total, feed.is_finished(), &mut steps).await;
                }
            }
        }
    };
    // What could not be read says more than that the stream broke.
    if let Ok(Err(error)) = feed.await {
        return Err(anyhow::Error::new(error).context(format!("{source} cannot be read")).into());
    }
    let answer = answer?.into_inner();
    let name = answer.repository.as_ref().map(|repository| screen::safe(&repository.url)).unwrap_or_default();
    let objects = answer.repository.as_ref().map_or(0, |repository| repository.objects);
    let what = format!("{name} · {}, {}", counted(objects, "object", "objects"), bytes(answer.bytes));
    steps.done("import", &what, Some(begun.elapsed()));
    ask::answer(common.output, &answer, |answer, view| render_optional(answer.repository.as_ref(), view))?;
    Ok(DONE)
}

async fn show(client: &Client, url: &str, sent: u64, total: u64, all: bool, steps: &mut Steps) {
    if all && !url.is_empty() {
        let request = within(ask::SOON, v1::GetRepositoryRequest { url: url.to_owned() });
        let asked = client.repositories().get_repository(request).await;
        let now = asked.ok().and_then(|answer| answer.into_inner().repository?.progress);
        if let Some(now) = now {
            steps.under_way("import", &progress(&now), table::positive(now.done), table::positive(now.total));
            return;
        }
    }
    let what = match all {
        true => "checking".to_owned(),
        false => format!("sending {}", bytes(wire(sent))),
    };
    steps.under_way("import", &what, sent, total);
}

/// Sends the target, then what there is. An error ends the stream before its end: nothing is imported then.
async fn feed(
    mut brought: Brought,
    target: v1::ImportTarget,
    to: mpsc::Sender<v1::ImportRepositoryRequest>,
    told: tokio::sync::watch::Sender<u64>,
) -> io::Result<()> {
    use v1::import_repository_request::Part;
    let message = |part| v1::ImportRepositoryRequest { part: Some(part) };
    if to.send(message(Part::Target(target))).await.is_err() {
        return Ok(());
    }
    while let Some(chunk) = brought.chunks.recv().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                // A message that may not be there: the agent refuses the rest, whatever arrived before.
                let _ = to.send(v1::ImportRepositoryRequest { part: None }).await;
                return Err(error);
            }
        };
        told.send_modify(|sent| *sent = sent.saturating_add(chunk.len() as u64));
        if to.send(message(Part::Chunk(chunk))).await.is_err() {
            // The agent has said why.
            return Ok(());
        }
    }
    Ok(())
}

/// Opens what is brought. A repository is read through git into an archive; a file is sent as it is.
async fn open(url: &str, source: &str, steps: &mut Steps) -> Result<Brought, Failure> {
    if source == DASH {
        return Ok(Brought { chunks: read_all(io::stdin()), total: 0, _scratch: None });
    }
    let path = std::path::absolute(source).context("the path cannot be understood")?;
    let meta = std::fs::metadata(&path).with_context(|| format!("{source} cannot be read"))?;
    if meta.is_file() {
        let file = File::open(&path).with_context(|| format!("{source} cannot be read"))?;
        return Ok(Brought { chunks: read_all(file), total: meta.len(), _scratch: None });
    }
    let Some(named) = (!url.is_empty()).then(|| url.parse().ok()).flatten() else {
        return Err(Failure::Usage(format!("say which repository {source} is: `stoker repo import URL {source}`")));
    };
    let scratch = tempfile::Builder::new().prefix("stoker-import-").tempdir().context("no place to read it into")?;
    let git = Git::find().await.map_err(anyhow::Error::new)?;
    let (sender, mut seen) = tokio::sync::watch::channel(Progress::default());
    let begun = Instant::now();
    let archive = {
        let reading = archive_of_path(&git, &path, &named, scratch.path(), sender);
        tokio::pin!(reading);
        loop {
            tokio::select! {
                biased;
                archive = &mut reading => break archive,
                Ok(()) = seen.changed() => {
                    let now = seen.borrow_and_update().clone();
                    steps.under_way("read", now.phase, now.done, now.total);
                }
            }
        }
    };
    let Archive { total_bytes, chunks } =
        archive.map_err(|reason| anyhow::anyhow!("{} [{}]", reason.message, reason.code.word()))?;
    steps.done("read", &format!("{} · {}", screen::safe(source), bytes(wire(total_bytes))), Some(begun.elapsed()));
    Ok(Brought { chunks, total: total_bytes, _scratch: Some(scratch) })
}

/// Reads to the end, on a thread of its own.
fn read_all(mut from: impl Read + Send + 'static) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, chunks) = mpsc::channel(MESSAGES_WAITING);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = match from.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => {
                    chunk.truncate(count);
                    Ok(chunk)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let end = read.is_err();
            if sender.blocking_send(read).is_err() || end {
                return;
            }
        }
    });
    chunks
}

#[cfg(test)]
mod tests {
    use super::super::super::status::tests::healthy;
    use super::super::super::table::tests::VIEW;
    use super::*;

    #[test]
    fn what_was_found_is_shown_with_what_was_done() {
        let finding = |subject: &str, problem: &str, action: &str| v1::Finding {
            subject: subject.into(),
            problem: problem.into(),
            action: action.into(),
        };
        let repository = v1::Repository {
            heals: vec![v1::Heal { step: "repair".into(), count: 2 }],
            ..healthy().repositories[0].clone()
        };
        let answer = v1::VerifyRepositoryResponse {
            event: Some(v1::verify_repository_response::Event::Repository(repository)),
            findings: vec![
                finding(
                    "snapshot 7",
                    "pack-1f.pack ends otherwise than its index says",
                    "no longer served; snapshot 8 serves",
                ),
                finding("store", "missing blob 5c", ""),
            ],
        };
        insta::assert_snapshot!(render_findings(&answer, &VIEW));
    }
}
