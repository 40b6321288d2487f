//! What the service counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::domain::{anomaly::Restraint, pepper::Standing};

/// What was done to a key.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Action {
    action: &'static str,
}

/// Which pepper keys are hashed with.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Pepper {
    state: &'static str,
}

/// The metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    restrained: Family<Action, Counter>,
    refused: Counter,
    peppers: Family<Pepper, Gauge>,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "keys_restrained",
            "Keys that anomalies have throttled or suspended, by action",
            self.restrained.clone(),
        );
        registry.register(
            "key_creations_refused",
            "Keys not made because their organisation made too many in an hour",
            self.refused.clone(),
        );
        registry.register(
            "keys_by_pepper",
            "Keys that are not revoked: hashed with the current pepper, waiting for their first use \
             since the last rotation, or lost with a pepper nobody has",
            self.peppers.clone(),
        );
    }

    pub(crate) fn restrained(&self, restraint: Restraint, keys: usize) {
        let action = restraint.as_str();
        self.restrained
            .get_or_create(&Action { action })
            .inc_by(u64::try_from(keys).unwrap_or(u64::MAX));
    }

    pub(crate) fn peppers(&self, standing: Standing) {
        let states = [
            ("current", standing.current),
            ("waiting", standing.waiting),
            ("lost", standing.lost),
        ];
        for (state, keys) in states {
            self.peppers.get_or_create(&Pepper { state }).set(keys);
        }
    }

    pub(crate) fn creation_refused(&self) {
        self.refused.inc();
    }
}
