//! Bodies: what the edge sends to clients, and what it sends to upstreams.
//!
//! The record of a call is written before the last byte of its answer leaves: before the frame
//! that completes the announced length, before the trailers, or before the end of a body whose
//! length nobody announced. Where that end is the connection's, as in HTTP/1.0, a kill would look
//! like it: there the record is written before the last frame.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use proto::events::v1::Disposition;

use crate::{
    headers,
    meter::{Proof, Ticket},
    pool::Lent,
};

/// An error inside a body.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What the edge sends to a client.
pub(crate) enum EdgeBody {
    /// An answer of the edge's own.
    Full(Option<Bytes>),
    /// An answer of the upstream, measured on its way.
    Metered(Box<Metered>),
}

/// An upstream's answer on its way to the client.
pub(crate) struct Metered {
    inner: Incoming,
    ticket: Option<Ticket>,
    /// Goes back to the pool when the answer is complete.
    lent: Option<Lent>,
    /// Announced length, when there is one.
    left: Option<u64>,
    /// The end of the connection is the end of the answer.
    ends_with_connection: bool,
    /// Then: the frame that is sent once another one is there.
    ahead: Option<Frame<Bytes>>,
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

    /// An answer to a client that speaks `version`.
    pub(crate) fn metered(inner: Incoming, ticket: Ticket, lent: Lent, version: Version) -> Self {
        let left = inner.size_hint().exact();
        Self::Metered(Box::new(Metered {
            inner,
            ticket: Some(ticket),
            lent: Some(lent),
            ends_with_connection: left.is_none() && version < Version::HTTP_11,
            left,
            ahead: None,
            held_back: None,
        }))
    }
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
        match ticket.finish(Disposition::Completed) {
            Proof::Given => Poll::Ready(last.map(Ok)),
            awaited @ Proof::Awaited(..) => {
                self.held_back = Some(HeldBack {
                    last,
                    proof: Box::pin(awaited.wait()),
                });
                self.poll_held_back(task)
            }
        }
    }

    fn count(&mut self, bytes: u64) {
        if let Some(ticket) = &mut self.ticket {
            ticket.sent(bytes);
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes);
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
            let frame = match Pin::new(&mut self.inner).poll_frame(task) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    let last = self.ahead.take();
                    return self.complete(last, task);
                }
                Poll::Ready(Some(Err(error))) => {
                    if let Some(ticket) = self.ticket.take() {
                        ticket.abort();
                    }
                    self.lent = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            let bytes = frame.data_ref().map_or(0, Buf::remaining);
            self.count(u64::try_from(bytes).unwrap_or(u64::MAX));
            let last = match frame.into_trailers() {
                // HTTP/1.0 has none.
                Ok(_) if self.ends_with_connection => self.ahead.take(),
                Ok(mut trailers) => {
                    headers::strip_response(&mut trailers);
                    Some(Frame::trailers(trailers))
                }
                Err(frame) if self.left == Some(0) => Some(frame),
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
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Metered(metered) => metered.held_back.is_none() && metered.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(
                bytes
                    .as_ref()
                    .map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            ),
            Self::Metered(metered) => metered.inner.size_hint(),
        }
    }
}

/// What became of a request's body.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    pub(crate) bytes: Cell<u64>,
    pub(crate) too_large: Cell<bool>,
}

/// A client's body on its way to the upstream, counted and limited.
pub(crate) struct Uploaded {
    /// None: there is no body.
    inner: Option<Incoming>,
    bytes_max: u64,
    upload: Rc<Upload>,
}

impl Uploaded {
    pub(crate) fn new(inner: Incoming, bytes_max: u64) -> (Self, Rc<Upload>) {
        let upload = Rc::new(Upload::default());
        (
            Self {
                inner: Some(inner),
                bytes_max,
                upload: Rc::clone(&upload),
            },
            upload,
        )
    }

    /// Of a request without a body.
    pub(crate) fn nothing() -> Self {
        Self {
            inner: None,
            bytes_max: 0,
            upload: Rc::default(),
        }
    }
}

impl Body for Uploaded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let frame = match Pin::new(inner).poll_frame(task) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => return Poll::Pending,
        };
        // A client's trailers are no way around what its headers may say.
        let frame = match frame.into_trailers() {
            Ok(mut trailers) => {
                headers::strip_request(&mut trailers);
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        };
        let bytes = frame.data_ref().map_or(0, Buf::remaining);
        let sum = this
            .upload
            .bytes
            .get()
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        this.upload.bytes.set(sum);
        if sum > this.bytes_max {
            this.upload.too_large.set(true);
            return Poll::Ready(Some(Err("the body is too large".into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}
