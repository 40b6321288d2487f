//! A message of usage and what is new in it: decisions only, with bytes and ranges as arguments.

mod record;

use prost::{
    Message as _,
    encoding::{self, DecodeContext, WireType},
};
use proto::events::v1::{Gap, GapCause, Record, UsageBatch};
use types::{JournalId, RECORDS_MAX};

/// No record has a higher number: an inbox keeps the number after it, and PostgreSQL has 63 bits.
const SEQ_MAX: u64 = i64::MAX.unsigned_abs().saturating_sub(1);

/// Gaps of one batch. A journal's owner sends one before the records it lies before.
const GAPS_MAX: usize = 64;
/// Records of one gap; a journal with that many would be larger than any high-water mark.
const GAP_RECORDS_MAX: u64 = 1 << 32;

/// Half-open ranges of sequence numbers, sorted and disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(pub(crate) Vec<(u64, u64)>);

impl Ranges {
    /// True when a number is in it.
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        let after = self.0.partition_point(|(low, _)| *low <= seq);
        after > 0 && self.0.get(after - 1).is_some_and(|(_, high)| seq < *high)
    }

    /// The first number that is missing.
    #[must_use]
    pub fn watermark(&self) -> u64 {
        match self.0.first() {
            Some((0, high)) => *high,
            _ => 0,
        }
    }

    /// Adds a number; false when it was there.
    pub fn insert(&mut self, seq: u64) -> bool {
        if self.contains(seq) {
            return false;
        }
        let at = self.0.partition_point(|(low, _)| *low <= seq);
        let joins_left = at > 0 && self.0.get(at - 1).is_some_and(|(_, high)| *high == seq);
        let joins_right = self.0.get(at).is_some_and(|(low, _)| *low == seq + 1);
        match (joins_left, joins_right) {
            (true, true) => {
                let (_, high) = self.0.remove(at);
                if let Some(left) = self.0.get_mut(at - 1) {
                    left.1 = high;
                }
            }
            (true, false) => {
                if let Some(left) = self.0.get_mut(at - 1) {
                    left.1 = seq + 1;
                }
            }
            (false, true) => {
                if let Some(right) = self.0.get_mut(at) {
                    right.0 = seq;
                }
            }
            (false, false) => self.0.insert(at, (seq, seq + 1)),
        }
        true
    }

    /// Adds a range; the parts of it that were not there.
    pub fn cover(&mut self, from: u64, below: u64) -> Vec<(u64, u64)> {
        let first = self.0.partition_point(|(_, high)| *high < from);
        let behind = self.0.partition_point(|(low, _)| *low <= below);
        let (mut low, mut high, mut next) = (from, below, from);
        let mut new = Vec::new();
        for (known_low, known_high) in self.0.drain(first..behind) {
            if next < known_low {
                new.push((next, known_low));
            }
            next = next.max(known_high);
            (low, high) = (low.min(known_low), high.max(known_high));
        }
        if next < below {
            new.push((next, below));
        }
        self.0.insert(first, (low, high));
        new
    }
}

/// Opens a message: the journal that its subject and its content name, and its records.
///
/// # Errors
/// It breaks a rule that every batch has to keep, in words for an operator.
pub fn open(subject: &str, payload: &[u8]) -> Result<(JournalId, UsageBatch), String> {
    let (journal, batch) = read(subject, payload)?;
    for it in &batch.records {
        record::check(it).map_err(|reason| format!("record {}: {reason}", it.seq))?;
    }
    Ok((journal, batch))
}

/// As [`open`], whatever its records say: their numbers can be believed.
pub(crate) fn read(subject: &str, payload: &[u8]) -> Result<(JournalId, UsageBatch), String> {
    let batch =
        UsageBatch::decode(payload).map_err(|error| format!("not a usage batch: {error}"))?;
    let journal = check(&batch)?;
    if subject != format!("usage.v1.{journal}") {
        return Err(format!("a batch of {journal} came on {subject}"));
    }
    Ok((journal, batch))
}

/// The first records of what need not be a batch, as far as they can be read.
pub(crate) fn glance(mut payload: &[u8], records_max: usize) -> Vec<Record> {
    /// The field `records` of a batch.
    const RECORDS: u32 = 2;
    let mut found = Vec::new();
    while found.len() < records_max {
        let Ok((tag, wire)) = encoding::decode_key(&mut payload) else {
            break;
        };
        let context = DecodeContext::default();
        if (tag, wire) != (RECORDS, WireType::LengthDelimited) {
            match encoding::skip_field(wire, tag, &mut payload, context) {
                Ok(()) => continue,
                Err(_) => break,
            }
        }
        let mut record = Record::default();
        match encoding::message::merge(wire, &mut record, &mut payload, context) {
            Ok(()) => found.push(record),
            Err(_) => break,
        }
    }
    found
}

