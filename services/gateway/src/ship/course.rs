//! Where the shipping of a journal stands and what is to be done about it: decisions only, with
//! what happened and `now` as arguments.
//!
//! - What was published moves the position, never the end of what is kept.
//! - What is let go lies below the lowest watermark of the durable consumers.
//! - What stays unapplied without any progress is shipped again from there, ever more rarely.

use std::{collections::BTreeMap, time::Duration};

use runtime::USAGE_CONSUMERS;

/// Unapplied records are shipped again after so long without progress, at first. Each time that
/// it does not help doubles the wait: a consumer that is away for an hour does not get its backlog
/// a thousand times.
const RESHIP_MIN: Duration = Duration::from_secs(3);
const RESHIP_MAX: Duration = Duration::from_secs(300);
/// Watermarks are written and segments let go so often.
const TRIM_PERIOD: Duration = Duration::from_secs(1);

/// One journal on its way out.
#[derive(Debug)]
pub(crate) struct Course {
    /// How far each consumer has come.
    marks: BTreeMap<&'static str, u64>,
    /// Everything below it was published, at least once.
    position: u64,
    /// The present patience, and the moments it and the trimming are counted from.
    patience: Duration,
    progress_at: Duration,
    trimmed_at: Duration,
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
        Self {
            marks: USAGE_CONSUMERS
                .iter()
                .map(|name| (*name, watermark))
                .collect(),
            position: watermark,
            patience: RESHIP_MIN,
            progress_at: now,
            trimmed_at: now,
        }
    }

    /// Who has applied least, and all below which number.
    pub(crate) fn last(&self) -> (&'static str, u64) {
        let last = self.marks.iter().min_by_key(|(_, mark)| **mark);
        last.map_or(("", 0), |(consumer, mark)| (*consumer, *mark))
    }

    /// The lowest watermark: everything below is applied everywhere.
    pub(crate) fn watermark(&self) -> u64 {
        self.marks.values().copied().min().unwrap_or(0)
    }

    /// The number of the next record to be published.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The stream has acknowledged everything up to `next`, which says nothing of consumers.
    pub(crate) fn published(&mut self, next: u64) {
        self.position = next;
    }

    /// A consumer says that it has applied everything below `watermark`; `written` is the number
    /// of the next record that will be written.
    pub(crate) fn applied(&mut self, consumer: &str, watermark: u64, written: u64, now: Duration) {
        // Nobody can have applied what was never written.
        if watermark > written {
            return;
        }
        if let Some(mark) = self.marks.get_mut(consumer)
            && *mark < watermark
        {
            *mark = watermark;
            self.progress_at = now;
        }
    }

    /// What is due, when everything below `kept` is gone. `in_haste`: each step forward is let go
    /// at once, since the end is near.
    pub(crate) fn due(&mut self, now: Duration, kept: u64, in_haste: bool) -> Due {
        let caught_up = self.watermark() >= self.position;
        let mut due = Due::default();
        if caught_up {
            self.progress_at = now;
            self.patience = RESHIP_MIN;
        } else if now.saturating_sub(self.progress_at) > self.patience {
            self.progress_at = now;
            self.patience = self.patience.saturating_mul(2).min(RESHIP_MAX);
            self.position = self.watermark();
            due.reship = Some(self.position);
        }
        if now.saturating_sub(self.trimmed_at) > TRIM_PERIOD || (caught_up && in_haste) {
            self.trimmed_at = now;
            due.trim = self.let_go(kept);
        }
        due
    }

    /// What can be let go of, if anything. The journal may let go of less: of nothing that
    /// somebody still needs. Then it is due again.
    pub(crate) fn let_go(&self, kept: u64) -> Option<u64> {
        let watermark = self.watermark();
        (watermark > kept).then_some(watermark)
    }
}

#[cfg(test)]
mod tests;
