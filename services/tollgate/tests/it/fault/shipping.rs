//! Gateways stop in order.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Plan, Shot},
};

use super::{DISTANCE, Load, figures::Figures, fund, render, summary};
use crate::stack::{SETTLE_LIMIT, Stack, signal};

/// At least so many rows come in.
pub(super) async fn rows_grow(stack: &Stack, more: i64) {
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
async fn f28_a_gateway_that_is_stopped_in_order_fails_no_call_and_leaves_nothing_open() {
    restart_in_turn(2).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f28_gateways_that_are_stopped_in_order_all_day_leave_nothing_open() {
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
    let more = format!(
        "stopped in turn, again after {drained:?}: {}",
        summary(&outcome)
    );
    Figures::say("F28", [0, 2 * rounds], &[&outcome], more, &stack, &report).await;
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
