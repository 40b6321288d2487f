//! `tollgate journal recover`: the journals of a gateway that will not start again.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;
use testkit::{auditor::journal::Journals, eventually, load::Shot};

use crate::{
    fault::{
        DISTANCE, LIVE,
        gaps::{calls_of, damage},
    },
    stack::{Customer, SETTLE_LIMIT, Stack, signal},
};

/// A gateway dies with records that were never shipped, and its volume is mounted elsewhere, twice.
#[tokio::test]
async fn f18_the_journals_of_a_dead_gateway_are_settled_once_whoever_recovers_them() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    let customer = stack.customer("Moved", 1_000);
    let (_, key) = stack.key(&customer, &[&LIVE[..], &["--daily-quota", "500"]].concat());
    call(&stack, &key, 1).await;
    stack.audit();
    // Only the bus is away, so nothing of what follows is applied.
    let bus = stack.pids("nats")[0];
    signal(bus, Signal::STOP);
    call(&stack, &key, 20).await;
    a_held_directory_is_refused(&stack);
    let stopped = Instant::now();
    let volume = lose_the_gateway(&stack, "volume");
    let [copy, cracked] = ["copy", "cracked"].map(|name| {
        let copy = stack.data().join(name);
        copy_tree(&volume, &copy);
        copy
    });
    lose_two_calls(&cracked, &customer);
    signal(bus, Signal::CONT);

    // Killed between the final counts of its leases, then run again.
    let died = recover(&stack, &volume, Some("gateway.close_written:2"));
    assert!(!died.status.success(), "{}", text(&died));
    // For all the wallet knew, it could have been cut off and served from its leases.
    let silence = stopped.elapsed();
    assert!(silence > Duration::from_secs(29), "{silence:?}");
    let done = recover(&stack, &volume, None);
    let summary = summary(&done);
    println!("recovered by the second run: {summary}");
    assert_eq!(
        (&summary["journals"], &summary["removed"]),
        (&1.into(), &1.into())
    );
    assert_eq!(summary["records"], summary["applied"], "{summary}");
    // What the gateway had sent to the sleeping bus was settled without us.
    let credits = summary["settled_credits"].as_i64().expect("a number");
    assert!((15..=20).contains(&credits), "{summary}");
    settled(&stack, &customer, 979);
    let mut left: Vec<_> = std::fs::read_dir(&volume)
        .expect("listed")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["LOCK", "prepared"], "no journal, nor a trace of one");

    // Nothing is left to do, in the directory or in a copy of it.
    let again = self::summary(&recover(&stack, &volume, None));
    assert_eq!(again["journals"], 0, "{again}");
    let twice = self::summary(&recover(&stack, &copy, None));
    println!("the copy: {twice}");
    assert_eq!(
        (&twice["removed"], &twice["settled_credits"]),
        (&1.into(), &0.into())
    );
    let thrice = self::summary(&recover(&stack, &cracked, None));
    println!("the damaged copy: {thrice}");
    assert_eq!(
        (&thrice["removed"], &thrice["settled_credits"]),
        (&1.into(), &0.into())
    );
    assert_eq!(thrice["gap_records"], 2, "{thrice}");
    for summary in [&summary, &twice, &thrice] {
        assert_eq!(summary["shipped"], summary["records"], "each counts once");
    }
    let report = stack.audit();
    println!("recovered thrice: {report}");
    assert_eq!(report["recorded_gaps"], 0, "{report}");
    settled(&stack, &customer, 979);
    a_copy_of_a_living_gateway_is_left_alone(&stack);
    stack.audit();
}

