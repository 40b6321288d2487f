//! A lease as threads share it: one cell of atomics, taken from by compare-and-swap.
//!
//! - Spent + held ≤ granted, always: a credit is taken by one compare-and-swap on `remaining`.
//! - `cum` changes only under the journal's lock, with the record that says so.
//! - Once a lease is draining and nothing is held, it never spends again.

use std::sync::Arc;

use types::LeaseId;

use super::sync::{AtomicBool, AtomicI64, Ordering};

/// Less time says nothing of how fast a lease is used.
const PACE_MICROS_MIN: i64 = 100_000;

/// A block of credits or permits lent to this process.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    remaining: AtomicI64,
    held: AtomicI64,
    cum: AtomicI64,
    /// The part of `cum` whose records are certainly in the journal: what others may be told.
    recorded: AtomicI64,
    granted_cum: AtomicI64,
    returned_cum: AtomicI64,
    /// What the last extension brought or was left of it idle, for deciding when to renew.
    block: AtomicI64,
    /// Monotonic microseconds of the last extension.
    extended_at: AtomicI64,
    /// Monotonic microseconds after which nothing is spent from it.
    spend_until: AtomicI64,
    /// The sum of both counters as the wallet was last told; they only grow.
    told: AtomicI64,
    draining: AtomicBool,
    closed: AtomicBool,
}

/// Credits set aside for one call. Dropped without being spent, they go back.
#[derive(Debug)]
pub(crate) struct Hold {
    lease: Arc<Lease>,
    credits: i64,
}

