//! Rate limiting by the generic cell rate algorithm (ITU-T I.371), one atomic word per key.

use std::sync::atomic::{AtomicU64, Ordering};

/// So many calls a second, and so many at once beyond that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Calls a second, at least 1.
    pub per_second: u32,
    /// Calls that may come at once, at least 1.
    pub burst: u32,
}

/// The state of one limiter: the theoretical arrival time, in nanoseconds of the caller's clock.
#[derive(Debug, Default)]
pub struct Gcra(AtomicU64);

/// What one of several enforces of a rate: together they let through no more than all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    interval_nanos: u64,
    burst: u32,
}

impl Rate {
    /// The part of one among so many. The steady rate is divided exactly, also below one call a
    /// second; of a burst each has at least one call.
    #[must_use]
    pub fn share(self, among: u32) -> Share {
        let among = among.max(1);
        let interval = u64::from(among).saturating_mul(1_000_000_000);
        Share {
            interval_nanos: interval.div_ceil(u64::from(self.per_second.max(1))),
            burst: self.burst.div_ceil(among).max(1),
        }
    }
}

impl From<Rate> for Share {
    fn from(rate: Rate) -> Self {
        rate.share(1)
    }
}

impl Gcra {
    /// Admits a call at `now` (monotonic nanoseconds), or says in how many nanoseconds it would.
    ///
    /// # Errors
    /// The wait until the next call is admitted.
    pub fn admit(&self, share: impl Into<Share>, now: u64) -> Result<(), u64> {
        let share = share.into();
        let interval = share.interval_nanos;
        let tolerance = interval.saturating_mul(u64::from(share.burst.saturating_sub(1)));
        let mut seen = self.0.load(Ordering::Relaxed);
        loop {
            let start = seen.max(now);
            let early = start.saturating_sub(now);
            if early > tolerance {
                return Err(early.saturating_sub(tolerance));
            }
            let next = start.saturating_add(interval);
            match self
                .0
                .compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(()),
                Err(current) => seen = current,
            }
        }
    }

    /// Calls that would be admitted at once at `now`.
    #[must_use]
    pub fn remaining(&self, share: impl Into<Share>, now: u64) -> u32 {
        let share = share.into();
        let early = self.0.load(Ordering::Relaxed).saturating_sub(now);
        let used = early.div_ceil(share.interval_nanos.max(1));
        share
            .burst
            .saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }

    /// Gives an admitted call back, because a later check refused it.
    pub fn give_back(&self, share: impl Into<Share>) {
        let interval = share.into().interval_nanos;
        self.0.fetch_sub(interval, Ordering::Relaxed);
    }
}
