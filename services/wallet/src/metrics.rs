//! What the wallet counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use types::Credits;

/// A state of leases.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// The wallet's metrics. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    leases: Family<State, Gauge>,
    settled: Counter,
    written_off: Counter,
    frozen: Gauge,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "leases",
            "Leases that are not closed, by state",
            self.leases.clone(),
        );
        registry.register(
            "settled_credits",
            "Credits debited from wallets",
            self.settled.clone(),
        );
        registry.register(
            "writeoff_credits",
            "Credits of lost leases that went back to their wallets",
            self.written_off.clone(),
        );
        registry.register(
            "wallet_frozen",
            "1 after a failover of the database, until gateways have told their leases",
            self.frozen.clone(),
        );
    }

    pub(crate) fn frozen(&self, is_frozen: bool) {
        self.frozen.set(i64::from(is_frozen));
    }

    /// Whether nothing is lent at present, as far as was looked.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.get() == 1
    }

    /// Sets the number of leases in each state; a state that is not there has none.
    pub(crate) fn leases(&self, counted: &[(String, i64)]) {
        for state in ["active", "draining", "orphaned", "written_off"] {
            let count = counted
                .iter()
                .find(|(name, _)| name == state)
                .map_or(0, |(_, n)| *n);
            self.leases.get_or_create(&State { state }).set(count);
        }
    }

    pub(crate) fn settled(&self, credits: Credits) {
        self.settled
            .inc_by(u64::try_from(credits.get()).unwrap_or(0));
    }

    pub(crate) fn written_off(&self, credits: Credits) {
        self.written_off
            .inc_by(u64::try_from(credits.get()).unwrap_or(0));
    }
}
