//! Bodies: what the edge sends to clients.
//!
//! The record of a call is written before the last byte of its answer leaves: before the frame
//! that completes the announced length, before the trailers, or before the end of a body whose
//! length nobody announced. Where that end is the connection's, as in HTTP/1.0, a kill would look
//! like it: there the record is written before the last frame.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::{
    edge::COST,
    headers,
    idempotency::relay::Relayed,
    meter::{Finished, Proof, Ticket},
    pool::{Lent, patience::Pauses},
};

/// An upstream that lets us wait.
const PAUSED: &str = "the answer paused for too long";
/// An answer without end.
const TOO_LONG: &str = "the answer took too long";

/// An error inside a body.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What the edge sends to a client.
pub(crate) enum EdgeBody {
    /// An answer of the edge's own.
    Full(Option<Bytes>),
    /// An answer of the upstream, measured on its way.
    Metered(Box<Metered>),
    /// The same, for a call that goes on without its client.
    Relayed(Relayed),
}

/// An upstream's answer on its way to the client.
pub(crate) struct Metered {
    inner: Incoming,
    /// Frames that were read already.
    read: VecDeque<Frame<Bytes>>,
    ticket: Option<Ticket>,
    /// Goes back to the pool when the answer is complete.
    lent: Option<Lent>,
    /// Announced length, when there is one.
    left: Option<u64>,
    /// How long it may wait for the upstream.
    pauses: Pauses,
    /// When an open call of which nothing comes is to be noted again.
    noted_until: Option<Pin<Box<Sleep>>>,
    /// The end of the connection is the end of the answer.
    ends_with_connection: bool,
    /// Then, or while the upstream has not yet said that it was the last: the frame that is sent
    /// once another one is there.
    ahead: Option<Frame<Bytes>>,
    /// The head could not say what the call costs: the trailers do.
    tells_cost: bool,
    /// The end of the answer, held back until its record is as durable as the route demands.
    held_back: Option<HeldBack>,
}

struct HeldBack {
    last: Option<Frame<Bytes>>,
    proof: Pin<Box<dyn Future<Output = bool>>>,
}

impl EdgeBody {
    pub(crate) fn full(text: String) -> Self {
        Self::Full(Some(text.into()))
    }

    pub(crate) fn empty() -> Self {
        Self::Full(None)
    }

    /// An answer on its way.
    pub(crate) fn metered(answer: Answer, mut ticket: Ticket, lent: Lent, pauses: Pauses) -> Self {
        let Answer {
            body: inner,
            read,
            left,
            version,
            tells_cost,
        } = answer;
        Self::Metered(Box::new(Metered {
            inner,
            read,
            noted_until: ticket
                .keep_noted()
                .map(|left| Box::pin(tokio::time::sleep(left))),
            ticket: Some(ticket),
            lent: Some(lent),
            pauses,
            ends_with_connection: left.is_none() && version < Version::HTTP_11,
            left,
            ahead: None,
            tells_cost,
            held_back: None,
        }))
    }
}

/// An upstream's answer, of which some may have been read.
pub(crate) struct Answer {
    pub(crate) body: Incoming,
    pub(crate) read: VecDeque<Frame<Bytes>>,
    /// Announced length of all of it, when there is one.
    pub(crate) left: Option<u64>,
    /// What the client speaks.
    pub(crate) version: Version,
    /// Its trailers shall say what the call costs.
    pub(crate) tells_cost: bool,
}

/// Reads an answer to its end, or until it is longer than `bytes_max`. Returns what was read, and
/// whether that is all of it.
///
/// # Errors
/// The upstream breaks off, or pauses for too long.
pub(crate) async fn gather(
    body: &mut Incoming,
    bytes_max: usize,
    pauses: &mut Pauses,
) -> Result<(VecDeque<Frame<Bytes>>, bool), BodyError> {
    let mut read = VecDeque::new();
    let mut bytes = 0_usize;
    let mut next = async || {
        let polled = poll_fn(|task| match Pin::new(&mut *body).poll_frame(task) {
            Poll::Pending if pauses.pause(task) => Poll::Ready(Some(Err(PAUSED.into()))),
            Poll::Pending => Poll::Pending,
            Poll::Ready(frame) => Poll::Ready(frame.map(|it| it.map_err(BodyError::from))),
        });
        let frame = polled.await;
        match pauses.go_on() && frame.is_some() {
            true => Some(Err(TOO_LONG.into())),
            false => frame,
        }
    };
    while let Some(frame) = next().await {
        let frame = frame?;
        bytes = bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        read.push_back(frame);
        if bytes > bytes_max {
            return Ok((read, false));
        }
    }
    Ok((read, true))
}

impl Metered {
    /// Everything has been read from the upstream: record, free the connection, and let the end
    /// of the answer go when the record is durable.
    fn complete(
        &mut self,
        last: Option<Frame<Bytes>>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(lent) = self.lent.take() {
            lent.give_back();
        }
        let Some(ticket) = self.ticket.take() else {
            return Poll::Ready(last.map(Ok));
        };
        let Finished { proof, cost } = ticket.finish();
        let last = if self.tells_cost {
            Some(with_cost(last, cost))
        } else {
            last
        };
        match proof {
            Proof::Given => Poll::Ready(last.map(Ok)),
            awaited => {
                self.held_back = Some(HeldBack {
                    last,
                    proof: Box::pin(awaited.wait()),
                });
                self.poll_held_back(task)
            }
        }
    }

