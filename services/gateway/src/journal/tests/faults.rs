//! A full disk, a failing fsync, the high-water mark, a power failure.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::{NOW_MS, Rig, append, id, options, payload, read};
use crate::journal::{
    Damage, Error, HEADER_BYTES, Journal, Options, RECORD_BYTES_MAX, SEGMENT_BYTES_MIN, Slot,
};

#[test]
fn a_full_disk_refuses_reservations_and_heals() {
    let rig = Rig::new();
    rig.disk.is_full.store(true, Ordering::SeqCst);
    let (journal, _) = rig.open(1);
    assert!(journal.reserve().is_none());
    assert!(journal.maintain(NOW_MS).expect_err("full").is_disk_full());
    assert!(
        journal
            .append_synced(NOW_MS, |_| (1, ()))
            .expect_err("full")
            .is_disk_full()
    );

    rig.disk.is_full.store(false, Ordering::SeqCst);
    journal.maintain(NOW_MS).expect("there is room again");
    let reservation = journal.reserve().expect("room");
    rig.disk.is_full.store(true, Ordering::SeqCst);
    // What was reserved before the disk was full is written and synced all the same.
    reservation.append(|_| (100, ()));
    while let Some(reservation) = journal.reserve() {
        reservation.append(|_| (100, ()));
    }
    assert!(journal.maintain(NOW_MS).expect_err("full").is_disk_full());
    assert_eq!(journal.synced_seq(), journal.next_seq());
    assert!(!journal.is_failed());
}

/// A disk that removes nothing for a while.
#[test]
fn what_the_disk_did_not_remove_is_removed_later() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    let bytes = journal.stats().bytes;
    while journal.stats().bytes < 2 * bytes {
        append(&journal, RECORD_BYTES_MAX);
        journal.maintain(NOW_MS).expect("room");
    }
    let full = journal.stats().bytes;
    let does_pass = |done: crate::journal::Result<()>| {
        let error = done.expect_err("the disk fails");
        assert!(!error.is_final() && !error.is_disk_full(), "{error}");
    };
    rig.disk.fails_unlink.store(true, Ordering::SeqCst);
    does_pass(journal.trim(journal.next_seq()));
    assert_eq!(journal.stats().bytes, full);
    rig.disk.fails_unlink.store(false, Ordering::SeqCst);
    journal.trim(journal.next_seq()).expect("trimmed");
    assert!(journal.stats().bytes < full);

    rig.disk.fails_unlink.store(true, Ordering::SeqCst);
    does_pass(journal.remove());
    assert!(journal.reserve().is_none(), "it is over all the same");
    does_pass(journal.remove());
    rig.disk.fails_unlink.store(false, Ordering::SeqCst);
    journal.remove().expect("removed");
    assert!(!rig.journal_dir(1).exists());
    assert_eq!(journal.stats().bytes, 0);
    journal.remove().expect("nothing is left to do");
}

