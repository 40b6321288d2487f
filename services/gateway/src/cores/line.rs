//! One journal on its way out.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use proto::{
    events::v1::{Record, RecordKind},
    wallet::v1::Lease,
};
use types::{JournalId, LeaseId};

use super::millis;
use crate::{
    journal::{Error, Gap, Journal, Kept, Reader, Recovered},
    opened::Opened,
    record,
    recovery::{self, Total},
    ship::{course::Course, parcel},
};

/// A message for the stream.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Where to.
    pub subject: String,
    /// A `UsageBatch`.
    pub payload: Vec<u8>,
    /// Number after its last record.
    pub next: u64,
}

/// A journal with its course.
pub struct Line {
    /// The journal.
    pub journal: Journal,
    course: Course,
    reader: Reader,
    gaps: Vec<Gap>,
    is_over: bool,
    /// What an earlier life owes, as its journal said before the wallet was asked what is open:
    /// what is gone from it by then was settled before the answer.
    owed: Option<(BTreeMap<LeaseId, Total>, Opened)>,
    /// What a damaged journal keeps until its final counts are written.
    kept: Option<Kept>,
}

impl Line {
    pub(super) fn new(journal: Journal, now: Duration) -> Self {
        let course = Course::new(journal.watermark(), now);
        let reader = journal.reader(course.position());
        Self {
            journal,
            course,
            reader,
            gaps: Vec::new(),
            is_over: false,
            owed: None,
            kept: None,
        }
    }

    pub(super) fn of_earlier(found: &Recovered, now: Duration) -> Self {
        let (gaps, journal) = (found.gaps(), &found.journal);
        Self {
            kept: (!gaps.is_empty()).then(|| journal.keep(journal.watermark())),
            gaps,
            is_over: true,
            owed: recovery::read_totals(&found.journal).ok(),
            ..Self::new(found.journal.clone(), now)
        }
    }

    /// Its id.
    pub fn id(&self) -> JournalId {
        JournalId::new(self.journal.id())
    }

    pub(super) fn append_synced(&self, mut record: Record, now: Duration) -> Result<(), Error> {
        self.journal.append_synced(millis(now), |slot| {
            record.seq = slot.seq;
            (record::encode(&record, slot.buf), ())
        })?;
        Ok(())
    }

    /// Writes the final count of a lease, which `cum` tells under the journal's lock.
    pub(super) fn close(
        &self,
        lease: LeaseId,
        now: Duration,
        cum: impl FnOnce() -> i64,
    ) -> Result<(), Error> {
        let mut record = Record {
            kind: RecordKind::Close.into(),
            lease_id: lease.bytes().to_vec(),
            ..Record::default()
        };
        self.journal.append_final(millis(now), |slot| {
            record.seq = slot.seq;
            record.cum = cum();
            (record::encode(&record, slot.buf), ())
        })?;
        Ok(())
    }

    /// The next message: records below `before` only, what the product calls the synced position.
    ///
    /// # Errors
    /// The journal is damaged.
    pub fn next(&mut self, before: u64) -> Result<Option<Parcel>, Error> {
        let parcel = parcel::Parcel::read(&mut self.reader, &self.gaps, before)?;
        let id = self.id();
        Ok(parcel.map(|parcel| Parcel {
            subject: format!("usage.v1.{id}"),
            payload: parcel.encode(id),
            next: parcel.next(),
        }))
    }

    /// The stream has acknowledged a message.
    pub fn published(&mut self, next: u64) {
        self.course.published(next);
    }

    /// A consumer tells its watermark.
    pub fn applied(&mut self, consumer: &str, watermark: u64, now: Duration) {
        let written = self.journal.next_seq();
        let watermark = match self.is_over {
            true => watermark.min(written),
            false => watermark,
        };
        self.course.applied(consumer, watermark, written, now);
    }

    /// Does what is due; true when records will be shipped again.
    ///
    /// # Errors
    /// The disk fails.
    pub fn work(&mut self, now: Duration, in_haste: bool) -> Result<bool, Error> {
        let kept = self.journal.watermark();
        let due = self.course.due(now, kept, in_haste);
        if let Some(from) = due.reship {
            self.reader = self.journal.reader(from);
        }
        if let Some(watermark) = due.trim {
            self.journal.trim(watermark)?;
        }
        Ok(due.reship.is_some())
    }

    /// True when every consumer has applied everything.
    pub fn is_done(&self) -> bool {
        self.course.watermark() >= self.journal.next_seq()
    }

    /// Takes what is settled for what the journal itself has counted: a rule that was given up,
    /// because another copy may have settled the same calls. For whoever shows that it is wrong.
    ///
    /// # Errors
    /// A lease has no id.
    pub fn count_on_settled(&mut self, open: &[Lease]) -> anyhow::Result<()> {
        for lease in open {
            let id = LeaseId::from_slice(&lease.lease_id)?;
            let totals = self.owed.as_mut().map(|(totals, _)| totals);
            if let Some(total) = totals.and_then(|totals| totals.get_mut(&id)) {
                total.cum = total.cum.max(lease.settled_cum);
            }
        }
        Ok(())
    }

    /// Whether it is time to conclude it, again if it was done before.
    pub fn is_due(&self) -> bool {
        match self.kept {
            Some(_) => self.course.settled() >= self.journal.next_seq(),
            None => self.is_done(),
        }
    }

    /// Ends the calls that an earlier life had begun, and writes the final counts that it owes, of
    /// what the wallet calls open; not for the first time when all was applied and some still are.
    /// For a damaged journal all this comes when the wallet has applied everything: what it has
    /// lost may be on its way.
    ///
    /// # Errors
    /// The journal cannot be read, or the disk fails.
    pub fn conclude(
        &mut self,
        open: &[Lease],
        is_first: bool,
        now: Duration,
    ) -> anyhow::Result<()> {
        if is_first && self.kept.is_some() {
            return Ok(());
        }
        let is_first = is_first || self.kept.is_some();
        let owed = self.owed.take();
        let (mut totals, opened) = owed.context("the journal could not be read")?;
        for record in opened.end(&mut totals, open, 0)? {
            self.append_synced(record, now)?;
        }
        let has_gaps = !self.gaps.is_empty();
        for (lease, cum) in recovery::finals(&totals, open, has_gaps, is_first)? {
            self.close(lease, now, || cum)?;
        }
        self.kept = None;
        self.owed = Some((totals, Opened::default()));
        Ok(())
    }
}
