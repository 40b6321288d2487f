//! A message of usage and what is new in it: decisions only, with bytes and ranges as arguments.

use prost::Message as _;
use proto::events::v1::{Record, UsageBatch};
use types::JournalId;

/// No record has a higher number: an inbox keeps the number after it, and PostgreSQL has 63 bits.
const SEQ_MAX: u64 = i64::MAX.unsigned_abs().saturating_sub(1);

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
}

/// Opens a message: the journal that its subject and its content name, and its records.
///
/// # Errors
/// It breaks a rule that every batch has to keep, in words for an operator.
pub fn open(subject: &str, payload: &[u8]) -> Result<(JournalId, UsageBatch), String> {
    let batch =
        UsageBatch::decode(payload).map_err(|error| format!("not a usage batch: {error}"))?;
    let journal = check(&batch)?;
    if subject != format!("usage.v1.{journal}") {
        return Err(format!("a batch of {journal} came on {subject}"));
    }
    Ok((journal, batch))
}

/// The records of a batch that are not in the ranges, which are in them from now on.
pub fn unseen(ranges: &mut Ranges, batch: &UsageBatch) -> Vec<Record> {
    let records = batch.records.iter();
    records
        .filter(|record| ranges.insert(record.seq))
        .cloned()
        .collect()
}

/// Checks the shape every batch must have: a journal, and consecutive sequence numbers.
fn check(batch: &UsageBatch) -> Result<JournalId, String> {
    let journal =
        JournalId::from_slice(&batch.journal_id).map_err(|error| format!("journal_id: {error}"))?;
    let Some(first) = batch.records.first() else {
        return Err("the batch has no records".to_owned());
    };
    let last = u64::try_from(batch.records.len())
        .ok()
        .and_then(|records| first.seq.checked_add(records));
    if last.is_none_or(|end| end > SEQ_MAX.saturating_add(1)) {
        return Err(format!("record {} has too high a number", first.seq));
    }
    for (expected, record) in (first.seq..).zip(&batch.records) {
        if record.seq != expected {
            return Err(format!(
                "record {} stands where {expected} should",
                record.seq
            ));
        }
    }
    Ok(journal)
}
