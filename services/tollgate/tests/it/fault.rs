//! Kills under load. The client's transcript is held against rows, debits and statistics.
//!
//! The short forms run in `make test`; the long ones are ignored there and run by `make faults`.
//! A test's name begins with the number of its fault, `f06_…`: `make faults FAULTS=F6` goes by it.

mod behind;
mod bus;
mod clocks;
mod credits;
mod durable;
mod failover;
pub(crate) mod figures;
pub(crate) mod gaps;
mod idempotency;
mod ids;
mod keys;
mod mutants;
pub(crate) mod priced;
mod quiet;
mod replay;
mod shipping;
mod soak;
mod stores;
mod storm;
mod stream;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::process::Signal;
use testkit::{
    eventually,
    load::{self, Outcome, Plan, Shot},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::figures::Figures;
use crate::stack::{SETTLE_LIMIT, Stack, signal};

/// One credit.
pub(crate) const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";
/// All that the samples ask for.
pub(crate) const LIVE: [&str; 8] = [
    "--environment",
    "production",
    "--scope",
    "mileage:calculate",
    "--scope",
    "ai:write",
    "--scope",
    "pdf:write",
];

/// Three credits.
pub(crate) fn chat() -> Shot {
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "How far is it?"}]}"#;
    Shot::post("/api/v1/ai/chat/completions", body)
}

/// One credit.
pub(crate) fn render() -> Shot {
    Shot::post("/api/v1/pdf/render", r#"{"text": "Storm."}"#)
}

/// More than any load here can spend, for the demo's key.
pub(crate) fn fund(stack: &Stack) {
    let org = stack.demo("org_id");
    let grant = ["wallet", "grant", "--org", &org, "--credits", "10000000"];
    stack.cli(&[&grant[..], &["--reason", "load"]].concat());
}

/// Calls in the background.
pub(crate) struct Load {
    stop: CancellationToken,
    so_far: Arc<Mutex<Outcome>>,
    task: JoinHandle<Outcome>,
}

impl Load {
    /// Free and paid calls with this key, over all gateways.
    pub(crate) fn start(stack: &Stack, key: &str, workers: usize) -> Self {
        Self::over(stack.gateways(), key, workers)
    }

    /// The same over some gateways. Workers whose gateway is down go to the next, and stay there.
    pub(crate) fn over(gateways: Vec<String>, key: &str, workers: usize) -> Self {
        let shots = vec![
            Shot::get(DISTANCE),
            render(),
            Shot::get("/api/v1/mileage/distance?from=nowhere&to=43.29,5.37"),
        ];
        Self::of(Plan {
            gateways,
            key: key.to_owned(),
            shots,
            workers,
            pause: Duration::from_millis(20),
        })
    }

    /// Eight callers of distances, each of whom pauses between two calls: faults pass meanwhile.
    pub(crate) fn steady(stack: &Stack, key: &str) -> Self {
        Self::of(Plan {
            gateways: stack.gateways(),
            key: key.to_owned(),
            shots: vec![Shot::get(DISTANCE)],
            workers: 8,
            pause: Duration::from_millis(2),
        })
    }

    pub(crate) fn of(plan: Plan) -> Self {
        let stop = CancellationToken::new();
        let so_far = Arc::default();
        let task = tokio::spawn(load::watched(plan, stop.clone(), Arc::clone(&so_far)));
        Self { stop, so_far, task }
    }

    /// Complete answers so far.
    pub(crate) fn answered(&self) -> usize {
        self.so_far.lock().done.len()
    }

    /// Waits until so many more answers are complete.
    pub(crate) async fn more_answers(&self, more: usize) {
        let complete = || self.answered();
        let before = complete();
        let grown = eventually(
            SETTLE_LIMIT,
            "calls are answered",
            async || match complete() {
                now if now >= before + more => Ok(()),
                now => Err(format!("{now} answers, {before} before")),
            },
        );
        grown.await.expect("answered");
    }

    /// Lets calls in flight end.
    pub(crate) async fn finish(self) -> Outcome {
        self.stop.cancel();
        self.task.await.expect("the load client ends")
    }
}

/// One line of figures.
pub(crate) fn summary(outcome: &Outcome) -> String {
    format!(
        "{} sent, {} complete {:?}, {} broken off, {} found no gateway",
        outcome.sent,
        outcome.done.len(),
        outcome.by_status,
        outcome.broken,
        outcome.unreachable,
    )
}

/// Between two kills.
const KILL_PERIOD: Duration = Duration::from_millis(900);
/// Who dies, in turn: each service three times while the bus dies twice.
const VICTIMS: [&str; 14] = [
    "gateway",
    "wallet",
    "usage-ingest",
    "stats-aggregator",
    "nats",
    "gateway",
    "wallet",
    "usage-ingest",
    "stats-aggregator",
    "nats",
    "gateway",
    "wallet",
    "usage-ingest",
    "stats-aggregator",
];

#[tokio::test]
async fn f01_nothing_is_lost_or_billed_twice_while_processes_are_killed() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 8);
    let mut kills: BTreeMap<&str, usize> = BTreeMap::new();
    for (turn, victim) in VICTIMS.iter().enumerate() {
        tokio::time::sleep(KILL_PERIOD).await;
        if kill(&stack, victim, turn) {
            *kills.entry(victim).or_default() += 1;
        }
    }
    tokio::time::sleep(KILL_PERIOD).await;
    let outcome = load.finish().await;
    verify(&stack, &outcome, &kills).await;
}

