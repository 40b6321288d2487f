//! `wallet_drain`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{START, disturbed, key, org};
use crate::domain::{
    HOUR, Micros,
    wallet_drain::{Crossing, Fall, Limits, finding, judge, spenders},
};

const LIMITS: Limits = Limits {
    reference: 100,
    within: HOUR,
    key_percent: 10,
};

fn crossing(percent: u32, at: Micros) -> Crossing {
    Crossing {
        percent,
        balance: i64::from(percent),
        at,
    }
}

fn fall(crossings: &[Crossing]) -> Fall {
    Fall {
        org: org(),
        reference: 100,
        reference_at: START,
        crossings: crossings.to_vec(),
    }
}

fn is_drain(crossings: &[Crossing]) -> bool {
    judge(&fall(crossings), LIMITS).is_some()
}

#[test]
fn from_half_to_a_tenth_within_an_hour_is_a_drain() {
    let begin = START + 30 * HOUR;
    let to_a_tenth = |after| {
        [
            crossing(50, begin),
            crossing(20, begin),
            crossing(10, begin + after),
        ]
    };
    assert!(is_drain(&to_a_tenth(0)));
    assert!(is_drain(&to_a_tenth(HOUR)));
    assert!(!is_drain(&to_a_tenth(HOUR + 1)));
    assert!(!is_drain(&to_a_tenth(HOUR)[..2]), "a fifth is left");
}

#[test]
fn without_a_crossing_of_half_the_hour_begins_with_the_credits() {
    assert!(is_drain(&[crossing(10, START + HOUR)]));
    assert!(!is_drain(&[crossing(10, START + HOUR + 1)]));
}

#[test]
fn a_wallet_that_held_less_than_a_hundred_credits_is_not_watched() {
    let small = Fall {
        reference: 99,
        ..fall(&[crossing(10, START)])
    };
    assert_eq!(judge(&small, LIMITS), None);
    assert!(
        judge(
            &Fall {
                reference: 100,
                ..small
            },
            LIMITS
        )
        .is_some()
    );
}

#[test]
fn a_drain_says_what_calls_must_have_cost() {
    let drain = judge(
        &fall(&[crossing(50, START), crossing(10, START + 5)]),
        LIMITS,
    )
    .unwrap();
    assert_eq!((drain.spent, drain.balance), (40, 10));
    let whole = finding(&fall(&[]), drain, vec![key(3)]);
    assert_eq!((whole.key(), whole.org), (Some(key(3)), Some(org())));
    assert_eq!(finding(&fall(&[]), drain, vec![key(3), key(4)]).key(), None);
}

#[test]
fn keys_that_spent_a_tenth_are_concerned() {
    let spent = BTreeMap::from([(key(1), 90), (key(2), 10), (key(3), 0)]);
    assert_eq!(spenders(&spent, 10), [key(1), key(2)]);
    let spent = BTreeMap::from([(key(1), 91), (key(2), 9)]);
    assert_eq!(spenders(&spent, 10), [key(1)]);
    assert!(spenders(&BTreeMap::from([(key(1), 0)]), 10).is_empty());
    let even: BTreeMap<_, _> = (0..11).map(|n| (key(n), 5)).collect();
    assert!(spenders(&even, 10).is_empty(), "nobody has spent a tenth");
}

proptest! {
    #[test]
    fn order_and_repetition_change_nothing(
        (_, batches) in disturbed(prop::sample::subsequence(vec![50_u32, 20, 10], 0..=3)),
        steps in prop::array::uniform3(0..90_i64),
    ) {
        // Crossings come one after the other in time, whatever the order they arrive in.
        let mut at = START;
        let mut times = BTreeMap::new();
        for (percent, minutes) in [50, 20, 10].into_iter().zip(steps) {
            at += minutes * HOUR / 60;
            times.insert(percent, at);
        }
        let (mut known, mut flagged) = (Vec::new(), false);
        for percent in batches.into_iter().flatten() {
            let crossing = crossing(percent, times[&percent]);
            if !known.contains(&crossing) {
                known.push(crossing);
            }
            flagged |= is_drain(&known);
        }
        prop_assert_eq!(flagged, is_drain(&known), "nothing is taken back");
    }
}
