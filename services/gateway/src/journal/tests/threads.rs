//! Many threads: dense numbers, one order for numbers and sums, room that is never promised twice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::{NOW_MS, Patience, Rig, append};
use crate::journal::{Limits, RECORD_BYTES_MAX};

const THREADS: u64 = 8;
const APPENDS: u64 = 10_000;

#[test]
fn numbers_are_dense_and_sums_follow_them_while_a_reader_keeps_up() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    let (is_done, cum) = (AtomicBool::new(false), AtomicU64::new(0));
    let patience = &Patience::new();
    let seen = thread::scope(|scope| {
        let upkeep = scope.spawn(|| {
            while !is_done.load(Ordering::Acquire) && !patience.is_over() {
                journal.maintain(NOW_MS).expect("maintained");
            }
        });
        let reader = scope.spawn(|| {
            let mut reader = journal.reader(0);
            let mut seen = Vec::new();
            while (seen.len() as u64) < THREADS * APPENDS {
                let batch = reader
                    .next_batch(Limits::before(u64::MAX))
                    .expect("readable");
                let Some(batch) = batch else {
                    patience.wait();
                    continue;
                };
                assert_eq!(batch.first_seq, seen.len() as u64);
                let cum = |r: bytes::Bytes| u64::from_le_bytes(r[..8].try_into().expect("eight"));
                seen.extend(batch.records.into_iter().map(cum));
            }
            seen
        });
        let appenders: Vec<_> = (0..THREADS)
            .map(|cost| {
                let (journal, cum) = (&journal, &cum);
                scope.spawn(move || {
                    for i in 0..APPENDS {
                        let reservation = loop {
                            match journal.reserve() {
                                Some(reservation) => break reservation,
                                None => patience.wait(),
                            }
                        };
                        let bytes = 8 + usize::try_from(i % 300).expect("small");
                        reservation.append(|slot| {
                            // Not an atomic addition: the journal's lock is what orders it.
                            let sum = cum.load(Ordering::Relaxed) + cost;
                            cum.store(sum, Ordering::Relaxed);
                            slot.buf[..8].copy_from_slice(&sum.to_le_bytes());
                            (bytes, ())
                        });
                    }
                })
            })
            .collect();
        appenders
            .into_iter()
            .for_each(|it| it.join().expect("appends"));
        let seen = reader.join().expect("reads");
        is_done.store(true, Ordering::Release);
        upkeep.join().expect("maintains");
        seen
    });
    assert_eq!(seen.len() as u64, THREADS * APPENDS);
    assert!(seen.is_sorted(), "sums rise with the numbers");
    assert_eq!(seen.last(), Some(&(APPENDS * (0..THREADS).sum::<u64>())));
    drop(journal);
    let (_journal, old) = rig.reopen(2);
    assert_eq!(super::numbers(&old.journal).len() as u64, THREADS * APPENDS);
}

#[test]
fn every_reservation_given_out_can_be_used_at_full_length() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    for round in 0..20_usize {
        journal.maintain(NOW_MS).expect("maintained");
        // Shifts the end of the segment against the largest frame.
        append(&journal, 1 + round * 211 % RECORD_BYTES_MAX);
        let reservations: Vec<_> = std::iter::from_fn(|| journal.reserve()).collect();
        assert!(reservations.len() > 10);
        assert!(journal.append(|_| (1, ())).is_err());
        thread::scope(|scope| {
            for (index, reservation) in reservations.into_iter().enumerate() {
                let bytes = match index % 7 {
                    0 if round % 2 == 0 => continue, // dropped: gives its room back
                    1 => 1,
                    _ => RECORD_BYTES_MAX,
                };
                scope.spawn(move || reservation.append(|_| (bytes, ())));
            }
        });
    }
    assert_eq!(super::numbers(&journal).len() as u64, journal.next_seq());
}

#[test]
fn a_panic_while_writing_loses_neither_number_nor_room() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    let room = journal.stats().room_records;
    let reservation = journal.reserve().expect("room");
    let broken = || reservation.append(|_| -> (usize, ()) { panic!("the caller is broken") });
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(broken)).is_err());
    assert_eq!(journal.stats().room_records, room);
    assert_eq!(append(&journal, 10), 0);
}

#[test]
fn callers_share_one_sync() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    for _ in 0..8 {
        append(&journal, 10);
    }
    let before = rig.disk.syncs.load(Ordering::SeqCst);
    thread::scope(|scope| {
        for seq in 0..8 {
            let journal = &journal;
            scope.spawn(move || journal.sync_to(seq).expect("synced"));
        }
    });
    assert_eq!(rig.disk.syncs.load(Ordering::SeqCst), before + 1);
    assert_eq!(journal.synced_seq(), 8);
}
