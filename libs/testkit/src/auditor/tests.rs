use std::fs;
use std::path::Path;

use uuid::Uuid;

use super::journal::Journals;
use super::money::Lease;
use super::records::{Call, Permit, Record, replay};
use super::unitemised::{Numbers, Step, Totals, Unitemised};
use super::{Findings, Transcript, read_transcript};

const JOURNAL: Uuid = Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001);
const LEASE: Uuid = Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0002);
const SEGMENT_BYTES: usize = 65_536;

/// A segment written from the description of the format.
struct Segment {
    bytes: Vec<u8>,
    next_seq: u64,
    offset: usize,
}

impl Segment {
    fn new(first_seq: u64) -> Self {
        let mut bytes = vec![0; SEGMENT_BYTES];
        bytes[..4].copy_from_slice(b"TGJL");
        bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
        bytes[8..24].copy_from_slice(JOURNAL.as_bytes());
        bytes[24..32].copy_from_slice(&first_seq.to_le_bytes());
        bytes[40..44].copy_from_slice(&65_536_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        Self {
            bytes,
            next_seq: first_seq,
            offset: 64,
        }
    }

    fn push(&mut self, payload: &[u8]) -> usize {
        let at = self.offset;
        let mut covered = self.next_seq.to_le_bytes().to_vec();
        covered.extend_from_slice(payload);
        let length = u32::try_from(payload.len()).unwrap();
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        self.bytes[at + 4..at + 8].copy_from_slice(&crc32c::crc32c(&covered).to_le_bytes());
        self.bytes[at + 8..at + 8 + payload.len()].copy_from_slice(payload);
        self.offset += 8 + payload.len().next_multiple_of(8);
        self.next_seq += 1;
        at
    }

    fn write(&self, dir: &Path, name: &str) {
        fs::write(dir.join(name), &self.bytes).unwrap();
    }
}

struct Root {
    root: tempfile::TempDir,
    dir: std::path::PathBuf,
}

fn root() -> Root {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join(format!("jrn_{}", JOURNAL.simple()));
    fs::create_dir(&dir).unwrap();
    fs::write(root.path().join("LOCK"), "1").unwrap();
    Root { root, dir }
}

impl Root {
    fn read(&self) -> Journals {
        Journals::read(&[self.root.path().to_owned()]).unwrap()
    }

