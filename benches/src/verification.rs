//! How long gateways take to find out whose a key is, by where they find it, and how often they
//! need not ask.
//!
//! Each phase counts for itself, from the gateways' own histograms before and after:
//!
//! - `cold`: no key was ever used; the first call of each at each gateway is a miss.
//! - `steady`: every key was called once at every gateway before.
//! - `restarted`: both gateways have just been started again and remember nothing.
//!
//! Throughout, keys are edited and revoked, and a few calls come with keys that do not exist.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use clap::Args;
use proto::keys::v1::{RevokeKeyRequest, UpdateKeyRequest};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value};
use testkit::eventually;
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::{Histogram, Samples},
    population::{Popularity, Population, Standing},
    report::{Report, in_units, median, quantile, to_f64},
    system::{System, is_ready},
    traffic::{Seen, Traffic},
};

/// A gateway that was told to stop is back within so long.
const BACK_WITHIN: Duration = Duration::from_secs(90);
/// Between two looks at the staleness.
const STALENESS_PERIOD: Duration = Duration::from_millis(50);
/// Quantiles that are reported.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];
/// Where the record of a key is found.
const SOURCES: [&str; 4] = ["local", "redis", "keys", "negative"];

/// How many keys, and how they are used.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Keys.
    #[arg(long, default_value_t = 10_000)]
    keys: usize,
    /// Organisations that have them.
    #[arg(long, default_value_t = 1_000)]
    organisations: usize,
    /// Seconds of each phase.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// The phases `steady` and `restarted` are repeated so often; medians are reported.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Calls due in a second.
    #[arg(long, default_value_t = 1_000.0)]
    calls_per_second: f64,
    /// Calls in flight at most.
    #[arg(long, default_value_t = 64)]
    workers: usize,
    /// The n-th key is called n^SKEW times less than the first.
    #[arg(long, default_value_t = 1.0)]
    skew: f64,
    /// Share of calls with keys that do not exist.
    #[arg(long, default_value_t = 0.03)]
    unknown: f64,
    /// Keys edited in a second.
    #[arg(long, default_value_t = 5.0)]
    edits: f64,
    /// Keys revoked in a second.
    #[arg(long, default_value_t = 1.0)]
    revocations: f64,
    /// The same seed makes the same calls.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// One figure each, by name.
type Figures = BTreeMap<String, f64>;

struct Bench<'a> {
    system: &'a System,
    arguments: &'a Arguments,
    population: Arc<Population>,
}

pub(crate) async fn run(system: &System, arguments: Arguments) -> anyhow::Result<Report> {
    let population = Population::make(system, arguments.organisations, arguments.keys).await?;
    let bench = Bench {
        system,
        arguments: &arguments,
        population: Arc::new(population),
    };
    let gateways: Vec<String> = system.gateways()?.into_iter().map(|it| it.url).collect();
    let mut report = Report::new("verification");
    report.both("keys", arguments.keys);
    report.both("organisations", arguments.organisations);
    report.both("gateways", gateways.len());
    report.both("seconds_of_a_phase", arguments.seconds);
    let cold = bench.phase(0).await?;
    describe(&mut report, "cold", &[cold]);
    bench.population.visit(&gateways).await?;
    let (mut steady, mut restarted) = (Vec::new(), Vec::new());
    for turn in 1..=arguments.runs {
        steady.push(bench.phase(u64::from(turn)).await?);
    }
    for turn in 1..=arguments.runs {
        bench.restart().await?;
        restarted.push(bench.phase(u64::from(turn)).await?);
    }
    describe(&mut report, "steady", &steady);
    describe(&mut report, "restarted", &restarted);
    Ok(report)
}

