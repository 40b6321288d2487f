//! Reading records back, up to the live tail and without a lock on the append path.

use std::sync::Arc;

use bytes::Bytes;

use super::log::{Log, Run};
use super::segment::{Frame, Scratch, frame_bytes};
use super::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Error, Result};

/// How much one batch may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most records.
    pub records_max: usize,
    /// Most payload bytes; a batch of one record may have more.
    pub bytes_max: usize,
    /// Only records below this number.
    pub before_seq: u64,
}

impl Limits {
    /// What fits into one message, below `before_seq`.
    pub fn before(before_seq: u64) -> Self {
        Self {
            records_max: BATCH_RECORDS_MAX,
            bytes_max: BATCH_BYTES_MAX,
            before_seq,
        }
    }
}

/// Consecutive records: there is no gap within a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of the first record. If it is not the number after the last batch, the records in
    /// between are damaged or were trimmed.
    pub first_seq: u64,
    /// The payloads, in order.
    pub records: Vec<Bytes>,
}

impl Batch {
    /// The number after its last record.
    pub fn next_seq(&self) -> u64 {
        let records = u64::try_from(self.records.len()).unwrap_or(u64::MAX);
        self.first_seq.saturating_add(records)
    }
}

/// A position in a journal.
pub struct Reader {
    log: Arc<Log>,
    /// Number of the next record.
    seq: u64,
    /// Where it lies, if known.
    place: Option<Place>,
    scratch: Scratch,
}

struct Place {
    run: Run,
    offset: usize,
}

impl Reader {
    pub(super) fn new(log: Arc<Log>, seq: u64) -> Self {
        Self {
            log,
            seq,
            place: None,
            scratch: Scratch::new(),
        }
    }

    /// Number of the record that comes next, if it is not in a gap.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Goes on at a later number: those before it cannot be read.
    pub fn skip_to(&mut self, seq: u64) {
        assert!(self.seq <= seq, "a reader goes forward");
        self.seq = seq;
        self.place = None;
    }

    /// Reads the next batch; `None` if there is no record below the limit yet.
    pub fn next_batch(&mut self, limits: Limits) -> Result<Option<Batch>> {
        let end = limits.before_seq.min(self.log.next_seq());
        let mut first_seq = self.seq;
        let mut payloads = Vec::new();
        let mut sizes = Vec::new();
        while self.seq < end && sizes.len() < limits.records_max {
            let Some(place) = self.place.take().or_else(|| find(&self.log, self.seq)) else {
                break;
            };
            if place.run.first_seq > self.seq {
                // Behind a gap: what was read so far is a batch of its own.
                if sizes.is_empty() && place.run.first_seq < end {
                    self.seq = place.run.first_seq;
                    first_seq = self.seq;
                    self.place = Some(place);
                    continue;
                }
                break;
            }
            let Some(bytes) = self.read(&place)? else {
                continue;
            };
            if !sizes.is_empty() && payloads.len().saturating_add(bytes) > limits.bytes_max {
                self.place = Some(place);
                break;
            }
            payloads.extend_from_slice(self.scratch.payload(bytes));
            sizes.push(bytes);
            self.advance(place, bytes);
        }
        Ok((!sizes.is_empty()).then(|| Batch {
            first_seq,
            records: cut(payloads, &sizes),
        }))
    }

    /// Loads the next record into the scratch. `None`: the segment was left before it.
    fn read(&mut self, place: &Place) -> Result<Option<usize>> {
        match place
            .run
            .segment
            .check(place.offset, &mut self.scratch, self.seq)
        {
            Frame::Record { payload_bytes } => Ok(Some(payload_bytes)),
            // The record exists, so if it is not here it is the first of the next segment.
            Frame::End if self.log.starts_run(self.seq) && place.run.first_seq < self.seq => {
                Ok(None)
            }
            Frame::End | Frame::Bad => Err(Error::Damaged { seq: self.seq }),
        }
    }

    fn advance(&mut self, place: Place, payload_bytes: usize) {
        self.seq = self.seq.strict_add(1);
        if self.seq < place.run.end_seq {
            let offset = place.offset.strict_add(frame_bytes(payload_bytes));
            self.place = Some(Place { offset, ..place });
        }
    }
}

impl Log {
    fn starts_run(&self, seq: u64) -> bool {
        let runs = self.runs.read();
        runs.binary_search_by_key(&seq, |run| run.first_seq).is_ok()
    }

    /// The run that holds `seq`, or else the first one behind it.
    fn run_for(&self, seq: u64) -> Option<Run> {
        let runs = self.runs.read();
        let behind = runs.partition_point(|run| run.first_seq <= seq);
        let before = behind.checked_sub(1).and_then(|index| runs.get(index));
        before
            .filter(|run| run.end_seq > seq)
            .or_else(|| runs.get(behind))
            .cloned()
    }
}

/// Where record `seq` lies: found by walking over the records of its segment before it.
fn find(log: &Log, seq: u64) -> Option<Place> {
    let run = log.run_for(seq)?;
    let mut offset = run.offset;
    for _ in run.first_seq..seq {
        // A walk that ends early is judged by the read that follows.
        let Some(bytes) = run.segment.frame_bytes_at(offset) else {
            break;
        };
        offset = offset.strict_add(bytes);
    }
    Some(Place { run, offset })
}

/// Cuts payloads read in a row into single ones that share the memory.
fn cut(payloads: Vec<u8>, sizes: &[usize]) -> Vec<Bytes> {
    let mut rest = Bytes::from(payloads);
    sizes.iter().map(|bytes| rest.split_to(*bytes)).collect()
}
