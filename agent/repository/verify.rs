//! The thorough check: `git fsck` on the newest snapshot, then on the store under its turn; what is wrong is mended.

use std::sync::Arc;
use std::time::Duration;

use stoker_core::reason::{Code, Reason};
use stoker_core::source::RepositoryUrl;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::check::{self, packs};
use super::disk::io_reason;
use super::entry::{Entry, stopping};
use super::fetch::blocking;
use super::listing::Wanted;
use super::snapshot::SnapshotPin;
use super::store::Suspicion;
use super::transfer::{Beside, guarded};
use super::visit::prepare;
use super::{Progress, Repositories, Shared, View, unknown};

/// Something that was wrong, in plain words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `snapshot 12`, or `store`.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What was done about it; empty where nothing could be.
    pub action: String,
}

/// A thorough check that runs; see [`Repositories::verify`]. Dropping it does not end the check.
#[derive(Debug)]
pub struct VerifyHandle {
    /// How far it is.
    pub progress: watch::Receiver<Progress>,
    /// What it came to: the state after it, and what was wrong.
    pub done: oneshot::Receiver<Result<(View, Vec<Finding>), Reason>>,
}

impl Repositories {
    /// Looks through the newest snapshot and the store, and mends what is wrong. `full`: reads every object; else only
    /// whether all that refs reach is there.
    ///
    /// # Errors
    /// When there is no such repository.
    pub fn verify(&self, url: &RepositoryUrl, full: bool) -> Result<VerifyHandle, Reason> {
        let entry = self.shared.get(url).ok_or_else(|| unknown(url))?;
        let place = self.shared.transfers.place(url.key())?;
        let (sender, done) = oneshot::channel();
        let (shared, progress) = (Arc::clone(&self.shared), entry.progress.subscribe());
        self.shared.tasks.spawn(async move {
            let _place = place;
            let findings = {
                let _beside = Beside::begin(&shared, &entry);
                shared.verify(&entry, full).await
            };
            shared.tick();
            // Who asked may be gone.
            let _ = sender.send(findings.map(|findings| (shared.view(&entry), findings)));
        });
        Ok(VerifyHandle { progress, done })
    }
}

impl Shared {
    async fn verify(self: &Arc<Self>, entry: &Arc<Entry>, full: bool) -> Result<Vec<Finding>, Reason> {
        self.recovered().await?;
        let cancel = entry.stop.child_token();
        let look = self.look(entry, full, &cancel);
        let (mut findings, damaged) = guarded(self, entry, &cancel, look).await?;
        let Some(why) = damaged else { return Ok(findings) };
        self.suspect(entry, Suspicion { why, full });
        let limit = Instant::now() + self.config().fetch_within.saturating_mul(2) + Duration::from_secs(60);
        let mended = match entry.ask(Wanted::default())?.wait(limit).await {
            Ok(outcome) => outcome.result.clone(),
            Err(reason) => Err(reason),
        };
        let store = entry.state().meta.store.clone().map(|name| self.stores.get(&name));
        let did = store.as_ref().and_then(|store| store.take_mended());
        let serves = entry.current().map(|pin| format!("snapshot {} serves", pin.name()));
        for finding in &mut findings {
            finding.action = match (finding.subject.as_str(), &did, &mended) {
                ("store", Some(did), _) => did.clone(),
                ("store", None, Err(reason)) => format!("nothing yet: {}", reason.message),
                ("store", None, Ok(())) => String::new(),
                (_, _, Err(reason)) if serves.is_none() => format!("no longer served; {}", reason.message),
                _ => format!("no longer served; {}", serves.as_deref().unwrap_or("nothing serves")),
            };
        }
        Ok(findings)
    }

    /// Looks, and takes a damaged snapshot out of service. Gives why the store may be damaged, too.
    async fn look(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        full: bool,
        cancel: &tokio_util::sync::CancellationToken,
    ) -> Result<(Vec<Finding>, Option<String>), Reason> {
        let mut visit = prepare(self, entry, (self.pool.root)()?, cancel).await?;
        let (mut findings, mut damaged) = (Vec::new(), None);
        let found =
            |subject: &str, problem: String| Finding { subject: subject.to_owned(), problem, action: String::new() };
        if let Some(pin) = entry.current() {
            let mut problems = self.quick(entry, &pin).await?;
            if problems.is_empty() {
                problems = visit.fsck(pin.path().to_owned(), full).await?;
            }
            if let Some(first) = problems.first() {
                self.condemn(entry, &pin, first).await;
                damaged = Some(format!("snapshot {}: {first}", pin.name()));
            }
            let subject = format!("snapshot {}", pin.name());
            findings.extend(problems.into_iter().map(|problem| found(&subject, problem)));
        }
        let Some(name) = entry.state().meta.store.clone() else { return Ok((findings, damaged)) };
        let store = self.stores.get(&name);
        let turn = visit.cancel.run_until_cancelled(store.turn()).await.ok_or_else(|| stopping(&entry.url))?;
        visit.store = super::disk::StorePaths::new(&(self.pool.root)()?, &name);
        visit.deadline = std::time::Instant::now() + self.config().fetch_within;
        let problems = if visit.has_store() {
            let objects = visit.store.git().join("objects");
            let quick = blocking(entry.url.key(), move || packs(&objects)).await?;
            let quick = quick.map_err(|error| io_reason(entry.url.key(), "looking through the store", &error))?;
            match quick.is_empty() {
                true => visit.fsck_store(full).await?,
                false => quick.iter().map(ToString::to_string).collect(),
            }
        } else {
            vec!["is not there".to_owned()]
        };
        drop(turn);
        if let Some(first) = problems.first() {
            damaged = Some(first.clone());
        }
        findings.extend(problems.into_iter().map(|problem| found("store", problem)));
        Ok((findings, damaged))
    }

    async fn quick(&self, entry: &Arc<Entry>, pin: &SnapshotPin) -> Result<Vec<String>, Reason> {
        let (pin, reader) = (pin.clone(), self.reader.clone());
        let found = blocking(entry.url.key(), move || check::snapshot(&pin, &reader, usize::MAX)).await?;
        match found {
            Ok(problems) => Ok(problems.iter().map(ToString::to_string).collect()),
            Err(error) => Err(Reason::new(Code::PoolNotReady, entry.url.key(), format!("reading a snapshot: {error}"))),
        }
    }
}
