//! `key_mass_creation`; the windows themselves are tested with countries.

use proptest::prelude::*;
use types::AnomalyId;
use uuid::Uuid;

use super::{START, disturbed, key, org};
use crate::domain::{
    KEYS_MAX, MINUTE, Micros,
    key_mass_creation::{Created, finding, judge},
    windows::WINDOW,
};

const USUAL: usize = 10;

fn made(n: u128, at: Micros) -> Created {
    Created { key: key(n), at }
}

/// So many keys, evenly over so many minutes.
fn spread(keys: u128, minutes: i64) -> Vec<Created> {
    let steps = i64::try_from(keys).unwrap() - 1;
    (0..keys)
        .zip(0..)
        .map(|(n, step)| made(n, START + minutes * MINUTE * step / steps))
        .collect()
}

/// What the store does, in memory: anomalies with the moment and the number of their keys.
#[derive(Default)]
struct Detector {
    created: Vec<Created>,
    known: Vec<(AnomalyId, Micros)>,
}

impl Detector {
    fn apply(&mut self, new: Created) {
        if !self.created.contains(&new) {
            self.created.push(new);
        }
        let verdict = judge(&self.created, &self.known, USUAL);
        for (id, flag) in verdict.moved {
            let known = self.known.iter_mut().find(|(known, _)| *known == id);
            known.unwrap().1 = flag.at;
        }
        for flag in verdict.new {
            let id = u128::try_from(self.known.len()).unwrap();
            self.known
                .push((AnomalyId::new(Uuid::from_u128(id)), flag.at));
        }
    }

    fn anomalies(&self) -> Vec<(Micros, usize)> {
        let mut found: Vec<(Micros, usize)> = self
            .known
            .iter()
            .map(|(_, at)| (*at, finding(org(), *at, &self.created, USUAL).keys.len()))
            .collect();
        found.sort_unstable();
        found
    }
}

fn detect(created: &[Created]) -> Vec<(Micros, usize)> {
    let mut detector = Detector::default();
    created.iter().for_each(|new| detector.apply(*new));
    detector.anomalies()
}

#[test]
fn ten_keys_are_silent_and_eleven_flag_once_with_those_keys() {
    assert!(detect(&spread(10, 5)).is_empty());
    assert_eq!(detect(&spread(11, 5)), [(START + 5 * MINUTE, 11)]);
    assert_eq!(detect(&spread(11, 60)), [(START + 60 * MINUTE, 11)]);
    assert!(detect(&spread(11, 61)).is_empty());
}

#[test]
fn what_is_made_in_the_hour_after_belongs_to_the_same_anomaly() {
    let mut created = spread(11, 5);
    created.push(made(20, START + 5 * MINUTE + WINDOW));
    assert_eq!(detect(&created), [(START + 5 * MINUTE, 12)]);
    created.push(made(21, START + 5 * MINUTE + WINDOW + 1));
    assert_eq!(detect(&created), [(START + 5 * MINUTE, 12)]);
}

#[test]
fn an_anomaly_names_a_hundred_keys_at_most() {
    let finding = finding(org(), START + 5 * MINUTE, &spread(150, 5), USUAL);
    assert_eq!(finding.keys.len(), KEYS_MAX);
    assert_eq!(finding.evidence["keys"], 150);
}

proptest! {
    #[test]
    fn order_and_repetition_change_nothing((created, batches) in disturbed(
        prop::collection::btree_set(0..150_i64, 0..60).prop_map(|minutes| {
            let numbered = (0..).zip(minutes);
            numbered.map(|(n, minute)| made(n, START + minute * MINUTE)).collect::<Vec<_>>()
        })
    )) {
        let mut detector = Detector::default();
        for new in batches.into_iter().flatten() {
            detector.apply(new);
        }
        prop_assert_eq!(detector.anomalies(), detect(&created));
    }
}
