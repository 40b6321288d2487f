//! Epochs of test wallets: 30 days each, counted from the wallet's creation.

use jiff::{SignedDuration, Timestamp};
use types::Credits;

/// What a test wallet holds when an epoch begins.
pub(crate) const TEST_CREDITS: Credits = Credits::new(100);
const EPOCH_SECONDS: i64 = 30 * 24 * 60 * 60;

/// One epoch of one test wallet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Epoch {
    /// 0, 1, 2, … ; epochs nobody used are counted too.
    pub(crate) number: i64,
    /// When the next one begins.
    pub(crate) reset_at: Timestamp,
}

impl Epoch {
    /// The first, beginning now.
    pub(crate) fn first(now: Timestamp) -> Self {
        Self {
            number: 0,
            reset_at: after(now, 1),
        }
    }

    /// The number of the epoch that `at` was in, which may be an earlier one.
    pub(crate) fn number_at(self, at: Timestamp) -> i64 {
        let early = self.reset_at.duration_since(at).as_secs();
        let before = early.saturating_sub(1).div_euclid(EPOCH_SECONDS).max(0);
        self.number.saturating_sub(before).max(0)
    }

    /// The epoch `now` is in: this one, or the one of a boundary passed since.
    pub(crate) fn at(self, now: Timestamp) -> Self {
        if now < self.reset_at {
            return self;
        }
        let late = now.duration_since(self.reset_at).as_secs();
        let passed = late.saturating_div(EPOCH_SECONDS).saturating_add(1);
        Self {
            number: self.number.saturating_add(passed),
            reset_at: after(self.reset_at, passed),
        }
    }
}

fn after(at: Timestamp, epochs: i64) -> Timestamp {
    let step = SignedDuration::from_secs(EPOCH_SECONDS.saturating_mul(epochs));
    at.checked_add(step)
        .expect("no clock is within 30 days of the year 9999")
}
