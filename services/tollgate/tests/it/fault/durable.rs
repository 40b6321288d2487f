//! Machines that are lost with their journals, and disks that are full or fail.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use prost::Message as _;
use proto::events::v1::{Record, RecordKind};
use rustix::process::Signal;
use testkit::{
    auditor::journal::Journals,
    eventually,
    load::{Answer, Connection, Outcome, Plan, Shot},
};

use super::{DISTANCE, LIVE, Load, figures::Figures, fund, priced, quiet::quiet, summary};
use crate::stack::{SETTLE_LIMIT, Stack, signal};

/// F5, `replicated`: a gateway's machine is lost, journal and all. What a client saw complete is
/// billed all the same.
#[tokio::test]
async fn f05_what_a_replicated_route_answered_survives_the_loss_of_the_machine() {
    lose_machines(3).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f05_what_a_replicated_route_answered_survives_the_loss_of_many_machines() {
    lose_machines(100).await;
}

async fn lose_machines(times: usize) {
    let variables = [
        ("TOLLGATE_WALLET_ORPHAN_SECONDS", "4"),
        ("TOLLGATE_WALLET_WRITE_OFF_HOURS", "0"),
    ];
    let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
    let stack = Stack::start_with(&arguments, &variables).await;
    stack.cli(&[
        "route",
        "set",
        "mileage",
        "--scope",
        "mileage:calculate",
        "--durability",
        "replicated",
    ]);
    let customer = stack.customer("Careful", 10_000_000);
    let (_, key) = stack.key(&customer, &LIVE);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for _ in 0..times {
        let load = Load::of(Plan {
            gateways: stack.gateways()[..1].to_vec(),
            key: key.clone(),
            shots: vec![Shot::get(DISTANCE)],
            workers: 8,
            pause: Duration::ZERO,
        });
        load.more_answers(200).await;
        let victim = stack.pids("gateway")[0];
        // Its next life must not find the folder.
        signal(victim, Signal::STOP);
        for journal in journals_of(&stack, 0) {
            std::fs::remove_dir_all(journal).expect("destroyed");
        }
        signal(victim, Signal::KILL);
        outcomes.push(load.finish().await);
    }
    let lost = Instant::now();
    let written_off = eventually(SETTLE_LIMIT, "what they held is written off", async || {
        let orphans = "select count(*) from wallet.leases where state = 'orphaned'";
        match stack.count(orphans).await {
            0 => Ok(()),
            open => Err(format!("{open} leases wait")),
        }
    });
    written_off.await.expect("written off");
    let outcomes: Vec<&Outcome> = outcomes.iter().collect();
    let report = stack.audit_with(&outcomes);
    let figures = Figures {
        kills: times,
        faults: times,
        quiet: lost.elapsed(),
        more: "replicated: machine lost with its journal".to_owned(),
        ..Figures::of("F05", &outcomes)
    };
    figures.print(&stack, &report).await;
}

/// Folders of the journals of a gateway.
fn journals_of(stack: &Stack, gateway: usize) -> Vec<PathBuf> {
    let info = stack.info();
    let root = info["journals"][gateway].as_str().expect("a path");
    journals_in(Path::new(root))
}

fn journals_in(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).expect("a folder").flatten();
    let is_journal = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("jrn_")
    };
    entries
        .map(|entry| entry.path())
        .filter(is_journal)
        .collect()
}

