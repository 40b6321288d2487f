//! Answers over HTTP/2: each has a window of its own, so a client that stops reading one of them
//! is not seen on the connection.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::patience::Patience;
use crate::body::{BodyError, EdgeBody};

/// An answer on its way.
#[derive(Default)]
pub(super) struct Flow {
    /// None before the answer is there, and when it has ended.
    body: RefCell<Option<EdgeBody>>,
    /// hyper has something of it that it could not send yet.
    is_taken: Cell<bool>,
    pieces: Cell<u64>,
    /// What the last look saw, and since when.
    seen: Cell<(u64, Option<u64>)>,
}

impl Flow {
    /// An answer of which the client takes nothing for too long sets its upstream free.
    pub(super) fn look(&self, now: u64, patience: &Patience) {
        let (pieces, since) = self.seen.get();
        let stands = self.is_taken.get() && pieces == self.pieces.get();
        let since = match since {
            Some(since) if stands => since,
            _ => now,
        };
        self.seen.set((self.pieces.get(), Some(since)));
        if stands && Duration::from_secs(now.saturating_sub(since)) >= patience.stall {
            self.is_taken.set(false);
            drop(self.body.borrow_mut().take());
        }
    }
}

/// The body of an answer as hyper has it.
pub(super) struct Flowing {
    flow: Rc<Flow>,
    is_ended: bool,
}

impl Flowing {
    pub(super) fn new(flow: Rc<Flow>, body: EdgeBody) -> Self {
        *flow.body.borrow_mut() = Some(body);
        Self {
            flow,
            is_ended: false,
        }
    }
}

impl Body for Flowing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let flow = Rc::clone(&self.flow);
        let mut body = flow.body.borrow_mut();
        let Some(inner) = body.as_mut() else {
            self.is_ended = true;
            return Poll::Ready(Some(Err("the client reads too slowly".into())));
        };
        let polled = Pin::new(inner).poll_frame(task);
        flow.is_taken.set(polled.is_ready());
        if let Poll::Ready(frame) = &polled {
            flow.pieces.set(flow.pieces.get().saturating_add(1));
            self.is_ended = !matches!(frame, Some(Ok(_)));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let body = self.flow.body.borrow();
        self.is_ended || body.as_ref().is_some_and(EdgeBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.flow.body.borrow();
        body.as_ref().map(EdgeBody::size_hint).unwrap_or_default()
    }
}
