//! The power fails behind the last byte of an answer.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use runtime::{Host, Stop};
use uuid::Uuid;

use super::{
    flow::keep_up,
    rig::{self, COST, Rig},
};
use crate::{
    Config,
    journal::{Journal, tests::disk::TestDisk},
};

const ANSWER: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc", b"def"];
/// Power failures, each after another number of calls.
const FAILURES: usize = 8;

/// Calls of a route in turn, each answered in full.
async fn call(rig: &Rig, path: &str) {
    let line = format!("GET /api/v1/echo/{path} HTTP/1.1");
    let done = Stop::default();
    let called = async {
        let got = rig.call(&line, "connection: close\r\n", ANSWER).await;
        done.request();
        got
    };
    let (got, ()) = tokio::join!(called, keep_up(&rig.worker.edge, &done));
    assert!(got.ends_with("abcdef"), "{got}");
}

/// Answers so many calls, then loses everything that was not synced. Returns how many records the
/// next life finds, and what they cost.
async fn fail(
    host: &Host,
    config: &Config,
    path: &str,
    (calls, waits): (usize, bool),
) -> (usize, i64) {
    let disk = Arc::new(TestDisk::default());
    disk.remembers.store(true, Ordering::SeqCst);
    let wallet = host.channel("wallet").expect("a channel");
    let rig = Rig::on(disk.clone(), wallet, host, config, |_| {}).await;
    for _ in 0..calls {
        call(&rig, path).await;
    }
    if waits {
        // What is written a moment before is synced by itself.
        let last = rig.records().last().map_or(0, |record| record.seq);
        let mut synced = rig.worker.edge.synced.subscribe();
        let done = Stop::default();
        let reached = async {
            let reached = synced.wait_for(|next| *next > last).await.is_ok();
            done.request();
            reached
        };
        let (reached, ()) = tokio::join!(reached, keep_up(&rig.worker.edge, &done));
        assert!(reached, "synced");
    }
    disk.lose_power(|| false);
    // The disk is put into another machine: this process still holds the lock of its own.
    let other = tempfile::tempdir().expect("a directory");
    copy(rig.folder(), other.path());
    let opened = Journal::open(&rig::options(other.path()), Uuid::from_u128(5), 0);
    let (_own, found) = opened.expect("opens");
    let records: Vec<_> = found
        .iter()
        .flat_map(|old| rig::records(&old.journal))
        .collect();
    (
        records.len(),
        records.iter().map(|record| record.cost).sum(),
    )
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).expect("made");
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// F5, `disk`: what the client saw complete is there after a power failure. Of a route that does
/// not wait for the disk, what is missing was not billed, and what is there was billed right.
#[tokio::test]
async fn f05_what_a_disk_route_answered_in_full_survives_a_power_failure() {
    let (host, mut config) = rig::host(&[]).await;
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        for calls in 1..=FAILURES {
            let all = COST * i64::try_from(calls).expect("few");
            for (path, waits, disk_cost_min) in [
                ("disk", false, 0),
                // Of a route that does not ask for it, but of a call that costs so much.
                ("x", false, COST),
                ("x", true, COST + 1),
            ] {
                config.disk_cost_min = disk_cost_min;
                let (records, cost) = fail(&host, &config, path, (calls, waits)).await;
                assert_eq!(
                    (records, cost),
                    (calls, all),
                    "{path}: each answer has its record"
                );
            }
            let (records, cost) = fail(&host, &config, "x", (calls, false)).await;
            assert!(records <= calls);
            assert_eq!(cost, COST * i64::try_from(records).expect("few"));
        }
    });
    all.await;
}
