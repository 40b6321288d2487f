//! What the gateway counts.

use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use runtime::Host;

/// Upper bounds for time inside the gateway, seconds.
const ADDED_BUCKETS: [f64; 14] = [
    0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01,
    0.05, 0.2, 1.0,
];

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct CallLabels {
    service: String,
    code: String,
}

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

/// Where the record of a key came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Local,
    Redis,
    Keys,
    Negative,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    calls: Family<CallLabels, Counter>,
    added: Histogram,
    verification: Histogram,
    sources: Arc<[Counter; 4]>,
    pub(crate) overrun: Counter,
    pub(crate) staleness: Gauge<f64, AtomicU64>,
    pub(crate) journal_bytes: Gauge<i64, AtomicI64>,
    pub(crate) unapplied: Gauge<i64, AtomicI64>,
}

impl Metrics {
    pub(crate) fn register(host: &Host) -> Self {
        let sources: Family<SourceLabel, Counter> = Family::default();
        let source = |source| sources.get_or_create(&SourceLabel { source }).clone();
        let metrics = Self {
            calls: Family::default(),
            added: Histogram::new(ADDED_BUCKETS),
            verification: Histogram::new(ADDED_BUCKETS),
            sources: Arc::new([
                source("local"),
                source("redis"),
                source("keys"),
                source("negative"),
            ]),
            overrun: Counter::default(),
            staleness: Gauge::default(),
            journal_bytes: Gauge::default(),
            unapplied: Gauge::default(),
        };
        let own = metrics.clone();
        host.metrics(move |registry| {
            registry.register("calls", "Calls by service and code", own.calls);
            registry.register(
                "call_added_seconds",
                "Time in the gateway without the upstream",
                own.added,
            );
            registry.register("key_verifications", "Look-ups of keys by source", sources);
            registry.register(
                "key_verification_seconds",
                "From the presented key to its record",
                own.verification,
            );
            registry.register("overrun_credits", "Cost above the hold", own.overrun);
            registry.register(
                "key_staleness_seconds",
                "Since the last word on changed keys",
                own.staleness,
            );
            registry.register("journal_bytes", "Bytes of all journals", own.journal_bytes);
            registry.register(
                "journal_unapplied_records",
                "Records that a consumer has not applied",
                own.unapplied,
            );
        });
        metrics
    }

    pub(crate) fn verified(&self, source: Source) {
        let [local, redis, keys, negative] = self.sources.as_ref();
        let counter = match source {
            Source::Local => local,
            Source::Redis => redis,
            Source::Keys => keys,
            Source::Negative => negative,
        };
        counter.inc();
    }

    pub(crate) fn verification(&self, nanos: u64) {
        self.verification
            .observe(std::time::Duration::from_nanos(nanos).as_secs_f64());
    }

    /// Counts a call. `service` is of the catalogue or empty, `code` a status or refusal.
    pub(crate) fn call(&self, service: &str, code: &str, added_nanos: u64) {
        let labels = CallLabels {
            service: service.to_owned(),
            code: code.to_owned(),
        };
        self.calls.get_or_create(&labels).inc();
        self.added
            .observe(std::time::Duration::from_nanos(added_nanos).as_secs_f64());
    }
}