    fn seqs(&self) -> Vec<u64> {
        self.read().all[0]
            .records
            .iter()
            .map(|(seq, _)| *seq)
            .collect()
    }
}

fn call(cost: i64, cum: i64) -> Vec<u8> {
    let call = Call {
        request_id: vec![7; 16],
        service: "pdf".to_owned(),
        status: 200,
        disposition: 1,
        ..Call::default()
    };
    encode(Record {
        kind: 4,
        cost,
        cum,
        call: Some(call),
        ..Record::default()
    })
}

fn grant(granted: i64) -> Vec<u8> {
    encode(Record {
        kind: 1,
        granted,
        ..Record::default()
    })
}

fn encode(record: Record) -> Vec<u8> {
    let record = Record {
        lease_id: LEASE.as_bytes().to_vec(),
        ..record
    };
    prost::Message::encode_to_vec(&record)
}

#[test]
fn segments_are_read_in_order_and_unused_spares_hold_nothing() {
    let root = root();
    let mut second = Segment::new(2);
    second.push(b"two");
    second.write(&root.dir, "spare_00000001.seg");
    let mut first = Segment::new(0);
    first.push(b"zero");
    first.push(b"one");
    first.write(&root.dir, &format!("{:020}.seg", 0));
    fs::write(root.dir.join("spare_00000002.seg"), vec![0; SEGMENT_BYTES]).unwrap();

    let journals = root.read();
    let journal = &journals.all[0];
    assert_eq!(
        (journal.id, journal.end, journal.watermark),
        (JOURNAL, 3, 0)
    );
    assert_eq!(journal.records[2], (2, b"two".to_vec()));
    assert!(journal.damage.is_empty() && journal.gaps.is_empty() && !journal.is_torn);
    assert_eq!(journal.segments.len(), 2);
}

#[test]
fn a_damaged_record_is_a_gap_and_the_ones_behind_it_are_read() {
    let root = root();
    let mut segment = Segment::new(0);
    segment.push(b"zero");
    let at = segment.push(b"one");
    segment.push(b"two");
    segment.bytes[at + 9] ^= 1;
    segment.write(&root.dir, &format!("{:020}.seg", 0));

    assert_eq!(root.seqs(), [0, 2]);
    let journals = root.read();
    assert_eq!(journals.all[0].gaps, vec![1..2; 1]);
    let mut findings = Findings::default();
    let replay = replay(&journals, &mut findings);
    assert_eq!(replay.gaps, [(journals.all[0].id, 1..2)]);
}

#[test]
fn a_torn_tail_is_the_end_and_no_damage() {
    let root = root();
    let mut segment = Segment::new(0);
    segment.push(b"zero");
    let at = segment.push(b"one");
    segment.bytes[at + 8] ^= 1;
    segment.write(&root.dir, &format!("{:020}.seg", 0));

    let journals = root.read();
    assert_eq!(root.seqs(), [0]);
    assert!(journals.all[0].is_torn && journals.all[0].damage.is_empty());
}

#[test]
fn a_missing_segment_is_a_gap_unless_the_watermark_is_behind_it() {
    let root = root();
    let mut segment = Segment::new(5);
    segment.push(b"five");
    segment.write(&root.dir, &format!("{:020}.seg", 5));
    assert_eq!(root.read().all[0].gaps, vec![0..5; 1]);

    let mut watermark = b"TGJW".to_vec();
    watermark.extend(1_u32.to_le_bytes());
    watermark.extend(5_u64.to_le_bytes());
    watermark.extend(crc32c::crc32c(&watermark).to_le_bytes());
    fs::write(root.dir.join("watermark"), watermark).unwrap();
    let journals = root.read();
    assert!(journals.all[0].gaps.is_empty());
    assert_eq!((journals.all[0].watermark, journals.all[0].end), (5, 6));
}

#[test]
fn totals_of_a_lease_follow_from_the_costs_and_stay_within_the_grant() {
    let root = root();
    let mut segment = Segment::new(0);
    for payload in [grant(4), call(1, 1), call(2, 3)] {
        segment.push(&payload);
    }
    segment.write(&root.dir, &format!("{:020}.seg", 0));
    let mut findings = Findings::default();
    assert_eq!(replay(&root.read(), &mut findings).calls.len(), 2);
    assert_eq!(findings.into_report().differences, 0);

    segment.push(&call(1, 5));
    segment.write(&root.dir, &format!("{:020}.seg", 0));
    let mut findings = Findings::default();
    replay(&root.read(), &mut findings);
    let report = findings.into_report();
    assert_eq!((report.differences, report.overspent), (2, 1));
}

#[test]
fn every_permit_is_one_call_and_stays_within_the_grant() {
    let permit = |cum| {
        let permit = Permit {
            lease_id: LEASE.as_bytes().to_vec(),
            cum,
        };
        prost::Message::encode_to_vec(&Record {
            kind: 4,
            permits: vec![permit],
            ..Record::default()
        })
    };
    let root = root();
    let mut segment = Segment::new(0);
    for payload in [grant(2), permit(1), permit(2)] {
        segment.push(&payload);
    }
    segment.write(&root.dir, &format!("{:020}.seg", 0));
    let mut findings = Findings::default();
    replay(&root.read(), &mut findings);
    assert_eq!(findings.into_report().differences, 0);

    segment.push(&permit(4));
    segment.write(&root.dir, &format!("{:020}.seg", 0));
    let mut findings = Findings::default();
    replay(&root.read(), &mut findings);
    let report = findings.into_report();
    assert_eq!((report.differences, report.overspent), (2, 2));
}

#[test]
fn a_line_cut_short_by_a_kill_is_left_out_of_the_transcript() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let answer = Transcript {
        request_id: format!("req_{}", JOURNAL.simple()),
        status: 200,
        complete: true,
        cost: Some(1),
    };
    let line = serde_json::to_string(&answer).unwrap();
    fs::write(file.path(), format!("{line}\n{}", &line[..20])).unwrap();
    assert_eq!(read_transcript(file.path()).unwrap(), [answer]);
}

fn lease(state: &str, settled: i128, known: i128) -> Lease {
    Lease {
        owner: LEASE,
        journal: JOURNAL,
        epoch: 0,
        granted: 1_000,
        settled,
        known,
        state: state.to_owned(),
        is_owners_count: false,
        late_spend: 0,
    }
}

