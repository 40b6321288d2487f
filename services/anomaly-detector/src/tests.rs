//! The rules: what flags, what does not by a hair, and what must not change the answer.

mod bursts;
mod created;
mod drains;
mod reading;
mod sprays;
mod wakings;
mod windows;

use proptest::prelude::*;
use types::{KeyId, OrgId};
use uuid::Uuid;

use crate::domain::{Call, MINUTE, Micros};

/// An odd moment, so that nothing fits hours by accident.
const START: Micros = 1_793_880_000_000_000 + 17 * MINUTE + 5;

fn key(n: u128) -> KeyId {
    KeyId::new(Uuid::from_u128(n))
}

fn org() -> OrgId {
    OrgId::new(Uuid::from_u128(2))
}

fn call(at: Micros) -> Call {
    Call {
        key: key(3),
        org: org(),
        at,
        country: None,
        service: "pdf".to_owned(),
        credits: 1,
    }
}

/// The same things, and the same in another order, some of them twice, cut into batches.
fn disturbed<T: Clone + std::fmt::Debug + 'static>(
    things: impl Strategy<Value = Vec<T>>,
) -> impl Strategy<Value = (Vec<T>, Vec<Vec<T>>)> {
    let cuts = prop::collection::vec(1..30_usize, 1..10);
    let orders = things.prop_flat_map(|things| {
        let again = things.iter().step_by(3);
        let twice: Vec<T> = things.iter().chain(again).cloned().collect();
        (Just(things), Just(twice).prop_shuffle())
    });
    (orders, cuts).prop_map(|((things, shuffled), cuts)| {
        let (mut rest, mut batches) = (shuffled.as_slice(), Vec::new());
        for size in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (head, tail) = rest.split_at((*size).min(rest.len()));
            batches.push(head.to_vec());
            rest = tail;
        }
        (things, batches)
    })
}
