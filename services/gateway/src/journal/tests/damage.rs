//! Torn tails, flipped bytes, missing and foreign files.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::{NOW_MS, Rig, append, numbers, payload, read};
use crate::journal::{Cause, Error, HEADER_BYTES, Recovered, SEGMENT_BYTES_MIN};

/// Records of the small journal; no length a flipped byte turns into zero.
const SIZES: [usize; 12] = [21, 40, 33, 9, 61, 16, 30, 47, 25, 90, 19, 35];

/// A journal with one segment of [`SIZES`] records, and the segment as bytes.
fn small() -> (Rig, PathBuf, Vec<u8>) {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    for bytes in SIZES {
        append(&journal, bytes);
    }
    journal.maintain(NOW_MS).expect("maintained");
    let path = rig.journal_dir(1).join("00000000000000000000.seg");
    let image = fs::read(&path).expect("readable");
    (rig, path, image)
}

/// Where each record's frame starts, and where the last one ends.
fn frames() -> Vec<usize> {
    let mut offset = HEADER_BYTES;
    let mut offsets = vec![offset];
    for bytes in SIZES {
        offset += 8 + bytes.next_multiple_of(8);
        offsets.push(offset);
    }
    offsets
}

/// Puts an image in place of the journal's segment, however recovery renamed it, and recovers.
fn recover(rig: &Rig, path: &PathBuf, image: &[u8]) -> Recovered {
    let dir = path.parent().expect("in a directory");
    // Nothing is left of the time before, nor of the life that recovered then.
    for stale in [dir, &rig.journal_dir(2)] {
        if stale.exists() {
            fs::remove_dir_all(stale).expect("removable");
        }
    }
    fs::create_dir(dir).expect("creatable");
    fs::write(path, image).expect("writable");
    rig.reopen(2).1
}

fn check_payloads(old: &Recovered) {
    for (seq, record) in read(&old.journal, 0) {
        assert_eq!(
            record,
            payload(seq, SIZES[usize::try_from(seq).expect("small")])
        );
    }
}

