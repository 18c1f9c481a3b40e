//! Mending a damaged store, step by step, while the last good snapshot serves.
//!
//! Which step comes next is decided in [`stoker_core::source::heal`]; here it is done, by whoever has the store's turn.
//! Each mending is counted by the step that did it, for the repository and for the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_core::reason::{Code, Reason};
use stoker_core::source::heal::{Next, Step, next};

use super::check::{drop_derived, packs};
use super::disk::{io_reason, names};
use super::entry::Entry;
use super::fetch::{Visit, blocking};
use super::git::{Command, GitError, Output};
use super::listing::Listing;
use super::local::SafeDirectory;
use super::store::{Store, Suspicion};
use super::{Shared, lock};

/// The word under which it is counted that no step mended a store.
const FAILED: &str = "failed";

/// What upstream has, where it answers.
pub(super) type Upstream<'a> = Option<(&'a Listing, Option<&'a SafeDirectory>)>;

/// A store that may be damaged, and the one visit that may write to it.
pub(super) struct Patient<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) entry: &'a Arc<Entry>,
    pub(super) visit: &'a Visit,
    pub(super) store: &'a Store,
}

impl Patient<'_> {
    /// Mends it. Gives the step that did; the suspicion is gone then.
    ///
    /// # Errors
    /// When no step does, or the disk or the agent's end keeps them from it; the suspicion stays.
    pub(super) async fn mend(&self, suspicion: &Suspicion, upstream: Upstream<'_>) -> Result<Step, Reason> {
        let subject = self.entry.url.key();
        let message = format!("the store of {} is damaged ({}); it is being mended", self.entry.url, suspicion.why);
        let members = self.members();
        for member in &members {
            member.state().healing = Some(Reason::new(Code::RepositoryCorrupt, member.url.key(), message.clone()));
        }
        self.shared.tick();
        tracing::error!(repository = subject, why = suspicion.why, "mending a store");
        let mended = self.steps(suspicion, upstream).await;
        for member in &members {
            member.state().healing = None;
        }
        match &mended {
            Ok(step) => {
                self.count(&members, step.word());
                self.store.trust_again(words(*step));
                tracing::warn!(repository = subject, step = step.word(), "the store is whole: {}", words(*step));
            }
            Err(reason) => {
                // It was not mended because something else is wrong: not a step's failure.
                if reason.code == Code::RepositoryCorrupt {
                    self.count(&members, FAILED);
                }
                tracing::error!(
                    repository = subject,
                    reason = reason.code.word(),
                    "the store is not mended: {}",
                    reason.message
                );
            }
        }
        self.shared.tick();
        mended
    }

    async fn steps(&self, suspicion: &Suspicion, mut upstream: Upstream<'_>) -> Result<Step, Reason> {
        let (mut last, mut whole) = (None, false);
        loop {
            match next(last, whole, upstream.is_some()) {
                Next::Whole(step) => return Ok(step),
                Next::GiveUp => return Err(self.not_mended(suspicion, upstream.is_some())),
                Next::Try(step) => {
                    tracing::info!(repository = self.entry.url.key(), step = step.word(), "mending the store");
                    match self.try_step(step, upstream, suspicion.full).await {
                        Ok(now) => whole = now,
                        // The agent stops, or the pool goes: nothing of that is the store's fault, nor upstream's.
                        Err(reason) if self.visit.cancel.is_cancelled() => return Err(reason),
                        // Away from here on: what is left is kept.
                        Err(reason) if is_upstream(reason.code) => (whole, upstream) = (false, None),
                        Err(reason) => return Err(reason),
                    }
                    last = Some(step);
                }
            }
        }
    }

    async fn try_step(&self, step: Step, upstream: Upstream<'_>, full: bool) -> Result<bool, Reason> {
        match step {
            Step::Recheck => self.is_whole(full).await,
            Step::Fetch => match upstream {
                Some((listing, safe)) => {
                    let fetched = self.visit.fetch(listing, safe).await;
                    Ok(self.worked(fetched)? && self.is_whole(full).await?)
                }
                None => Ok(false),
            },
            Step::Repair => {
                self.repair(upstream.is_some()).await?;
                if self.is_whole(full).await? {
                    return Ok(true);
                }
                let Some((listing, safe)) = upstream else { return Ok(false) };
                let fetched = self.visit.fetch_again(listing, safe).await;
                Ok(self.worked(fetched)? && self.is_whole(full).await?)
            }
            Step::Clone => {
                let Some((listing, safe)) = upstream else { return Ok(false) };
                self.quarantine().await?;
                let filled = self.visit.fill(listing, safe).await;
                Ok(self.worked(filled)? && self.is_whole(false).await?)
            }
        }
    }

    /// A step that git gave up at damage did not mend; any other failure ends the mending.
    fn worked(&self, done: Result<(), GitError>) -> Result<bool, Reason> {
        match done {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Code::RepositoryCorrupt => Ok(false),
            // What a damaged store makes git say is not always to be told from what upstream does.
            Err(error @ GitError::Failed { code: Code::UpstreamUnreachable, .. }) if !error.speaks_of_network() => {
                Ok(false)
            }
            Err(error) => Err(error.reason(self.entry.url.key(), &format!("mending the store of {}", self.entry.url))),
        }
    }

    /// Whether everything that refs reach is there; `full`: and can be read.
    async fn is_whole(&self, full: bool) -> Result<bool, Reason> {
        if !self.visit.has_store() {
            return Ok(false);
        }
        let objects = self.visit.store.git().join("objects");
        let found = blocking(self.entry.url.key(), move || packs(&objects)).await?;
        let found = found.map_err(|error| io_reason(self.entry.url.key(), "looking through the store", &error))?;
        Ok(found.is_empty() && self.visit.fsck_store(full).await?.is_empty())
    }

    /// Drops what can be made again, makes indexes anew, and where upstream can give their objects again sets packs aside
    /// that cannot be read.
    async fn repair(&self, replaceable: bool) -> Result<(), Reason> {
        let subject = self.entry.url.key();
        let wrong = |error: io::Error| io_reason(subject, "repairing the store", &error);
        let git = self.visit.store.git();
        let objects = git.join("objects");
        let packs =
            blocking(subject, move || drop_derived(&objects).and_then(|()| stems(&objects))).await?.map_err(wrong)?;
        for stem in packs {
            let pack = git.join("objects/pack").join(format!("{stem}.pack"));
            let whole = pack.is_file() && self.visit.index_again(&stem).await?;
            if whole || (pack.is_file() && !replaceable) {
                continue;
            }
            tracing::warn!(repository = subject, pack = stem, "a pack that cannot be read is set aside");
            for ending in ["idx", "pack", "mtimes", "keep", "promisor"] {
                self.shared.discard(git.join("objects/pack").join(format!("{stem}.{ending}"))).await?;
            }
        }
        Ok(())
    }

    /// Sets the store aside. All who fetch into it know: their refs are not in the one that comes.
    async fn quarantine(&self) -> Result<(), Reason> {
        for member in self.members() {
            member.state().quarantined = true;
        }
        self.shared.tick();
        self.shared.discard(self.visit.store.git()).await
    }

    /// All repositories of the store.
    fn members(&self) -> Vec<Arc<Entry>> {
        let name = self.entry.state().meta.store.clone();
        let shares = |other: &Arc<Entry>| other.state().meta.store == name;
        let mut members: Vec<Arc<Entry>> = self.shared.all().into_iter().filter(shares).collect();
        if !members.iter().any(|member| Arc::ptr_eq(member, self.entry)) {
            members.push(Arc::clone(self.entry));
        }
        members
    }

    fn count(&self, members: &[Arc<Entry>], word: &'static str) {
        let add = |counts: &mut BTreeMap<&'static str, u64>| *counts.entry(word).or_default() += 1;
        add(&mut lock(&self.shared.transfers.heals));
        for member in members {
            let mut state = member.state();
            add(&mut state.heals);
            // Another store is in its place: the others fetch theirs into it.
            let other = state.quarantined && !Arc::ptr_eq(member, self.entry);
            drop(state);
            if other && word != FAILED {
                member.refresh_in(std::time::Duration::ZERO, self.shared.now());
            }
        }
    }

    fn not_mended(&self, suspicion: &Suspicion, answers: bool) -> Reason {
        let url = &self.entry.url;
        let rest = match answers {
            true => "also cloned anew it is not whole: look at the disk",
            false => "what upstream would have to give again waits until it answers",
        };
        let message = format!("the store of {url} is damaged ({}); {rest}", suspicion.why);
        Reason::new(Code::RepositoryCorrupt, url.key(), message)
    }
}

