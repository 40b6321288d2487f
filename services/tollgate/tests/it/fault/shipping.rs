//! Usage on its way: the bus is away, gateways stop in order.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Plan, Shot},
};

use super::{DISTANCE, Load, fund, render, summary};
use crate::stack::{SETTLE_LIMIT, Stack, signal};

/// How long the bus is away in the short form.
const AWAY: Duration = Duration::from_secs(8);
const LONG_AWAY: Duration = Duration::from_secs(600);

/// F6: calls go on from the journal while nothing can be shipped.
#[tokio::test]
async fn calls_go_on_while_the_bus_is_away() {
    lose_the_bus(AWAY).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn calls_go_on_while_the_bus_is_away_for_ten_minutes() {
    lose_the_bus(LONG_AWAY).await;
}

async fn lose_the_bus(away: Duration) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 8);
    rows_grow(&stack, 1).await;
    let paused = stack.pids("nats")[0];
    signal(paused, Signal::STOP);
    tokio::time::sleep(away).await;
    signal(paused, Signal::CONT);
    rows_grow(&stack, 1).await;
    // `dev` starts it again each time.
    let down = Instant::now();
    let mut killed = std::collections::BTreeSet::new();
    while down.elapsed() < away {
        for pid in stack.pids("nats") {
            if killed.insert(pid) {
                signal(pid, Signal::KILL);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rows_grow(&stack, 1).await;
    let outcome = load.finish().await;
    let began = Instant::now();
    let report = stack.audit_with(&[&outcome]);
    let caught_up = began.elapsed();
    let lag = stack
        .count(
            "select (extract(epoch from max(ingested_at - timestamp)) * 1000)::int8
               from usage_ingest.api_usage_logs",
        )
        .await;
    println!(
        "bus away {away:?} twice, killed {} times: {}; lag up to {lag} ms, all adds up \
         {caught_up:?} after the load; {report}",
        killed.len(),
        summary(&outcome),
    );
    let refused = outcome
        .by_status
        .iter()
        .filter(|(status, _)| ![200, 422].contains(*status));
    assert_eq!(refused.count(), 0, "{}", summary(&outcome));
    assert_eq!(
        (outcome.broken, outcome.unreachable),
        (0, 0),
        "{}",
        summary(&outcome)
    );
}

/// At least so many rows come in.
async fn rows_grow(stack: &Stack, more: i64) {
    let rows = || stack.count("select count(*) from usage_ingest.api_usage_logs");
    let before = rows().await;
    let grown = eventually(SETTLE_LIMIT, "rows come in", async || {
        let now = rows().await;
        if now >= before + more {
            Ok(())
        } else {
            Err(format!("{now} rows, {before} before"))
        }
    });
    grown.await.expect("grown");
}

/// F28: both gateways are stopped in turn under load, and started again.
#[tokio::test]
async fn a_gateway_that_is_stopped_in_order_fails_no_call_and_leaves_nothing_open() {
    restart_in_turn(2).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn gateways_that_are_stopped_in_order_all_day_leave_nothing_open() {
    restart_in_turn(50).await;
}

async fn restart_in_turn(rounds: usize) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::of(Plan {
        gateways: stack.gateways(),
        key: stack.demo("live_key"),
        shots: vec![Shot::get(DISTANCE), render()],
        workers: 6,
        pause: Duration::from_millis(20),
    });
    let mut drained = Vec::new();
    for turn in 0..2 * rounds {
        rows_grow(&stack, 100).await;
        let name = format!("gateway-{}", turn % 2 + 1);
        let life = life(&stack, &name).await;
        let began = Instant::now();
        signal(stack.pids("gateway")[turn % 2], Signal::TERM);
        let again = eventually(
            SETTLE_LIMIT,
            "another life has begun",
            async || match self::life(&stack, &name).await {
                next if !next.is_empty() && next != life => Ok(()),
                same => Err(format!("still {same:?}")),
            },
        );
        again.await.expect("started again");
        drained.push(began.elapsed());
        let left = journals_below(&stack.data());
        assert!(!left.is_empty(), "the other gateway has a journal");
        for journal in &life {
            let open: i64 = sqlx::query_scalar(
                "select count(*) from wallet.leases where journal_id = $1
                    and state not in ('closed', 'written_off')",
            )
            .bind(journal)
            .fetch_one(stack.pool())
            .await
            .expect("a count");
            assert_eq!(open, 0, "leases of {name} are open");
            let directory = format!("jrn_{}", journal.simple());
            assert!(!left.contains(&directory), "{directory} is left: {left:?}");
        }
    }
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome]);
    println!(
        "stopped in turn, again after {drained:?}: {}; {report}",
        summary(&outcome)
    );
    assert_eq!(outcome.broken, 0, "{}", summary(&outcome));
    let failed = outcome
        .by_status
        .iter()
        .filter(|(status, _)| **status != 200);
    assert_eq!(failed.count(), 0, "{}", summary(&outcome));
}

/// Journals of a gateway that are not retired.
async fn life(stack: &Stack, gateway: &str) -> Vec<uuid::Uuid> {
    sqlx::query_scalar(
        "select id from wallet.journals where gateway = $1 and retired_at is null order by id",
    )
    .bind(gateway)
    .fetch_all(stack.pool())
    .await
    .expect("journals")
}

fn journals_below(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("jrn_") {
            found.push(name);
        } else if entry.path().is_dir() {
            found.extend(journals_below(&entry.path()));
        }
    }
    found
}