impl Bench<'_> {
    /// Puts load on the gateways and says what they and the clients saw.
    async fn phase(&self, turn: u64) -> anyhow::Result<Figures> {
        let traffic = Arc::new(Traffic {
            gateways: self
                .system
                .gateways()?
                .into_iter()
                .map(|it| it.url)
                .collect(),
            population: Arc::clone(&self.population),
            popularity: Popularity::new(self.arguments.keys, self.arguments.skew),
            unknown_share: self.arguments.unknown,
            workers: self.arguments.workers,
            calls_per_second: self.arguments.calls_per_second,
            seed: self.arguments.seed.wrapping_add(turn << 32),
        });
        let before = Reading::of(self.system).await?;
        let stop = CancellationToken::new();
        let ended = async {
            tokio::time::sleep(Duration::from_secs(self.arguments.seconds)).await;
            stop.cancel();
        };
        let (seen, changed, stalest, ()) = tokio::join!(
            traffic.run(stop.clone()),
            self.change_keys(turn, &stop),
            self.stalest(&stop),
            ended,
        );
        let looked = Reading::of(self.system).await?.since(&before);
        let mut figures = looked.figures();
        figures.extend(client_figures(&seen, self.arguments.seconds));
        let (changed, pending) = changed?;
        figures.insert("keys_changed".to_owned(), f64::from(changed));
        figures.insert("revocations_pending".to_owned(), f64::from(pending));
        figures.insert("staleness_seconds_max".to_owned(), stalest?);
        Ok(figures)
    }

    /// Edits and revokes keys until told to stop. How many there were, and how many of these were
    /// answered before every gateway had confirmed.
    async fn change_keys(&self, turn: u64, stop: &CancellationToken) -> anyhow::Result<(u32, u32)> {
        let (edits, revocations) = (self.arguments.edits, self.arguments.revocations);
        let rate = edits + revocations;
        let mut keys = self.system.keys()?;
        let (mut changed, mut pending) = (0, 0);
        if rate <= 0.0 {
            stop.cancelled().await;
            return Ok((0, 0));
        }
        let mut random = StdRng::seed_from_u64(self.arguments.seed.wrapping_add(turn));
        let popularity = Popularity::new(self.arguments.keys, self.arguments.skew);
        let mut due = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok((changed, pending)),
                _tick = due.tick() => {}
            }
            changed += 1;
            if random.random::<f64>() * rate < edits {
                let key = &self.population.keys[popularity.pick(random.random())];
                if key.standing() != Standing::Good {
                    continue;
                }
                let request = UpdateKeyRequest {
                    key_id: key.id.clone(),
                    name: Some(format!("edited {turn} {changed}")),
                    ..Default::default()
                };
                keys.update_key(request).await?;
            } else {
                // Any key: the most popular ones would soon all be gone.
                let key = &self.population.keys[random.random_range(0..self.arguments.keys)];
                key.set_standing(Standing::Changing);
                let request = RevokeKeyRequest {
                    key_id: key.id.clone(),
                    reason: "measured".to_owned(),
                };
                let told = keys.revoke_key(request).await?.into_inner();
                match told.pending_gateways.is_empty() {
                    true => key.set_standing(Standing::Ended),
                    false => pending += 1,
                }
            }
        }
    }

    /// The largest staleness any gateway reports until told to stop.
    async fn stalest(&self, stop: &CancellationToken) -> anyhow::Result<f64> {
        let mut stalest = 0.0_f64;
        while !stop.is_cancelled() {
            for gateway in self.system.gateways()? {
                let samples = Samples::read(&gateway.ops).await?;
                let stale = samples.largest("tollgate_key_staleness_seconds");
                stalest = stalest.max(stale.unwrap_or(f64::INFINITY));
            }
            tokio::time::sleep(STALENESS_PERIOD).await;
        }
        Ok(stalest)
    }

    /// Stops the gateways in good order, one after the other, and waits until they are back.
    async fn restart(&self) -> anyhow::Result<()> {
        let gateways = self.system.gateways()?;
        for (index, gateway) in gateways.iter().enumerate() {
            let pid_of = || anyhow::Ok(self.system.pids("gateway")?[index]);
            let old = pid_of()?;
            if let Some(pid) = Pid::from_raw(old) {
                kill_process(pid, Signal::TERM)?;
            }
            eventually(BACK_WITHIN, "the gateway is back", async || {
                anyhow::ensure!(pid_of()? != old, "the old one has not ended");
                is_ready(&gateway.ops).await
            })
            .await?;
        }
        self.population.forget_uses();
        Ok(())
    }
}

/// What all gateways count of look-ups.
struct Reading {
    times: BTreeMap<String, Histogram>,
    counts: BTreeMap<String, f64>,
}

impl Reading {
    async fn of(system: &System) -> anyhow::Result<Self> {
        let mut all = Self {
            times: BTreeMap::new(),
            counts: BTreeMap::new(),
        };
        for gateway in system.gateways()? {
            let samples = Samples::read(&gateway.ops).await?;
            for (source, times) in samples.histograms("tollgate_key_verification_seconds", "source")
            {
                let sum = all.times.remove(&source).unwrap_or_default();
                all.times.insert(source, sum.plus(&times));
            }
            for (source, count) in samples.by_label("tollgate_key_verifications_total", "source") {
                *all.counts.entry(source).or_default() += count;
            }
        }
        Ok(all)
    }

    fn since(mut self, before: &Self) -> Self {
        for (source, times) in &before.times {
            let now = self.times.remove(source).unwrap_or_default();
            self.times.insert(source.clone(), now.since(times));
        }
        for (source, count) in &before.counts {
            *self.counts.entry(source.clone()).or_default() -= count;
        }
        self
    }

