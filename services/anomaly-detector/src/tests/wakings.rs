//! `service_after_silence`.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{START, call, disturbed, key, org};
use crate::domain::{
    Call, DAY, HOUR, Micros,
    service_after_silence::{Uses, Waking, finding, judge, merge},
};

const LONG: Micros = 14 * DAY;

fn used(service: &str, at: Micros) -> Call {
    Call {
        service: service.to_owned(),
        ..call(at)
    }
}

/// What the store does, in memory.
#[derive(Default)]
struct Detector {
    uses: Uses,
    flagged: BTreeSet<String>,
}

impl Detector {
    fn apply(&mut self, calls: &[Call]) {
        let known = BTreeMap::from([(key(3), std::mem::take(&mut self.uses))]);
        let mut merged = merge(known, calls, LONG);
        let of_key = merged.remove(&key(3)).expect("calls of the key");
        for service in &of_key.touched {
            assert!(of_key.uses.contains_key(service));
        }
        if of_key.is_new {
            for waking in judge(&of_key.uses, LONG) {
                assert!(waking.silent_until - waking.silent_from >= LONG);
                self.flagged
                    .insert(finding(org(), key(3), &waking).identity);
            }
        }
        self.uses = of_key.uses;
    }
}

fn detect(calls: &[Call]) -> BTreeSet<String> {
    let mut detector = Detector::default();
    for call in calls {
        detector.apply(std::slice::from_ref(call));
    }
    detector.flagged
}

fn of(services: &[&str]) -> BTreeSet<String> {
    let identity = |service: &&str| format!("{}/{service}", key(3));
    services.iter().map(identity).collect()
}

#[test]
fn fourteen_days_of_silence_are_needed_and_enough() {
    let just = [used("pdf", START), used("ai", START + LONG)];
    assert_eq!(detect(&just), of(&["ai"]));
    let short = [used("pdf", START), used("ai", START + LONG - 1)];
    assert!(detect(&short).is_empty());
}

#[test]
fn the_first_use_of_a_key_is_no_waking() {
    assert!(detect(&[used("ai", START)]).is_empty());
}

#[test]
fn a_service_it_has_used_before_is_usual_after_any_silence() {
    let calls = [
        used("ai", START),
        used("ai", START + 3 * LONG),
        used("ai", START + 6 * LONG),
    ];
    assert!(detect(&calls).is_empty());
}

#[test]
fn an_hour_after_the_waking_a_new_service_is_usual_again() {
    let woken = START + LONG;
    let calls = |later| {
        [
            used("pdf", START),
            used("pdf", woken),
            used("ai", woken + later),
        ]
    };
    assert_eq!(detect(&calls(HOUR)), of(&["ai"]));
    assert!(detect(&calls(HOUR + 1)).is_empty());
}

#[test]
fn any_call_ends_a_silence_but_one_to_nothing_is_no_use() {
    let calls = [used("pdf", START), used("", START + LONG)];
    assert!(detect(&calls).is_empty());
    let awake = [
        used("pdf", START),
        used("", START + LONG - DAY),
        used("ai", START + LONG),
    ];
    assert!(detect(&awake).is_empty());
}

#[test]
fn a_service_is_flagged_once_and_with_its_silence() {
    let mut detector = Detector::default();
    detector.apply(&[
        used("pdf", START),
        used("ai", START + LONG),
        used("ai", START + LONG + 5),
    ]);
    detector.apply(&[used("ai", START + 2 * LONG + 9)]);
    detector.apply(&[used("ai", START + 4 * LONG)]);
    assert_eq!(detector.flagged, of(&["ai"]));
    let mut first = Detector::default();
    first.apply(&[used("pdf", START), used("ai", START + LONG)]);
    let expected = Waking {
        service: "ai".to_owned(),
        first: START + LONG,
        silent_from: START,
        silent_until: START + LONG,
    };
    assert_eq!(judge(&first.uses, LONG), [expected]);
}