/// Calls take what they can. What ends the journal has room all the same, in this life and the
/// next.
#[test]
fn a_full_disk_has_room_for_final_records_in_this_life_and_the_next() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    let mut calls: Vec<_> = std::iter::from_fn(|| journal.reserve()).collect();
    rig.disk.is_full.store(true, Ordering::SeqCst);
    let ended = calls.split_off(calls.len() / 2);
    let in_flight = calls.len() as u64;
    for call in ended {
        call.append(|_| (RECORD_BYTES_MAX, ()));
    }
    assert!(journal.reserve().is_none());
    let grant = journal.append_synced(NOW_MS, |_| (1, ()));
    assert!(grant.expect_err("full").is_disk_full());
    let close = |journal: &Journal, bytes| {
        let write = |slot: Slot<'_>| {
            slot.buf[..bytes].copy_from_slice(&payload(slot.seq, bytes));
            (bytes, ())
        };
        journal.append_final(NOW_MS, write)
    };
    for _ in 0..3 {
        close(&journal, 50).expect("room was left");
    }
    assert!(journal.reserve().is_none());
    let written = journal.next_seq();
    drop((journal, calls));

    // Killed with calls in flight: what they had reserved is there for their successor.
    let (journal, old) = rig.reopen(2);
    assert!(old.damage.is_empty() && old.torn_seq.is_none());
    assert!(journal.reserve().is_none(), "the disk is still full");
    for _ in 0..in_flight {
        close(&old.journal, RECORD_BYTES_MAX).expect("a call in flight had room");
    }
    for _ in 0..800 {
        close(&old.journal, 50).expect("final counts have room");
    }
    let end = old.journal.next_seq();
    assert_eq!(end, written + in_flight + 800);
    assert_eq!(old.journal.synced_seq(), end);
    let found: HashMap<u64, Vec<u8>> = read(&old.journal, 0).into_iter().collect();
    assert!(
        (written..written + in_flight).all(|seq| found[&seq] == payload(seq, RECORD_BYTES_MAX))
    );
    // What is applied can go: that needs no room, and makes some.
    old.journal.trim(end).expect("trimmed");
    old.journal.remove().expect("removed");
    assert!(!rig.journal_dir(1).exists());
}

/// What was written behind the last synced record is not taken for one when another follows that.
#[test]
fn a_tail_is_erased_before_it_is_written_to_again() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    for _ in 0..6 {
        append(&journal, 40);
    }
    journal.maintain(NOW_MS).expect("maintained");
    drop(journal);
    // The power has taken record 2, and left what was written later.
    let path = rig.journal_dir(1).join("00000000000000000000.seg");
    let mut image = std::fs::read(&path).expect("readable");
    image[HEADER_BYTES + 2 * 48..HEADER_BYTES + 3 * 48].fill(0);
    std::fs::write(&path, &image).expect("writable");

    let (_journal, old) = rig.reopen(2);
    assert_eq!(old.journal.next_seq(), 2);
    for _ in 0..2 {
        let write = |slot: Slot<'_>| (9, slot.buf[..9].fill(7));
        old.journal.append_synced(NOW_MS, write).expect("room");
    }
    assert_eq!(
        rig.files(1)
            .iter()
            .filter(|name| name.starts_with('0'))
            .count(),
        1
    );
    drop((_journal, old));
    let (_journal, old) = rig.reopen(3);
    assert!(old.damage.is_empty(), "{:?}", old.damage);
    let found: Vec<usize> = read(&old.journal, 0)
        .iter()
        .map(|(_, it)| it.len())
        .collect();
    assert_eq!(found, [40, 40, 9, 9]);
}

#[test]
fn a_failed_sync_is_final() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    append(&journal, 10);
    journal.maintain(NOW_MS).expect("maintained");
    let reservation = journal.reserve().expect("room");
    rig.disk.fails_sync.store(true, Ordering::SeqCst);
    append(&journal, 10);
    assert!(matches!(
        journal.sync_to(1),
        Err(Error::Io { action: "sync", .. })
    ));
    rig.disk.fails_sync.store(false, Ordering::SeqCst);

    let syncs = rig.disk.syncs.load(Ordering::SeqCst);
    assert!(journal.is_failed() && journal.stats().is_failed);
    assert!(journal.reserve().is_none());
    assert!(matches!(journal.sync_to(1), Err(Error::Failed)));
    assert!(matches!(journal.maintain(NOW_MS), Err(Error::Failed)));
    assert!(matches!(
        journal.append_synced(NOW_MS, |_| (1, ())),
        Err(Error::Failed)
    ));
    assert_eq!(
        rig.disk.syncs.load(Ordering::SeqCst),
        syncs,
        "never tried again"
    );
    assert_eq!(journal.synced_seq(), 1);
    // The call in flight still leaves its record: it survives the end of the process.
    assert_eq!(reservation.append(|slot| (8, slot.buf[..8].fill(1))).0, 2);
    drop(journal);
    let (_journal, old) = rig.reopen(2);
    assert_eq!(old.journal.next_seq(), 3);
}