/// The rule that a record breaks, whoever reads it.
pub(crate) fn flaw(record: &Record) -> Option<String> {
    record::check(record).err()
}

/// What the records of a batch lie between: the first number, and the one after the last.
pub(crate) fn span(batch: &UsageBatch) -> Option<(u64, u64)> {
    let (first, last) = batch.records.first().zip(batch.records.last())?;
    Some((first.seq, last.seq.saturating_add(1)))
}

/// What a batch is about: its records, or where it has none, its gaps. Those before records are
/// told again with them.
pub(crate) fn extent(batch: &UsageBatch) -> Option<(u64, u64)> {
    let gaps = batch.gaps.first().zip(batch.gaps.last());
    span(batch).or(gaps.map(|(first, last)| (first.from, last.below)))
}

/// The records of a batch that are not in the ranges, which are in them from now on.
pub fn unseen(ranges: &mut Ranges, batch: &UsageBatch) -> Vec<Record> {
    let records = batch.records.iter();
    records
        .filter(|record| ranges.insert(record.seq))
        .cloned()
        .collect()
}

/// What of the gaps of a batch is not in the ranges, and is from now on: from, below, and why.
pub fn unreadable(ranges: &mut Ranges, batch: &UsageBatch) -> Vec<(u64, u64, GapCause)> {
    let mut lost = Vec::new();
    for gap in &batch.gaps {
        let parts = ranges.cover(gap.from, gap.below).into_iter();
        lost.extend(parts.map(|(from, below)| (from, below, gap.cause())));
    }
    lost
}

/// Takes from the gaps of a batch what is in the ranges.
pub(crate) fn spare(batch: &mut UsageBatch, kept: &Ranges) {
    for gap in std::mem::take(&mut batch.gaps) {
        let parts = kept.clone().cover(gap.from, gap.below).into_iter();
        let part = |(from, below)| Gap { from, below, ..gap };
        batch.gaps.extend(parts.map(part));
    }
}

/// Checks what every batch must keep: a journal, records with consecutive numbers, gaps apart from
/// them and from each other.
pub(crate) fn check(batch: &UsageBatch) -> Result<JournalId, String> {
    let journal =
        JournalId::from_slice(&batch.journal_id).map_err(|error| format!("journal_id: {error}"))?;
    if batch.records.is_empty() && batch.gaps.is_empty() {
        return Err("the batch has no records".to_owned());
    }
    if RECORDS_MAX < batch.records.len() {
        return Err(format!("{} records in one batch", batch.records.len()));
    }
    let first = batch.records.first().map_or(0, |record| record.seq);
    let last = u64::try_from(batch.records.len())
        .ok()
        .and_then(|records| first.checked_add(records));
    if last.is_none_or(|end| end > SEQ_MAX.saturating_add(1)) {
        return Err(format!("record {first} has too high a number"));
    }
    for (expected, record) in (first..).zip(&batch.records) {
        if record.seq != expected {
            return Err(format!(
                "record {} stands where {expected} should",
                record.seq
            ));
        }
    }
    check_gaps(batch)?;
    Ok(journal)
}

/// A gap is believed: what it covers is never applied. So one that makes no sense is none.
fn check_gaps(batch: &UsageBatch) -> Result<(), String> {
    if GAPS_MAX < batch.gaps.len() {
        return Err(format!("{} gaps in one batch", batch.gaps.len()));
    }
    let records = batch.records.first().zip(batch.records.last());
    let records = records.map(|(first, last)| (first.seq, last.seq));
    let mut before = 0;
    for Gap { from, below, .. } in &batch.gaps {
        let gap = format!("gap [{from}, {below})");
        if below <= from {
            return Err(format!("{gap} is empty"));
        }
        if GAP_RECORDS_MAX < below - from || SEQ_MAX < *below {
            return Err(format!("{gap} is too long"));
        }
        if *from < before {
            return Err(format!("{gap} begins before {before}"));
        }
        if records.is_some_and(|(first, last)| *from <= last && first < *below) {
            return Err(format!("{gap} covers records of its own batch"));
        }
        before = *below;
    }
    Ok(())
}
