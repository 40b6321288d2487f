//! The client's side of a connection, between two calls and during one.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::AsyncWrite;

use super::{
    super::{
        Hall,
        roll::{Order, Seat},
        wire::Stream,
    },
    Next,
    exchange::Exchanged,
    whence::Whence,
};

/// A client's connection.
pub(super) struct Front<'a> {
    pub(super) hall: &'a Hall,
    pub(super) seat: &'a Seat,
    stream: &'a mut Stream,
    /// What came during a call.
    ahead: Vec<u8>,
    pub(super) whence: Whence,
    /// This call is the last one.
    pub(super) is_ending: bool,
}

/// The client has gone, or is cut off.
pub(super) struct Lost;

impl<'a> Front<'a> {
    pub(super) fn new(hall: &'a Hall, seat: &'a Seat, stream: &'a mut Stream) -> Self {
        Self {
            hall,
            seat,
            stream,
            ahead: Vec::new(),
            whence: Whence::default(),
            is_ending: false,
        }
    }

    /// Waits for another request. Whatever is ordered while nothing happens is an end.
    pub(super) async fn read(&mut self) -> Result<Vec<u8>, Next> {
        let Self {
            hall, seat, stream, ..
        } = self;
        loop {
            match seat.unless_ordered(hall.read(stream, seat)).await {
                Ok(Some(read)) => return Ok(read),
                Ok(None) | Err(Order::Cut) => return Err(Next::Gone),
                Err(Order::End) => return Err(Next::End),
                // Said of a call that has ended meanwhile.
                Err(_) => {}
            }
        }
    }

    /// What follows an answer.
    pub(super) const fn end(&self, is_last: bool) -> Exchanged {
        match is_last || self.is_ending {
            true => Exchanged::Ended,
            false => Exchanged::Answered,
        }
    }

    /// Appends what came during a call. False: nothing did.
    pub(super) fn take_ahead(&mut self, input: &mut Vec<u8>) -> bool {
        let ahead = std::mem::take(&mut self.ahead);
        if ahead.is_empty() {
            return false;
        }
        let spare = match input.is_empty() {
            true => std::mem::replace(input, ahead),
            false => {
                input.extend_from_slice(&ahead);
                ahead
            }
        };
        self.hall.spares.keep(spare);
        true
    }

    /// hyper goes on: what was ordered meanwhile is for it.
    pub(super) fn pass_order_on(&self) {
        if self.is_ending {
            self.seat.tell(Order::End);
        }
    }

    /// Awaits something while the client stays.
    pub(super) async fn during<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T, Lost> {
        let mut awaited = std::pin::pin!(awaited);
        std::future::poll_fn(|task| match awaited.as_mut().poll(task) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending if self.poll_lost(task) => Poll::Ready(Err(Lost)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Looks after the connection while something is awaited: takes orders, and reads what comes.
    /// True when it is lost; else the task is woken when there is news.
    pub(super) fn poll_lost(&mut self, task: &mut Context<'_>) -> bool {
        if self.take_order(task) {
            return true;
        }
        // Who sends on is read once; then he waits until all before it is answered.
        if !self.ahead.is_empty() {
            return false;
        }
        match self.hall.poll_read(self.stream, task, 0) {
            Poll::Ready(Some(read)) => {
                self.seat.life.read.add(read.len());
                self.ahead = read;
                false
            }
            Poll::Ready(None) => true,
            Poll::Pending => false,
        }
    }

    /// Takes an order. True: the connection is cut.
    fn take_order(&mut self, task: &Context<'_>) -> bool {
        let order = self.seat.heed(task);
        self.is_ending |= order == Some(Order::End);
        order == Some(Order::Cut)
    }

    /// Sends a head and a body.
    pub(super) async fn write(&mut self, first: &mut Vec<u8>, second: &[u8]) -> Result<(), Lost> {
        let mut pieces = Pieces::new(first, second);
        std::future::poll_fn(|task| {
            loop {
                if pieces.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                let written = pieces.poll_write(self.stream, task);
                let life = &self.seat.life;
                life.write_waits.set(written.is_pending());
                match written {
                    Poll::Ready(Ok(bytes)) => life.written.add(bytes),
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Lost)),
                    Poll::Pending if self.take_order(task) => return Poll::Ready(Err(Lost)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await?;
        // TLS takes all and holds it: here is where its client is waited for.
        std::future::poll_fn(|task| {
            let flushed = Pin::new(&mut *self.stream).poll_flush(task);
            self.seat.life.write_waits.set(flushed.is_pending());
            match flushed {
                Poll::Ready(flushed) => Poll::Ready(flushed.map_err(|_broken| Lost)),
                Poll::Pending if self.take_order(task) => Poll::Ready(Err(Lost)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// A body so short is copied behind its head: cheaper than to tell the system of two pieces.
const COPIED_BYTES_MAX: usize = 2048;

/// A head and a body on their way.
pub(super) struct Pieces<'a> {
    first: &'a [u8],
    second: &'a [u8],
}

impl<'a> Pieces<'a> {
    pub(super) fn new(head: &'a mut Vec<u8>, body: &'a [u8]) -> Self {
        let second = match body.len() {
            ..=COPIED_BYTES_MAX if !head.is_empty() => {
                head.extend_from_slice(body);
                &[]
            }
            _ => body,
        };
        Self {
            first: head,
            second,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.first.is_empty() && self.second.is_empty()
    }

    /// Writes on. Returns how many bytes went; never none.
    pub(super) fn poll_write(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        task: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(stream);
        let written = match (self.first, self.second) {
            (piece, []) | ([], piece) => stream.poll_write(task, piece),
            (first, second) => {
                stream.poll_write_vectored(task, &[IoSlice::new(first), IoSlice::new(second)])
            }
        };
        match written {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(bytes)) => {
                let of_first = bytes.min(self.first.len());
                let of_second = bytes.saturating_sub(of_first);
                self.first = self.first.get(of_first..).unwrap_or_default();
                self.second = self.second.get(of_second..).unwrap_or_default();
                Poll::Ready(Ok(bytes))
            }
            other => other,
        }
    }
}
