//! Interim answers (RFC 9110, 15.2) on their way through hyper: its clients hear of them where the
//! upstream speaks HTTP/1.1, and its servers send none. So they go to the wire beside hyper, whose
//! buffer is empty while a call waits for its answer.
//!
//! They are advice: one that finds no place, or comes behind its answer, is dropped.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use http::{HeaderMap, Request, StatusCode};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;

use super::{express::write_interim, life::Life, limits::INTERIM_MAX};

/// Bytes of them that wait for a slow client; beyond, further ones are dropped.
const WAITING_BYTES_MAX: usize = 32 * 1024;

/// Those of one connection.
pub(super) struct Hints {
    life: Arc<Life>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Number of the last call.
    call: u64,
    /// As many as may still come for it; 0 when it is answered.
    left: usize,
    heads: Vec<u8>,
    /// Of the connection's task.
    waker: Option<Waker>,
}

/// Takes those of one call.
#[derive(Clone)]
pub(crate) struct Hinted {
    hints: Arc<Hints>,
    call: u64,
}

impl Hints {
    pub(super) fn new(life: Arc<Life>) -> Arc<Self> {
        Arc::new(Self {
            life,
            waiting: Mutex::default(),
        })
    }

    /// A call begins.
    pub(super) fn begin(self: &Arc<Self>) -> Hinted {
        let mut waiting = self.waiting.lock();
        waiting.call = waiting.call.wrapping_add(1);
        waiting.left = INTERIM_MAX;
        let call = waiting.call;
        drop(waiting);
        Hinted {
            hints: Arc::clone(self),
            call,
        }
    }

    /// Answers a call. Meanwhile what is hinted at wakes the connection.
    pub(super) async fn during<T>(&self, mut answered: Pin<&mut impl Future<Output = T>>) -> T {
        let answered = std::future::poll_fn(|task| {
            let mut waiting = self.waiting.lock();
            let waker = &mut waiting.waker;
            if !waker.as_ref().is_some_and(|it| it.will_wake(task.waker())) {
                *waker = Some(task.waker().clone());
            }
            drop(waiting);
            answered.as_mut().poll(task)
        })
        .await;
        self.waiting.lock().left = 0;
        answered
    }

    /// Writes what waits, before anything else is written.
    pub(super) fn poll_write(
        &self,
        mut stream: Pin<&mut impl AsyncWrite>,
        task: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut waiting = self.waiting.lock();
        while !waiting.heads.is_empty() {
            let written = stream.as_mut().poll_write(task, &waiting.heads);
            self.life.write_waits.set(written.is_pending());
            match written {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
                }
                Poll::Ready(Ok(bytes)) => {
                    self.life.written.add(bytes);
                    waiting.heads.drain(..bytes);
                }
                other => return other.map_ok(drop),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Hinted {
    /// Hears what is hinted at while this request is answered.
    pub(crate) fn hear<B>(self, request: &mut Request<B>) {
        hyper::ext::on_informational(request, move |answer| {
            self.put(answer.status(), answer.headers());
        });
    }

    fn put(&self, status: StatusCode, fields: &HeaderMap) {
        let Hints { life, waiting } = &*self.hints;
        let mut waiting = waiting.lock();
        // The answer before may still be in hyper's buffer, half written. And who did not ask
        // whether to go on is not told to.
        let is_its_turn = waiting.call == self.call && !life.is_unflushed.is_set();
        let is_welcome = waiting.left > 0 && waiting.heads.len() < WAITING_BYTES_MAX;
        if status == StatusCode::CONTINUE || !is_its_turn || !is_welcome {
            return;
        }
        waiting.left = waiting.left.saturating_sub(1);
        let line = (
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
        );
        let fields = fields.iter();
        let fields = fields.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        write_interim(&mut waiting.heads, line, fields);
        if let Some(waker) = &waiting.waker {
            waker.wake_by_ref();
        }
    }
}
