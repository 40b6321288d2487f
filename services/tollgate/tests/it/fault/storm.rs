//! The storm: a random process of all dies every 0.1 to 0.6 s, for as long as one likes.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rustix::process::Signal;
use serde_json::Value;
use testkit::load::{Outcome, Plan, Shot};
use uuid::Uuid;

use super::{
    DISTANCE, Load, chat,
    figures::{self, Figures},
    fund,
    quiet::{Quiet, quiet},
    render, summary,
};
use crate::stack::{SETTLE_LIMIT, Stack, signal};

/// Everything that may die: service or server, and which of them.
const VICTIMS: [(&str, usize); 11] = [
    ("gateway", 0),
    ("gateway", 1),
    ("keys", 0),
    ("wallet", 0),
    ("usage-ingest", 0),
    ("stats-aggregator", 0),
    ("anomaly-detector", 0),
    ("portal", 0),
    ("postgres", 0),
    ("redis", 0),
    ("nats", 0),
];
/// One time in so many all processes are killed, not one.
const ALL_AT_ONCE: u32 = 40;
/// Between two kills, milliseconds.
const PAUSE_MILLIS: std::ops::RangeInclusive<u64> = 100..=600;
/// It lasts so long unless told otherwise.
const STORM_SECONDS: u64 = 300;
/// After so long at most all is let settle, and looked at.
const ROUND_SECONDS: u64 = 120;
/// A round in which less is served and paid for shows nothing.
const SERVED_MIN: u64 = 50;
/// With this variable a stack that does not add up is left as it is, until the file is there.
const HOLD: &str = "FAULT_HOLD";

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f01_nothing_is_lost_or_billed_twice_in_a_storm_of_kills() {
    let (seed, lasts) = (figures::seed(), figures::seconds(STORM_SECONDS));
    println!("storm of {lasts:?}, FAULT_SEED={seed}");
    let mut storm = Storm::start(seed).await;
    let rounds = lasts.as_secs().div_ceil(ROUND_SECONDS).max(1);
    let (mut all, mut slowest) = (Outcome::default(), Duration::ZERO);
    let mut report = Value::Null;
    for _ in 0..rounds {
        let (outcome, quiet) = storm
            .round(lasts / u32::try_from(rounds).expect("few"))
            .await;
        slowest = slowest.max(quiet.settled);
        report = storm.judge(&outcome, quiet).await;
        all.sent += outcome.sent;
        all.broken += outcome.broken;
        all.done.extend(outcome.done);
    }
    let wrong = storm.misbilled(&all).await;
    assert!(wrong.is_empty(), "later rounds have changed: {wrong:?}");
    let kills = storm.kills.values().sum();
    let figures = Figures {
        kills,
        faults: kills,
        quiet: slowest,
        seed: Some(seed),
        more: format!("{:?}", storm.kills),
        ..Figures::of("F01", &[&all])
    };
    figures.print(&storm.stack, &report).await;
}

/// A stack and what is done to it.
pub(super) struct Storm {
    pub(super) stack: Stack,
    pub(super) random: StdRng,
    /// The last life of each victim that was ended.
    ended: HashMap<(&'static str, usize), i32>,
    pub(super) kills: BTreeMap<&'static str, usize>,
}

impl Storm {
    pub(super) async fn start(seed: u64) -> Self {
        let stack = Stack::start_with(
            &["--ephemeral", "--processes", "--gateways", "2"],
            // Small, so that segments come and go.
            &[("TOLLGATE_GATEWAY_JOURNAL_SEGMENT_BYTES", "262144")],
        );
        let storm = Self {
            stack: stack.await,
            random: StdRng::seed_from_u64(seed),
            ended: HashMap::new(),
            kills: BTreeMap::new(),
        };
        fund(&storm.stack);
        storm
    }

    /// Calls of one, one and three credits, and some that cost nothing.
    pub(super) fn load(&self) -> Load {
        Load::of(Plan {
            gateways: self.stack.gateways(),
            key: self.stack.demo("live_key"),
            shots: vec![
                Shot::get(DISTANCE),
                render(),
                chat(),
                Shot::get("/api/v1/mileage/distance?from=nowhere&to=43.29,5.37"),
            ],
            workers: 8,
            pause: Duration::from_millis(20),
        })
    }

