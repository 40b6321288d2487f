//! A full disk, a failing fsync, the high-water mark, a power failure.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::{NOW_MS, Rig, append, id, options, payload, read};
use crate::journal::{Damage, Error, Journal, Options, SEGMENT_BYTES_MIN, Slot};

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
