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

impl Rate {
    /// Nanoseconds between two calls at the steady rate.
    #[must_use]
    pub fn interval_nanos(self) -> u64 {
        1_000_000_000_u64
            .checked_div(u64::from(self.per_second))
            .unwrap_or(1_000_000_000)
    }
}

impl Gcra {
    /// Admits a call at `now` (monotonic nanoseconds), or says in how many nanoseconds it would.
    ///
    /// # Errors
    /// The wait until the next call is admitted.
    pub fn admit(&self, rate: Rate, now: u64) -> Result<(), u64> {
        let interval = rate.interval_nanos();
        let tolerance = interval.saturating_mul(u64::from(rate.burst.saturating_sub(1)));
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
    pub fn remaining(&self, rate: Rate, now: u64) -> u32 {
        let early = self.0.load(Ordering::Relaxed).saturating_sub(now);
        let used = early.div_ceil(rate.interval_nanos().max(1));
        rate.burst
            .saturating_sub(u32::try_from(used).unwrap_or(u32::MAX))
    }

    /// Gives an admitted call back, because a later check refused it.
    pub fn give_back(&self, rate: Rate) {
        self.0.fetch_sub(rate.interval_nanos(), Ordering::Relaxed);
    }
}
