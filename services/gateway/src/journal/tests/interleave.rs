//! Numbering, writing and committing under a scheduler that tries out how threads can take turns:
//! appenders, a reader at the live tail, a sync, and upkeep that allocates.

/// The same files as the product's, made of a scheduler's locks and atomics.
#[path = "../log.rs"]
#[expect(clippy::duplicate_mod, reason = "with other locks and atomics")]
#[expect(unreachable_pub, reason = "it is included, not exported")]
#[expect(dead_code, reason = "not all of the journal is about threads")]
mod log;
#[path = "../reader.rs"]
#[expect(clippy::duplicate_mod, reason = "with other locks and atomics")]
#[expect(unreachable_pub, reason = "it is included, not exported")]
#[expect(dead_code, reason = "not all of the journal is about threads")]
mod reader;
#[path = "../segment.rs"]
#[expect(clippy::duplicate_mod, reason = "with other locks and atomics")]
#[expect(dead_code, reason = "not all of the journal is about threads")]
mod segment;
#[path = "../upkeep.rs"]
#[expect(clippy::duplicate_mod, reason = "with other locks and atomics")]
#[expect(dead_code, reason = "not all of the journal is about threads")]
mod upkeep;

/// Locks and atomics between which the scheduler may change threads.
mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use shuttle::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("nobody panics")
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> From<T> for Mutex<T> {
        fn from(value: T) -> Self {
            Self::new(value)
        }
    }

    pub(super) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(super) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        pub(super) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("nobody panics")
        }

        pub(super) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("nobody panics")
        }
    }
}

/// Memory in place of a mapped file: a payload appears in two halves.
mod map {
    use std::{
        fs::File,
        io,
        sync::atomic::{AtomicU64 as Word, Ordering},
    };

    use super::sync::AtomicU64;

    pub(super) const WORD_BYTES: usize = 8;

    pub(super) struct Map {
        words: Vec<Word>,
        /// Where the scheduler may change threads.
        turn: AtomicU64,
    }

    impl Map {
        pub(super) fn writable(file: &File) -> io::Result<Self> {
            let bytes = usize::try_from(file.metadata()?.len()).expect("small");
            Ok(Self {
                words: (0..bytes / WORD_BYTES).map(|_| Word::new(0)).collect(),
                turn: AtomicU64::new(0),
            })
        }

        fn turn(&self) {
            self.turn.load(Ordering::SeqCst);
        }

        pub(super) fn bytes(&self) -> usize {
            self.words.len() * WORD_BYTES
        }

        pub(super) fn load(&self, offset: usize) -> u64 {
            self.turn();
            self.words[offset / WORD_BYTES].load(Ordering::SeqCst)
        }

        pub(super) fn store(&self, offset: usize, value: u64) {
            self.turn();
            self.words[offset / WORD_BYTES].store(value, Ordering::SeqCst);
        }

        pub(super) fn read(&self, offset: usize, into: &mut [u8]) {
            let words = &self.words[offset / WORD_BYTES..];
            for (word, chunk) in words.iter().zip(into.chunks_mut(WORD_BYTES)) {
                let bytes = word.load(Ordering::SeqCst).to_ne_bytes();
                chunk.copy_from_slice(&bytes[..chunk.len()]);
            }
        }

        pub(super) fn write(&self, offset: usize, from: &[u8]) {
            let words = &self.words[offset / WORD_BYTES..];
            let (chunks, _) = from.as_chunks::<WORD_BYTES>();
            for (index, (word, chunk)) in words.iter().zip(chunks).enumerate() {
                if index == 0 || index == chunks.len() / 2 {
                    self.turn();
                }
                word.store(u64::from_ne_bytes(*chunk), Ordering::SeqCst);
            }
        }
    }
}

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use shuttle::thread;
use tempfile::TempDir;

use self::log::{Capacity, Log, Reservation, Slot, State};
use self::reader::{Limits, Reader};
use self::sync::{AtomicU64, Ordering};
use super::{NOW_MS, id};
use crate::journal::{
    BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Disk, Error, FRAME_BYTES_MAX, HEADER_BYTES,
    RECORD_BYTES_MAX, Result, Stats, root, scan,
};

/// Schedules that are tried, of either kind.
const SCHEDULES: usize = 400;
/// Changes of thread that a bug may need.
const DEPTH: usize = 4;
/// So long that a segment holds one of them, and a second one begins the next.
const PAYLOAD_BYTES: usize = 3_000;

/// A disk whose syncs take their time.
struct SlowDisk;

impl Disk for SlowDisk {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File> {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = options.open(path)?;
        file.set_len(bytes)?;
        Ok(file)
    }