const fn is_upstream(code: Code) -> bool {
    matches!(code, Code::UpstreamUnreachable | Code::UpstreamTimeout) || code.upstream_says_no()
}

fn words(step: Step) -> String {
    let words = match step {
        Step::Recheck => "looked at again, it is whole",
        Step::Fetch => "what was missing was fetched",
        Step::Repair => "indexes were made anew, and what could not be read was fetched again",
        Step::Clone => "it was set aside and cloned anew",
    };
    words.to_owned()
}

/// The names of packs and of indexes without their endings, each once.
fn stems(objects: &Path) -> io::Result<Vec<String>> {
    let pack = |name: &String| name.strip_suffix(".pack").or_else(|| name.strip_suffix(".idx")).map(str::to_owned);
    let mut stems: Vec<String> = names(&objects.join("pack"))?.iter().filter_map(pack).collect();
    stems.sort();
    stems.dedup();
    Ok(stems)
}

impl Visit {
    /// What `git fsck` finds wrong in the store; see [`Visit::fsck`].
    pub(super) async fn fsck_store(&self, full: bool) -> Result<Vec<String>, Reason> {
        let done = self.fsck_command(full).work_dir(self.store.git()).run_in_store(&self.store.git()).await;
        self.found(done)
    }

    /// What `git fsck` finds wrong in a bare repository: whether all that refs reach is there, and where `full`, whether
    /// every object can be read and is what its name says.
    pub(super) async fn fsck(&self, repository: PathBuf, full: bool) -> Result<Vec<String>, Reason> {
        let done = self.fsck_command(full).work_dir(&repository).reads(&repository).run().await;
        self.found(done)
    }

