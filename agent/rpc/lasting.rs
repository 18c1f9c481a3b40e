//! Answers that last end when their caller may no longer have them: its credential ran out, its pod ended, or the rules
//! give it something else than they did when it asked.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tonic::Status;

use crate::access::Denied;

/// Resolves when the caller may no longer have what it asked for.
pub(super) type Revoked = Pin<Box<dyn Future<Output = Denied> + Send>>;

/// An answer that ends with its own end or with its caller's right to it, whichever comes first.
struct Lasting<F> {
    body: Body,
    begin: Option<F>,
    /// Nothing, until the answer lasts: most come whole.
    revoked: Option<Revoked>,
    ended: bool,
}

/// Lets an answer end when its caller may no longer have it; `begin` begins to look, once it lasts.
pub(super) fn lasting<F>(response: Response, begin: F) -> Response
where
    F: FnOnce() -> Revoked + Send + Unpin + 'static,
{
    response.map(|body| Body::new(Lasting { body, begin: Some(begin), revoked: None, ended: false }))
}

impl<F> hyper::body::Body for Lasting<F>
where
    F: FnOnce() -> Revoked + Unpin,
{
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        // Looked at first: a stream that always has something to say ends as well.
        if let Some(revoked) = &mut self.revoked
            && let Poll::Ready(denied) = revoked.as_mut().poll(cx)
        {
            self.ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(denied)))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_pending()
            && let Some(begin) = self.begin.take()
        {
            self.revoked = Some(begin());
            // Or nobody would wake it.
            cx.waker().wake_by_ref();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn trailers(denied: Denied) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let _ = Status::from(denied).add_header(&mut headers);
    headers
}
