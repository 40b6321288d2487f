//! One message: records that are encoded already, and the gap before them.

use prost::Message as _;
use proto::events::v1::{self as wire, GapCause, Record};
use types::JournalId;

use crate::journal::{Batch, Cause, Gap, Limits, Reader, Result};

/// Wire tag of `UsageBatch.journal_id`: field 1, length-delimited.
const TAG_JOURNAL: u8 = 0x0a;
/// Wire tag of `UsageBatch.records`: field 2, length-delimited.
const TAG_RECORD: u8 = 0x12;
/// Wire tag of `UsageBatch.gaps`: field 3, length-delimited.
const TAG_GAP: u8 = 0x1a;

/// Consecutive records, a gap, or a gap and the records behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parcel {
    pub(crate) gap: Option<Gap>,
    /// Empty behind a gap at the end of a journal.
    pub(crate) batch: Batch,
}

impl Parcel {
    /// Reads on below `before`. What is known to be unreadable is told with what follows it, so
    /// nobody waits for it; the reader is behind it afterwards.
    pub(crate) fn read(reader: &mut Reader, gaps: &[Gap], before: u64) -> Result<Option<Self>> {
        let from = reader.seq();
        if let Some(batch) = reader.next_batch(Limits::before(before))? {
            let gap = gap_in(gaps, from, batch.first_seq);
            return Ok(Some(Self { gap, batch }));
        }
        let Some(gap) = gap_in(gaps, from, before) else {
            return Ok(None);
        };
        reader.skip_to(gap.seqs.end);
        let batch = Batch {
            first_seq: gap.seqs.end,
            records: Vec::new(),
        };
        Ok(Some(Self {
            gap: Some(gap),
            batch,
        }))
    }

    /// The first number it is about.
    pub(crate) fn first(&self) -> u64 {
        let gap = self.gap.as_ref();
        gap.map_or(self.batch.first_seq, |gap| gap.seqs.start)
    }

    /// The number after the last one.
    pub(crate) fn next(&self) -> u64 {
        self.batch.next_seq()
    }

    /// A `UsageBatch`.
    pub(crate) fn encode(&self, journal: JournalId) -> Vec<u8> {
        let records = self.batch.records.iter();
        let bytes: usize = records.map(|record| record.len().saturating_add(4)).sum();
        let mut payload = Vec::with_capacity(bytes.saturating_add(64));
        part(&mut payload, TAG_JOURNAL, journal.bytes());
        for record in &self.batch.records {
            part(&mut payload, TAG_RECORD, record);
        }
        if let Some(gap) = &self.gap {
            let gap = wire::Gap {
                from: gap.seqs.start,
                below: gap.seqs.end,
                cause: cause(gap.cause).into(),
            };
            part(&mut payload, TAG_GAP, &gap.encode_to_vec());
        }
        payload
    }

    /// The trace of the first sampled call, for the message's header.
    pub(crate) fn first_trace(&self) -> Option<String> {
        self.batch.records.iter().find_map(|bytes| {
            let call = Record::decode(bytes.clone()).ok()?.call?;
            (!call.traceparent.is_empty()).then_some(call.traceparent)
        })
    }
}

fn part(payload: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    payload.push(tag);
    prost::encoding::encode_varint(u64::try_from(bytes.len()).unwrap_or(u64::MAX), payload);
    payload.extend_from_slice(bytes);
}

/// The part of a gap that lies between two numbers; there is one gap at most between records that
/// can be read.
fn gap_in(gaps: &[Gap], from: u64, before: u64) -> Option<Gap> {
    gaps.iter().find_map(|gap| {
        let seqs = gap.seqs.start.max(from)..gap.seqs.end.min(before);
        (!seqs.is_empty()).then_some(Gap {
            seqs,
            cause: gap.cause,
        })
    })
}

fn cause(cause: Cause) -> GapCause {
    match cause {
        Cause::MissingSegment => GapCause::Missing,
        Cause::Header | Cause::Records | Cause::Foreign | Cause::Watermark => GapCause::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::events::v1::UsageBatch;

    use super::*;

    fn gap(seqs: std::ops::Range<u64>) -> Gap {
        Gap {
            seqs,
            cause: Cause::MissingSegment,
        }
    }

    #[test]
    fn a_message_says_what_it_holds() {
        let journal = JournalId::new(uuid::Uuid::from_u128(7));
        let record = Record {
            seq: 9,
            cost: 3,
            ..Record::default()
        };
        let parcel = Parcel {
            gap: Some(gap(4..9)),
            batch: Batch {
                first_seq: 9,
                records: vec![Bytes::from(record.encode_to_vec())],
            },
        };
        let read = UsageBatch::decode(&*parcel.encode(journal)).expect("a batch");
        assert_eq!(read.journal_id, journal.bytes());
        assert_eq!(read.records, [record]);
        let told = read.gaps.first().expect("a gap");
        assert_eq!((told.from, told.below), (4, 9));
        assert_eq!(told.cause(), GapCause::Missing);
        assert_eq!((parcel.first(), parcel.next()), (4, 10));
    }

    #[test]
    fn a_gap_is_told_as_far_as_it_is_in_the_way() {
        let gaps = [gap(3..6), gap(9..12)];
        assert_eq!(gap_in(&gaps, 0, 3), None);
        assert_eq!(gap_in(&gaps, 0, 6), Some(gap(3..6)));
        // What consumers have applied already is not told again.
        assert_eq!(gap_in(&gaps, 5, 8), Some(gap(5..6)));
        assert_eq!(gap_in(&gaps, 6, 12), Some(gap(9..12)));
        assert_eq!(gap_in(&gaps, 12, 99), None);
    }
}