    fn reopen(&self, path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).open(path)
    }

    fn sync(&self, _: &Path, _: &File) -> io::Result<()> {
        thread::yield_now();
        Ok(())
    }

    fn sync_directory(&self, _: &Path, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn exchange(&self, left: &Path, right: &Path) -> io::Result<()> {
        fs::rename(left, right)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// One directory for all schedules: what matters is in memory.
static PLACE: LazyLock<(TempDir, Arc<root::Root>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a place");
    let root = root::Root::lock(Arc::new(SlowDisk), dir.path()).expect("locked");
    (dir, root)
});

/// A journal whose segments hold one record of the largest size.
fn journal(records: u64) -> Arc<Log> {
    let (dir, root) = &*PLACE;
    for entry in fs::read_dir(dir.path()).expect("there").flatten() {
        let is_segment = entry.path().extension().is_some_and(|it| it == "seg");
        if is_segment {
            fs::remove_file(entry.path()).expect("removable");
        }
    }
    let capacity = Capacity {
        segment_bytes: HEADER_BYTES + FRAME_BYTES_MAX,
        room_records_min: records,
        final_records: 0,
        bytes_max: u64::MAX,
    };
    let dir = dir.path().to_path_buf();
    let directory = File::open(&dir).expect("a folder");
    let log = Log::new(
        Arc::clone(root),
        id(1),
        (dir, directory),
        capacity,
        State::default(),
    );
    log.keep_room(NOW_MS).expect("room");
    Arc::new(log)
}

fn many_schedules(test: impl Fn() + Send + Sync + Clone + 'static) {
    shuttle::check_pct(test.clone(), SCHEDULES, DEPTH);
    shuttle::check_random(test, SCHEDULES);
}

/// Appends with a total that must be in the order of the numbers, as a lease's is.
fn append(reservation: Reservation, total: &AtomicU64, cost: u64) -> u64 {
    let (seq, ()) = reservation.append(|slot: Slot<'_>| {
        // Not an atomic addition: the journal's lock is what orders it.
        let sum = total.load(Ordering::SeqCst) + cost;
        total.store(sum, Ordering::SeqCst);
        slot.buf[..PAYLOAD_BYTES].fill(u8::try_from(sum).expect("small"));
        (PAYLOAD_BYTES, ())
    });
    seq
}

fn reserve(log: &Arc<Log>) -> Reservation {
    Log::reserve(log).expect("room was made")
}

/// Reads what there is: records whole, in order, and none that was not announced.
fn read(reader: &mut Reader, sums: &mut Vec<u8>) {
    let limits = Limits::before(u64::MAX);
    while let Some(batch) = reader.next_batch(limits).expect("undamaged") {
        assert_eq!(batch.first_seq, sums.len() as u64, "no gap");
        for record in &batch.records {
            assert_eq!(record.len(), PAYLOAD_BYTES);
            assert!(record.iter().all(|byte| *byte == record[0]), "half written");
            sums.push(record[0]);
        }
    }
}

#[test]
fn numbers_totals_and_records_are_one_step_for_every_reader() {
    many_schedules(|| {
        let (log, total) = (journal(3), Arc::new(AtomicU64::new(0)));
        let appenders: Vec<_> = [(1, 2), (10, 1)]
            .into_iter()
            .map(|(cost, times)| {
                let (log, total) = (Arc::clone(&log), Arc::clone(&total));
                thread::spawn(move || {
                    for _ in 0..times {
                        append(reserve(&log), &total, cost);
                    }
                })
            })
            .collect();
        let own = Arc::clone(&log);
        let reads = thread::spawn(move || {
            let (mut reader, mut sums) = (Reader::new(own, 0), Vec::new());
            (0..3).for_each(|_| read(&mut reader, &mut sums));
            (reader, sums)
        });
        appenders
            .into_iter()
            .for_each(|it| it.join().expect("appends"));
        let (mut reader, mut sums) = reads.join().expect("reads");
        read(&mut reader, &mut sums);
        assert!(sums.is_sorted() && sums.len() == 3, "{sums:?}");
        assert_eq!(sums.last(), Some(&12));
    });
}

#[test]
fn what_a_sync_calls_durable_was_written_before_it_began() {
    many_schedules(|| {
        let (log, total) = (journal(3), Arc::new(AtomicU64::new(0)));
        let (own, sum) = (Arc::clone(&log), Arc::clone(&total));
        let appender = thread::spawn(move || {
            for _ in 0..2 {
                let seq = append(reserve(&own), &sum, 1);
                own.sync_to(seq).expect("synced");
                assert!(own.synced_seq() > seq, "synced before it returned");
            }
        });
        let own = Arc::clone(&log);
        let upkeep = thread::spawn(move || {
            own.maintain(NOW_MS).expect("maintained");
            let (synced, next) = (own.synced_seq(), own.next_seq());
            assert!(synced <= next);
        });
        append(reserve(&log), &total, 1);
        appender.join().expect("appends");
        upkeep.join().expect("maintains");
        log.maintain(NOW_MS).expect("maintained");
        assert_eq!((log.synced_seq(), log.next_seq()), (3, 3));
    });
}

#[test]
fn every_reservation_given_out_has_its_room() {
    many_schedules(|| {
        let (log, total) = (journal(2), Arc::new(AtomicU64::new(0)));
        let takers: Vec<_> = (0..2)
            .map(|n| {
                let (log, total) = (Arc::clone(&log), Arc::clone(&total));
                thread::spawn(move || match Log::reserve(&log) {
                    Some(reservation) if n == 0 => drop(reservation),
                    // The room there was is given out: this one must have its own.
                    Some(reservation) => {
                        append(reservation, &total, 1);
                    }
                    None => {}
                })
            })
            .collect();
        let own = Arc::clone(&log);
        let upkeep = thread::spawn(move || own.keep_room(NOW_MS).expect("kept"));
        let own = Log::reserve(&log).map(|reservation| append(reservation, &total, 1));
        takers.into_iter().for_each(|it| it.join().expect("ends"));
        upkeep.join().expect("ends");
        assert!(own.is_none_or(|seq| seq < log.next_seq()));
        // What is left is what is allocated: it closes, as nobody holds a reservation.
        assert_eq!(log.close(), Ok(()));
        assert!(Log::reserve(&log).is_none());
    });
}
