//! How long a client is waited for: decided once a second, of each connection by itself.

use std::time::Duration;

/// How a client may let us wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// A head must be complete, and a new connection's first bytes be there, after so long.
    pub(crate) head: Duration,
    /// A connection without a call is closed after so long.
    pub(crate) idle: Duration,
    /// Within each such time …
    pub(crate) stall: Duration,
    /// … a client that we wait for must move so many bytes a second.
    pub(crate) bytes_per_second_min: u64,
    /// A connection is asked to end after so long, at the end of a call. Zero: never.
    pub(crate) age: Duration,
}

/// What a connection waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Waits {
    /// The first bytes, TLS included.
    #[default]
    Opening,
    /// The client, who has no call.
    Idle,
    /// The rest of a head.
    Head,
    /// More of a body, of whose answer nothing has been sent.
    Body,
    /// The client to read its answer.
    Reader,
    /// Us, or an upstream.
    Us,
}

/// What is seen of a connection at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sight {
    pub(super) waits: Waits,
    /// Bytes and heads that came, bytes that went.
    pub(super) read: u64,
    pub(super) heads: u64,
    pub(super) written: u64,
    /// hyper holds buffers for it.
    pub(super) is_awake: bool,
}

/// What was seen of a connection before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    sight: Sight,
    /// Seconds, of whatever clock: since then it waits for the same.
    since: u64,
    opened: u64,
    was_asked: bool,
}

/// What is to be done with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Fine,
    /// Its buffers may go.
    Rest,
    /// It is to end when its calls have.
    End,
    /// It is to be told that its head did not come in time.
    LateHead,
    /// Its body is to break off.
    LateBody,
    /// It is to be cut.
    Cut(&'static str),
}

impl Memory {
    pub(super) fn new(now: u64) -> Self {
        Self {
            since: now,
            opened: now,
            ..Self::default()
        }
    }

    /// Looks at a connection once more.
    pub(super) fn judge(&mut self, sight: Sight, now: u64, patience: &Patience) -> Verdict {
        let before = self.sight;
        let goes_on = sight.waits == before.waits
            && sight.heads == before.heads
            && match sight.waits {
                Waits::Idle => sight.read == before.read && sight.written == before.written,
                // An answer that flows while the body comes: both may take their time.
                Waits::Body => sight.written == before.written,
                Waits::Opening | Waits::Head | Waits::Reader => true,
                Waits::Us => false,
            };
        if !goes_on {
            self.sight = sight;
            self.since = now;
        }
        self.sight.is_awake = sight.is_awake;
        let waited = Duration::from_secs(now.saturating_sub(self.since));
        match sight.waits {
            Waits::Opening if waited >= patience.head => Verdict::Cut("silent"),
            Waits::Head if waited >= patience.head => Verdict::LateHead,
            Waits::Body | Waits::Reader if waited >= patience.stall => {
                let moved = match sight.waits {
                    Waits::Body => sight.read.saturating_sub(self.sight.read),
                    _ => sight.written.saturating_sub(self.sight.written),
                };
                let least = patience
                    .bytes_per_second_min
                    .saturating_mul(patience.stall.as_secs());
                self.sight = sight;
                self.since = now;
                match sight.waits {
                    _ if moved >= least => Verdict::Fine,
                    Waits::Body => Verdict::LateBody,
                    _ => Verdict::Cut("slow_reader"),
                }
            }
            Waits::Idle if waited >= patience.idle => Verdict::End,
            _ if self.is_old(now, patience) => Verdict::End,
            Waits::Idle if goes_on && sight.is_awake => Verdict::Rest,
            _ => Verdict::Fine,
        }
    }

    /// True once.
    fn is_old(&mut self, now: u64, patience: &Patience) -> bool {
        let age = Duration::from_secs(now.saturating_sub(self.opened));
        let is_old = !self.was_asked && !patience.age.is_zero() && age >= patience.age;
        self.was_asked |= is_old;
        is_old
    }
}

#[cfg(test)]
mod tests;
