//! What keys that nobody issued cost those who have one: very many of them beside good calls.
//!
//! Good calls come at a fixed pace, first alone, then beside the attack; their latency counts from
//! the moment they were due. What the gateways asked `keys` is read from their own counters.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Args;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use types::{Environment, KEY_RANDOM_BYTES, NewKey};

use crate::{
    metrics::Samples,
    population::{Popularity, Population},
    report::{Report, in_units, quantile},
    system::{Gateway, PATH, System},
    traffic::{Seen, Traffic},
    wire::Wire,
};

/// Characters of a malformed key.
const CUT: usize = 40;

/// How large the attack is, and what it is held against.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Random keys presented.
    #[arg(long, default_value_t = 10_000_000)]
    keys: u64,
    /// Addresses they come from.
    #[arg(long, default_value_t = 1_000)]
    addresses: u32,
    /// Share of keys whose form is wrong already.
    #[arg(long, default_value_t = 0.1)]
    malformed: f64,
    /// Connections of the attack.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Calls of the attack under way on each.
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// Good calls due in a second.
    #[arg(long, default_value_t = 500.0)]
    calls_per_second: f64,
    /// Keys they use.
    #[arg(long, default_value_t = 500)]
    good_keys: usize,
    /// Seconds of good calls alone.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// The same seed makes the same keys.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let arguments = Arc::new(arguments);
    let gateways: Arc<Vec<Gateway>> = Arc::new(system.gateways()?);
    let urls: Vec<String> = gateways.iter().map(|it| it.url.clone()).collect();
    let population = Population::make(system, 10, arguments.good_keys).await?;
    population.visit(&urls).await?;
    let traffic = Arc::new(Traffic {
        gateways: urls,
        popularity: Popularity::new(arguments.good_keys, 1.0),
        population: Arc::new(population),
        unknown_share: 0.0,
        workers: 32,
        calls_per_second: arguments.calls_per_second,
        seed: arguments.seed,
    });
    let alone = {
        let stop = CancellationToken::new();
        let ended = async {
            tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
            stop.cancel();
        };
        tokio::join!(Arc::clone(&traffic).run(stop.clone()), ended).0
    };
    let before = Counters::read(&gateways).await?;
    let stop = CancellationToken::new();
    let began = Instant::now();
    let attacking = async {
        let answers = attack(Arc::clone(&arguments), Arc::clone(&gateways)).await;
        stop.cancel();
        answers
    };
    let (beside, answers) = tokio::join!(traffic.run(stop.clone()), attacking);
    let seconds = began.elapsed().as_secs_f64();
    let asked = Counters::read(&gateways).await?.since(&before);
    let answers = answers?;

    let mut report = Report::new("strangers");
    let presented: u64 = answers.values().sum();
    report.both("keys_presented", presented);
    report.both("addresses", arguments.addresses);
    report.both("gateways", gateways.len());
    report.row("seconds", format!("{seconds:.1}"));
    report.figure("seconds", seconds);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = presented as f64 / seconds;
    report.row("keys a second", format!("{rate:.0}"));
    report.figure("keys_per_second", rate);
    report.row("answers", format!("{answers:?}"));
    report.figure("answers", json!(answers));
    asked.describe(&mut report, seconds);
    describe(&mut report, "alone", &alone);
    describe(&mut report, "beside", &beside);
    Ok(report)
}

/// What the gateways count of strange keys.
struct Counters {
    lookups: BTreeMap<String, f64>,
    strange: BTreeMap<String, f64>,
}

impl Counters {
    async fn read(gateways: &[Gateway]) -> anyhow::Result<Self> {
        let mut all = Self {
            lookups: BTreeMap::new(),
            strange: BTreeMap::new(),
        };
        for gateway in gateways {
            let samples = Samples::read(&gateway.ops).await?;
            for (of, count) in samples.by_label("tollgate_key_lookups_total", "result") {
                *all.lookups.entry(of).or_default() += count;
            }
            for (of, count) in samples.by_label("tollgate_unknown_keys_total", "kind") {
                *all.strange.entry(of).or_default() += count;
            }
        }
        Ok(all)
    }

