//! Sliding windows against a naive reference, and what must not change the answer.

use std::collections::BTreeSet;

use proptest::prelude::*;
use types::AnomalyId;
use uuid::Uuid;

use super::{START, call, disturbed};
use crate::domain::{
    Call, MINUTE, Micros,
    country_spread::{Country, sightings},
    windows::{Flag, Seen, WINDOW, judge},
};

const USUAL: usize = 10;

/// The countries AA, AB, AC, …
fn country(index: u8) -> Country {
    let code = [b'A' + index / 26, b'A' + index % 26];
    Country::parse(std::str::from_utf8(&code).unwrap()).unwrap()
}

fn seen_at(index: u8, at: Micros) -> Call {
    Call {
        country: Some(country(index)),
        ..call(at)
    }
}

/// What the store does, in memory: merges sightings, judges, keeps anomalies.
#[derive(Default)]
struct Detector {
    rows: std::collections::BTreeMap<(Micros, Country), Seen<Country>>,
    anomalies: Vec<(AnomalyId, Micros)>,
    flagged: usize,
}

impl Detector {
    fn apply(&mut self, calls: &[Call]) {
        for ((_, hour, country), (_, seen)) in sightings(calls) {
            let row = self.rows.entry((hour, country)).or_insert(seen);
            row.first = row.first.min(seen.first);
            row.last = row.last.max(seen.last);
        }
        let seen: Vec<Seen<Country>> = self.rows.values().copied().collect();
        let verdict = judge(&seen, &self.anomalies, USUAL);
        for Flag { at, present } in verdict.new {
            assert!(present.len() > USUAL);
            self.flagged += 1;
            let id = AnomalyId::new(Uuid::from_u128(u128::try_from(self.flagged).unwrap()));
            self.anomalies.push((id, at));
        }
        for (id, flag) in verdict.moved {
            let known = self
                .anomalies
                .iter_mut()
                .find(|(known, _)| *known == id)
                .unwrap();
            assert!(flag.at < known.1 && known.1 - flag.at <= WINDOW);
            known.1 = flag.at;
        }
    }

    fn moments(&self) -> Vec<Micros> {
        let mut moments: Vec<Micros> = self.anomalies.iter().map(|(_, at)| *at).collect();
        moments.sort_unstable();
        moments
    }
}

fn detect(sightings: &[Call]) -> Vec<Micros> {
    let mut detector = Detector::default();
    detector.apply(sightings);
    detector.moments()
}

/// The rule as the domain's documentation words it, moment by moment over all calls.
fn naive(sightings: &[Call]) -> Vec<Micros> {
    let countries = |t: Micros| -> usize {
        let window = sightings
            .iter()
            .filter(|s| (t - WINDOW..=t).contains(&s.at));
        window.map(|s| s.country).collect::<BTreeSet<_>>().len()
    };
    let in_use = |t: Micros| sightings.iter().any(|s| (t..=t + WINDOW).contains(&s.at));
    let mut moments: Vec<Micros> = Vec::new();
    loop {
        let after = moments.last().map_or(Micros::MIN, |last| last + WINDOW + 1);
        // Only a call, or the use that a call a window later proves, makes a moment hot.
        let mut candidates: Vec<Micros> = sightings
            .iter()
            .flat_map(|s| [s.at, s.at - WINDOW])
            .chain([after])
            .collect();
        candidates.sort_unstable();
        let next = candidates
            .into_iter()
            .filter(|t| *t >= after && *t >= 0)
            .find(|t| countries(*t) > USUAL && in_use(*t));
        let Some(next) = next else { return moments };
        moments.push(next);
    }
}