async fn call(stack: &Stack, key: &str, times: usize) {
    for _ in 0..times {
        let answer = stack.call(key, &Shot::get(DISTANCE)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn root(stack: &Stack, gateway: usize) -> PathBuf {
    stack.info()["journals"][gateway]
        .as_str()
        .expect("a path")
        .into()
}

/// Kills the first gateway and takes its journal away before its next life can find it.
fn lose_the_gateway(stack: &Stack, name: &str) -> PathBuf {
    let victim = stack.pids("gateway")[0];
    signal(victim, Signal::STOP);
    let volume = stack.data().join(name);
    copy_tree(&root(stack, 0), &volume);
    for entry in std::fs::read_dir(root(stack, 0)).expect("listed").flatten() {
        if entry.path().is_dir() {
            std::fs::remove_dir_all(entry.path()).expect("removed");
        }
    }
    signal(victim, Signal::KILL);
    volume
}

fn copy_tree(from: &Path, to: &Path) {
    let done = Command::new("cp")
        .arg("-R")
        .arg(from)
        .arg(to)
        .status()
        .expect("cp runs");
    assert!(done.success());
}

/// Makes two paid calls in the middle of a journal unreadable.
fn lose_two_calls(root: &Path, customer: &Customer) {
    let found = Journals::read(&[root.to_owned()]).expect("readable");
    let journal = found.all.first().expect("a journal");
    damage(journal, &calls_of(journal, customer)[8..10]);
}

fn recover(stack: &Stack, dir: &Path, crash_at: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command
        .args(["journal", "recover"])
        .arg(dir)
        .arg("--json")
        .arg("--data")
        .arg(stack.data());
    command.envs(crash_at.map(|point| ("TOLLGATE_CRASH_AT", point)));
    command.output().expect("the CLI runs")
}

fn text(output: &Output) -> String {
    let part = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{:?} {} {}",
        output.status,
        part(&output.stdout),
        part(&output.stderr)
    )
}

fn summary(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn settled(stack: &Stack, customer: &Customer, balance: i64) {
    let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
    assert_eq!(wallet["balance"], balance, "{wallet}");
    assert_eq!(
        wallet["reserved"], 0,
        "nothing stays with the dead: {wallet}"
    );
}

/// By its gateway: neither the command nor another gateway gets in.
fn a_held_directory_is_refused(stack: &Stack) {
    let held = root(stack, 1);
    let holder = stack.pids("gateway")[1];
    let refused = recover(stack, &held, None);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(
        why.contains(&format!("is in use by process {holder}")),
        "{why}"
    );

    let place = format!("/proc/{holder}");
    let read = |name: &str| std::fs::read(format!("{place}/{name}")).expect("readable");
    let split = |bytes: &[u8]| -> Vec<String> {
        let parts = bytes
            .split(|byte| *byte == 0)
            .filter(|part| !part.is_empty());
        parts
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect()
    };
    let (arguments, variables) = (split(&read("cmdline")), split(&read("environ")));
    let mut second = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    second.args(&arguments[1..]).env_clear();
    second.envs(variables.iter().filter_map(|pair| pair.split_once('=')));
    for name in [
        "TOLLGATE_GATEWAY_LISTEN",
        "TOLLGATE_GRPC_LISTEN",
        "TOLLGATE_OPS_LISTEN",
    ] {
        second.env(name, "127.0.0.1:0");
    }
    second.env_remove("TOLLGATE_CRASH_AT").stdin(Stdio::null());
    let refused = second.output().expect("it ends by itself");
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(
        text(&refused).contains(&format!("in use by process {holder}")),
        "{}",
        text(&refused)
    );
}

/// A copy has no lock, but its owner's heart beats.
fn a_copy_of_a_living_gateway_is_left_alone(stack: &Stack) {
    let copy = stack.data().join("living");
    copy_tree(&root(stack, 1), &copy);
    let refused = recover(stack, &copy, None);
    let why = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("belongs to a gateway that is alive"), "{why}");
}

/// The journal turns up after its leases were written off: the provider's loss.
#[tokio::test]
async fn a_journal_found_after_the_write_off_is_booked_to_the_provider() {
    let variables = [
        // A busy machine is no reason to take a lease that is in use for orphaned.
        ("TOLLGATE_WALLET_ORPHAN_SECONDS", "4"),
        ("TOLLGATE_WALLET_WRITE_OFF_HOURS", "0"),
    ];
    let arguments = ["--ephemeral", "--processes", "--gateways", "1"];
    let stack = Stack::start_with(&arguments, &variables).await;
    let customer = stack.customer("Lucky", 1_000);
    let (_, key) = stack.key(&customer, &LIVE);
    call(&stack, &key, 1).await;
    stack.audit();
    let bus = stack.pids("nats")[0];
    signal(bus, Signal::STOP);
    // More than a second of it is unknown: told by no heartbeat since the wallet stands still.
    let wallet = stack.pids("wallet")[0];
    signal(wallet, Signal::STOP);
    call(&stack, &key, 15).await;
    let volume = lose_the_gateway(&stack, "late");
    signal(wallet, Signal::CONT);
    signal(bus, Signal::CONT);
    let written_off = eventually(SETTLE_LIMIT, "its lease is written off", async || {
        let open = "select count(*) from wallet.write_offs";
        match stack.count(open).await {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    });
    written_off.await.expect("written off");
    let before = stack.cli(&["wallet", "show", "--org", &customer.org]);
    let done = summary(&recover(&stack, &volume, None));
    println!("found late: {done}; {before}");
    assert_eq!(done["removed"], 1, "{done}");
    let after = stack.cli(&["wallet", "show", "--org", &customer.org]);
    assert_eq!(
        before["balance"], after["balance"],
        "not the customer's debt"
    );
    let late = stack
        .count("select coalesce(sum(late_spend), 0)::int8 from wallet.write_offs")
        .await;
    assert_eq!(after["balance"], 1_000 - 16 + late, "{late} late: {after}");
    assert!(late > 0, "some of it was unknown");
    stack.audit();
}
