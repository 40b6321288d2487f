//! The file format, byte by byte, and the life of the files.

use std::fs;

use super::{NOW_MS, Rig, append, id, numbers, payload, read};
use crate::journal::{Error, Journal, Limits, Options, SEGMENT_BYTES_MIN};

#[test]
fn a_segment_is_what_its_description_says() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    let rig = Rig::new();
    let (journal, _) = rig.open(7);
    append(&journal, 5);
    append(&journal, 16);
    journal.maintain(NOW_MS).expect("maintained");
    let path = rig.journal_dir(7).join("00000000000000000000.seg");
    let file = fs::read(path).expect("named after its first record");

    let mut header = Vec::new();
    header.extend(b"TGJL");
    header.extend(1_u32.to_le_bytes());
    header.extend(id(7).as_bytes());
    header.extend(0_u64.to_le_bytes());
    header.extend(NOW_MS.to_le_bytes());
    header.extend(
        u32::try_from(SEGMENT_BYTES_MIN)
            .expect("small")
            .to_le_bytes(),
    );
    header.resize(60, 0);
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    let mut expected = header;
    for (seq, bytes) in [(0_u64, 5), (1, 16)] {
        let payload = payload(seq, bytes);
        let covered = [seq.to_le_bytes().to_vec(), payload.clone()].concat();
        expected.extend(u32::try_from(bytes).expect("small").to_le_bytes());
        expected.extend(crc32c::crc32c(&covered).to_le_bytes());
        expected.extend(payload);
        expected.resize(expected.len().next_multiple_of(8), 0);
    }
    expected.resize(SEGMENT_BYTES_MIN, 0);
    assert!(file == expected, "the segment differs from its description");
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    let refused = rig.try_open(2).err().expect("locked");
    let holder = std::process::id();
    assert!(matches!(refused, Error::Locked { holder: Some(pid), .. } if pid == holder));
    assert!(
        refused
            .to_string()
            .ends_with(&format!("in use by process {holder}"))
    );
    // A reader keeps the lock, as it reads files that recovery would rename.
    let reader = journal.reader(0);
    drop(journal);
    assert!(rig.try_open(2).is_err());
    drop(reader);
    rig.open(2);
}

#[test]
fn a_journal_id_is_used_once_and_an_unused_journal_is_recovered_too() {
    let rig = Rig::new();
    drop(rig.open(1));
    // Credits may have been lent to it by a reply that never came: it must be retired.
    let (journal, recovered) = rig.try_open(2).expect("opens");
    assert_eq!(recovered.len(), 1);
    assert_eq!(
        (recovered[0].journal.id(), recovered[0].journal.next_seq()),
        (id(1), 0)
    );
    recovered[0].journal.remove().expect("removed");
    assert!(!rig.journal_dir(1).exists());
    drop(recovered);
    append(&journal, 10);
    drop(journal);
    assert!(matches!(rig.try_open(2), Err(Error::Exists(_))));
}

#[test]
fn options_that_cannot_work_are_refused() {
    let rig = Rig::new();
    let fine = super::options(rig.dir.path());
    for wrong in [
        Options {
            segment_bytes: 32 * 1024,
            ..fine.clone()
        },
        Options {
            segment_bytes: 64 * 1024 + 8,
            ..fine.clone()
        },
        Options {
            segment_bytes: 2 << 30,
            ..fine.clone()
        },
        Options {
            bytes_max: 64 * 1024,
            ..fine
        },
    ] {
        assert!(matches!(
            Journal::open(&wrong, id(1), NOW_MS),
            Err(Error::Options(_))
        ));
    }
}

#[test]
fn segments_go_only_after_the_watermark_is_durable() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    for _ in 0..100 {
        append(&journal, 3000);
    }
    journal.maintain(NOW_MS).expect("maintained");
    rig.disk.log.lock().clear();
    let bytes = journal.stats().bytes;
    journal.trim(70).expect("trimmed");
    let log = rig.disk.log.lock().clone();
    assert_eq!(log[0], "exchange watermark");
    assert!(log.len() > 2 && log[1..].iter().all(|line| line.starts_with("unlink 0")));
    assert!(journal.stats().bytes < bytes);
    assert_eq!(journal.stats().unapplied, 30);
    let first = numbers(&journal)[0];
    assert!(first > 40 && first <= 70, "starts at {first}");
    assert!(matches!(journal.trim(101), Err(Error::Watermark { .. })));
    journal.trim(10).expect("an old watermark changes nothing");
    drop(journal);

    let (_journal, old) = rig.reopen(2);
    assert!(old.damage.is_empty(), "{:?}", old.damage);
    assert_eq!((old.journal.watermark(), old.journal.next_seq()), (70, 100));
    assert_eq!(read(&old.journal, 70).len(), 30);
}

#[test]
fn a_recovered_journal_is_completed_then_removed() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    let (reservation, records) = (journal.reserve().expect("room"), 20);
    for _ in 0..records {
        append(&journal, 100);
    }
    journal.trim(records).expect("trimmed");
    assert!(matches!(
        journal.remove(),
        Err(Error::InUse { reserved: 1, .. })
    ));
    drop(reservation);
    drop(journal);

    let (journal, old) = rig.reopen(2);
    let close = |slot: crate::journal::Slot<'_>| {
        slot.buf[..5].copy_from_slice(b"close");
        (5, slot.seq)
    };
    assert_eq!(
        old.journal.append_synced(NOW_MS, close).expect("room"),
        (records, records)
    );
    assert_eq!(old.journal.synced_seq(), records + 1);
    let mut reader = old.journal.reader(0);
    let batch = reader
        .next_batch(Limits::before(u64::MAX))
        .expect("readable")
        .expect("some");
    assert_eq!(batch.records[20], b"close"[..]);
    assert!(matches!(
        old.journal.remove(),
        Err(Error::InUse { reserved: 0, .. })
    ));
    drop((journal, old, reader));

    // The same again after a restart: nothing is lost, nothing appears twice.
    let (journal, recovered) = rig.open(3);
    let old = &recovered[0];
    assert!(old.damage.is_empty() && numbers(&old.journal) == (0..=records).collect::<Vec<_>>());
    let before = journal.stats().bytes;
    old.journal.trim(records + 1).expect("trimmed");
    old.journal.remove().expect("all applied");
    assert!(!rig.journal_dir(1).exists());
    assert_eq!(journal.stats().bytes, before - 2 * SEGMENT_BYTES_MIN as u64);
    assert!(old.journal.reserve().is_none());
    assert!(matches!(
        old.journal.append_synced(NOW_MS, close),
        Err(Error::Removed)
    ));
}