#[test]
fn above_the_high_water_mark_nothing_is_reserved_until_trimmed() {
    let rig = Rig::new();
    let bytes_max = 4 * SEGMENT_BYTES_MIN as u64;
    let few = Options {
        bytes_max,
        ..options(rig.dir.path())
    };
    let open = |number| Journal::open_on(rig.disk.clone(), &few, id(number), NOW_MS);
    let (journal, _) = open(1).expect("opens");
    for _ in 0..1000 {
        journal.maintain(NOW_MS).expect("the mark is no error");
        let Some(reservation) = journal.reserve() else {
            break;
        };
        reservation.append(|_| (4000, ()));
    }
    assert!(journal.reserve().is_none());
    assert_eq!(journal.stats().bytes, bytes_max);
    journal
        .append_synced(NOW_MS, |_| (4000, ()))
        .expect("a lease can always be closed");
    assert!(journal.stats().bytes > bytes_max && journal.reserve().is_none());

    journal.trim(journal.next_seq()).expect("trimmed");
    journal.maintain(NOW_MS).expect("maintained");
    assert!(journal.reserve().is_some());
    // Old journals count as well, but even above the mark a new one can take its first records.
    append(&journal, 10);
    drop(journal);
    let least = Options {
        bytes_max: 2 * SEGMENT_BYTES_MIN as u64,
        ..few.clone()
    };
    let (journal, old) = Journal::open_on(rig.disk.clone(), &least, id(2), NOW_MS).expect("opens");
    assert_eq!(old.len(), 1);
    assert!(journal.stats().room_records > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// What was synced is there; of the rest, what is read is what was written.
    #[test]
    fn a_power_failure_takes_only_what_was_not_synced(
        sizes in prop::collection::vec(1..1500_usize, 1..200),
        sync_at in 0..200_usize,
        mut dice in prop::collection::vec(any::<bool>(), 64),
        survival in 0..4_u32,
    ) {
        let rig = Rig::new();
        rig.disk.remembers.store(true, Ordering::SeqCst);
        let (journal, _) = rig.open(1);
        let mut synced = 0;
        for (index, bytes) in sizes.iter().enumerate() {
            let seq = append(&journal, *bytes);
            if index == sync_at {
                journal.sync_to(seq).expect("synced");
            }
            synced = journal.synced_seq();
        }
        drop(journal);
        rig.disk.lose_power(|| {
            dice.rotate_left(1);
            match survival {
                0 => false,
                1 => dice[0],
                2 => dice[0] || dice[1],
                _ => dice[0] && dice[1],
            }
        });

        let (_journal, recovered) = rig.open(2);
        let Some(old) = recovered.first() else {
            prop_assert_eq!(synced, 0);
            return Ok(());
        };
        let found: HashMap<u64, Vec<u8>> = read(&old.journal, 0).into_iter().collect();
        prop_assert!((0..synced).all(|seq| found.contains_key(&seq)));
        for (seq, record) in &found {
            let bytes = sizes[usize::try_from(*seq).expect("small")];
            prop_assert_eq!(record, &payload(*seq, bytes));
        }
        let is_late = |it: &Damage| it.missing.start >= synced || it.missing.is_empty();
        prop_assert!(old.damage.iter().all(is_late));
        // Recovered once more, it is the same, with the record added in between.
        let write = |slot: Slot<'_>| (3, slot.buf[..3].fill(7));
        let (seq, ()) = old.journal.append_synced(NOW_MS, write).expect("room");
        drop((_journal, recovered));
        let (_journal, again) = rig.reopen(3);
        let more: HashMap<u64, Vec<u8>> = read(&again.journal, 0).into_iter().collect();
        prop_assert_eq!(more.len(), found.len() + 1);
        prop_assert_eq!(&more[&seq], &vec![7; 3]);
        prop_assert!(found.iter().all(|(seq, record)| more.get(seq) == Some(record)));
    }
}