    /// Trailers are not kept, and what had some is not given again without.
    fn pass_trailers(&self, trailers: &HeaderMap) {
        let keyed = self
            .ticket
            .as_ref()
            .and_then(|it| it.facts().keyed.as_ref());
        if let Some(keyed) = keyed.filter(|_| !trailers.is_empty()) {
            keyed.cannot_keep();
        }
    }

    /// Whether the upstream has nothing more to say once the announced length is there.
    fn has_ended(&self) -> bool {
        self.inner.is_end_stream() || !self.lent.as_ref().is_some_and(Lent::is_h2)
    }

    /// The upstream has broken off, or lets us wait for too long.
    fn break_off(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            ticket.abort();
        }
        self.lent = None;
    }

    fn count(&mut self, data: &[u8]) {
        if let Some(ticket) = &mut self.ticket {
            ticket.sent(data);
        }
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes);
        }
    }

    /// Keeps an open call noted while it waits.
    fn wait_noted(&mut self, task: &mut Context<'_>) {
        let (Some(timer), Some(ticket)) = (&mut self.noted_until, &mut self.ticket) else {
            return;
        };
        while timer.as_mut().poll(task).is_ready() {
            let Some(left) = ticket.keep_noted() else {
                return;
            };
            let next = Instant::now().checked_add(left);
            timer.as_mut().reset(next.unwrap_or_else(Instant::now));
        }
    }

    fn poll_held_back(
        &mut self,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(held) = &mut self.held_back else {
            return Poll::Ready(None);
        };
        let proven = match held.proof.as_mut().poll(task) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(proven) => proven,
        };
        let last = self.held_back.take().and_then(|held| held.last);
        if !proven {
            return Poll::Ready(Some(Err(
                "the record of this call is not durable yet".into()
            )));
        }
        Poll::Ready(last.map(Ok))
    }

    fn poll(&mut self, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.held_back.is_some() {
            return self.poll_held_back(task);
        }
        loop {
            let polled = match self.read.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(&mut self.inner).poll_frame(task),
            };
            let frame = match polled {
                Poll::Pending if self.pauses.pause(task) => {
                    self.break_off();
                    return Poll::Ready(Some(Err(PAUSED.into())));
                }
                Poll::Pending => {
                    self.wait_noted(task);
                    return Poll::Pending;
                }
                Poll::Ready(None) => {
                    let last = self.ahead.take();
                    return self.complete(last, task);
                }
                Poll::Ready(Some(Err(error))) => {
                    self.break_off();
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            if let Some(data) = frame.data_ref() {
                self.count(data);
            }
            // Its last piece is not too late.
            if self.left != Some(0) && self.pauses.go_on() {
                self.break_off();
                return Poll::Ready(Some(Err(TOO_LONG.into())));
            }
            let last = match frame.into_trailers() {
                Ok(mut trailers) => {
                    if let Some(ticket) = &mut self.ticket {
                        ticket.read_trailers(&trailers);
                    }
                    if self.ends_with_connection || self.ahead.is_some() {
                        // HTTP/1.0 has no trailers, nor has a body of a known length by HTTP/1.1.
                        let last = self.ahead.take();
                        return self.complete(last, task);
                    }
                    headers::strip_response(&mut trailers);
                    self.pass_trailers(&trailers);
                    Some(Frame::trailers(trailers))
                }
                // By HTTP/2 the length is one thing, and the end another: trailers may follow.
                Err(frame) if self.left == Some(0) && !self.has_ended() => {
                    self.ahead.get_or_insert(frame);
                    continue;
                }
                Err(frame) if self.left == Some(0) => self.ahead.take().or(Some(frame)),
                Err(frame) if !self.ends_with_connection => return Poll::Ready(Some(Ok(frame))),
                Err(frame) => match self.ahead.replace(frame) {
                    Some(before) => return Poll::Ready(Some(Ok(before))),
                    None => continue,
                },
            };
            return self.complete(last, task);
        }
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Metered(metered) => metered.poll(task),
            Self::Relayed(relayed) => relayed.poll_frame(task),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Metered(metered) => {
                // Whatever the upstream says: it ends with its record.
                metered.ticket.is_none()
                    && metered.held_back.is_none()
                    && metered.read.is_empty()
                    && !metered.tells_cost
                    && metered.inner.is_end_stream()
            }
            Self::Relayed(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(
                bytes
                    .as_ref()
                    .map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            ),
            Self::Metered(metered) => match metered.left {
                Some(left) => SizeHint::with_exact(left),
                None => SizeHint::default(),
            },
            Self::Relayed(relayed) => relayed.size_hint(),
        }
    }
}

/// The end of an answer with what the call cost.
fn with_cost(last: Option<Frame<Bytes>>, cost: i64) -> Frame<Bytes> {
    let mut trailers = match last.map(Frame::into_trailers) {
        Some(Ok(trailers)) => trailers,
        // Only a body of a known length, or one that ends with its connection, ends with data; they
        // have no trailers.
        Some(Err(data)) => return data,
        None => HeaderMap::new(),
    };
    trailers.insert(COST, HeaderValue::from(cost));
    Frame::trailers(trailers)
}