#[test]
fn a_tail_torn_at_any_byte_costs_only_the_torn_records() {
    let (rig, path, image) = small();
    let frames = frames();
    for cut in frames[SIZES.len() - 3]..frames[SIZES.len()] {
        let mut zeroed = image.clone();
        zeroed[cut..].fill(0);
        let whole = |cut: usize, end: &dyn Fn(usize) -> usize| {
            (0..SIZES.len()).take_while(|i| end(*i) <= cut).count() as u64
        };
        // Padding may be cut off a record, if there are zeros instead.
        let with_zeros = whole(cut, &|i| frames[i] + 8 + SIZES[i]);
        let without = whole(cut, &|i| frames[i + 1]);
        for (image, expected) in [(&zeroed[..], with_zeros), (&image[..cut], without)] {
            let old = recover(&rig, &path, image);
            assert!(old.damage.is_empty(), "cut at {cut}: {:?}", old.damage);
            assert_eq!(old.journal.next_seq(), expected, "cut at {cut}");
            check_payloads(&old);
            assert!(old.torn_seq.is_none_or(|seq| seq == expected));
            // A record added now is not lost behind the torn tail.
            old.journal
                .append_synced(NOW_MS, |_| (1, ()))
                .expect("room");
            drop(old);
            let (_journal, again) = rig.reopen(3);
            assert!(again.damage.is_empty() && again.torn_seq.is_none());
            assert_eq!(numbers(&again.journal), (0..=expected).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_flipped_byte_is_found_named_and_costs_one_record() {
    let (rig, path, image) = small();
    let frames = frames();
    let last = SIZES.len() - 1;
    for offset in 0..frames[last] {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = image.clone();
            damaged[offset] ^= flip;
            let old = recover(&rig, &path, &damaged);
            check_payloads(&old);
            let hit = frames
                .partition_point(|start| *start <= offset)
                .checked_sub(1);
            let is_padding = hit.is_some_and(|i| offset >= frames[i] + 8 + SIZES[i]);
            let (missing, cause) = match hit {
                _ if is_padding => {
                    assert!(old.damage.is_empty());
                    continue;
                }
                None => (0..0, Cause::Header),
                Some(i) => (i as u64..i as u64 + 1, Cause::Records),
            };
            let context = format!("byte {offset} xor {flip:#x}: {:?}", old.damage);
            assert_eq!(old.damage.len(), 1, "{context}");
            assert_eq!(
                (old.damage[0].cause, &old.damage[0].missing),
                (cause, &missing),
                "{context}"
            );
            assert!(
                old.damage[0]
                    .path
                    .to_string_lossy()
                    .ends_with(".seg.quarantined")
            );
            assert!(old.damage[0].path.exists());
            let expected: Vec<_> = (0..SIZES.len() as u64)
                .filter(|seq| !missing.contains(seq))
                .collect();
            assert_eq!(numbers(&old.journal), expected, "{context}");
        }
    }
}

#[test]
fn a_lost_sector_at_the_beginning_costs_only_the_records_in_it() {
    let (rig, path, image) = small();
    let frames = frames();
    for lost in 1..SIZES.len() {
        for byte in [0x00, 0x5a, 0xff] {
            let mut damaged = image.clone();
            damaged[..frames[lost]].fill(byte);
            let old = recover(&rig, &path, &damaged);
            let context = format!("{lost} records of {byte:#x}: {:?}", old.damage);
            check_payloads(&old);
            let expected: Vec<_> = (lost as u64..SIZES.len() as u64).collect();
            assert_eq!(numbers(&old.journal), expected, "{context}");
            let found: Vec<_> = old
                .damage
                .iter()
                .map(|it| (it.cause, it.missing.clone()))
                .collect();
            let wanted = [(Cause::Header, 0..0), (Cause::Records, 0..lost as u64)];
            assert_eq!(found, wanted, "{context}");
        }
    }
}

#[test]
fn a_damaged_journal_stays_readable_and_leaves_its_evidence() {
    let (rig, path, mut image) = small();
    image[frames()[4] + 12] ^= 0x10;
    let old = recover(&rig, &path, &image);
    let first = old.damage.clone();
    old.journal
        .append_synced(NOW_MS, |_| (1, ()))
        .expect("room");
    drop(old);
    // The alarm comes again with each start, until the journal is removed.
    let (journal, old) = rig.reopen(3);
    assert_eq!(old.damage, first);
    assert_eq!(
        numbers(&old.journal),
        [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    );
    old.journal.trim(13).expect("trimmed");
    old.journal.remove().expect("all applied");
    let aside = format!("{}.quarantined", rig.journal_dir(1).display());
    assert!(!rig.journal_dir(1).exists());
    assert!(
        PathBuf::from(aside)
            .join("00000000000000000000.seg.quarantined")
            .exists()
    );
    drop((journal, old));
    assert!(rig.open(4).1.is_empty());
}

/// A journal of several segments, not open any more.
fn long() -> (Rig, Vec<PathBuf>) {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    for _ in 0..100 {
        append(&journal, 3000);
    }
    journal.maintain(NOW_MS).expect("maintained");
    drop(journal);
    let names = rig
        .files(1)
        .into_iter()
        .filter(|name| name.starts_with('0'));
    let paths: Vec<_> = names.map(|name| rig.journal_dir(1).join(name)).collect();
    assert_eq!(paths.len(), 5);
    (rig, paths)
}

#[test]
fn a_missing_segment_is_a_gap() {
    let (rig, paths) = long();
    fs::remove_file(&paths[2]).expect("removable");
    let (_journal, old) = rig.reopen(2);
    assert_eq!(old.damage.len(), 1);
    let missing = old.damage[0].missing.clone();
    assert_eq!(old.damage[0].cause, Cause::MissingSegment);
    assert_eq!(old.damage[0].path, paths[3]);
    let expected: Vec<_> = (0..100).filter(|seq| !missing.contains(seq)).collect();
    assert_eq!(numbers(&old.journal), expected);
    assert_eq!(missing, 42..63);
}

#[test]
fn a_missing_first_segment_is_a_gap_unless_a_watermark_allows_it() {
    let (rig, paths) = long();
    fs::remove_file(&paths[0]).expect("removable");
    let (journal, old) = rig.reopen(2);
    assert_eq!(
        (old.damage[0].cause, old.damage[0].missing.clone()),
        (Cause::MissingSegment, 0..21)
    );
    old.journal.trim(50).expect("trimmed");
    drop((journal, old));
    let (journal, old) = rig.reopen(3);
    assert!(old.damage.is_empty(), "{:?}", old.damage);
    drop((journal, old));

    let watermark = rig.journal_dir(1).join("watermark");
    let mut text = fs::read(&watermark).expect("saved");
    assert_eq!(text.len(), 20);
    text[9] ^= 1;
    fs::write(&watermark, text).expect("writable");
    let (_journal, old) = rig.reopen(4);
    assert_eq!(old.damage.len(), 1);
    assert_eq!(old.damage[0].cause, Cause::Watermark);
    assert_eq!(old.journal.watermark(), 42);
}

#[test]
fn a_segment_cut_short_in_the_middle_is_a_gap() {
    let (rig, paths) = long();
    let bytes = fs::read(&paths[1]).expect("readable");
    fs::write(&paths[1], &bytes[..10_000]).expect("writable");
    let (_journal, old) = rig.reopen(2);
    assert_eq!(old.damage.len(), 1);
    assert_eq!(
        (old.damage[0].cause, old.damage[0].missing.clone()),
        (Cause::Records, 24..42)
    );
    assert!(
        old.damage[0]
            .path
            .to_string_lossy()
            .ends_with("21.seg.quarantined")
    );
}

#[test]
fn a_segment_without_number_is_found_behind_a_broken_one() {
    let rig = Rig::new();
    let (journal, _) = rig.open(1);
    for _ in 0..21 {
        append(&journal, 3000);
    }
    append(&journal, 2296);
    for _ in 22..30 {
        append(&journal, 8);
    }
    journal.maintain(NOW_MS).expect("maintained");
    drop(journal);
    let path = |first: u64| rig.journal_dir(1).join(format!("{first:020}.seg"));
    let mut image = fs::read(path(0)).expect("readable");
    image[HEADER_BYTES + 5 * 3008..].fill(0x5a);
    fs::write(path(0), image).expect("writable");
    // Its first two records go with its header; the others are too short to count those before.
    let mut image = fs::read(path(22)).expect("readable");
    image[..HEADER_BYTES + 2 * 16].fill(0x5a);
    fs::remove_file(path(22)).expect("removable");
    fs::write(rig.journal_dir(1).join("spare_00000007.seg"), image).expect("writable");

    let (journal, old) = rig.reopen(2);
    let found: Vec<_> = old
        .damage
        .iter()
        .map(|it| (it.cause, it.missing.clone()))
        .collect();
    assert_eq!(found, [(Cause::Header, 0..0), (Cause::Records, 5..24)]);
    assert_eq!(numbers(&old.journal), Vec::from_iter((0..5).chain(24..30)));
    assert_eq!(old.torn_seq, None);
    append(&old.journal, 8);
    drop((journal, old));
    // It is in its place also when another one has come behind it.
    let (_journal, old) = rig.reopen(3);
    let gaps = old.gaps();
    assert_eq!((gaps.len(), &gaps[0].seqs), (1, &(5..24)));
    let numbers = numbers(&old.journal);
    assert_eq!(numbers, Vec::from_iter((0..5).chain(24..31)));
}

#[test]
fn a_segment_of_another_journal_is_not_read() {
    let (rig, path, image) = small();
    let old = recover(&rig, &path, &image);
    drop(old);
    let stranger = rig.journal_dir(9);
    fs::create_dir(&stranger).expect("creatable");
    fs::write(stranger.join("00000000000000000000.seg"), &image).expect("writable");
    let (_journal, old) = rig.open(3);
    assert_eq!(old.len(), 2);
    assert_eq!(old[1].damage[0].cause, Cause::Foreign);
    assert!(numbers(&old[1].journal).is_empty());
}

#[test]
fn a_future_format_stops_the_start_and_is_left_alone() {
    let (rig, path, mut image) = small();
    image[4] = 2;
    let crc = crc32c::crc32c(&image[..60]).to_le_bytes();
    image[60..64].copy_from_slice(&crc);
    fs::write(&path, &image).expect("writable");
    assert!(matches!(
        rig.try_open(2),
        Err(Error::Version { found: 2, .. })
    ));
    assert!(fs::read(&path).expect("still there") == image);
}

#[test]
fn a_crash_before_the_rename_costs_nothing() {
    let (rig, path, image) = small();
    let old = recover(&rig, &path.with_file_name("spare_00000000.seg"), &image);
    assert!(old.damage.is_empty() && path.exists());
    assert_eq!(numbers(&old.journal).len(), SIZES.len());
    drop(old);
    // A segment that got its header and no record, and its successor of the same number.
    let mut empty = image.clone();
    empty[HEADER_BYTES..].fill(0);
    fs::write(&path, &empty).expect("writable");
    fs::write(path.with_file_name("spare_00000003.seg"), &image).expect("writable");
    let (_journal, old) = rig.reopen(4);
    assert!(old.damage.is_empty());
    assert_eq!(numbers(&old.journal).len(), SIZES.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever the bytes, recovery ends, and what it calls a record is one.
    #[test]
    fn no_bytes_make_recovery_panic_or_invent_a_record(
        hits in prop::collection::vec((0..900_usize, any::<u8>()), 0..40),
        cut in 0..SEGMENT_BYTES_MIN,
        is_cut in any::<bool>(),
    ) {
        let (rig, path, mut image) = small();
        for (offset, byte) in hits {
            image[offset] = byte;
        }
        if is_cut {
            image.truncate(cut.min(1000));
        }
        let dir = path.parent().expect("in a directory");
        fs::remove_dir_all(dir).expect("removable");
        fs::create_dir(dir).expect("creatable");
        fs::write(&path, &image).expect("writable");
        let (_journal, recovered) = rig.open(2);
        recovered.iter().for_each(check_payloads);
    }
}
