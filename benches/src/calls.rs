//! How many calls a second, how long they take, and how far behind the consumers are.
//!
//! Closed loop: `--workers` connections, each with one call in flight. The lag of the consumers is
//! read from their own histograms before and after, so it covers this run only.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use serde_json::json;
use testkit::load::{self, Plan, Shot};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Histogram, Samples},
    report::{Report, in_units},
    system::{PATH, System},
};

const CONSUMERS: [&str; 4] = [
    "wallet",
    "usage-ingest",
    "stats-aggregator",
    "anomaly-detector",
];
/// The last calls need a moment to become durable everywhere.
const SETTLE: Duration = Duration::from_secs(2);

/// How much load.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Calls in flight.
    #[arg(long, default_value_t = 16)]
    workers: usize,
    /// Each worker pauses so long between calls, microseconds.
    #[arg(long, default_value_t = 0)]
    pause_micros: u64,
    /// Seconds of load.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let before = lags(system).await?;
    let plan = Plan {
        gateways: system.gateways()?.into_iter().map(|it| it.url).collect(),
        key: system.text("/demo/live_key")?,
        shots: vec![Shot::get(PATH)],
        workers: arguments.workers,
        pause: Duration::from_micros(arguments.pause_micros),
    };
    let stop = CancellationToken::new();
    let seconds = arguments.seconds;
    let ended = async {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(load::run(plan, stop.clone()), ended);
    let mut report = Report::new("calls");
    let calls = outcome.done.len();
    let rate = calls as u64 / seconds.max(1);
    report.row("calls", format!("{calls}, {rate} a second"));
    report.row(
        "by status",
        format!("{:?}, broken off {}", outcome.by_status, outcome.broken),
    );
    let (p50, p99) = (outcome.quantile(50), outcome.quantile(99));
    report.row("latency", format!("P50 {p50} µs, P99 {p99} µs"));
    report.figure("calls", calls);
    report.figure("calls_per_second", rate);
    report.figure("broken", outcome.broken);
    report.figure("latency_micros", json!({ "p50": p50, "p99": p99 }));
    tokio::time::sleep(SETTLE).await;
    let after = lags(system).await?;
    for consumer in CONSUMERS {
        let (old, new) = (&before[consumer], after[consumer].clone());
        let lag = new.since(old);
        let bound = |share| lag.at_most(share).map_or_else(|| "?".to_owned(), in_units);
        let text = format!("P50 ≤ {}, P99 ≤ {}", bound(0.5), bound(0.99));
        report.row(format!("lag {consumer}"), text);
        report.figure(
            format!("lag_seconds_{consumer}"),
            json!({ "p50_at_most": lag.at_most(0.5), "p99_at_most": lag.at_most(0.99) }),
        );
    }
    Ok(report)
}

/// The lag of each consumer, as it counts it.
async fn lags(system: &System) -> anyhow::Result<BTreeMap<&'static str, Histogram>> {
    let mut found = BTreeMap::new();
    for consumer in CONSUMERS {
        let samples = Samples::read(&system.ops(consumer)?).await?;
        let mut all = samples.histograms("tollgate_usage_lag_seconds", "consumer");
        found.insert(consumer, all.remove(consumer).unwrap_or_default());
    }
    Ok(found)
}
