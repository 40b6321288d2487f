//! Where the shipping of a journal stands and what is to be done about it: decisions only, with
//! what happened and `now` as arguments.
//!
//! - What was published moves the position, never the end of what is kept.
//! - What is let go lies below the lowest watermark of the durable consumers.
//! - What a consumer lacks while it makes no progress is shipped again, ever more rarely: what
//!   others have applied meanwhile is no news of it.

use std::{collections::BTreeMap, time::Duration};

use runtime::USAGE_CONSUMERS;

/// What a consumer lacks is shipped again after so long without progress of its own, at first. Each
/// time that it does not help doubles the wait: a consumer that is away for an hour does not get
/// its backlog a thousand times.
const RESHIP_MIN: Duration = Duration::from_secs(10);
const RESHIP_MAX: Duration = Duration::from_secs(300);
/// The consumer that turns records into debits.
const WALLET: &str = "wallet";
/// Watermarks are written and segments let go so often.
const TRIM_PERIOD: Duration = Duration::from_secs(1);

/// One journal on its way out.
#[derive(Debug)]
pub(crate) struct Course {
    marks: BTreeMap<&'static str, Mark>,
    /// The number of the next record to be published.
    position: u64,
    /// Everything below it was published, at least once.
    published: u64,
    trimmed_at: Duration,
    /// What could be let go is still there.
    is_kept: bool,
}

/// How far a consumer has come.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// It has applied everything below.
    applied: u64,
    /// Its present patience, and the moment that is counted from.
    patience: Duration,
    since: Duration,
}

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Due {
    /// Ship again from this number on.
    pub(crate) reship: Option<u64>,
    /// Let go of everything below this number.
    pub(crate) trim: Option<u64>,
}

impl Course {
    /// Begins where an earlier life left off. `now` is the time of a monotonic clock, as in all
    /// that follows.
    pub(crate) fn new(watermark: u64, now: Duration) -> Self {
        let mark = Mark {
            applied: watermark,
            patience: RESHIP_MIN,
            since: now,
        };
        Self {
            marks: USAGE_CONSUMERS.iter().map(|name| (*name, mark)).collect(),
            position: watermark,
            published: watermark,
            trimmed_at: now,
            is_kept: false,
        }
    }

    /// Who has applied least, and all below which number.
    pub(crate) fn last(&self) -> (&'static str, u64) {
        let last = self.marks.iter().min_by_key(|(_, mark)| mark.applied);
        last.map_or(("", 0), |(consumer, mark)| (*consumer, mark.applied))
    }

    /// The lowest watermark: everything below is applied everywhere.
    pub(crate) fn watermark(&self) -> u64 {
        self.last().1
    }

    /// The wallet has applied everything below.
    pub(crate) fn settled(&self) -> u64 {
        self.marks.get(WALLET).map_or(0, |mark| mark.applied)
    }

    /// The number of the next record to be published.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The stream has acknowledged everything up to `next`, which says nothing of consumers.
    pub(crate) fn published(&mut self, next: u64) {
        self.position = next;
        self.published = self.published.max(next);
    }

    /// A consumer says that it has applied everything below `watermark`; `written` is the number
    /// of the next record that will be written.
    pub(crate) fn applied(&mut self, consumer: &str, watermark: u64, written: u64, now: Duration) {
        // Nobody can have applied what was never written.
        if watermark > written {
            return;
        }
        if let Some(mark) = self.marks.get_mut(consumer)
            && mark.applied < watermark
        {
            mark.applied = watermark;
            mark.since = now;
        }
    }

    /// What is due, when everything below `kept` is gone. `in_haste`: each step forward is let go
    /// at once, since the end is near.
    pub(crate) fn due(&mut self, now: Duration, kept: u64, in_haste: bool) -> Due {
        let mut due = Due {
            reship: self.reship(now),
            trim: None,
        };
        let caught_up = self.watermark() >= self.published;
        if now.saturating_sub(self.trimmed_at) > TRIM_PERIOD || (caught_up && in_haste) {
            self.trimmed_at = now;
            due.trim = self.let_go(kept);
        }
        due
    }

    /// Goes back to the first record that a consumer has waited for too long.
    fn reship(&mut self, now: Duration) -> Option<u64> {
        let published = self.published;
        for mark in self.marks.values_mut() {
            if mark.applied >= published {
                (mark.patience, mark.since) = (RESHIP_MIN, now);
            }
        }
        let waits_too_long = |mark: &&Mark| now.saturating_sub(mark.since) > mark.patience;
        let late = self.marks.values().filter(waits_too_long);
        let from = late.map(|mark| mark.applied).min()?;
        // Who lacks something behind it gets that too: once is enough.
        for mark in self.marks.values_mut() {
            if (from..published).contains(&mark.applied) {
                mark.patience = mark.patience.saturating_mul(2).min(RESHIP_MAX);
                mark.since = now;
            }
        }
        self.position = from;
        Some(from)
    }

    /// What can be let go of, if anything. The journal may let go of less: of nothing that
    /// somebody still needs. Then it is due again.
    pub(crate) fn let_go(&mut self, kept: u64) -> Option<u64> {
        let watermark = self.watermark();
        (std::mem::take(&mut self.is_kept) || watermark > kept).then_some(watermark)
    }

    /// The disk did not do it, and may do it next time.
    pub(crate) fn not_let_go(&mut self) {
        self.is_kept = true;
    }
}

#[cfg(test)]
mod tests;
