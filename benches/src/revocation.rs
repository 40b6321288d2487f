//! How long a key is accepted after it was revoked, suspended, narrowed or made to expire.
//!
//! Each key is in use at two gateways, before, during and after its change; others put load on
//! both. From the request for the change, not from its commit: what the caller waits for counts.
//!
//! - `connected`: two gateways, nothing is wrong.
//! - `without_bus`: one of the two has no NATS.
//! - `isolated`: one of the two has neither NATS nor the keys service, since the moment of the
//!   change.
//! - `long_isolated`: the same, since some seconds before: it no longer counts as living.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};
use testkit::load::Connection;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    cut_off::CutOff,
    population::{Key, Popularity, Population},
    report::{Report, in_units, quantile},
    system::System,
    traffic::{Seen, Traffic},
    trial::{Change, Outcome, Trial},
};

/// Keys of the load beside the watched ones.
const OTHER_KEYS: usize = 100;
/// Keys of an organisation.
const KEYS_OF_ORGANISATION: usize = 10;
/// A gateway that was not heard of for so long counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(6);

/// How many keys, and how they are watched.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Keys revoked while all gateways are connected. On top of seven each comes one that is
    /// suspended, one whose scope is narrowed, one that is made to expire.
    #[arg(long, default_value_t = 1_000)]
    revocations: usize,
    /// The same while one gateway has no NATS.
    #[arg(long, default_value_t = 200)]
    without_bus: usize,
    /// Keys revoked while one gateway has neither NATS nor the keys service; twice.
    #[arg(long, default_value_t = 20)]
    isolated: usize,
    /// Keys changed at once.
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// So long a key is watched after it was refused everywhere, milliseconds.
    #[arg(long, default_value_t = 2_000)]
    watch_ms: u64,
    /// Calls due in a second beside those of the watched keys.
    #[arg(long, default_value_t = 500.0)]
    calls_per_second: f64,
    /// The same seed makes the same calls.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

struct Bench<'a> {
    system: &'a System,
    arguments: &'a Arguments,
    others: Arc<Population>,
}

/// Of one condition.
struct Condition<'a> {
    name: &'static str,
    /// Where the keys are watched.
    gateways: Vec<String>,
    keys: usize,
    /// None: all keys are in use at once, then this gateway is cut off for so long, then all are
    /// revoked.
    isolate: Option<(&'a CutOff, Duration)>,
}

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let bench = Bench {
        system,
        arguments: &arguments,
        others: Arc::new(Population::make(system, 10, OTHER_KEYS).await?),
    };
    let gateways: Vec<String> = system.gateways()?.into_iter().map(|it| it.url).collect();
    let first = gateways.first().context("no gateway")?.clone();
    let mut report = Report::new("revocation");
    let connected = Condition {
        name: "connected",
        gateways,
        keys: with_other_changes(arguments.revocations),
        isolate: None,
    };
    bench.measure(&mut report, &connected).await?;

    let cut_off = CutOff::start(system).await?;
    let both = vec![first, cut_off.gateway.url.clone()];
    cut_off.cut_bus();
    let without_bus = Condition {
        name: "without_bus",
        gateways: both.clone(),
        keys: with_other_changes(arguments.without_bus),
        isolate: None,
    };
    bench.measure(&mut report, &without_bus).await?;
    for (name, since) in [("isolated", Duration::ZERO), ("long_isolated", GONE_AFTER)] {
        cut_off.heal().await?;
        let isolated = Condition {
            name,
            gateways: both.clone(),
            keys: arguments.isolated,
            isolate: Some((&cut_off, since)),
        };
        bench.measure(&mut report, &isolated).await?;
    }
    cut_off.stop().await?;
    Ok(report)
}

