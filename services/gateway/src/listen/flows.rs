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

use super::{limits::FRAME_BYTES_MAX, patience::Patience};
use crate::body::{BodyError, EdgeBody};

/// Longest piece that hyper is given at once.
const FRAME_BYTES: usize = FRAME_BYTES_MAX as usize;

/// An answer on its way.
#[derive(Default)]
pub(super) struct Flow {
    /// None before the answer is there, and when it has ended.
    body: RefCell<Option<EdgeBody>>,
    /// The rest of a piece that is longer than a frame: so a slow client is seen to take some.
    rest: RefCell<Bytes>,
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
            drop(self.rest.take());
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
        let mut rest = flow.rest.borrow_mut();
        if !rest.is_empty() {
            flow.pieces.set(flow.pieces.get().saturating_add(1));
            let piece = rest.len().min(FRAME_BYTES);
            return Poll::Ready(Some(Ok(Frame::data(rest.split_to(piece)))));
        }
        let mut body = flow.body.borrow_mut();
        let Some(inner) = body.as_mut() else {
            self.is_ended = true;
            return Poll::Ready(Some(Err("the client reads too slowly".into())));
        };
        let polled = Pin::new(inner).poll_frame(task);
        let polled = polled.map_ok(|frame| match frame.into_data() {
            Ok(mut data) if data.len() > FRAME_BYTES => {
                *rest = data.split_off(FRAME_BYTES);
                Frame::data(data)
            }
            Ok(data) => Frame::data(data),
            Err(frame) => frame,
        });
        flow.is_taken.set(polled.is_ready());
        if let Poll::Ready(frame) = &polled {
            flow.pieces.set(flow.pieces.get().saturating_add(1));
            self.is_ended = !matches!(frame, Some(Ok(_)));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let body = self.flow.body.borrow();
        let is_sent = self.flow.rest.borrow().is_empty();
        self.is_ended || is_sent && body.as_ref().is_some_and(EdgeBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.flow.body.borrow();
        let hint = body.as_ref().map(EdgeBody::size_hint).unwrap_or_default();
        let rest = u64::try_from(self.flow.rest.borrow().len()).unwrap_or(u64::MAX);
        match hint.exact() {
            Some(bytes) => SizeHint::with_exact(bytes.saturating_add(rest)),
            None => hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{rc::Rc, time::Duration};

    use http_body::Body as _;
    use http_body_util::BodyExt as _;

    use super::{FRAME_BYTES, Flow, Flowing};
    use crate::{body::EdgeBody, listen::patience::Patience};

    #[tokio::test]
    async fn a_long_piece_is_taken_by_frames_and_each_shows_that_its_client_reads() {
        let flow = Rc::<Flow>::default();
        let text = "x".repeat(5 * FRAME_BYTES + 1);
        let mut body = Flowing::new(Rc::clone(&flow), EdgeBody::full(text.clone()));
        let patience = Patience {
            stall: Duration::from_secs(30),
            head: Duration::ZERO,
            idle: Duration::ZERO,
            bytes_per_second_min: 0,
            age: Duration::ZERO,
        };
        let (mut left, mut now) = (text.len(), 0);
        while !body.is_end_stream() {
            assert_eq!(body.size_hint().exact(), u64::try_from(left).ok());
            let frame = body.frame().await.expect("more").expect("sound");
            let data = frame.into_data().expect("data");
            assert_eq!(data.len(), left.min(FRAME_BYTES));
            left = left.saturating_sub(data.len());
            // Slowly, but never as slowly as that.
            now += 29;
            flow.look(now, &patience);
        }
        assert_eq!(left, 0);
    }
}
