//! What is seen of a connection from outside hyper: by its wire, by its clock, and by who looks
//! after the connections of a thread.
//!
//! All of it stays on one thread. It is made of atomics because hyper and upgraded connections
//! demand what could be sent to another; loads and stores of them are plain ones.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};
use types::Refusal;

use super::limits::{IDLE_FRAMES_PER_SECOND_MAX, RESETS_PER_SECOND_MAX};

/// A yes or no that others see.
#[derive(Debug, Default)]
pub(super) struct Mark(AtomicBool);

impl Mark {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub(super) fn set(&self, value: bool) {
        self.0.store(value, Relaxed);
    }
}

/// A number that others see.
#[derive(Debug, Default)]
pub(super) struct Tally(AtomicU64);

impl Tally {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub(super) fn add(&self, more: usize) {
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        self.set(self.get().saturating_add(more));
    }
}

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// Bytes that came and went.
    pub(super) read: Tally,
    pub(super) written: Tally,
    /// Heads that have come.
    pub(super) heads: Tally,
    /// hyper waits for the head of a request; every answer is written, or in its buffer.
    pub(super) awaits_head: Mark,
    /// hyper may still have bytes in its buffer.
    pub(super) is_unflushed: Mark,
    /// The last attempt to read, or to write, waits for the client.
    pub(super) read_waits: Mark,
    pub(super) write_waits: Mark,
    pub(super) is_in_head: Mark,
    pub(super) is_in_body: Mark,
    /// It carries another protocol now.
    pub(super) is_tunnel: Mark,
    /// Streams of HTTP/2 that are tunnels, or ask to be.
    pub(super) tunnels: Tally,
    /// The client sends its body too slowly: reading is to fail.
    pub(super) is_too_slow: Mark,
    /// Resets and idle frames of HTTP/2 since the last look.
    pub(super) resets: Tally,
    pub(super) idle_frames: Tally,
    breach: AtomicU8,
}

/// What the head of a request can be refused for, before hyper has seen it.
const BREACHES: [Refusal; 3] = [
    Refusal::BadRequest,
    Refusal::HeadersTooLarge,
    Refusal::TargetTooLong,
];

impl Life {
    /// Nothing of a request or an answer is in hyper's hands but the beginning of a head.
    pub(super) fn is_between_calls(&self) -> bool {
        self.awaits_head.is_set() && !self.is_unflushed.is_set()
    }

    /// The next request is to be refused so.
    pub(super) fn refuse_next(&self, refusal: Refusal) {
        let at = BREACHES.iter().position(|it| *it == refusal).unwrap_or(0);
        let number = u8::try_from(at).unwrap_or(0).saturating_add(1);
        self.breach.store(number, Relaxed);
    }

    /// It sent more of something than is bearable.
    pub(super) fn is_flooded(&self) -> bool {
        self.resets.get() > u64::from(RESETS_PER_SECOND_MAX)
            || self.idle_frames.get() > u64::from(IDLE_FRAMES_PER_SECOND_MAX)
    }

    /// How the next request is to be refused, if it is.
    pub(super) fn breach(&self) -> Option<Refusal> {
        let number = usize::from(self.breach.load(Relaxed));
        BREACHES.get(number.checked_sub(1)?).copied()
    }
}

/// hyper's clock. It measures nothing: hyper asks for time exactly while it waits for a head, and
/// that is what we want to know. Who looks after the connections knows what the time is.
#[derive(Debug)]
pub(super) struct HeadClock {
    life: Arc<Life>,
    /// Any moment: asking the system for each head would be in vain.
    now: Instant,
}

impl HeadClock {
    pub(super) fn new(life: Arc<Life>) -> Self {
        Self {
            life,
            now: Instant::now(),
        }
    }
}

impl Timer for HeadClock {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
        self.life.awaits_head.set(true);
        Box::pin(HeadWait(Arc::clone(&self.life)))
    }

    fn sleep_until(&self, _: Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(Duration::ZERO)
    }

    fn now(&self) -> Instant {
        self.now
    }
}

/// Held by hyper while it waits for a head.
struct HeadWait(Arc<Life>);

impl Sleep for HeadWait {}

impl Future for HeadWait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Drop for HeadWait {
    fn drop(&mut self) {
        self.0.awaits_head.set(false);
    }
}
