//! A client's connection as hyper sees it.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use types::Refusal;

use super::{
    frames::Frames,
    framing::{Breach, Framing},
    hints::Hints,
    life::Life,
};

/// With or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// How what is read is looked at.
enum Reader {
    Http1(Framing),
    Http2(Frames),
}

/// Whether there is more to read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breached {
    No,
    /// The next request has no one reading.
    InHead,
    /// The rest of a body has none.
    InBody,
}

/// A connection that is counted, and read along with.
pub(super) struct Wire {
    stream: Stream,
    /// Was read and looked at already.
    first: Bytes,
    reader: Reader,
    breach: Breached,
    /// What was read behind a breach. It is no request if the one before changes protocols.
    behind: Bytes,
    life: Arc<Life>,
    /// Interim answers, which hyper does not send.
    hints: Option<Arc<Hints>>,
}

impl Wire {
    /// A connection of HTTP/1 whose first bytes were read.
    pub(super) fn http1(
        stream: Stream,
        mut first: Bytes,
        life: Arc<Life>,
        hints: Arc<Hints>,
    ) -> Self {
        let mut wire = Self {
            stream,
            first: Bytes::new(),
            reader: Reader::Http1(Framing::new()),
            breach: Breached::No,
            behind: Bytes::new(),
            life,
            hints: Some(hints),
        };
        // hyper has nothing yet that could be in a body.
        let sound = wire.look_at(&first).unwrap_or(0);
        wire.behind = first.split_off(sound);
        wire.first = first;
        wire
    }

    /// The same for HTTP/2: a preface, and frames behind it.
    pub(super) fn http2(stream: Stream, preface: &[u8], frames: &[u8], life: Arc<Life>) -> Self {
        let mut wire = Self {
            stream,
            first: Bytes::new(),
            reader: Reader::Http2(Frames::new()),
            breach: Breached::No,
            behind: Bytes::new(),
            life,
            hints: None,
        };
        match wire.look_at(frames) {
            Ok(_) => wire.first = [preface, frames].concat().into(),
            Err(_flood) => wire.breach = Breached::InBody,
        }
        wire
    }

    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Looks at bytes that were read. Returns how many of them hyper may have.
    fn look_at(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let life = &self.life;
        life.read.add(bytes.len());
        if life.is_tunnel.is_set() {
            return Ok(bytes.len());
        }
        let framing = match &mut self.reader {
            Reader::Http1(framing) => framing,
            Reader::Http2(frames) => {
                let seen = frames.count(bytes, life);
                return seen.map(|()| bytes.len()).map_err(io::Error::other);
            }
        };
        let passed = framing.pass(bytes);
        life.is_in_head.set(framing.is_in_head());
        life.is_in_body.set(framing.is_in_body());
        life.heads.set(framing.heads());
        match passed {
            Ok(()) => Ok(bytes.len()),
            Err(Breach {
                in_body: true,
                sound,
                ..
            }) => {
                self.breach = Breached::InBody;
                Ok(sound)
            }
            Err(Breach { refusal, sound, .. }) => {
                self.breach = Breached::InHead;
                life.refuse_next(refusal);
                Ok(sound)
            }
        }
    }

    /// What reading comes to behind a breach.
    fn end(&self) -> Option<Poll<io::Result<()>>> {
        match self.breach {
            Breached::No => None,
            // The refusal is given between two calls, by who holds the connection.
            Breached::InHead => Some(Poll::Pending),
            Breached::InBody => {
                let why = "what follows is not framed as it should be";
                Some(Poll::Ready(Err(io::Error::new(
                    ErrorKind::InvalidData,
                    why,
                ))))
            }
        }
    }

    /// hyper refuses a head by itself: then the answer is ours to give. True if `head` is that.
    fn is_hypers(&self, head: &[u8]) -> bool {
        // No answer of ours looks so: each has an id.
        self.life.awaits_head.is_set()
            && head.starts_with(b"HTTP/1.1 4")
            && memchr::memmem::find(head, b"\r\nx-request-id:").is_none()
    }

    /// Writes what was hinted at.
    fn poll_hints(&mut self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.hints {
            Some(hints) => hints.poll_write(Pin::new(&mut self.stream), task),
            None => Poll::Ready(Ok(())),
        }
    }

    fn note_write(&self, written: &Poll<io::Result<usize>>) {
        self.life.write_waits.set(written.is_pending());
        if let Poll::Ready(Ok(bytes)) = written {
            self.life.written.add(*bytes);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.life.is_too_slow.is_set() {
            let why = "the body comes too slowly";
            return Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, why)));
        }
        if this.life.is_tunnel.is_set() && this.breach == Breached::InHead {
            this.breach = Breached::No;
            this.first = [&this.first[..], &this.behind[..]].concat().into();
        }
        if !this.first.is_empty() {
            let bytes = this.first.len().min(buffer.remaining());
            buffer.put_slice(&this.first.split_to(bytes));
            return Poll::Ready(Ok(()));
        }
        if let Some(ended) = this.end() {
            return ended;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(task, buffer);
        this.life.read_waits.set(read.is_pending());
        match read {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        if bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let sound = this.look_at(bytes)?;
        if let Some(behind) = bytes.get(sound..).filter(|it| !it.is_empty()) {
            this.behind = Bytes::copy_from_slice(behind);
        }
        buffer.set_filled(before.saturating_add(sound));
        match this.end() {
            // Nothing would mean the end.
            Some(ended) if sound == 0 => ended,
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_hypers(bytes) {
            this.life.refuse_next(Refusal::BadRequest);
            return Poll::Ready(Ok(bytes.len()));
        }
        this.life.is_unflushed.set(true);
        ready!(this.poll_hints(task))?;
        let written = Pin::new(&mut this.stream).poll_write(task, bytes);
        this.note_write(&written);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Some(head) = slices.first().filter(|head| this.is_hypers(head)) {
            this.life.refuse_next(Refusal::BadRequest);
            return Poll::Ready(Ok(head.len()));
        }
        this.life.is_unflushed.set(true);
        ready!(this.poll_hints(task))?;
        let written = Pin::new(&mut this.stream).poll_write_vectored(task, slices);
        this.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = match this.poll_hints(task) {
            Poll::Ready(Ok(())) => Pin::new(&mut this.stream).poll_flush(task),
            other => other,
        };
        // hyper asks when its own buffer is empty.
        this.life.is_unflushed.set(flushed.is_pending());
        // TLS takes more than the socket: its client is waited for here.
        this.life.write_waits.set(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &this.reader {
            // Who holds the connection ends it, so that the last answer is read.
            Reader::Http1(_) if !this.life.is_tunnel.is_set() => Poll::Ready(Ok(())),
            _ => Pin::new(&mut this.stream).poll_shutdown(task),
        }
    }
}

impl Stream {
    pub(super) const fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether both sides have agreed on HTTP/2, or on something else (ALPN).
    pub(super) fn agreed_h2(&self) -> Option<bool> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol().map(|it| it == b"h2"),
        }
    }

    /// Ends the connection so that nobody takes what was sent for all.
    pub(super) fn break_off(self) {
        let stream = match &self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        if let Err(error) = stream.set_zero_linger() {
            tracing::debug!(%error, "a connection that breaks off ends in order");
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(task, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(task, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(task, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(task, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(task, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(task, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(task),
            Self::Tls(stream) => Pin::new(stream).poll_flush(task),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(task),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(task),
        }
    }
}
