//! Measures a running Tollgate from outside and prints figures for `benches/RESULTS.md`.
//!
//! Closed loop: `--workers` connections, each with one call in flight. The lag of the consumers is
//! read from their own histograms before and after, so it covers this run only.
#![expect(clippy::print_stdout, reason = "figures are what this program is for")]

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use serde_json::Value;
use testkit::load::{self, Connection, Plan, Shot};
use tokio_util::sync::CancellationToken;

const CONSUMERS: [&str; 4] = [
    "wallet",
    "usage-ingest",
    "stats-aggregator",
    "anomaly-detector",
];

/// Puts load on a running `tollgate dev`.
#[derive(Parser)]
struct Arguments {
    /// Folder of the running `tollgate dev`.
    #[arg(long, default_value = ".tollgate")]
    data: PathBuf,
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let file = arguments.data.join("dev.json");
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("{}: is `tollgate dev` running there?", file.display()))?;
    let info: Value = serde_json::from_str(&text)?;
    let before = lags(&info).await?;
    let plan = Plan {
        gateways: texts(&info["gateway"]),
        key: info["demo"]["live_key"]
            .as_str()
            .context("no demo key")?
            .to_owned(),
        shots: vec![Shot::get(
            "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37",
        )],
        workers: arguments.workers,
        pause: Duration::from_micros(arguments.pause_micros),
    };
    let stop = CancellationToken::new();
    let timer = stop.clone();
    let seconds = arguments.seconds;
    let ended = async {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        timer.cancel();
    };
    let (outcome, ()) = tokio::join!(load::run(plan, stop), ended);
    let calls = outcome.done.len();
    println!(
        "calls        {calls}, {} a second",
        calls as u64 / seconds.max(1)
    );
    println!(
        "by status    {:?}, broken off {}",
        outcome.by_status, outcome.broken
    );
    let quantile = |percent| outcome.quantile(percent);
    println!(
        "latency      P50 {} µs, P99 {} µs",
        quantile(50),
        quantile(99)
    );
    // The last calls need a moment to become durable everywhere.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = lags(&info).await?;
    for consumer in CONSUMERS {
        let empty = BTreeMap::new();
        let (old, new) = (
            before.get(consumer).unwrap_or(&empty),
            after.get(consumer).unwrap_or(&empty),
        );
        let bound = |share| bound(old, new, share);
        println!(
            "lag {consumer:17} P50 ≤ {}, P99 ≤ {}",
            bound(0.5),
            bound(0.99)
        );
    }
    Ok(())
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().cloned().unwrap_or_default();
    list.iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Per consumer: cumulative counts of its lag histogram by upper bound.
type Lags = BTreeMap<&'static str, BTreeMap<String, f64>>;

async fn lags(info: &Value) -> anyhow::Result<Lags> {
    let mut found = Lags::new();
    for consumer in CONSUMERS {
        let base = info["ops"][consumer].as_str().context("no ops address")?;
        let answer = Connection::to(base)
            .call("", &Shot::get("/metrics.json"))
            .await?;
        let samples = answer.json();
        let name = "tollgate_usage_lag_seconds_bucket{";
        for (sample, count) in samples.as_object().into_iter().flatten() {
            let ours = sample.starts_with(name) && sample.contains(&format!("\"{consumer}\""));
            let bound = sample
                .split("le=\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            if let (true, Some(bound), Some(count)) = (ours, bound, count.as_f64()) {
                found
                    .entry(consumer)
                    .or_default()
                    .insert(bound.to_owned(), count);
            }
        }
    }
    Ok(found)
}

/// The smallest bucket that holds this share of what came in between.
fn bound(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, share: f64) -> String {
    let mut buckets: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| {
            let number = bound.parse().unwrap_or(f64::INFINITY);
            (number, count - before.get(bound).copied().unwrap_or(0.0))
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = buckets.last().map_or(0.0, |(_, count)| *count);
    let found = buckets.iter().find(|(_, count)| *count >= total * share);
    found.map_or_else(
        || "?".to_owned(),
        |(bound, _)| format!("{} ms", bound * 1000.0),
    )
}