impl Bench<'_> {
    async fn measure(&self, report: &mut Report, condition: &Condition<'_>) -> anyhow::Result<()> {
        if condition.keys == 0 {
            return Ok(());
        }
        let organisations = condition.keys.div_ceil(KEYS_OF_ORGANISATION);
        let population = Population::make(self.system, organisations, condition.keys).await?;
        let keys: Vec<Arc<Key>> = population.keys.into_iter().map(Arc::new).collect();
        let load = Arc::new(Traffic {
            gateways: self
                .system
                .gateways()?
                .into_iter()
                .map(|it| it.url)
                .collect(),
            population: Arc::clone(&self.others),
            popularity: Popularity::new(OTHER_KEYS, 0.0),
            unknown_share: 0.0,
            workers: 16,
            calls_per_second: self.arguments.calls_per_second,
            seed: self.arguments.seed,
        });
        let stop = CancellationToken::new();
        let trials = async {
            let outcomes = match condition.isolate {
                None => self.in_turn(condition, &keys).await,
                Some((cut_off, since)) => self.together(condition, &keys, cut_off, since).await,
            };
            stop.cancel();
            outcomes
        };
        let (seen, outcomes) = tokio::join!(load.run(stop.clone()), trials);
        let outcomes = outcomes?;
        let accepted_at_last = accepted(&keys, &condition.gateways).await;
        describe(report, condition.name, &outcomes, &seen, accepted_at_last);
        Ok(())
    }

    fn trial(
        &self,
        condition: &Condition<'_>,
        key: &Arc<Key>,
        change: Change,
        go: &CancellationToken,
        in_use: &mpsc::Sender<()>,
    ) -> anyhow::Result<Trial> {
        Ok(Trial {
            keys: self.system.keys()?,
            key: Arc::clone(key),
            gateways: condition.gateways.clone(),
            change,
            watch: Duration::from_millis(self.arguments.watch_ms),
            go: go.clone(),
            in_use: in_use.clone(),
        })
    }

    /// A few keys at a time, each changed as soon as it is in use.
    async fn in_turn(
        &self,
        condition: &Condition<'_>,
        keys: &[Arc<Key>],
    ) -> anyhow::Result<Vec<Outcome>> {
        let go = CancellationToken::new();
        go.cancel();
        let (in_use, _heard) = mpsc::channel(keys.len());
        let (mut running, mut outcomes) = (JoinSet::new(), Vec::with_capacity(keys.len()));
        for (index, key) in keys.iter().enumerate() {
            if running.len() >= self.arguments.at_once.max(1)
                && let Some(done) = running.join_next().await
            {
                outcomes.push(done??);
            }
            let trial = self.trial(condition, key, Change::of(index), &go, &in_use)?;
            running.spawn(trial.run());
        }
        while let Some(done) = running.join_next().await {
            outcomes.push(done??);
        }
        Ok(outcomes)
    }

    /// All keys at once: the gateway is cut off when all are in use, and they are revoked later.
    async fn together(
        &self,
        condition: &Condition<'_>,
        keys: &[Arc<Key>],
        cut_off: &CutOff,
        since: Duration,
    ) -> anyhow::Result<Vec<Outcome>> {
        let go = CancellationToken::new();
        let (in_use, mut heard) = mpsc::channel(keys.len());
        let mut running = JoinSet::new();
        for key in keys {
            let trial = self.trial(condition, key, Change::Revoke, &go, &in_use)?;
            running.spawn(trial.run());
        }
        drop(in_use);
        for _ in keys {
            heard.recv().await.context("a key is not in use")?;
        }
        cut_off.cut_bus();
        cut_off.cut_keys();
        tokio::time::sleep(since).await;
        go.cancel();
        let mut outcomes = Vec::with_capacity(keys.len());
        while let Some(done) = running.join_next().await {
            outcomes.push(done??);
        }
        Ok(outcomes)
    }
}

/// Keys to change, so that this many of them are revoked.
fn with_other_changes(revocations: usize) -> usize {
    let is_enough = |keys: &usize| {
        let changes = (0..*keys).map(Change::of);
        changes.filter(|it| *it == Change::Revoke).count() >= revocations
    };
    let (least, most) = (revocations, revocations.saturating_mul(2));
    (least..=most).find(is_enough).unwrap_or(most)
}

/// How often changed keys are accepted when all is over.
async fn accepted(keys: &[Arc<Key>], gateways: &[String]) -> usize {
    let mut accepted = 0;
    for base in gateways {
        let mut connection = Connection::to(base);
        for key in keys {
            let answer = connection.call(&key.text, &key.shot()).await;
            accepted += usize::from(answer.is_ok_and(|it| it.status.is_success()));
        }
    }
    accepted
}

/// P50, P99 and the largest, seconds.
fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    json!({
        "p50": quantile(&values, 0.5),
        "p99": quantile(&values, 0.99),
        "max": values.last(),
    })
}

