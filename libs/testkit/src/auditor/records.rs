//! What the records of journals say, replayed lease by lease.

use std::collections::BTreeMap;
use std::ops::Range;

use prost::Message;
use uuid::Uuid;

use super::journal::Journals;
use super::{Findings, Kind};

/// The part of a record that is audited; field numbers as in `events.proto`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Record {
    /// Position, if the writer put it there.
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// One of the kinds below.
    #[prost(int32, tag = "2")]
    pub kind: i32,
    /// Microseconds since 1970.
    #[prost(int64, tag = "3")]
    pub at_unix_micros: i64,
    /// 16 bytes, or none.
    #[prost(bytes = "vec", tag = "4")]
    pub lease_id: Vec<u8>,
    /// Credits.
    #[prost(int64, tag = "5")]
    pub cost: i64,
    /// The lease's total with this record.
    #[prost(int64, tag = "6")]
    pub cum: i64,
    /// Credits granted to the lease so far.
    #[prost(int64, tag = "7")]
    pub granted: i64,
    /// Credits held for a call that goes on.
    #[prost(int64, tag = "8")]
    pub held: i64,
    /// The call.
    #[prost(message, optional, tag = "9")]
    pub call: Option<Call>,
    /// Permits it used.
    #[prost(message, repeated, tag = "10")]
    pub permits: Vec<Permit>,
    /// Credits that a call costs whose gateway dies now.
    #[prost(int64, tag = "11")]
    pub due: i64,
}

/// One permit of a quota.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Permit {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub lease_id: Vec<u8>,
    /// The lease's total with this one.
    #[prost(int64, tag = "2")]
    pub cum: i64,
}

/// The part of a call that is audited.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Call {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub request_id: Vec<u8>,
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub org_id: Vec<u8>,
    /// 16 bytes, or none.
    #[prost(bytes = "vec", tag = "4")]
    pub user_id: Vec<u8>,
    /// 16 bytes, or none.
    #[prost(bytes = "vec", tag = "5")]
    pub service_id: Vec<u8>,
    /// Name of the service.
    #[prost(string, tag = "6")]
    pub service: String,
    /// Of a test key.
    #[prost(bool, tag = "7")]
    pub test: bool,
    /// Status the client was given.
    #[prost(uint32, tag = "10")]
    pub status: u32,
    /// How it ended.
    #[prost(int32, tag = "16")]
    pub disposition: i32,
}

const GRANT: i32 = 1;
const OPEN: i32 = 2;
const PROGRESS: i32 = 3;
pub(super) const CALL: i32 = 4;
const CLOSE: i32 = 6;
/// The gateway died, or stopped, before the answer was complete.
const GATEWAY_ABORTED: i32 = 6;

impl Record {
    /// Reads a payload.
    ///
    /// # Errors
    /// It is no record.
    pub fn read(payload: &[u8]) -> anyhow::Result<Self> {
        Ok(Self::decode(payload)?)
    }

    /// The kind in words.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            GRANT => "GRANT",
            OPEN => "OPEN",
            PROGRESS => "PROGRESS",
            CALL => "CALL",
            5 => "VOID",
            CLOSE => "CLOSE",
            _ => "unknown",
        }
    }

    /// The lease concerned.
    #[must_use]
    pub fn lease(&self) -> Option<Uuid> {
        Uuid::from_slice(&self.lease_id).ok()
    }

    /// The call concerned.
    #[must_use]
    pub fn request(&self) -> Option<Uuid> {
        Uuid::from_slice(&self.call.as_ref()?.request_id).ok()
    }
}

/// A CALL that lies on disk.
#[derive(Debug)]
pub(super) struct CallOnDisk {
    pub(super) journal: Uuid,
    pub(super) seq: u64,
    pub(super) request: Option<Uuid>,
    pub(super) cost: i64,
}

/// Everything the journals say.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) calls: Vec<CallOnDisk>,
    /// Journal, and the number after its last record.
    pub(super) ends: BTreeMap<Uuid, u64>,
    /// What of them cannot be read.
    pub(super) gaps: Vec<(Uuid, Range<u64>)>,
    pub(super) records: u64,
    /// Calls that no record ends: they go on, or their gateway is dead and not recovered.
    pub(super) open_calls: usize,
}

/// A lease as its owner wrote it.
#[derive(Default)]
struct Lease {
    granted: i64,
    /// Absent until the first record of the lease that is still on disk.
    cum: Option<i64>,
}