    /// By source, for all together, and the hit rates.
    fn figures(&self) -> Figures {
        let mut figures = Figures::new();
        let mut all = Histogram::default();
        for (source, times) in &self.times {
            all = all.plus(times);
            put_bounds(&mut figures, &format!("lookup_{source}"), times);
        }
        put_bounds(&mut figures, "lookup_all", &all);
        let count = |source: &str| self.counts.get(source).copied().unwrap_or(0.0);
        let total: f64 = SOURCES.iter().map(|source| count(source)).sum();
        for source in SOURCES {
            figures.insert(format!("lookups_{source}"), count(source));
        }
        if total > 0.0 {
            let held = (count("local") + count("redis")) / total;
            figures.insert("hit_rate".to_owned(), held);
            let unasked = 1.0 - count("keys") / total;
            figures.insert("answered_without_keys".to_owned(), unasked);
        }
        figures
    }
}

fn put_bounds(figures: &mut Figures, name: &str, times: &Histogram) {
    for (quantile, share) in QUANTILES {
        if let Some(bound) = times.at_most(share) {
            figures.insert(format!("{name}_seconds_{quantile}_at_most"), bound);
        }
    }
}

fn client_figures(seen: &Seen, seconds: u64) -> Figures {
    let mut figures = Figures::new();
    let mut put = |name: &str, value: f64| figures.insert(name.to_owned(), value);
    let number = |count: u64| u32::try_from(count).map_or(f64::INFINITY, f64::from);
    put("calls", number(seen.calls()));
    put(
        "calls_per_second",
        number(seen.calls()) / number(seconds.max(1)),
    );
    put("broken", number(seen.broken));
    put("accepted_wrongly", number(seen.accepted_wrongly));
    put(
        "refused_wrongly",
        number(seen.refused_wrongly.values().sum()),
    );
    put("first_calls", to_f64(seen.first_seconds.len()));
    for (kind, times) in [
        ("client", &seen.seconds),
        ("client_first", &seen.first_seconds),
    ] {
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        for (name, share) in QUANTILES {
            put(&format!("{kind}_seconds_{name}"), quantile(&sorted, share));
        }
    }
    for (kind, count) in &seen.answers {
        put(
            &format!("answered_{}", kind.replace(' ', "_")),
            number(*count),
        );
    }
    figures
}

/// The medians of a phase's runs.
fn describe(report: &mut Report, phase: &str, runs: &[Figures]) {
    let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in runs.iter().flatten() {
        by_name.entry(name).or_default().push(*value);
    }
    let medians: Figures = by_name
        .iter()
        .map(|(name, values)| ((*name).to_owned(), median(values)))
        .collect();
    let number = |name: &str| medians.get(name).copied().unwrap_or(0.0);
    let times = |name: &str| {
        let of = |(quantile, _): (&str, f64)| {
            let exact = medians.get(&format!("{name}_seconds_{quantile}"));
            let bound = medians.get(&format!("{name}_seconds_{quantile}_at_most"));
            match (exact, bound) {
                (Some(exact), _) => in_units(*exact),
                (None, Some(bound)) => format!("≤ {}", in_units(*bound)),
                (None, None) => "?".to_owned(),
            }
        };
        let [p50, p95, p99] = QUANTILES.map(of);
        format!("P50 {p50}, P95 {p95}, P99 {p99}")
    };
    for source in SOURCES {
        let count = number(&format!("lookups_{source}"));
        let text = format!("{count:7} look-ups, {}", times(&format!("lookup_{source}")));
        report.row(format!("{phase}: {source}"), text);
    }
    report.row(format!("{phase}: all sources"), times("lookup_all"));
    let percent = |name: &str| format!("{:.2} %", number(name) * 100.0);
    let text = format!(
        "{} from memory or Redis, {} without asking keys",
        percent("hit_rate"),
        percent("answered_without_keys"),
    );
    report.row(format!("{phase}: hit rate"), text);
    let stale = in_units(number("staleness_seconds_max"));
    report.row(format!("{phase}: staleness"), format!("at most {stale}"));
    report.row(format!("{phase}: client, all calls"), times("client"));
    let text = format!("{}, {} calls", times("client_first"), number("first_calls"));
    report.row(format!("{phase}: client, first use"), text);
    let text = format!(
        "{} ({:.0} a second), good keys refused {}, bad ones accepted {}, broken off {}",
        number("calls"),
        number("calls_per_second"),
        number("refused_wrongly"),
        number("accepted_wrongly"),
        number("broken"),
    );
    report.row(format!("{phase}: calls"), text);
    let text = format!(
        "{}, not confirmed by every gateway {}",
        number("keys_changed"),
        number("revocations_pending"),
    );
    report.row(format!("{phase}: keys changed"), text);
    let fields: Map<String, Value> = medians
        .into_iter()
        .map(|(name, value)| (name, value.into()))
        .collect();
    report.figure(phase, fields);
}