    fn since(mut self, before: &Self) -> Self {
        for (of, count) in &before.lookups {
            *self.lookups.entry(of.clone()).or_default() -= count;
        }
        for (of, count) in &before.strange {
            *self.strange.entry(of.clone()).or_default() -= count;
        }
        self
    }

    fn describe(&self, report: &mut Report, seconds: f64) {
        report.row("calls with strange keys", format!("{:?}", self.strange));
        report.figure("strange", json!(self.strange));
        report.row("look-ups at keys", format!("{:?}", self.lookups));
        report.figure("lookups", json!(self.lookups));
        // One not made reached nobody.
        let made = self.lookups.iter().filter(|(of, _)| *of != "refused");
        let made: f64 = made.map(|(_, count)| count).sum();
        report.row(
            "look-ups that reached the database",
            format!("{made:.0}, {:.1} a second", made / seconds),
        );
        report.figure("database_lookups", made);
        report.figure("database_lookups_per_second", made / seconds);
    }
}

/// Good calls: how long they took, and whether any was refused.
fn describe(report: &mut Report, when: &str, seen: &Seen) {
    let mut seconds = seen.seconds.clone();
    seconds.sort_by(f64::total_cmp);
    let at = |share| quantile(&seconds, share);
    report.row(
        format!("good calls {when}"),
        format!(
            "{}, P50 {}, P99 {}, at most {}; refused {:?}, broken off {}",
            seen.calls(),
            in_units(at(0.5)),
            in_units(at(0.99)),
            in_units(at(1.0)),
            seen.refused_wrongly,
            seen.broken,
        ),
    );
    report.figure(
        format!("good_calls_{when}"),
        json!({
            "calls": seen.calls(), "p50": at(0.5), "p99": at(0.99), "max": at(1.0),
            "refused": seen.refused_wrongly, "broken": seen.broken,
        }),
    );
}

/// Presents all keys. Answers by status.
async fn attack(
    arguments: Arc<Arguments>,
    gateways: Arc<Vec<Gateway>>,
) -> anyhow::Result<BTreeMap<u16, u64>> {
    let presented = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for number in 0..arguments.connections {
        let (arguments, presented) = (Arc::clone(&arguments), Arc::clone(&presented));
        let base = gateways[number % gateways.len()].url.clone();
        let seed = arguments
            .seed
            .wrapping_add(u64::try_from(number).unwrap_or(0));
        workers.spawn(async move { present(&arguments, &base, seed, &presented).await });
    }
    let mut all: BTreeMap<u16, u64> = BTreeMap::new();
    while let Some(answers) = workers.join_next().await {
        for (status, count) in answers?? {
            *all.entry(status).or_default() += count;
        }
    }
    Ok(all)
}

/// One connection's part.
async fn present(
    arguments: &Arguments,
    base: &str,
    seed: u64,
    presented: &AtomicU64,
) -> anyhow::Result<BTreeMap<u16, u64>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut wire = Wire::to(base).await?;
    let mut answers: BTreeMap<u16, u64> = BTreeMap::new();
    let depth = u64::try_from(arguments.depth.max(1))?;
    while presented.fetch_add(depth, Ordering::Relaxed) < arguments.keys {
        for _ in 0..depth {
            let mut bytes = [0; KEY_RANDOM_BYTES];
            random.fill(&mut bytes);
            let key = NewKey::from_random(Environment::Production, &bytes);
            let is_cut = random.random::<f64>() < arguments.malformed;
            let text = key.reveal();
            let text = if is_cut { &text[..CUT] } else { text };
            // Of the second block for measurements: good calls come from the first.
            let [_, _, high, low] = random.random_range(0..arguments.addresses).to_be_bytes();
            wire.push(PATH, text, &format!("198.19.{high}.{low}"));
        }
        wire.flush().await?;
        for _ in 0..depth {
            *answers.entry(wire.next().await?.status).or_default() += 1;
        }
    }
    Ok(answers)
}
