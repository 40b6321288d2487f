//! The soak: a random fault every three seconds, and nothing grows.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use rand::{RngExt as _, seq::IndexedRandom as _};
use rustix::process::Signal;
use serde_json::Value;
use testkit::load::Outcome;

use super::{
    figures::{self, Figures},
    storm::{Storm, all_live},
};
use crate::stack::{Stack, signal};

/// It lasts so long unless told otherwise.
const SOAK_SECONDS: u64 = 1_800;
/// After so long at most all is let settle, and looked at.
const ROUND_SECONDS: u64 = 180;
const FAULT_PERIOD: Duration = Duration::from_secs(3);
/// Who stands still does so for so long.
const STANDSTILL: Duration = Duration::from_millis(1_500);
/// What may be added to memory, files and journals between the first look and the last: a process
/// that has just begun has less than one that has worked.
const GROWTH_MAX: f64 = 1.5;

/// What is done to a running system.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// F1
    Kill,
    /// F12, F17: stands still for a while.
    Stop,
    /// F14: an immediate stop of PostgreSQL.
    QuitPostgres,
    /// F7: the stream forgets.
    Purge,
    /// F7: the stream is gone.
    Delete,
    /// F9: everything is read again.
    Replay,
    /// F20: the cache forgets.
    Flush,
    /// F28: a gateway stops in order.
    Restart,
}

const FAULTS: [Fault; 8] = [
    Fault::Kill,
    Fault::Stop,
    Fault::QuitPostgres,
    Fault::Purge,
    Fault::Delete,
    Fault::Replay,
    Fault::Flush,
    Fault::Restart,
];

/// What a system holds.
#[derive(Clone, Copy, Debug)]
struct Weight {
    memory_bytes: u64,
    files: usize,
    journal_bytes: u64,
}

/// F27: all faults in any order for half an hour.
#[tokio::test]
#[ignore = "half an hour; run by make faults"]
async fn f27_nothing_grows_under_faults_of_every_kind() {
    let (seed, lasts) = (figures::seed(), figures::seconds(SOAK_SECONDS));
    println!("soak of {lasts:?}, FAULT_SEED={seed}");
    let mut storm = Storm::start(seed).await;
    let rounds = lasts.as_secs().div_ceil(ROUND_SECONDS).max(1);
    let mut all = Outcome::default();
    let (mut faults, mut slowest) = (0, Duration::ZERO);
    let mut weights = Vec::new();
    let mut report = Value::Null;
    for _ in 0..rounds {
        let load = storm.load();
        let end = Instant::now() + lasts / u32::try_from(rounds).expect("few");
        while Instant::now() < end {
            tokio::time::sleep(FAULT_PERIOD).await;
            let fault = *FAULTS.choose(&mut storm.random).expect("some");
            strike(&mut storm, fault).await;
            faults += 1;
        }
        let (outcome, restarted) = tokio::join!(load.finish(), all_live(&storm.stack));
        let quiet = super::quiet::quiet(&storm.stack, restarted).await;
        slowest = slowest.max(quiet.settled);
        report = storm.judge(&outcome, quiet).await;
        weights.push(weigh(&storm.stack));
        all.sent += outcome.sent;
        all.broken += outcome.broken;
        all.done.extend(outcome.done);
    }
    let figures = Figures {
        kills: storm.kills.values().sum(),
        faults,
        quiet: slowest,
        seed: Some(seed),
        more: format!("{:?} … {:?}", weights.first(), weights.last()),
        ..Figures::of("F27", &[&all])
    };
    figures.print(&storm.stack, &report).await;
    let (Some(first), Some(last)) = (weights.first(), weights.last()) else {
        return;
    };
    let grown = [
        ("memory", first.memory_bytes, last.memory_bytes),
        ("files", wide(first.files), wide(last.files)),
        ("journals", first.journal_bytes, last.journal_bytes),
    ];
    for (what, first, last) in grown {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = last as f64 / first.max(1) as f64;
        assert!(share < GROWTH_MAX, "{what} grew from {first} to {last}");
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).expect("small")
}

async fn strike(storm: &mut Storm, fault: Fault) {
    match fault {
        Fault::Kill => storm.kill(),
        Fault::Stop => {
            if let Some((_, _, pid)) = storm.alive().choose(&mut storm.random).copied() {
                signal(pid, Signal::STOP);
                tokio::time::sleep(STANDSTILL).await;
                signal(pid, Signal::CONT);
            }
        }
        Fault::QuitPostgres => storm.end("postgres", 0, Signal::QUIT),
        Fault::Restart => {
            let index = storm.random.random_range(0..2);
            storm.end("gateway", index, Signal::TERM);
        }
        Fault::Purge | Fault::Delete | Fault::Replay => forget(&storm.stack, fault).await,
        Fault::Flush => flush(&storm.stack).await,
    }
}

/// Whoever should do it may be dead at the moment: then this fault is left out.
async fn forget(stack: &Stack, fault: Fault) {
    let forgotten = async {
        let info = stack.info();
        let url = info["nats_url"].as_str().expect("a URL");
        let context = jetstream::new(async_nats::connect(url).await?);
        match fault {
            Fault::Delete => {
                context.delete_stream("USAGE").await?;
            }
            Fault::Purge => {
                context.get_stream("USAGE").await?.purge().await?;
            }
            _ => {
                let stream = context.get_stream("USAGE").await?;
                stream.delete_consumer("wallet").await?;
            }
        }
        anyhow::Ok(())
    };
    if let Err(error) = forgotten.await {
        println!("{fault:?} left out: {error:#}");
    }
}

async fn flush(stack: &Stack) {
    let flushed = async {
        let info = stack.info();
        let client = redis::Client::open(info["redis_url"].as_str().expect("a URL"))?;
        let mut redis = client.get_multiplexed_async_connection().await?;
        redis::cmd("FLUSHALL").exec_async(&mut redis).await
    };
    if let Err(error) = flushed.await {
        println!("Flush left out: {error}");
    }
}

/// Memory and open files of all processes of ours, and the size of all journals.
fn weigh(stack: &Stack) -> Weight {
    let names = [
        "tollgate",
        "gateway",
        "keys",
        "wallet",
        "usage-ingest",
        "portal",
    ];
    let more = ["stats-aggregator", "anomaly-detector"];
    let pids: Vec<i32> = names
        .iter()
        .chain(&more)
        .flat_map(|name| stack.pids(name))
        .collect();
    let resident = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes: u64 = line
            .and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        kilobytes * 1_024
    };
    let files = |pid: &i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let info = stack.info();
    let roots = info["journals"].as_array().expect("a list").iter();
    Weight {
        memory_bytes: pids.iter().map(resident).sum(),
        files: pids.iter().map(files).sum(),
        journal_bytes: roots
            .map(|root| bytes(Path::new(root.as_str().expect("a path"))))
            .sum(),
    }
}

fn bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(it) if it.is_dir() => bytes(&entry.path()),
            Ok(it) => it.len(),
            Err(_gone) => 0,
        })
        .sum()
}
