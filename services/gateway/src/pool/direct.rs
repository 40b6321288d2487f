//! Connections to upstreams without hyper, for calls of the common shape (`listen/express.rs`).
//!
//! They are counted with the others and bounded by the same limit. One whose answer has another
//! shape becomes a connection of hyper's, which is given what was read of it.

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use super::{
    Lent, Pool, Unlent,
    connect::one,
    site::{Handed, Site, Slot},
    targets::{Chosen, Target, Trial},
};
use crate::{catalogue::Upstream, upload::Uploaded};

/// A connection in use. Dropped, it is closed; given back, it is used again.
pub(crate) struct Direct {
    pub(crate) stream: TcpStream,
    /// False for one that was opened for this call.
    pub(crate) reused: bool,
    /// What opening it took of this call's time.
    pub(crate) opened_in: Duration,
    pub(super) slot: Slot,
    pub(super) target: Rc<Target>,
    trial: Option<Trial>,
}

impl Direct {
    /// Whether the upstream has neither closed it nor said anything unasked. No system call unless
    /// there is news.
    pub(super) fn is_silent(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Where it leads, to say later how that went.
    pub(crate) fn target(&self) -> &Rc<Target> {
        &self.target
    }

    /// The upstream has answered.
    pub(crate) fn answered(&mut self, pool: &Pool, status: u16) {
        pool.answered(&self.target, &mut self.trial, status);
    }

    /// Puts the connection back: its answer was read to its end.
    pub(crate) fn give_back(mut self) {
        self.reused = true;
        self.opened_in = Duration::ZERO;
        let site = Rc::clone(self.slot.site());
        site.put_direct(self);
    }

    /// Gives the connection to hyper, for another call.
    ///
    /// # Errors
    /// hyper does not take it.
    pub(super) async fn into_lent(self) -> hyper::Result<Lent> {
        let spoken = one(self.stream).await?;
        let chosen = Chosen {
            target: self.target,
            trial: self.trial,
        };
        let site = Rc::clone(self.slot.site());
        Ok(Lent {
            reused: self.reused,
            ..Lent::of(spoken, &site, self.slot, chosen)
        })
    }

    /// Gives hyper an answer that begins with what was `read`.
    ///
    /// # Errors
    /// It is no answer, or breaks off in its head.
    pub(crate) async fn into_answer(
        self,
        pool: &Pool,
        method: &Method,
        read: Bytes,
    ) -> hyper::Result<(Lent, Response<Incoming>)> {
        let answered = Answered {
            stream: self.stream,
            read,
            is_asked: false,
            reader: None,
        };
        let spoken = one(answered).await?;
        let chosen = Chosen {
            target: self.target,
            trial: self.trial,
        };
        let site = Rc::clone(self.slot.site());
        let mut lent = Lent::of(spoken, &site, self.slot, chosen);
        // What is asked here was asked before: only the method matters for reading the answer.
        let mut request = Request::new(Uploaded::nothing());
        request.method_mut().clone_from(method);
        let sent = lent.send(request).await;
        let response = sent.map_err(hyper::client::conn::TrySendError::into_error)?;
        lent.answered(pool, response.status());
        Ok((lent, response))
    }
}

impl Pool {
    /// A connection without hyper: one that is there, or where another one may be opened, that.
    /// `Ok(None)`: whoever wants one has to wait.
    ///
    /// # Errors
    /// Nobody takes one; `None`: not within `timeout`.
    pub(crate) async fn direct(
        &self,
        upstream: &Upstream,
        timeout: Duration,
    ) -> Result<Option<Direct>, Option<Unlent>> {
        let site = self.site(upstream);
        if let Some(direct) = site.take_direct() {
            return Ok(Some(direct));
        }
        let began = Instant::now();
        let opened = Box::pin(self.open_direct(site, began));
        match tokio::time::timeout(timeout, opened).await {
            Ok(opened) => opened.map_err(Some),
            Err(_elapsed) => Err(None),
        }
    }

    async fn open_direct(&self, site: Rc<Site>, began: Instant) -> Result<Option<Direct>, Unlent> {
        site.touch();
        let mut slot = match site.reserve(false) {
            Some(slot) => slot,
            // One of hyper's that waits makes room for one without it: else a burst would leave
            // them all to hyper.
            None if !site.is_awaited() && site.close_idle() => match self.wait(&site).await? {
                Handed::Slot(slot) => slot,
                Handed::Direct(direct) => return Ok(Some(*direct)),
                Handed::Lent(lent) => {
                    lent.give_back();
                    return Ok(None);
                }
            },
            None => return Ok(None),
        };
        let opening = site.opening();
        let connected = self
            .open_by(&site, &mut slot, Vec::new(), async |target| {
                self.connector.open_direct(&site, target).await
            })
            .await;
        drop(opening);
        let (stream, Chosen { target, trial }) = connected?;
        Ok(Some(Direct {
            stream,
            reused: false,
            opened_in: began.elapsed(),
            slot,
            target,
            trial,
        }))
    }
}

/// A connection whose first request was sent, and whose answer may have been read in part.
struct Answered {
    stream: TcpStream,
    read: Bytes,
    /// hyper has written the request.
    is_asked: bool,
    reader: Option<Waker>,
}

impl Answered {
    /// Takes what hyper writes first, which the upstream has had.
    fn swallow(&mut self) {
        self.is_asked = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl AsyncRead for Answered {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_asked {
            // An answer that comes before its question is an error to hyper.
            this.reader = Some(task.waker().clone());
            return Poll::Pending;
        }
        if !this.read.is_empty() {
            let bytes = this.read.len().min(buffer.remaining());
            buffer.put_slice(&this.read.split_to(bytes));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(task, buffer)
    }
}

impl AsyncWrite for Answered {
    fn poll_write(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.is_asked {
            this.swallow();
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut this.stream).poll_write(task, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if !this.is_asked {
            this.swallow();
            let bytes = slices.iter().map(|slice| slice.len()).sum();
            return Poll::Ready(Ok(bytes));
        }
        Pin::new(&mut this.stream).poll_write_vectored(task, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(task)
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(task)
    }
}