/// A small file system that is gone with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it; `None` where one may not.
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder");
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            Ok(output) => {
                println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                println!("skipped: no mount: {error}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has it open keeps it until he ends.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

/// F21: the disk below a journal is full: metered calls are refused as such, the other gateway goes
/// on, and with room everything goes on by itself. A disk that fails to sync ends the process; its
/// next life has lost nothing.
#[tokio::test]
async fn f21_a_full_disk_refuses_calls_and_a_failing_one_ends_the_process() {
    const DISK_BYTES: u64 = 512 << 10;
    let dir = tempfile::tempdir().expect("a folder");
    let place = dir.path().join("journals");
    let Some(disk) = SmallDisk::mount(&place, DISK_BYTES) else {
        return;
    };
    let stack = on_small_disk(&place, "2").await;
    fund(&stack);
    let key = stack.demo("live_key");
    let load = Load::steady(&stack, &key);
    load.more_answers(100).await;

    refuses_while_full(&stack, &key, &place.join("ballast")).await;
    ends_after_a_failed_sync(&stack, &key).await;
    let outcome = load.finish().await;
    let settled = quiet(&stack, Instant::now()).await.settled;
    let report = stack.audit_with(&[&outcome]);
    let figures = Figures {
        kills: 1,
        faults: 3,
        quiet: settled,
        more: format!("{:?} {:?}", outcome.by_status, outcome.by_code),
        ..Figures::of("F21", &[&outcome])
    };
    figures.print(&stack, &report).await;
    let is_honest = |code: &String| ["metering_unavailable", "draining"].contains(&code.as_str());
    assert!(
        outcome.by_code.keys().all(is_honest),
        "{}",
        summary(&outcome)
    );
    drop((stack, disk));
}

/// F21: a gateway is killed on a full disk and comes back to one. Nobody makes room, and somebody
/// takes whatever is let go of: what the dead life owed is written, shipped and settled all the
/// same, its call in flight included, and its journal goes.
#[tokio::test]
async fn f21_a_gateway_killed_on_a_full_disk_settles_without_any_room() {
    const DISK_BYTES: u64 = 512 << 10;
    let dir = tempfile::tempdir().expect("a folder");
    let place = dir.path().join("journals");
    let Some(disk) = SmallDisk::mount(&place, DISK_BYTES) else {
        return;
    };
    let stack = on_small_disk(&place, "1").await;
    fund(&stack);
    priced::price_tokens(&stack);
    let key = stack.demo("live_key");
    let load = Load::steady(&stack, &key);
    load.more_answers(100).await;
    let interrupted = begin_a_long_stream(&stack, &key, &place).await;

    let (ballast, sleeper) = (place.join("ballast"), stack.pids("usage-ingest")[0]);
    signal(sleeper, Signal::STOP);
    until_full(&stack, &key, &ballast).await;
    let dead = journals_in(&place);
    assert_eq!(dead.len(), 1, "{dead:?}");
    let killed = Instant::now();
    signal(stack.pids("gateway")[0], Signal::KILL);
    let next = eventually(SETTLE_LIMIT, "the next life begins", async || {
        fill(&ballast);
        match journals_in(&place).len() {
            2 => Ok(()),
            found => Err(format!("{found} journals")),
        }
    });
    next.await.expect("begun");
    signal(sleeper, Signal::CONT);
    let gone = eventually(SETTLE_LIMIT, "the dead life's journal goes", async || {
        fill(&ballast);
        match dead[0].exists() {
            false => Ok(()),
            true => Err(format!("{} is there", dead[0].display())),
        }
    });
    gone.await.expect("gone");
    let gone = killed.elapsed();
    let (outcome, broken_off) = (load.finish().await, interrupted.await.expect("ends"));
    assert!(broken_off.is_err(), "{broken_off:?}");
    let report = stack.audit_with(&[&outcome]);
    let aborted = "select count(*) from usage_ingest.api_usage_logs
                    where disposition = 'gateway_aborted' and credits_used > 0";
    assert_eq!(stack.count(aborted).await, 1);
    let figures = Figures {
        kills: 1,
        faults: 1,
        quiet: gone,
        more: "killed and started again on a full disk".to_owned(),
        ..Figures::of("F21", &[&outcome])
    };
    figures.print(&stack, &report).await;
    drop((stack, disk));
}

/// Begins a call that goes on for longer than the test, and waits until the journal knows what it
/// costs if its gateway dies.
async fn begin_a_long_stream(
    stack: &Stack,
    key: &str,
    place: &Path,
) -> tokio::task::JoinHandle<anyhow::Result<Answer>> {
    let question = "Paris, Lyon, Rouen, Nantes, Tours, Dijon, Metz, Nancy, Brest, Caen and Pau lie \
                    in France. Which cities lie in France?";
    let body = serde_json::json!({
        "model": "m",
        "stream": true,
        "delay_ms": 2_000,
        "messages": [{"role": "user", "content": question}],
    });
    let shot = Shot::post("/api/v1/ai/chat/completions", &body.to_string());
    let begin = || {
        let (gateway, key, shot) = (stack.gateways()[0].clone(), key.to_owned(), shot.clone());
        tokio::spawn(async move { Connection::to(&gateway).call(&key, &shot).await })
    };
    let call = RefCell::new(begin());
    let is_noted = |payload: &[u8]| {
        let record = Record::decode(payload).expect("a record");
        record.kind == i32::from(RecordKind::Progress) && record.due > 0
    };
    let begun = eventually(SETTLE_LIMIT, "the stream has begun", async || {
        // The load beside it may have left no room in the journal for the moment.
        if call.borrow().is_finished() {
            call.replace(begin());
        }
        let journals = Journals::read(&[place.to_path_buf()]).expect("readable");
        let mut records = journals.all.iter().flat_map(|journal| &journal.records);
        match records.any(|(_, payload)| is_noted(payload)) {
            true => Ok(()),
            false => Err("not yet"),
        }
    });
    begun.await.expect("begun");
    call.into_inner()
}

/// A stack whose first gateway has its journals in this place; others have the machine's disk.
async fn on_small_disk(place: &Path, gateways: &str) -> Stack {
    let linked = |data: &Path| {
        let folder = data.join("journal");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::os::unix::fs::symlink(place, folder.join("gateway-1")).expect("linked");
    };
    let segments = [("TOLLGATE_GATEWAY_JOURNAL_SEGMENT_BYTES", "65536")];
    let arguments = ["--processes", "--gateways", gateways];
    Stack::start_in(&arguments, &segments, linked).await
}

/// The disk of the first gateway's journals is filled, and emptied again.
async fn refuses_while_full(stack: &Stack, key: &str, ballast: &Path) {
    // Nothing is trimmed while a consumer stands still: the room in hand is used up.
    let sleeper = stack.pids("usage-ingest")[0];
    signal(sleeper, Signal::STOP);
    let refused = until_full(stack, key, ballast).await;
    assert_eq!(
        refused.json()["code"],
        "metering_unavailable",
        "{refused:?}"
    );
    assert_ne!(refused.header("retry-after"), "", "{refused:?}");
    let elsewhere = stack.call_at(1, key, &Shot::get(DISTANCE)).await;
    assert_eq!(elsewhere.status, 200, "{elsewhere:?}");
    let full_life = stack.pids("gateway")[0];
    std::fs::remove_file(ballast).expect("removed");
    signal(sleeper, Signal::CONT);
    serves(stack, 0, key).await;
    assert_eq!(stack.pids("gateway")[0], full_life, "no SIGBUS, no exit");
}

/// Fills the disk until the first gateway refuses a call for it; the refusal.
async fn until_full(stack: &Stack, key: &str, ballast: &Path) -> Answer {
    let full = eventually(SETTLE_LIMIT, "the disk is full", async || {
        fill(ballast);
        let answer = stack.call_at(0, key, &Shot::get(DISTANCE)).await;
        match answer.status.as_u16() {
            503 => Ok(answer),
            _ => Err(format!("{answer:?}")),
        }
    });
    full.await.expect("full")
}

/// The second gateway's next life fails to sync, and ends; the one after goes on.
async fn ends_after_a_failed_sync(stack: &Stack, key: &str) {
    // The next life of the other gateway has a disk that fails at one of its syncs, when it has
    // allocated its segments and carries calls.
    stack.arm("gateway", &["gateway.disk_sync:700".to_owned()]);
    signal(stack.pids("gateway")[1], Signal::KILL);
    let failed = eventually(
        SETTLE_LIMIT,
        "the process ends after a failed sync",
        async || {
            // It may be down, or go down in the middle of them.
            let mut connection = Connection::to(&stack.gateways()[1]);
            for _ in 0..5 {
                drop(connection.call(key, &Shot::get(DISTANCE)).await);
            }
            let log = std::fs::read_to_string(stack.data().join("log/gateway-2.log"));
            let log = log.unwrap_or_default();
            let said = log.contains("failed at this point") && log.contains("the process ends");
            if said { Ok(()) } else { Err("not yet") }
        },
    );
    failed.await.expect("failed");
    serves(stack, 1, key).await;
}

/// Takes all room that is left.
fn fill(ballast: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(ballast)
        .expect("opened");
    // It ends with the disk being full, which is what is wanted.
    while file.write(&[1; 4_096]).is_ok_and(|bytes| bytes > 0) {}
}

/// This gateway serves.
async fn serves(stack: &Stack, gateway: usize, key: &str) {
    let served = eventually(SETTLE_LIMIT, "calls are served", async || {
        let base = stack.gateways()[gateway].clone();
        let mut connection = Connection::to(&base);
        match connection.call(key, &Shot::get(DISTANCE)).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    served.await.expect("served");
}
