//! Checkouts that are there before a build asks for them.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_core::admission::Source;
use stoker_core::identity::Scope;
use stoker_core::reason::Reason;
use stoker_core::source::Request;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::checkouts::{Asker, Wanted};
use super::{Method, Order, Progress, Workspaces, trees};
use crate::admission::now;
use crate::config::workspaces::Ahead;
use crate::repository::Cached;

/// Repositories and configuration are looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Workspaces {
    /// Checks out the newest commit of each branch that the operator lists, whenever a repository changed. One at a time:
    /// builds come first.
    pub(super) async fn prepare_ahead(self, cancel: CancellationToken) {
        let mut repositories = self.inner.repositories.watch();
        let mut config = self.inner.config.clone();
        loop {
            let listed = config.borrow_and_update().workspaces.ahead.clone();
            repositories.borrow_and_update();
            for one in listed {
                if cancel.is_cancelled() {
                    return;
                }
                let (reference, subject) = (one.reference.to_string(), one.url.key().to_owned());
                if let Err(reason) = self.check_out_ahead(one, &cancel).await {
                    tracing::warn!(repository = subject, reference, reason = reason.code.word(), "{}", reason.message);
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = repositories.changed() => if changed.is_err() { return },
                changed = config.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn check_out_ahead(&self, one: Ahead, cancel: &CancellationToken) -> Result<(), Reason> {
        let inner = &self.inner;
        let Ok(root) = inner.pools.usable(&inner.pool) else { return Ok(()) };
        let chosen = self.chosen(&root).await;
        // Where git writes the files of each workspace, nothing is kept.
        if chosen.method == Method::Checkout || !inner.checkouts.has_spare_room().await {
            return Ok(());
        }
        let request = Request::new(one.url.clone(), one.reference.clone());
        let repositories = inner.repositories.clone();
        let found = tokio::task::spawn_blocking(move || repositories.resolve_cached(&request)).await;
        let Ok(Cached::Commit(pin, commit)) = found else { return Ok(()) };
        let trust = inner.repositories.get(&one.url).map(|view| view.trust).unwrap_or_default();
        let order = Order {
            id: String::new(),
            lease: None,
            source: Source {
                repository: one.url.key().to_owned(),
                reference: one.reference.to_string(),
                commit,
                clone_url: one.url.fetch_url().to_owned(),
                clone_ref: String::new(),
                as_of: now(),
                origin: String::new(),
                snapshot: pin.name().to_owned(),
                subject: String::new(),
                other_fork: false,
            },
            scope: Scope::default(),
            cache_keys: Vec::new(),
            expires_at: None,
            pin,
            trust,
            user: None,
            group: None,
            submodules: one.submodules,
            manifest: None,
            lfs: false,
            self_contained: false,
            user_namespace: false,
            tmpfs_bytes: None,
            environment: BTreeMap::new(),
        };
        let steps = watch::Sender::new(Progress::default());
        let nested = self.nested(&order, &steps, cancel).await?;
        let trees = trees::trees(&order, &[]);
        let large = self.large_files(&order, &trees, &nested, &steps, cancel).await?;
        let wanted = Wanted {
            pin: &order.pin,
            commit,
            committed_at: self.committed_at(&order).await,
            trust: &order.trust,
            trees: &trees,
            nested: &nested,
            large: &large,
            owner: None,
            asker: Asker::Nobody,
        };
        if inner.checkouts.named(&wanted.name()).is_none() {
            inner.checkouts.obtain(&root, &wanted, &steps, cancel).await?;
            tracing::info!(repository = one.url.key(), %commit, reference = %one.reference, "checked out ahead");
        }
        Ok(())
    }
}
