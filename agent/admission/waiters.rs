//! Who awaits a request: each is woken for its own request alone, so that a grant wakes one, however many wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use stoker_core::identity::RequestId;
use tokio::sync::watch;

type Senders = HashMap<RequestId, watch::Sender<Word>>;

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It was granted, or its place ran out.
    Changed,
    /// Somebody gave its place up.
    Cancelled,
}

/// The requests that somebody awaits.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiters(Arc<Mutex<Senders>>);

/// One who awaits a request.
#[derive(Debug)]
pub struct Waiter {
    request: RequestId,
    woken: Option<watch::Receiver<Word>>,
    all: Waiters,
}

impl Waiters {
    /// From now on nothing that happens to the request is missed.
    pub(super) fn join(&self, request: RequestId) -> Waiter {
        let mut senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let woken = senders.entry(request.clone()).or_insert_with(|| watch::Sender::new(Word::Changed)).subscribe();
        Waiter { request, woken: Some(woken), all: self.clone() }
    }

    /// Wakes those who await one of these.
    pub(super) fn wake<'a>(&self, requests: impl Iterator<Item = (&'a RequestId, Word)>) {
        let senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (request, word) in requests {
            if let Some(sender) = senders.get(request) {
                sender.send_replace(word);
            }
        }
    }
}

impl Waiter {
    /// Until something happened to the request that was not told yet: it was granted, or its place is gone.
    pub async fn woken(&mut self) {
        match &mut self.woken {
            Some(woken) => drop(woken.changed().await),
            None => std::future::pending().await,
        }
    }

    /// Whether the last that happened to it is that somebody gave its place up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.woken.as_ref().is_some_and(|woken| *woken.borrow() == Word::Cancelled)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.woken = None;
        let mut senders = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if senders.get(&self.request).is_some_and(|sender| sender.receiver_count() == 0) {
            senders.remove(&self.request);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn only_those_are_woken_whose_request_it_is_and_nobody_is_kept() {
        let waiters = Waiters::default();
        let id = |text: &str| RequestId::try_from(text.to_owned()).unwrap();
        let (mut first, mut again, mut other) = (waiters.join(id("a")), waiters.join(id("a")), waiters.join(id("b")));
        waiters.wake([(&id("a"), Word::Changed), (&id("unknown"), Word::Changed)].into_iter());
        assert!(first.woken().now_or_never().is_some() && again.woken().now_or_never().is_some());
        assert!(other.woken().now_or_never().is_none() && first.woken().now_or_never().is_none());
        assert!(!first.is_cancelled());
        waiters.wake([(&id("a"), Word::Cancelled)].into_iter());
        assert!(first.woken().now_or_never().is_some() && first.is_cancelled() && !other.is_cancelled());
        drop((first, other));
        assert_eq!(waiters.0.lock().unwrap().len(), 1);
        drop(again);
        assert!(waiters.0.lock().unwrap().is_empty());
    }
}