fn any_sightings(span_minutes: i64) -> impl Strategy<Value = Vec<Call>> {
    let sighting = (0..14_u8, 0..span_minutes * 4, 0..3_i64)
        .prop_map(|(index, quarter, odd)| seen_at(index, START + quarter * (MINUTE / 4) + odd));
    prop::collection::vec(sighting, 0..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_rule_equals_the_naive_reference(sightings in any_sightings(300)) {
        prop_assert_eq!(detect(&sightings), naive(&sightings));
    }

    #[test]
    fn order_repetition_and_batches_change_nothing(
        (sightings, batches) in disturbed(any_sightings(240)),
    ) {
        let mut detector = Detector::default();
        for batch in &batches {
            detector.apply(batch);
            for pair in detector.moments().windows(2) {
                prop_assert!(pair[1] - pair[0] > WINDOW, "windows overlap: {:?}", pair);
            }
        }
        prop_assert_eq!(detector.moments(), naive(&sightings));
        // Replaying everything finds everything known.
        detector.apply(&sightings);
        prop_assert_eq!(detector.flagged, naive(&sightings).len());
    }

    #[test]
    fn pruning_repeats_nothing(
        (sightings, batches) in disturbed(any_sightings(600)), keep in 1..6_i64,
    ) {
        let mut detector = Detector::default();
        for batch in &batches {
            detector.apply(batch);
            let newest = detector.rows.keys().map(|(hour, _)| *hour).max().unwrap_or(0);
            detector.rows.retain(|(hour, _), _| *hour >= newest - keep * WINDOW);
            for pair in detector.moments().windows(2) {
                prop_assert!(pair[1] - pair[0] > WINDOW, "windows overlap: {:?}", pair);
            }
        }
        prop_assert!(detector.flagged <= naive(&sightings).len());
    }

    #[test]
    fn in_order_nothing_is_ever_moved(sightings in any_sightings(400), keep in 3..6_i64) {
        let mut in_order = sightings.clone();
        in_order.sort_by_key(|sighting| sighting.at);
        let mut detector = Detector::default();
        for sighting in &in_order {
            detector.apply(std::slice::from_ref(sighting));
            let newest = detector.rows.keys().map(|(hour, _)| *hour).max().unwrap_or(0);
            detector.rows.retain(|(hour, _), _| *hour >= newest - keep * WINDOW);
        }
        prop_assert_eq!(detector.moments(), naive(&sightings));
    }
}

/// `countries` countries, spread evenly over `minutes`.
fn spread(countries: u8, minutes: i64) -> Vec<Call> {
    let steps = i64::from(countries) - 1;
    let at = |index: u8| START + minutes * MINUTE * i64::from(index) / steps;
    (0..countries)
        .map(|index| seen_at(index, at(index)))
        .collect()
}

#[test]
fn ten_countries_are_silent_and_eleven_flag_once() {
    assert!(detect(&spread(10, 5)).is_empty());
    assert_eq!(detect(&spread(11, 5)), [START + 5 * MINUTE]);
}

#[test]
fn the_window_is_sixty_minutes_with_both_ends() {
    assert_eq!(detect(&spread(11, 60)), [START + 60 * MINUTE]);
    assert!(detect(&spread(11, 61)).is_empty());
    let mut just_over = spread(11, 60);
    just_over[10].at += 1;
    assert!(detect(&just_over).is_empty());
}

#[test]
fn an_hour_of_abuse_is_one_anomaly_and_two_hours_are_two() {
    let calls = |minutes: i64| -> Vec<Call> {
        let second = |s: i64| seen_at(u8::try_from(s % 20).unwrap(), START + s * MINUTE / 60);
        (0..minutes * 60).map(second).collect()
    };
    assert_eq!(detect(&calls(30)), [START + MINUTE / 6]);
    assert_eq!(detect(&calls(59)), [START + MINUTE / 6]);
    let two = detect(&calls(119));
    assert_eq!(two, [START + MINUTE / 6, START + MINUTE / 6 + WINDOW + 1]);
}

#[test]
fn a_late_call_moves_the_anomaly_and_makes_no_second() {
    let mut detector = Detector::default();
    let mut calls = spread(12, 22);
    let late = calls.remove(3);
    detector.apply(&calls);
    assert_eq!(detector.moments(), [START + 22 * MINUTE]);
    detector.apply(&[late]);
    assert_eq!(
        (detector.flagged, detector.moments()),
        (1, vec![START + 20 * MINUTE])
    );
}

#[test]
fn an_unknown_place_is_no_country() {
    for text in ["ZZ", "", "fr", "FRA", "F", "1A", "É"] {
        assert_eq!(Country::parse(text), None, "{text}");
    }
    assert_eq!(Country::parse("FR").unwrap().as_str(), "FR");
}