/// Goes through all records and checks the arithmetic of every lease.
pub(super) fn replay(journals: &Journals, findings: &mut Findings) -> Replay {
    let mut replay = Replay::default();
    for journal in &journals.all {
        let name = format!("jrn_{}", journal.id.simple());
        let gaps = journal.gaps.iter().map(|gap| (journal.id, gap.clone()));
        replay.gaps.extend(gaps);
        for damage in &journal.damage {
            findings.add(Kind::Sum, format!("{name}: {damage}"));
        }
        replay.ends.insert(journal.id, journal.end);
        let mut leases = BTreeMap::new();
        let mut open = BTreeMap::new();
        let mut expected = None;
        for (seq, payload) in &journal.records {
            replay.records += 1;
            // Behind a gap every total begins anew: what it grew by meanwhile is lost, and calls
            // that were open may have ended.
            if expected.replace(seq + 1).is_some_and(|next| next != *seq) {
                leases.clear();
                open.clear();
            }
            let record = match Record::read(payload) {
                Ok(record) => record,
                Err(error) => {
                    findings.add(Kind::Sum, format!("{name}/{seq} is no record: {error}"));
                    continue;
                }
            };
            if record.kind == CALL {
                let (request, cost) = (record.request(), record.cost);
                replay.calls.push(CallOnDisk {
                    journal: journal.id,
                    seq: *seq,
                    request,
                    cost,
                });
            }
            let place = format!("{name}/{seq}");
            check_open(&record, &place, &mut open, findings);
            check(&record, &place, &mut leases, findings);
        }
        replay.open_calls += open.len();
    }
    replay
}

/// What was noted of a call that goes on.
struct Note {
    held: i64,
    due: i64,
}

/// A call that was opened ends once, for at most what was held; when its gateway died, for what the
/// last note of it says.
fn check_open(
    record: &Record,
    place: &str,
    open: &mut BTreeMap<Uuid, Note>,
    findings: &mut Findings,
) {
    let Some(request) = record.request() else {
        return;
    };
    let (held, due) = (record.held, record.due);
    match record.kind {
        OPEN | PROGRESS => {
            if !(0..=held).contains(&due) {
                let text = format!("{place}: {due} are due of {held} held");
                findings.add(Kind::Sum, text);
            }
            open.insert(request, Note { held, due });
        }
        CALL => {
            let Some(note) = open.remove(&request) else {
                return;
            };
            let over = i128::from(record.cost) - i128::from(note.held);
            if over > 0 {
                let text = format!("{place}: a call costs {over} more than was held for it");
                findings.add(Kind::Overspent(over), text);
            }
            let died = record.call.as_ref().map(|call| call.disposition) == Some(GATEWAY_ABORTED);
            if died && record.cost < note.due {
                let text = format!("{place}: {} of {} that were due", record.cost, note.due);
                findings.add(Kind::Sum, text);
            }
        }
        _ => {}
    }
}

fn check(record: &Record, name: &str, leases: &mut BTreeMap<Uuid, Lease>, findings: &mut Findings) {
    if matches!(record.kind, OPEN | PROGRESS) {
        return; // nothing is spent by it
    }
    for permit in &record.permits {
        match Uuid::from_slice(&permit.lease_id) {
            Ok(id) if record.kind == CALL => {
                leases
                    .entry(id)
                    .or_default()
                    .spend(id, 1, permit.cum, name, findings);
            }
            _ => findings.add(Kind::Sum, format!("{name} uses a permit of nobody")),
        }
    }
    let Some(id) = record.lease() else {
        if record.cost != 0 {
            findings.add(
                Kind::Sum,
                format!("{name} costs {} without a lease", record.cost),
            );
        }
        return;
    };
    let lease = leases.entry(id).or_default();
    match record.kind {
        GRANT => lease.granted = lease.granted.max(record.granted),
        CALL => lease.spend(id, record.cost, record.cum, name, findings),
        CLOSE if lease.cum.is_some_and(|cum| cum != record.cum) => {
            let text = format!("{name}: lease {id} closes with {}", record.cum);
            findings.add(Kind::Sum, text);
        }
        _ => {}
    }
}

impl Lease {
    /// A call that cost so much of the lease, and what it says the total is.
    fn spend(&mut self, id: Uuid, cost: i64, cum: i64, name: &str, findings: &mut Findings) {
        let before = self.cum.map(i128::from);
        let after = i128::from(cum);
        if before.is_some_and(|before| before + i128::from(cost) != after) {
            let text = format!(
                "{name}: lease {id} goes from {} to {after} by {cost}",
                before.unwrap_or_default(),
            );
            findings.add(Kind::Sum, text);
        }
        self.cum = Some(cum);
        // A GRANT that was trimmed with its segment says nothing any more.
        let over = after - i128::from(self.granted);
        if self.granted > 0 && over > 0 {
            findings.add(
                Kind::Overspent(over),
                format!("{name}: lease {id} is overspent by {over}"),
            );
        }
    }
}
