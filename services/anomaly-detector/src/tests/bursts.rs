//! `key_burst`.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{START, call, key, org};
use crate::domain::{
    Call, HOUR, MINUTE, Micros, begin,
    key_burst::{BUCKET, History, Limits, finding, is_burst, loads},
};

const LIMITS: Limits = Limits {
    calls: 300,
    factor: 10,
    history: 12,
};

fn history(calls: i64, buckets: i64) -> History {
    History { calls, buckets }
}

#[test]
fn three_hundred_calls_are_needed_and_enough() {
    assert!(!is_burst(299, history(12, 12), LIMITS));
    assert!(is_burst(300, history(12, 12), LIMITS));
}

#[test]
fn ten_times_the_mean_is_usual_and_one_more_is_not() {
    // A mean of 40; and one of 40 and a twelfth, which is not rounded.
    assert!(!is_burst(400, history(480, 12), LIMITS));
    assert!(is_burst(401, history(480, 12), LIMITS));
    assert!(!is_burst(400, history(481, 12), LIMITS));
    assert!(is_burst(401, history(481, 12), LIMITS));
    assert!(!is_burst(401, history(492, 12), LIMITS));
}

#[test]
fn a_key_without_twelve_active_buckets_has_no_habits_yet() {
    assert!(!is_burst(1_000_000, history(11, 11), LIMITS));
    assert!(is_burst(1_000_000, history(12, 12), LIMITS));
    assert!(!is_burst(1_000_000, history(0, 0), LIMITS));
}

#[test]
fn figures_of_any_size_are_judged() {
    assert!(is_burst(i64::MAX, history(i64::MAX / 11, 13), LIMITS));
    assert!(!is_burst(
        i64::MAX - 1,
        history(i64::MAX, 1),
        Limits {
            history: 1,
            ..LIMITS
        }
    ));
}

#[test]
fn a_bucket_is_five_minutes_by_the_clock() {
    let bucket = begin(START, BUCKET);
    let calls = [bucket - 1, bucket, bucket + BUCKET - 1, bucket + BUCKET].map(call);
    let loads = loads(&calls);
    let counts: Vec<(Micros, i64)> = loads
        .iter()
        .map(|((_, at), load)| ((at - bucket) / MINUTE, load.calls))
        .collect();
    assert_eq!(counts, [(-5, 1), (0, 2), (5, 1)]);
}

#[test]
fn bursts_of_one_hour_by_the_clock_are_one_anomaly() {
    let hour = begin(START, HOUR);
    let identity = |bucket| finding(org(), key(3), (bucket, 500), history(12, 12)).identity;
    assert_eq!(identity(hour), identity(hour + HOUR - BUCKET));
    assert_ne!(identity(hour), identity(hour + HOUR));
    assert_ne!(identity(hour), identity(hour - BUCKET));
}

/// What the store does, in memory.
#[derive(Default)]
struct Detector {
    rows: BTreeMap<Micros, i64>,
    flagged: BTreeSet<String>,
}

const SMALL: Limits = Limits {
    calls: 6,
    factor: 3,
    history: 2,
};

impl Detector {
    fn history(&self, bucket: Micros) -> History {
        let before = self.rows.range(..bucket);
        before.fold(History::default(), |history, (_, calls)| History {
            calls: history.calls + calls,
            buckets: history.buckets + 1,
        })
    }

    fn apply(&mut self, calls: &[Call]) {
        for ((_, bucket), load) in loads(calls) {
            *self.rows.entry(bucket).or_default() += load.calls;
            let (calls, history) = (self.rows[&bucket], self.history(bucket));
            if is_burst(calls, history, SMALL) {
                let finding = finding(org(), key(3), (bucket, calls), history);
                self.flagged.insert(finding.identity);
            }
        }
    }
}

/// The rule as it is worded, once everything is known.
fn naive(calls: &[Call]) -> BTreeSet<String> {
    let mut all = Detector::default();
    for call in calls {
        *all.rows.entry(begin(call.at, BUCKET)).or_default() += 1;
    }
    let hours = all.rows.iter().filter_map(|(bucket, calls)| {
        let before = all.history(*bucket);
        let float = |count: i64| f64::from(i32::try_from(count).unwrap());
        let mean = float(before.calls) / float(before.buckets);
        let is_burst = before.buckets >= 2 && *calls >= 6 && float(*calls) > 3.0 * mean;
        is_burst.then(|| format!("{}@{}", key(3), bucket - bucket.rem_euclid(HOUR)))
    });
    hours.collect()
}

fn any_calls() -> impl Strategy<Value = Vec<Call>> {
    let runs = prop::collection::vec((0..60_i64, 1..20_usize), 1..20);
    runs.prop_map(|runs| {
        let calls = runs.into_iter().flat_map(|(bucket, calls)| {
            (0..calls).map(move |n| {
                let odd = i64::try_from(n).unwrap();
                call(START + bucket * BUCKET + odd)
            })
        });
        calls.collect()
    })
}

proptest! {
    #[test]
    fn in_order_the_rule_equals_the_naive_reference(
        mut calls in any_calls(), sizes in prop::collection::vec(1..40_usize, 1..8),
    ) {
        calls.sort_by_key(|call| call.at);
        let expected = naive(&calls);
        let (mut detector, mut rest) = (Detector::default(), calls.as_slice());
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (head, tail) = rest.split_at((*size).min(rest.len()));
            detector.apply(head);
            rest = tail;
        }
        prop_assert_eq!(detector.flagged, expected);
    }

    #[test]
    fn within_a_bucket_order_changes_nothing(calls in any_calls(), seed in any::<u64>()) {
        let mut shuffled = calls.clone();
        shuffled.sort_by_key(|call| {
            let scattered = call.at.unsigned_abs().wrapping_mul(seed | 1).rotate_left(17);
            (begin(call.at, BUCKET), scattered)
        });
        let mut detector = Detector::default();
        for part in shuffled.chunks(7) {
            detector.apply(part);
        }
        prop_assert_eq!(detector.flagged, naive(&calls));
    }
}
