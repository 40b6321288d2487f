//! Whether the pepper can be rotated while keys are in use: no call may be refused or broken off.
//!
//! The gateways are called with many keys before, during and after `tollgate pepper rotate`. That
//! the pepper is another one, and how many keys have moved to it, is asked of the keys service.

use std::{collections::BTreeMap, process::Stdio, sync::Arc, time::Duration};

use clap::Args;
use proto::keys::v1::GetPeppersRequest;
use serde_json::{Value, json};
use tokio::{process::Command, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    population::{Popularity, Population},
    report::{Report, in_units, quantile},
    system::System,
    traffic::{Seen, Traffic},
};

/// Keys of an organisation.
const KEYS_OF_ORGANISATION: usize = 10;

/// How much load, and for how long.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Keys, used alike.
    #[arg(long, default_value_t = 1_000)]
    keys: usize,
    /// Seconds of load before the rotation, and again after it.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Calls due in a second.
    #[arg(long, default_value_t = 500.0)]
    calls_per_second: f64,
    /// Calls in flight at most.
    #[arg(long, default_value_t = 32)]
    workers: usize,
    /// The same seed makes the same calls.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What the keys service says of its peppers.
struct Peppers {
    current: String,
    /// Keys by the pepper they are hashed with.
    keys: BTreeMap<String, i64>,
}

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let organisations = arguments.keys.div_ceil(KEYS_OF_ORGANISATION);
    let population = Population::make(system, organisations, arguments.keys).await?;
    let population = Arc::new(population);
    let gateways: Vec<String> = system.gateways()?.into_iter().map(|it| it.url).collect();
    let traffic = Arc::new(Traffic {
        gateways: gateways.clone(),
        population: Arc::clone(&population),
        popularity: Popularity::new(arguments.keys, 0.0),
        unknown_share: 0.0,
        workers: arguments.workers,
        calls_per_second: arguments.calls_per_second,
        seed: arguments.seed,
    });
    let before = peppers(system).await?;
    let stop = CancellationToken::new();
    let around = Duration::from_secs(arguments.seconds);
    let rotation = async {
        tokio::time::sleep(around).await;
        let begin = Instant::now();
        let said = rotate(system).await;
        let took = begin.elapsed();
        tokio::time::sleep(around).await;
        stop.cancel();
        anyhow::Ok((said?, took))
    };
    let (seen, rotated) = tokio::join!(traffic.run(stop.clone()), rotation);
    let (said, took) = rotated?;
    // Chance has left some keys out; they have moved as well once they were used.
    population.visit(&gateways).await?;
    let after = peppers(system).await?;
    anyhow::ensure!(
        before.current != after.current,
        "the pepper is still {}; the rotation said {said}",
        after.current
    );
    let moved = after.keys.get(&after.current).copied().unwrap_or_default();
    let mut report = Report::new("pepper");
    report.row("rotation", format!("{} in {took:.1?}", after.current));
    report.figure("rotation_seconds", took.as_secs_f64());
    report.figure("rotation_said", said);
    report.both("keys_used", arguments.keys);
    report.both("keys_rehashed", moved);
    report.both("keys_waiting", after.keys.values().sum::<i64>() - moved);
    describe(&mut report, seen);
    Ok(report)
}

fn describe(report: &mut Report, mut seen: Seen) {
    let refused: u64 = seen.refused_wrongly.values().sum();
    report.both("calls", seen.calls());
    report.both("refused", refused);
    report.both("broken_off", seen.broken);
    report.row("answers", format!("{:?}", seen.answers));
    report.both("connections_refused_and_sent_elsewhere", seen.unreachable);
    seen.seconds.sort_by(f64::total_cmp);
    let [p50, p99, worst] = [0.5, 0.99, 1.0].map(|share| quantile(&seen.seconds, share));
    let [p50, p99, worst] = [p50, p99, worst].map(|it| (it, in_units(it)));
    let text = format!("P50 {}, P99 {}, max {}", p50.1, p99.1, worst.1);
    report.row("latency", text);
    let latency = json!({ "p50": p50.0, "p99": p99.0, "max": worst.0 });
    report.figure("latency_seconds", latency);
}

async fn peppers(system: &System) -> anyhow::Result<Peppers> {
    let told = system.keys()?.get_peppers(GetPeppersRequest {}).await?;
    let told = told.into_inner();
    let keys = told.counts.into_iter().map(|it| (it.pepper_id, it.keys));
    Ok(Peppers {
        current: told.pepper_id,
        keys: keys.collect(),
    })
}

/// Runs the verb, and returns what it printed.
async fn rotate(system: &System) -> anyhow::Result<Value> {
    let output = Command::new(system.program()?)
        .args(["pepper", "rotate", "--json", "--data"])
        .arg(system.data())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}: {errors}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}
