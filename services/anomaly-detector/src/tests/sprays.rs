//! `unknown_key_spray`.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{START, disturbed};
use crate::domain::{
    HOUR, MINUTE, Micros, begin,
    unknown_key_spray::{Limits, Minutes, SPAN, judge},
};

const LIMITS: Limits = Limits {
    minute: 100,
    ten_minutes: 300,
};
const ADDRESS: &str = "203.0.113.9";

/// Calls by the minute after the full hour.
fn minutes(calls: impl IntoIterator<Item = (i64, i64)>) -> Minutes {
    let hour = begin(START, HOUR);
    let at = |(minute, calls)| (hour + minute * MINUTE, calls);
    calls.into_iter().map(at).collect()
}

fn count(calls: impl IntoIterator<Item = (i64, i64)>) -> usize {
    judge(ADDRESS, &minutes(calls), LIMITS).len()
}

#[test]
fn a_hundred_in_a_minute_are_needed_and_enough() {
    assert_eq!(count([(5, 99)]), 0);
    assert_eq!(count([(5, 100)]), 1);
}

#[test]
fn three_hundred_in_ten_minutes_are_needed_and_enough() {
    assert_eq!(count((0..10).map(|minute| (minute, 30))), 1);
    let one_less = (0..10).map(|minute| (minute, if minute == 4 { 29 } else { 30 }));
    assert_eq!(count(one_less), 0);
    let eleven_minutes = (0..11).filter(|m| *m != 5).map(|minute| (minute, 30));
    assert_eq!(count(eleven_minutes), 0, "270 in any ten minutes");
}

#[test]
fn an_hour_of_it_is_one_anomaly_of_nobody() {
    let all_hour: Vec<_> = (0..60).map(|minute| (minute, 500)).collect();
    let found = judge(ADDRESS, &minutes(all_hour), LIMITS);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].org, found[0].keys.len()), (None, 0));
    assert_eq!(found[0].at, begin(START, HOUR));
    assert_eq!(count([(59, 100), (60, 100)]), 2);
}

/// What the store does, in memory: the highest count of each gateway.
#[derive(Default)]
struct Detector {
    rows: BTreeMap<(Micros, u8), i64>,
    flagged: BTreeSet<String>,
}

impl Detector {
    fn apply(&mut self, (minute, gateway, calls): (i64, u8, i64)) {
        let at = begin(START, HOUR) + minute * MINUTE;
        let row = self.rows.entry((at, gateway)).or_default();
        *row = calls.max(*row);
        // No more is read than the new minute can make a difference to.
        let mut near = Minutes::new();
        for ((minute, _), calls) in self.rows.range((at - SPAN, 0)..=(at + SPAN, u8::MAX)) {
            *near.entry(*minute).or_default() += calls;
        }
        let found = judge(ADDRESS, &near, LIMITS).into_iter();
        self.flagged.extend(found.map(|finding| finding.identity));
    }

    fn complete(&self) -> BTreeSet<String> {
        let mut all = Minutes::new();
        for ((minute, _), calls) in &self.rows {
            *all.entry(*minute).or_default() += calls;
        }
        let found = judge(ADDRESS, &all, LIMITS).into_iter();
        found.map(|finding| finding.identity).collect()
    }
}

proptest! {
    #[test]
    fn order_and_repetition_change_nothing_over_all_gateways((_, batches) in disturbed(
        prop::collection::vec((0..150_i64, 0..3_u8, 1..120_i64), 0..80)
    )) {
        let mut detector = Detector::default();
        for sighted in batches.into_iter().flatten() {
            detector.apply(sighted);
        }
        prop_assert_eq!(&detector.flagged, &detector.complete());
    }
}
