//! Slices of load in turns, and what they tell: every figure is the middle of several rounds, every
//! ratio the middle of ratios within a round, so that a machine that grows slower for a while slows
//! all of them.

use serde_json::{Value, json};

use super::{
    account::{Account, Groups},
    load::{Load, Outcome, Pace, Slice},
};
use crate::report::{median, quantile, to_f64};

/// Threads that carry calls.
pub(crate) const PROXY: &str = "proxy";
/// Threads of the gateway that do not.
pub(crate) const CONTROL: &str = "control";
/// This program.
pub(crate) const LOAD: &str = "load";
/// Its upstream, and who authorises.
pub(crate) const UPSTREAM: &str = "upstream";

/// One thing that is measured in turns with others.
pub(crate) struct Lane {
    pub(crate) name: String,
    pub(crate) load: Load,
    pub(crate) pace: Pace,
    pub(crate) groups: Groups,
    /// One for each round.
    pub(crate) figures: Vec<Figure>,
}

/// What a slice tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figure {
    /// Calls answered 200, a second.
    pub(crate) rate: f64,
    /// Calls answered otherwise, a second.
    pub(crate) refused: f64,
    /// Calls without an answer.
    pub(crate) broken: u64,
    /// Calls given up for want of a connection, a second.
    pub(crate) given_up: f64,
    /// Seconds of the proxy's core, a call.
    pub(crate) proxy_seconds: f64,
    /// Switches of the proxy's threads, a call.
    pub(crate) switches: f64,
    /// Share of the proxy's core that the proxy took.
    pub(crate) proxy_share: f64,
    /// Share of the other core that the gateway's control threads took.
    pub(crate) control_share: f64,
    /// The same of the load and its upstream.
    pub(crate) load_share: f64,
    /// The same of everything.
    pub(crate) other_busy: f64,
    /// Seconds to the answer: P50, P99, P99.9.
    pub(crate) latency: [f64; 3],
}

impl Figure {
    fn of(outcome: &Outcome, account: &Account<'_>) -> Self {
        let seconds = outcome.seconds.max(f64::MIN_POSITIVE);
        let answered: u64 = outcome.by_status.values().sum();
        let used = |group| account.used.get(group).copied().unwrap_or_default();
        let share = |group| to_seconds(used(group).nanos) / seconds;
        let proxy = used(PROXY);
        let nanos: Vec<f64> = outcome.nanos.iter().map(|it| to_seconds(*it)).collect();
        let each = number(answered).max(1.0);
        Self {
            rate: number(outcome.good()) / seconds,
            refused: number(answered - outcome.good()) / seconds,
            broken: outcome.broken,
            given_up: number(outcome.given_up) / seconds,
            proxy_seconds: to_seconds(proxy.nanos) / each,
            switches: number(proxy.switches) / each,
            proxy_share: share(PROXY),
            control_share: share(CONTROL),
            load_share: share(LOAD) + share(UPSTREAM),
            other_busy: account.busy,
            latency: [0.5, 0.99, 0.999].map(|at| quantile(&nanos, at)),
        }
    }
}

/// Measures all lanes in turns; who begins changes from round to round.
pub(crate) fn interleave(
    lanes: &mut [Lane],
    rounds: usize,
    slice: Slice,
    other_core: usize,
) -> anyhow::Result<()> {
    let count = lanes.len();
    for round in 0..rounds {
        for turn in 0..count {
            let lane = &mut lanes[(round + turn) % count];
            let mut account = Account::new(&lane.groups, other_core);
            let outcome = lane.load.run(lane.pace, slice, &mut account)?;
            lane.figures.push(Figure::of(&outcome, &account));
        }
    }
    Ok(())
}

/// The middle of several rounds, and how far apart the middle half of them lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Middle {
    pub(crate) median: f64,
    pub(crate) quarter: f64,
    pub(crate) three_quarters: f64,
}

impl Middle {
    /// Of these.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            median: quantile(&values, 0.5),
            quarter: quantile(&values, 0.25),
            three_quarters: quantile(&values, 0.75),
        }
    }

    /// `0.95 (0.91–0.97)`.
    pub(crate) fn ratio(self) -> String {
        let Self {
            median,
            quarter,
            three_quarters,
        } = self;
        format!("{median:.2} ({quarter:.2}–{three_quarters:.2})")
    }

    /// For programs.
    pub(crate) fn json(self) -> Value {
        json!([self.median, self.quarter, self.three_quarters])
    }
}

impl Lane {
    /// The middle of a figure.
    pub(crate) fn middle(&self, figure: impl Fn(&Figure) -> f64) -> f64 {
        median(&self.figures.iter().map(figure).collect::<Vec<_>>())
    }

    /// Ratios to another lane, round by round.
    pub(crate) fn ratio(&self, to: &Self, figure: impl Fn(&Figure) -> f64) -> Middle {
        self.beside(to, |mine, its| figure(mine) / figure(its))
    }

    /// Something of this lane and another one, round by round.
    pub(crate) fn beside(&self, other: &Self, figure: impl Fn(&Figure, &Figure) -> f64) -> Middle {
        let pairs = self.figures.iter().zip(&other.figures);
        Middle::of(pairs.map(|(mine, its)| figure(mine, its)).collect())
    }

    /// Calls that were not answered 200, of all rounds.
    pub(crate) fn bad(&self) -> f64 {
        let bad = |it: &Figure| it.refused + number(it.broken);
        self.figures.iter().map(bad).sum()
    }
}

fn to_seconds(nanos: u64) -> f64 {
    std::time::Duration::from_nanos(nanos).as_secs_f64()
}

fn number(count: u64) -> f64 {
    to_f64(usize::try_from(count).unwrap_or(usize::MAX))
}
