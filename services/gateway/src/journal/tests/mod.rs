//! The journal against a naive model, a failing disk, damage, threads and SIGKILL.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "tests fail loudly where the journal must not"
)]

mod damage;
mod descriptors;
pub(crate) mod disk;
mod faults;
mod format;
mod interleave;
mod kill;
mod model;
mod threads;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use uuid::Uuid;

use self::disk::TestDisk;
use super::{Error, Journal, Limits, Options, Recovered, SEGMENT_BYTES_MIN};

/// A moment; the journal only writes it down.
const NOW_MS: u64 = 1_790_000_000_000;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn options(dir: &Path) -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES_MIN,
        room_bytes_min: 64 * 1024,
        ..Options::new(dir.join("journals"))
    }
}

/// A root directory on a disk that can fail, and the processes that live in it one by one.
struct Rig {
    dir: TempDir,
    disk: Arc<TestDisk>,
}

impl Rig {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a place"),
            disk: Arc::new(TestDisk::default()),
        }
    }

    fn try_open(&self, number: u128) -> Result<(Journal, Vec<Recovered>), Error> {
        Journal::open_on(
            self.disk.clone(),
            &options(self.dir.path()),
            id(number),
            NOW_MS,
        )
    }

    /// Opens, and ends older journals without records, as the gateway does once they are retired.
    fn open(&self, number: u128) -> (Journal, Vec<Recovered>) {
        let (journal, recovered) = self.try_open(number).expect("opens");
        let is_unused = |it: &Recovered| it.damage.is_empty() && it.journal.next_seq() == 0;
        let (unused, recovered): (Vec<_>, Vec<_>) = recovered.into_iter().partition(is_unused);
        for old in unused {
            old.journal.remove().expect("removed");
        }
        (journal, recovered)
    }

    /// Opens and expects exactly one older journal.
    fn reopen(&self, number: u128) -> (Journal, Recovered) {
        let (journal, mut recovered) = self.open(number);
        assert_eq!(recovered.len(), 1);
        (journal, recovered.remove(0))
    }

    fn journal_dir(&self, number: u128) -> PathBuf {
        self.dir
            .path()
            .join("journals")
            .join(format!("jrn_{}", id(number).simple()))
    }

    /// Names of the files in a journal's directory, sorted.
    fn files(&self, number: u128) -> Vec<String> {
        let entries = std::fs::read_dir(self.journal_dir(number)).expect("the journal is there");
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("ASCII")
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }
}

/// Fails once a test has waited longer than anything healthy takes.
struct Patience(Instant);

impl Patience {
    fn new() -> Self {
        Self(Instant::now() + Duration::from_secs(60))
    }

    fn is_over(&self) -> bool {
        Instant::now() > self.0
    }

    fn wait(&self) {
        assert!(!self.is_over(), "waited in vain");
        thread::yield_now();
    }
}

/// Payload of record `seq`: its own, and never zero, so that a lost byte shows.
fn payload(seq: u64, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| u8::try_from((seq * 31 + i as u64) % 255 + 1).expect("1 to 255"))
        .collect()
}

fn append(journal: &Journal, bytes: usize) -> u64 {
    if journal.stats().room_records == 0 {
        journal.maintain(NOW_MS).expect("room");
    }
    let write = |slot: super::Slot<'_>| {
        slot.buf[..bytes].copy_from_slice(&payload(slot.seq, bytes));
        (bytes, ())
    };
    journal.append(write).expect("room").0
}

/// Everything from `from` on as (number, payload), read in small batches.
fn read(journal: &Journal, from: u64) -> Vec<(u64, Vec<u8>)> {
    let mut reader = journal.reader(from);
    let limits = Limits {
        records_max: 7,
        bytes_max: 5000,
        before_seq: u64::MAX,
    };
    let mut all = Vec::new();
    while let Some(batch) = reader.next_batch(limits).expect("readable") {
        assert!(batch.records.len() <= 7);
        assert!(
            batch.records.len() == 1
                || batch.records.iter().map(|r| r.len()).sum::<usize>() <= 5000
        );
        all.extend((batch.first_seq..).zip(batch.records.iter().map(|r| r.to_vec())));
    }
    all
}

fn numbers(journal: &Journal) -> Vec<u64> {
    read(journal, 0).into_iter().map(|(seq, _)| seq).collect()
}