/// Kills one process of a service, another one each turn. False when it was just dead.
fn kill(stack: &Stack, victim: &str, turn: usize) -> bool {
    let pids = stack.pids(victim);
    let Some(pid) = pids.get(turn % pids.len().max(1)) else {
        return false;
    };
    signal(*pid, Signal::KILL);
    true
}

async fn verify(stack: &Stack, outcome: &Outcome, kills: &BTreeMap<&str, usize>) {
    let began = Instant::now();
    let report = stack.audit();
    let settled = began.elapsed();
    let rows = rows(stack).await;
    let (mut lost, mut double, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for done in outcome.done.iter().filter(|done| done.status != 503) {
        match rows.get(&done.request_id).map(Vec::as_slice) {
            None => lost.push(&done.request_id),
            Some([cost]) if *cost == done.cost => {}
            Some([_]) => wrong.push(&done.request_id),
            Some(_) => double.push(&done.request_id),
        }
    }
    let more = format!(
        "storm: {}, kills {kills:?}, settled after {settled:?}, lost {}, double {}, wrong {}, \
         report {report}",
        summary(outcome),
        lost.len(),
        double.len(),
        wrong.len(),
    );
    Figures::say(
        "F01",
        [kills.values().sum(), kills.values().sum()],
        &[outcome],
        more,
        stack,
        &report,
    )
    .await;
    assert!(
        outcome.done.len() > 500,
        "only {} calls were complete",
        outcome.done.len()
    );
    for (victim, least) in [
        ("gateway", 3),
        ("wallet", 3),
        ("usage-ingest", 3),
        ("stats-aggregator", 3),
        ("nats", 2),
    ] {
        let times = kills.get(victim).copied().unwrap_or(0);
        assert!(times >= least, "{victim} was killed only {times} times");
    }
    assert!(lost.is_empty(), "complete answers without a row: {lost:?}");
    assert!(double.is_empty(), "calls with two rows: {double:?}");
    assert!(
        wrong.is_empty(),
        "rows with another cost than the answer said: {wrong:?}"
    );
    assert_eq!(report["differences"], 0, "{report:#}");
    let sums = stack
        .count(
            "select coalesce((select sum(credits_used) from usage_ingest.api_usage_logs
                               where environment = 'production'), 0)::int8
                  - coalesce((select sum(total_used) from wallet.wallets), 0)::int8",
        )
        .await;
    assert_eq!(sums, 0, "rows and wallets differ");
}

/// Costs of all rows by request id.
async fn rows(stack: &Stack) -> BTreeMap<String, Vec<i64>> {
    let found: Vec<(uuid::Uuid, i64)> =
        sqlx::query_as("select request_id, credits_used from usage_ingest.api_usage_logs")
            .fetch_all(stack.pool())
            .await
            .expect("rows");
    let mut rows: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for (request, cost) in found {
        rows.entry(format!("req_{}", request.simple()))
            .or_default()
            .push(cost);
    }
    rows
}