/// What is stated of this one lease, whose rows cost so much.
fn stated(it: &Unitemised, lease: Lease, cost: i128, unread: &Numbers) -> i128 {
    let stated = it.stated(&[(LEASE, lease)].into(), |_| cost, unread);
    stated.get(&LEASE).copied().unwrap_or(0)
}

#[test]
fn an_owner_who_was_given_up_explains_what_it_had_told_and_nothing_else() {
    let nothing_lost = Unitemised::default();
    let stated = |lease| stated(&nothing_lost, lease, 40, &Numbers::default());
    assert_eq!(stated(lease("written_off", 50, 50)), 10);
    assert_eq!(stated(lease("written_off", 60, 50)), 0, "nobody said so");
    assert_eq!(stated(lease("closed", 50, 50)), 0);
}

/// Rows 0, 4 and 9: the totals 10, 30 and 45, of costs 10, 5 and 5.
fn totals() -> Totals {
    let step = |after, seq, credits| Step {
        after: Some(after),
        seq,
        credits,
    };
    Totals {
        steps: vec![step(0, 4, 15), step(4, 9, 10)],
        last: Some((9, 45)),
    }
}

fn lost(gaps: &[(i64, i64)]) -> Numbers {
    [(JOURNAL, gaps.to_vec())].into()
}

#[test]
fn lost_records_explain_only_what_grew_over_them() {
    let stated = |gaps: &[(i64, i64)], lease| {
        let (lost, totals) = (lost(gaps), [(LEASE, totals())].into());
        // The wallet lacks what the rows lack.
        stated(&Unitemised { lost, totals }, lease, 20, &self::lost(gaps))
    };
    assert_eq!(stated(&[(1, 3)], lease("closed", 45, 45)), 15);
    assert_eq!(stated(&[(1, 3), (8, 9)], lease("closed", 45, 45)), 25);
    let behind = stated(&[(9, 10)], lease("closed", 45, 45));
    assert_eq!(behind, 0, "a row is there");
    // Behind the last row.
    assert_eq!(stated(&[(1, 3)], lease("closed", 49, 49)), 15);
    assert_eq!(stated(&[(1, 3), (10, 12)], lease("closed", 49, 49)), 19);
    assert_eq!(stated(&[(1, 3)], lease("written_off", 49, 49)), 19);
}

#[test]
fn behind_the_last_row_nobody_owes_more_than_was_told_or_read() {
    let gaps = [(10, 12)];
    let stated = |lease, unread: &[(i64, i64)]| {
        let (lost, totals) = (lost(&gaps), [(LEASE, totals())].into());
        stated(&Unitemised { lost, totals }, lease, 45, &self::lost(unread))
    };
    assert_eq!(
        stated(lease("closed", 60, 49), &gaps),
        4,
        "told by its owner"
    );
    assert_eq!(
        stated(lease("closed", 60, 40), &gaps),
        0,
        "told nothing new"
    );
    assert_eq!(
        stated(lease("closed", 60, 49), &[(10, 11)]),
        15,
        "11 was read"
    );
    assert_eq!(stated(lease("closed", 60, 49), &[(8, 12)]), 4);
    let by_its_owner = Lease {
        is_owners_count: true,
        ..lease("closed", 60, 49)
    };
    assert_eq!(stated(by_its_owner, &gaps), 15, "it counted itself");
}

#[test]
fn one_lost_record_explains_one_lease_once() {
    let other = Uuid::from_u128(7);
    let explained = |gaps: &[(i64, i64)]| {
        let totals = [(LEASE, totals()), (other, totals())].into();
        let it = Unitemised {
            lost: lost(gaps),
            totals,
        };
        let leases = [LEASE, other].map(|id| (id, lease("closed", 45, 45)));
        let stated = it.stated(&leases.into(), |_| 20, &lost(gaps));
        stated.values().sum::<i128>()
    };
    assert_eq!(explained(&[(1, 2)]), 15);
    assert_eq!(explained(&[(1, 3)]), 30);
    assert_eq!(explained(&[(1, 4)]), 30, "nothing else grew there");
    assert_eq!(explained(&[(1, 3), (5, 6)]), 40);
    assert_eq!(explained(&[(1, 3), (5, 7)]), 50);
}