impl Lease {
    pub(crate) fn new(id: LeaseId) -> Self {
        Self {
            id,
            remaining: AtomicI64::new(0),
            held: AtomicI64::new(0),
            cum: AtomicI64::new(0),
            recorded: AtomicI64::new(0),
            granted_cum: AtomicI64::new(0),
            returned_cum: AtomicI64::new(0),
            block: AtomicI64::new(0),
            extended_at: AtomicI64::new(0),
            spend_until: AtomicI64::new(i64::MAX),
            told: AtomicI64::new(-1),
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Takes credits for a call, if they are there.
    pub(crate) fn hold(self: &Arc<Self>, credits: i64, now: i64) -> Option<Hold> {
        debug_assert!(credits > 0, "a free call holds nothing");
        // Announce first, look second: whoever drains looks the other way round, so one of the
        // two sees the other.
        self.held.fetch_add(credits, Ordering::SeqCst);
        let taken = !self.is_blocked(now)
            && self
                .remaining
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |remaining| {
                    let left = remaining.checked_sub(credits)?;
                    (left >= 0).then_some(left)
                })
                .is_ok();
        if taken {
            return Some(Hold {
                lease: Arc::clone(self),
                credits,
            });
        }
        self.held.fetch_sub(credits, Ordering::SeqCst);
        None
    }

    fn is_blocked(&self, now: i64) -> bool {
        self.is_draining() || now >= self.ends_at()
    }

    /// Monotonic microseconds after which nothing is spent from it.
    pub(crate) fn ends_at(&self) -> i64 {
        self.spend_until.load(Ordering::Acquire)
    }

    /// Notes when the wallet will end it, as it says by now.
    pub(crate) fn end_at(&self, spend_until: i64) {
        self.spend_until.store(spend_until, Ordering::Release);
    }

    /// Its counters, when the wallet has not been told both as they are: spent, given back.
    pub(crate) fn news(&self) -> Option<(i64, i64)> {
        let (cum, returned) = (self.recorded(), self.returned_cum());
        (cum.saturating_add(returned) != self.told.load(Ordering::Relaxed))
            .then_some((cum, returned))
    }

    /// The wallet knows these counters.
    pub(crate) fn was_told(&self, cum: i64, returned_cum: i64) {
        self.told
            .store(cum.saturating_add(returned_cum), Ordering::Relaxed);
    }

    /// Notes what the wallet has lent in all, and takes `credits` of the news for the call that
    /// asked, before others or a recall can: else it could ask for ever. Older news changes
    /// nothing. The caller has written the grant to the journal.
    pub(crate) fn extend(
        self: &Arc<Self>,
        granted_cum: i64,
        credits: i64,
        now: i64,
    ) -> Option<Hold> {
        let before = self.granted_cum.fetch_max(granted_cum, Ordering::AcqRel);
        let more = granted_cum.saturating_sub(before);
        if more <= 0 {
            return None;
        }
        self.block.store(more, Ordering::Relaxed);
        self.extended_at.store(now, Ordering::Relaxed);
        if (1..=more).contains(&credits) {
            // As in `hold`: announce first, look second.
            self.held.fetch_add(credits, Ordering::SeqCst);
            if !self.is_blocked(now) {
                let rest = more.saturating_sub(credits);
                self.remaining.fetch_add(rest, Ordering::AcqRel);
                return Some(Hold {
                    lease: Arc::clone(self),
                    credits,
                });
            }
            self.held.fetch_sub(credits, Ordering::SeqCst);
        }
        self.remaining.fetch_add(more, Ordering::AcqRel);
        None
    }

    /// True when the wallet has lent more than this process has heard of.
    pub(crate) fn is_news(&self, granted_cum: i64) -> bool {
        granted_cum > self.granted_cum.load(Ordering::Acquire)
    }

    /// What could be held now.
    pub(crate) fn in_hand(&self) -> i64 {
        self.remaining.load(Ordering::Acquire)
    }

    /// Gives everything back that is not held, but `kept`; returns the total given back so far.
    pub(crate) fn give_back(&self, kept: i64) -> i64 {
        let less = |remaining| (remaining > kept).then_some(kept);
        let before = self
            .remaining
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        let credits = before.map_or(0, |before| before.saturating_sub(kept));
        // What went back was not used, and what stays for an idle gateway is renewed at its half.
        match kept {
            0 => self.block.fetch_sub(credits, Ordering::Relaxed),
            _ => self.block.fetch_min(kept, Ordering::Relaxed),
        };
        self.returned_cum
            .fetch_add(credits, Ordering::AcqRel)
            .saturating_add(credits)
    }

    /// Credits a second since the last extension, as far as they were more than what was left
    /// before it. So that a few calls at once are no pace, those of the first tenth of a second
    /// count as that tenth's.
    pub(crate) fn pace(&self, now: i64) -> i64 {
        let used = self
            .block
            .load(Ordering::Relaxed)
            .saturating_sub(self.in_hand());
        let since = self.extended_at.load(Ordering::Relaxed);
        let micros = now.saturating_sub(since).max(PACE_MICROS_MIN);
        let micro_credits = used.max(0).saturating_mul(1_000_000);
        micro_credits.checked_div(micros).unwrap_or(0)
    }

    /// True when less than half of the last block is left.
    pub(crate) fn is_low(&self) -> bool {
        let block = self.block.load(Ordering::Relaxed);
        self.remaining.load(Ordering::Relaxed).saturating_mul(2) < block
    }

    /// Spends no more from now on. What is held may still be.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// True when nothing will ever be spent from it again.
    pub(crate) fn is_spent(&self) -> bool {
        self.is_draining() && self.held.load(Ordering::SeqCst) == 0
    }

    /// True for one caller, once nothing will ever be spent from it again: the final count is
    /// written once. Who has the claim looks no second time: a call that comes too late is among
    /// the held for a moment, before it sees that the lease drains.
    pub(crate) fn claim_close(&self) -> bool {
        self.is_spent() && !self.closed.swap(true, Ordering::AcqRel)
    }

    /// Takes the claim back: the final count could not be written.
    pub(crate) fn unclaim_close(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// The total spent. Exact under the journal's lock.
    pub(crate) fn cum(&self) -> i64 {
        self.cum.load(Ordering::Acquire)
    }

    /// The total of the calls whose records are in the journal. A report of more, a death and a
    /// write-off could debit a call that no record knows of.
    pub(crate) fn recorded(&self) -> i64 {
        self.recorded.load(Ordering::Acquire)
    }

    /// Everything lent since it began, before returns. Written to the journal before it is spent.
    pub(crate) fn granted_cum(&self) -> i64 {
        self.granted_cum.load(Ordering::Acquire)
    }

    pub(crate) fn returned_cum(&self) -> i64 {
        self.returned_cum.load(Ordering::Acquire)
    }

    /// What is left, what is held, and what was lent in all; consistent when nothing is under way.
    #[cfg(any(test, feature = "cores"))]
    pub(crate) fn figures(&self) -> (i64, i64, i64) {
        let [remaining, held, granted] = [&self.remaining, &self.held, &self.granted_cum];
        (
            remaining.load(Ordering::SeqCst),
            held.load(Ordering::SeqCst),
            granted.load(Ordering::SeqCst),
        )
    }
}

impl Hold {
    pub(crate) fn lease_id(&self) -> LeaseId {
        self.lease.id
    }

    /// Whether it is time to renew its lease.
    pub(crate) fn leaves_little(&self) -> bool {
        self.lease.is_low()
    }

    /// How many are set aside.
    pub(crate) fn credits(&self) -> i64 {
        self.credits
    }

    /// The lease's total so far. Exact under the journal's lock.
    pub(crate) fn total(&self) -> i64 {
        self.lease.cum()
    }

    /// Adds a call's cost to the lease's total. Only under the journal's lock, with the record.
    pub(crate) fn spend(&self, cost: i64) -> i64 {
        assert!(
            (0..=self.credits).contains(&cost),
            "a call costs at most its hold"
        );
        self.lease
            .cum
            .fetch_add(cost, Ordering::AcqRel)
            .saturating_add(cost)
    }

    /// Ends the hold after its record is written.
    pub(crate) fn settle(mut self, cost: i64) {
        self.lease.recorded.fetch_add(cost, Ordering::AcqRel);
        self.credits = self.release(cost);
    }

    fn release(&self, cost: i64) -> i64 {
        let rest = self.credits.saturating_sub(cost);
        if rest > 0 {
            self.lease.remaining.fetch_add(rest, Ordering::AcqRel);
        }
        self.lease.held.fetch_sub(self.credits, Ordering::SeqCst);
        0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.credits > 0 {
            self.release(0);
        }
    }
}
