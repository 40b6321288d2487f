use std::sync::{Arc, atomic::Ordering};

use uuid::Uuid;

use super::*;
use crate::{
    journal::{RECORD_BYTES_MAX, SEGMENT_BYTES_MIN, tests::disk::TestDisk},
    tests::rig,
};

#[tokio::test]
async fn a_disk_that_removes_nothing_for_a_while_does_not_end_shipping() {
    let (host, _) = rig::host(&[]).await;
    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(TestDisk::default());
    let opened = Journal::open_on(disk.clone(), &rig::options(dir.path()), Uuid::nil(), 0);
    let (journal, _) = opened.expect("a journal");
    for _ in 0..2 * SEGMENT_BYTES_MIN / RECORD_BYTES_MAX {
        let write = |_: crate::journal::Slot<'_>| (RECORD_BYTES_MAX, ());
        journal.append_synced(0, write).expect("there is room");
        journal.maintain(0).expect("there is room");
    }
    let full = journal.stats().bytes;
    let mut shipper = Shipper::new(&host, journal.clone(), watch::Sender::new(0));
    disk.fails_unlink.store(true, Ordering::SeqCst);
    let end = journal.next_seq();
    shipper.trim(end).await.expect("shipping goes on");
    assert_eq!((journal.stats().bytes, journal.watermark()), (full, end));
    // Though nothing else has come, it is tried again.
    disk.fails_unlink.store(false, Ordering::SeqCst);
    for consumer in runtime::USAGE_CONSUMERS {
        shipper.course.applied(consumer, end, end, Duration::ZERO);
    }
    let due = shipper.course.let_go(journal.watermark()).expect("is due");
    shipper.trim(due).await.expect("shipping goes on");
    assert!(journal.stats().bytes < full);
}