fn in_words(spread: &Value) -> String {
    let of = |name: &str| {
        spread[name]
            .as_f64()
            .map_or_else(|| "none".to_owned(), in_units)
    };
    format!("P50 {}, P99 {}, max {}", of("p50"), of("p99"), of("max"))
}

/// From the request until the last gateway refuses; nothing if one never does.
fn everywhere(outcome: &Outcome) -> Option<f64> {
    let delays: Option<Vec<f64>> = outcome.noticed.iter().map(|it| it.since_request).collect();
    delays?.into_iter().max_by(f64::total_cmp)
}

fn describe(
    report: &mut Report,
    condition: &str,
    outcomes: &[Outcome],
    load: &Seen,
    accepted_at_last: usize,
) {
    let label = condition.replace('_', " ");
    let mut figures = Map::new();
    let mut kinds: BTreeMap<Change, Vec<f64>> = BTreeMap::new();
    for outcome in outcomes {
        let delays = kinds.entry(outcome.change).or_default();
        delays.extend(everywhere(outcome));
    }
    let all = spread(kinds.values().flatten().copied().collect());
    report.row(format!("{label}: request to refusal"), in_words(&all));
    figures.insert("seconds_since_request".to_owned(), all);
    for (change, delays) in kinds {
        let (name, count) = (change.name(), delays.len());
        let delays = spread(delays);
        let text = format!("{} of {count}", in_words(&delays));
        report.row(format!("{label}: {name}"), text);
        figures.insert(format!("seconds_since_request_{name}"), delays);
    }
    let noticed = || outcomes.iter().flat_map(|outcome| &outcome.noticed);
    let answers = spread(noticed().filter_map(|it| it.since_answer).collect());
    report.row(format!("{label}: answer to refusal"), in_words(&answers));
    figures.insert("seconds_since_answer".to_owned(), answers);
    let mut refusals: BTreeMap<&str, usize> = BTreeMap::new();
    for (kind, count) in noticed().flat_map(|it| &it.refusals) {
        *refusals.entry(kind).or_default() += count;
    }
    report.row(format!("{label}: refusals"), format!("{refusals:?}"));
    figures.insert("refusals".to_owned(), json!(refusals));
    for (name, count) in counts(outcomes, accepted_at_last) {
        let row = format!("{label}: {}", name.replace('_', " "));
        report.row(row, count.to_string());
        figures.insert(name.to_owned(), json!(count));
    }
    let (calls, wrong) = (load.calls(), &load.refused_wrongly);
    let broken = load.broken;
    report.row(
        format!("{label}: other keys"),
        format!("{calls} calls, refused {wrong:?}, broken off {broken}"),
    );
    figures.insert("other_calls".to_owned(), json!(calls));
    figures.insert(
        "other_calls_refused".to_owned(),
        json!(wrong.values().sum::<u64>()),
    );
    report.figure(condition, figures);
}

/// What must be 0, but for the number of changes and, where a gateway is isolated, of answers
/// that say so.
fn counts(outcomes: &[Outcome], accepted_at_last: usize) -> [(&'static str, usize); 7] {
    let confirmed = outcomes
        .iter()
        .filter(|it| it.change == Change::Revoke && it.pending.is_empty());
    let believed = confirmed.flat_map(|it| &it.noticed);
    let accepted = believed.map(|it| it.accepted_after_answer).sum();
    let never = outcomes.iter().filter(|it| everywhere(it).is_none());
    let pending = outcomes.iter().filter(|it| !it.pending.is_empty());
    let noticed = outcomes.iter().flat_map(|outcome| &outcome.noticed);
    let relapses = noticed.map(|it| it.relapses).sum();
    [
        ("changes", outcomes.len()),
        ("never_refused", never.count()),
        ("accepted_after_a_refusal", relapses),
        ("accepted_after_confirmation", accepted),
        ("accepted_at_last", accepted_at_last),
        ("answers_with_pending_gateways", pending.count()),
        ("broken", outcomes.iter().map(|it| it.broken).sum()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_changes_come_on_top_of_the_revocations() {
        assert_eq!(with_other_changes(0), 0);
        assert_eq!(with_other_changes(7), 9);
        assert_eq!(with_other_changes(1000), 1428);
    }
}