    /// Kills under load for so long, then lets everybody come back and settle.
    async fn round(&mut self, lasts: Duration) -> (Outcome, Quiet) {
        let load = self.load();
        let end = Instant::now() + lasts;
        while Instant::now() < end {
            let pause = self.random.random_range(PAUSE_MILLIS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            self.kill();
        }
        let (outcome, restarted) = tokio::join!(load.finish(), all_live(&self.stack));
        (outcome, quiet(&self.stack, restarted).await)
    }

    /// Ends the life of one that lives, or at times of all at once. Who is down at the moment is
    /// not hit again.
    pub(super) fn kill(&mut self) {
        if self.random.random_ratio(1, ALL_AT_ONCE) {
            for (name, index, _) in self.alive() {
                self.end(name, index, Signal::KILL);
            }
            return;
        }
        if let Some((name, index, _)) = self.alive().choose(&mut self.random).copied() {
            self.end(name, index, Signal::KILL);
        }
    }

    /// Who lives, and was not hit in this life.
    pub(super) fn alive(&self) -> Vec<(&'static str, usize, i32)> {
        VICTIMS
            .iter()
            .filter_map(|(name, index)| {
                let pid = *self.stack.pids(name).get(*index)?;
                let is_new = self.ended.get(&(*name, *index)) != Some(&pid);
                (is_new && self.stack.is_child(pid)).then_some((*name, *index, pid))
            })
            .collect()
    }

    /// Ends a life, if it is there.
    pub(super) fn end(&mut self, name: &'static str, index: usize, how: Signal) {
        let is_it = |it: &&(&str, usize, i32)| (it.0, it.1) == (name, index);
        if let Some((_, _, pid)) = self.alive().iter().find(is_it) {
            signal(*pid, how);
            self.ended.insert((name, index), *pid);
            if how == Signal::KILL {
                *self.kills.entry(name).or_default() += 1;
            }
        }
    }

    /// Everything that was answered is paid, once, and everything adds up.
    pub(super) async fn judge(&self, outcome: &Outcome, quiet: Quiet) -> Value {
        let (code, report, errors) = self.stack.try_cli(&["audit", "--wait", "60"]);
        let wrong = self.misbilled(outcome).await;
        println!(
            "round: {}, {} kills so far {:?}, settled {:.2} s and closed {:.2} s after the last \
             start, {} misbilled, report {report}",
            summary(outcome),
            self.kills.values().sum::<usize>(),
            self.kills,
            quiet.settled.as_secs_f64(),
            quiet.closed.as_secs_f64(),
            wrong.len(),
        );
        if code != Some(0) || !wrong.is_empty() {
            hold(&self.stack).await;
        }
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(code, Some(0), "the auditor objects: {report:#} {errors}");
        let served = outcome.by_status.get(&200).copied().unwrap_or(0);
        assert!(served >= SERVED_MIN, "{}", summary(outcome));
        report
    }

    /// Complete answers without exactly one row of their price.
    async fn misbilled(&self, outcome: &Outcome) -> Vec<String> {
        let id = |request: &str| Uuid::try_parse(request.trim_start_matches("req_")).ok();
        let rows: Vec<(Uuid, i64)> = sqlx::query_as(
            "select request_id, credits_used from usage_ingest.api_usage_logs
              where request_id = any($1)",
        )
        .bind(
            outcome
                .done
                .iter()
                .filter_map(|done| id(&done.request_id))
                .collect::<Vec<_>>(),
        )
        .fetch_all(self.stack.pool())
        .await
        .expect("rows");
        let mut costs: HashMap<Uuid, Vec<i64>> = HashMap::new();
        for (request, cost) in rows {
            costs.entry(request).or_default().push(cost);
        }
        // What was refused for want of journal or credits is not billed, and needs no row.
        let served = outcome.done.iter().filter(|done| done.status != 503);
        served
            .filter_map(|done| {
                let rows = id(&done.request_id).and_then(|id| costs.get(&id));
                match rows.map(Vec::as_slice) {
                    Some([cost]) if *cost == done.cost => None,
                    rows => Some(format!("{done:?}: {rows:?}")),
                }
            })
            .collect()
    }
}

/// Every victim has a life that runs; returns when that was so.
pub(super) async fn all_live(stack: &Stack) -> Instant {
    let alive = testkit::eventually(SETTLE_LIMIT, "everybody is back", async || {
        let is_alive = |(name, index): &&(&str, usize)| {
            stack
                .pids(name)
                .get(*index)
                .is_some_and(|pid| stack.is_child(*pid))
        };
        match VICTIMS.iter().find(|victim| !is_alive(victim)) {
            None => Ok(()),
            Some(victim) => Err(format!("{victim:?} is not")),
        }
    });
    alive.await.expect("alive");
    Instant::now()
}

/// Leaves a stack as it is for whoever wants to look.
async fn hold(stack: &Stack) {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    let go_on = stack.data().join("go-on");
    println!("held until {} is there: {}", go_on.display(), stack.info());
    while !go_on.exists() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