    fn fsck_command(&self, full: bool) -> Command {
        let command = self.git.command(["fsck", "--progress", "--no-dangling", "--no-reflogs"]);
        let command = command.args([if full { "--full" } else { "--connectivity-only" }]);
        let command = command.git_dir(".").cancel(self.cancel.clone()).time_limit(self.remaining());
        super::git::harmless(command, "fsck").progress(self.progress.clone())
    }

    fn found(&self, done: Result<Output, GitError>) -> Result<Vec<String>, Reason> {
        match &done {
            Ok(_) => Ok(Vec::new()),
            Err(error @ GitError::Failed { stderr, stdout, .. }) if !error.is_of_the_machine() => {
                Ok(complaints(stdout, stderr))
            }
            Err(error) => Err(error.reason(self.url.key(), &format!("checking {}", self.url))),
        }
    }

    /// Makes a pack's index anew, which reads all of the pack. False where it cannot be read.
    async fn index_again(&self, stem: &str) -> Result<bool, Reason> {
        let (dir, temporary) = (self.store.git().join("objects/pack"), format!("objects/pack/tmp_idx_{stem}"));
        let command =
            self.git.command(["index-pack", "--no-rev-index", "-o", &temporary, &format!("objects/pack/{stem}.pack")]);
        let command =
            command.git_dir(".").work_dir(self.store.git()).cancel(self.cancel.clone()).time_limit(self.remaining());
        let indexed = command.run_in_store(&self.store.git()).await;
        let wrong = |error: io::Error| io_reason(self.url.key(), "repairing the store", &error);
        let (new, index) = (dir.join(format!("tmp_idx_{stem}")), dir.join(format!("{stem}.idx")));
        match indexed {
            // Snapshots share the old one's inode: it is replaced, not written to.
            Ok(_) => blocking(self.url.key(), move || fs::rename(new, index)).await?.map_err(wrong).map(|()| true),
            Err(error) => {
                let _ = fs::remove_file(new);
                match error.is_of_the_machine() {
                    true => Err(error.reason(self.url.key(), &format!("mending the store of {}", self.url))),
                    false => Ok(false),
                }
            }
        }
    }
}

/// The lines in which git says what is wrong, the first of them.
fn complaints(stdout: &[u8], stderr: &str) -> Vec<String> {
    let stdout = String::from_utf8_lossy(stdout);
    // A store's HEAD names nothing, by intent: see `adopt_clone`.
    let of_head = |line: &&str| *line == "error: invalid HEAD";
    let said = || stderr.lines().chain(stdout.lines()).map(str::trim);
    let only_head = said().any(|line| of_head(&line));
    let telling = |line: &&str| {
        ["error", "fatal", "missing", "broken", "corrupt", "bad", "warning"].iter().any(|word| line.starts_with(word))
    };
    let mut lines: Vec<String> = said()
        .filter(|line| telling(line) && !of_head(line))
        .map(|line| line.chars().filter(|c| !c.is_control()).collect())
        .collect();
    lines.dedup();
    lines.truncate(super::check::PROBLEMS_MAX);
    if lines.is_empty() && !only_head {
        lines.push("git fsck ended with an error and said nothing of it".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_says_of_a_head_that_names_nothing_is_no_damage() {
        assert_eq!(complaints(b"", "error: invalid HEAD\nnotice: No default references\n"), Vec::<String>::new());
        assert_eq!(complaints(b"missing blob 5c\n", "error: invalid HEAD\n"), ["missing blob 5c"]);
        assert_eq!(complaints(b"", "").len(), 1);
    }
}
