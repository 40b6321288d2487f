//! A client's body on its way to the upstream.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use types::Refusal;

use crate::{body::BodyError, headers, idempotency::BodyDigest};

/// So many bytes of a body are kept until there is an answer, where an upstream may refuse a
/// request before it has looked at it.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// What became of a request's body.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    pub(crate) bytes: Cell<u64>,
    /// What the client did wrong with it.
    pub(crate) fault: Cell<Option<Refusal>>,
    /// All of it has passed.
    pub(crate) ended: Cell<bool>,
}

impl Upload {
    /// Of a body that came whole.
    pub(crate) fn of(body: &[u8]) -> Rc<Self> {
        Rc::new(Self {
            bytes: Cell::new(u64::try_from(body.len()).unwrap_or(u64::MAX)),
            fault: Cell::default(),
            ended: Cell::new(true),
        })
    }
}

/// A client's body on its way to the upstream, counted and limited.
pub(crate) struct Uploaded {
    source: Source,
    passage: Passage,
}

/// What is noted of a body that passes.
#[derive(Clone)]
struct Passage {
    bytes_max: u64,
    upload: Rc<Upload>,
    /// Of a call with an idempotency key.
    digest: Option<BodyDigest>,
}

enum Source {
    /// There is no body.
    Nothing,
    Client(Incoming),
    /// The client's, of which what has passed already is sent again first.
    Kept {
        kept: Rc<RefCell<Passed>>,
        attempt: u32,
        again: VecDeque<Piece>,
    },
}

/// A frame, for another time.
#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Piece {
    fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Self::data(data),
            Piece::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

/// A body, and what has passed of it.
struct Passed {
    inner: Incoming,
    /// The one that gets the rest.
    attempt: u32,
    /// None: too long to be kept.
    pieces: Option<VecDeque<Piece>>,
    bytes: usize,
}

/// What another attempt to send a request needs of its body.
pub(crate) struct Kept {
    kept: Rc<RefCell<Passed>>,
    passage: Passage,
}

impl Kept {
    /// The body from its beginning, if that is still there. The attempt before gets no more of it.
    pub(crate) fn again(&self) -> Option<Uploaded> {
        let mut passed = self.kept.borrow_mut();
        let again = passed.pieces.clone()?;
        passed.attempt = passed.attempt.saturating_add(1);
        Some(Uploaded {
            source: Source::Kept {
                kept: Rc::clone(&self.kept),
                attempt: passed.attempt,
                again,
            },
            passage: self.passage.clone(),
        })
    }
}

impl Passed {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let piece = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Piece::Data(data.clone()),
            (None, Some(trailers)) => Piece::Trailers(trailers.clone()),
            (None, None) => return,
        };
        self.bytes = self.bytes.saturating_add(piece.bytes());
        if self.bytes > KEPT_BYTES_MAX {
            self.pieces = None;
        }
        if let Some(pieces) = &mut self.pieces {
            pieces.push_back(piece);
        }
    }
}

impl Passage {
    /// Notes a frame that passes.
    fn note(&self, frame: Frame<Bytes>, is_last: bool) -> Result<Frame<Bytes>, BodyError> {
        if let Some(digest) = &self.digest {
            digest.pass(&frame, is_last);
        }
        // A client's trailers are no way around what its headers may say.
        let frame = match frame.into_trailers() {
            Ok(mut trailers) => {
                headers::strip_request(&mut trailers);
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let sum = self
            .upload
            .bytes
            .get()
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.upload.bytes.set(sum);
        if is_last {
            self.upload.ended.set(true);
        }
        if sum > self.bytes_max {
            self.upload.fault.set(Some(Refusal::BodyTooLarge));
            return Err("the body is too large".into());
        }
        Ok(frame)
    }

    fn end(&self) {
        self.upload.ended.set(true);
        if let Some(digest) = &self.digest {
            digest.end();
        }
    }

    fn poll(
        &self,
        inner: &mut Incoming,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut *inner).poll_frame(task) {
            Poll::Ready(Some(Ok(frame))) => {
                let is_last = inner.is_end_stream();
                Poll::Ready(Some(self.note(frame, is_last)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.upload.fault.set(Some(fault(&error)));
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Why a client's body did not come to its end.
fn fault(error: &hyper::Error) -> Refusal {
    let source = std::error::Error::source(error).and_then(|it| it.downcast_ref::<io::Error>());
    match source.map(io::Error::kind) {
        Some(io::ErrorKind::TimedOut) => Refusal::RequestTimeout,
        _ => Refusal::BadRequest,
    }
}

impl Uploaded {
    pub(crate) fn new(
        inner: Incoming,
        bytes_max: u64,
        digest: Option<BodyDigest>,
    ) -> (Self, Rc<Upload>) {
        let upload = Rc::new(Upload::default());
        let passage = Passage {
            bytes_max,
            upload: Rc::clone(&upload),
            digest,
        };
        if inner.is_end_stream() {
            passage.end();
        }
        let source = Source::Client(inner);
        (Self { source, passage }, upload)
    }

    /// Of a request without a body.
    pub(crate) fn nothing() -> Self {
        Self {
            source: Source::Nothing,
            passage: Passage {
                bytes_max: 0,
                upload: Rc::default(),
                digest: None,
            },
        }
    }

    /// Keeps the beginning of the body, so that it can be sent again. None: there is no body.
    pub(crate) fn keep(&mut self) -> Option<Kept> {
        let inner = match std::mem::replace(&mut self.source, Source::Nothing) {
            Source::Client(inner) if !inner.is_end_stream() => inner,
            other => {
                self.source = other;
                return None;
            }
        };
        let kept = Rc::new(RefCell::new(Passed {
            inner,
            attempt: 0,
            pieces: Some(VecDeque::new()),
            bytes: 0,
        }));
        self.source = Source::Kept {
            kept: Rc::clone(&kept),
            attempt: 0,
            again: VecDeque::new(),
        };
        Some(Kept {
            kept,
            passage: self.passage.clone(),
        })
    }
}

impl Body for Uploaded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { source, passage } = self.get_mut();
        match source {
            Source::Nothing => Poll::Ready(None),
            Source::Client(inner) => passage.poll(inner, task),
            Source::Kept {
                kept,
                attempt,
                again,
            } => {
                // What is sent again was noted when it passed first.
                if let Some(piece) = again.pop_front() {
                    return Poll::Ready(Some(Ok(piece.into())));
                }
                let mut kept = kept.borrow_mut();
                if kept.attempt != *attempt {
                    return Poll::Ready(Some(Err("the request was sent again".into())));
                }
                let polled = passage.poll(&mut kept.inner, task);
                if let Poll::Ready(Some(Ok(frame))) = &polled {
                    kept.keep(frame);
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Nothing => true,
            Source::Client(inner) => inner.is_end_stream(),
            Source::Kept { kept, again, .. } => {
                again.is_empty() && kept.borrow().inner.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Nothing => SizeHint::with_exact(0),
            Source::Client(inner) => inner.size_hint(),
            Source::Kept { kept, again, .. } => {
                let before: usize = again.iter().map(Piece::bytes).sum();
                let before = u64::try_from(before).unwrap_or(u64::MAX);
                match kept.borrow().inner.size_hint().exact() {
                    Some(rest) => SizeHint::with_exact(rest.saturating_add(before)),
                    None => SizeHint::default(),
                }
            }
        }
    }
}