#[test]
fn keys_of_one_batch_are_told_apart() {
    let other = Call {
        key: key(4),
        ..used("ai", START + LONG)
    };
    let merged = merge(BTreeMap::new(), &[used("pdf", START), other], LONG);
    assert_eq!(merged.len(), 2);
    assert!(
        merged
            .values()
            .all(|of_key| judge(&of_key.uses, LONG).is_empty())
    );
}

/// The rule as the domain's documentation words it, over all calls.
fn naive(calls: &[Call]) -> BTreeSet<String> {
    let mut times: Vec<Micros> = calls.iter().map(|call| call.at).collect();
    times.sort_unstable();
    // Where an episode began, and where the one before it ended.
    let wakings: Vec<Micros> = times
        .windows(2)
        .filter(|pair| pair[1] - pair[0] >= LONG)
        .map(|pair| pair[1])
        .collect();
    let services: BTreeSet<&str> = calls.iter().map(|call| call.service.as_str()).collect();
    let flagged = services.into_iter().filter(|service| {
        let uses = calls.iter().filter(|call| call.service == *service);
        let first = uses.map(|call| call.at).min().unwrap_or(0);
        let woken = wakings.iter().rev().find(|woken| **woken <= first);
        woken.is_some_and(|woken| first - woken <= HOUR)
    });
    of(&flagged.collect::<Vec<_>>())
}

fn any_calls() -> impl Strategy<Value = Vec<Call>> {
    let service = prop::sample::select(vec!["pdf", "ai", "mileage"]);
    let call = (service, 0..80_i64, 0..90_i64)
        .prop_map(|(service, day, minutes)| used(service, START + day * DAY + minutes * HOUR / 60));
    prop::collection::vec(call, 1..25)
}

/// One silence of the key: use before it, and use within an hour after it.
fn one_silence() -> impl Strategy<Value = Vec<Call>> {
    let service = || prop::sample::select(vec!["pdf", "ai", "mileage", "maps"]);
    let before = (service(), 0..13_i64).prop_map(|(service, day)| used(service, START + day * DAY));
    let after = (service(), 0..=60_i64)
        .prop_map(|(service, minute)| used(service, START + 40 * DAY + minute * HOUR / 60));
    let (before, after) = (
        prop::collection::vec(before, 0..8),
        prop::collection::vec(after, 0..8),
    );
    (before, after).prop_map(|(before, after)| [before, after].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn in_order_the_rule_equals_the_naive_reference(mut calls in any_calls()) {
        calls.sort_by_key(|call| call.at);
        prop_assert_eq!(detect(&calls), naive(&calls));
    }

    #[test]
    fn around_a_silence_order_repetition_and_batches_change_nothing(
        (calls, batches) in disturbed(one_silence()),
    ) {
        let mut detector = Detector::default();
        for batch in &batches {
            detector.apply(batch);
        }
        // What is judged too early can only be too much: that the key used the service before.
        let expected = naive(&calls);
        prop_assert!(expected.is_subset(&detector.flagged));
        let early = detector.flagged.difference(&expected);
        for identity in early {
            let service = identity.rsplit_once('/').unwrap().1;
            let was_used = calls.iter().any(|call| {
                call.service == service && call.at < START + 20 * DAY
            });
            prop_assert!(was_used, "{} was flagged although it is no waking", identity);
        }
    }

    #[test]
    fn what_is_kept_depends_on_no_order((calls, batches) in disturbed(one_silence())) {
        let mut in_order = calls.clone();
        in_order.sort_by_key(|call| call.at);
        let (mut left, mut right) = (Detector::default(), Detector::default());
        for batch in batches.iter().filter(|batch| !batch.is_empty()) {
            left.apply(batch);
        }
        if !in_order.is_empty() {
            right.apply(&in_order);
        }
        prop_assert_eq!(left.uses, right.uses);
    }
}
