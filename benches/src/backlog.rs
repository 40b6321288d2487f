//! How fast a consumer works off what has piled up: settlement, rows, statistics, anomalies.
//!
//! One consumer after the other is paused at the stream while calls are made, and resumed when they
//! have ended; the others have applied everything by then and are idle. Its events are real ones,
//! of leases that the wallet has lent. A core is counted by what the kernel says of the process and
//! of PostgreSQL's.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use async_nats::jetstream::{self, stream::Stream};
use clap::Args;
use testkit::{
    eventually,
    load::{self, Plan, Shot},
};
use tokio_util::sync::CancellationToken;

use crate::{
    report::{Report, to_f64},
    system::{PATH, System},
};

const CONSUMERS: [&str; 4] = [
    "wallet",
    "usage-ingest",
    "stats-aggregator",
    "anomaly-detector",
];
/// A pause that nobody ends is over by itself.
const PAUSE_MAX: Duration = Duration::from_secs(3_600);
/// Everything is worked off within so long.
const DRAIN_LIMIT: Duration = Duration::from_secs(600);
/// The kernel counts the time of processes in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// How much piles up.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Calls in flight.
    #[arg(long, default_value_t = 32)]
    workers: usize,
    /// Seconds of calls for each consumer.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
}

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let nats = connect(&system.text("/nats_url")?).await?;
    let stream = jetstream::new(nats).get_stream("USAGE").await?;
    let mut report = Report::new("backlog");
    for consumer in CONSUMERS {
        let events = pile_up(system, &stream, consumer, &arguments).await?;
        let (before, began) = (Work::of(system, consumer)?, Instant::now());
        stream.resume_consumer(consumer).await?;
        drained(&stream, consumer).await?;
        let took = began.elapsed().as_secs_f64();
        let after = Work::of(system, consumer)?;
        let (own, postgres) = (after.own - before.own, after.postgres - before.postgres);
        let rate = |seconds: f64| (to_f64(events) / seconds.max(0.01)).round();
        report.row(
            consumer,
            format!(
                "{events} events in {took:.2} s: {} a second; {} per core-second of its own, {} \
                 with PostgreSQL's",
                rate(took),
                rate(own),
                rate(own + postgres),
            ),
        );
        report.figure(format!("events_{consumer}"), events);
        report.figure(format!("events_per_second_{consumer}"), rate(took));
        report.figure(format!("events_per_core_{consumer}"), rate(own + postgres));
    }
    Ok(report)
}

#[expect(clippy::disallowed_methods, reason = "a measurement has no Host")]
async fn connect(url: &str) -> anyhow::Result<async_nats::Client> {
    Ok(async_nats::connect(url).await?)
}

/// Calls whose events this consumer does not get yet; returns how many.
async fn pile_up(
    system: &System,
    stream: &Stream,
    consumer: &str,
    arguments: &Arguments,
) -> anyhow::Result<usize> {
    let until = system_time() + PAUSE_MAX;
    stream.pause_consumer(consumer, until.into()).await?;
    let plan = Plan {
        gateways: system.gateways()?.into_iter().map(|it| it.url).collect(),
        key: system.text("/demo/live_key")?,
        shots: vec![Shot::get(PATH)],
        workers: arguments.workers,
        pause: Duration::ZERO,
    };
    let stop = CancellationToken::new();
    let ended = async {
        tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(load::run(plan, stop.clone()), ended);
    let served = outcome.by_status.get(&200).copied().unwrap_or(0);
    let all = u64::try_from(outcome.done.len())?;
    anyhow::ensure!(served == all, "{:?}", outcome.by_status);
    for other in CONSUMERS.iter().filter(|other| **other != consumer) {
        drained(stream, other).await?;
    }
    Ok(outcome.done.len())
}

/// Waits until a consumer has answered for everything.
async fn drained(stream: &Stream, consumer: &str) -> anyhow::Result<()> {
    eventually(DRAIN_LIMIT, "everything is applied", async || {
        let info = stream.consumer_info(consumer).await?;
        let left = info.num_pending + u64::try_from(info.num_ack_pending)?;
        anyhow::ensure!(left == 0, "{consumer}: {left} messages");
        Ok(())
    })
    .await
}

#[expect(
    clippy::disallowed_methods,
    reason = "the server wants to be told a time of day"
)]
fn system_time() -> SystemTime {
    SystemTime::now()
}

/// Seconds of a core.
struct Work {
    own: f64,
    postgres: f64,
}

impl Work {
    fn of(system: &System, consumer: &str) -> anyhow::Result<Self> {
        let own = system.pids(consumer)?.iter().map(|pid| spent(*pid)).sum();
        let info = system.info()?;
        let postgres = info["pids"]["postgres"].as_i64().context("no PostgreSQL")?;
        let postgres = i32::try_from(postgres)?;
        let mut all = spent(postgres);
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse().ok()) else {
                continue;
            };
            if field(pid, PARENT) == Some(f64::from(postgres)) {
                all += spent(pid);
            }
        }
        Ok(Self { own, postgres: all })
    }
}

/// Places in `/proc/PID/stat` behind the name.
const PARENT: usize = 1;
const USER_TICKS: usize = 11;
const SYSTEM_TICKS: usize = 12;

fn field(pid: i32, place: usize) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(place)?.parse().ok()
}

/// Seconds that a process has worked.
fn spent(pid: i32) -> f64 {
    let ticks = [USER_TICKS, SYSTEM_TICKS].map(|place| field(pid, place).unwrap_or(0.0));
    ticks.iter().sum::<f64>() / TICKS_PER_SECOND
}
