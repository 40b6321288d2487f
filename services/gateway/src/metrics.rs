//! What the gateway counts.

mod upstreams;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicI64},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric as _},
    metrics::{
        TypedMetric,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
};
use runtime::Host;
use types::Refusal;

pub(crate) use self::upstreams::{Connect, Repeat, Upstreams, Waited};
use crate::catalogue::Service;

/// Upper bounds for time inside the gateway, seconds.
const ADDED_BUCKETS: [f64; 14] = [
    0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01,
    0.05, 0.2, 1.0,
];

/// Upper bounds for finding out whose a key is, seconds: from a look into memory to a look-up that
/// nobody answers.
const VERIFICATION_BUCKETS: [f64; 22] = [
    0.000_000_25,
    0.000_000_5,
    0.000_001,
    0.000_002,
    0.000_003,
    0.000_005,
    0.000_01,
    0.000_02,
    0.000_05,
    0.000_1,
    0.000_2,
    0.000_35,
    0.000_5,
    0.000_75,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.2,
    1.0,
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

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// Where the record of a key came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Local,
    Redis,
    Keys,
    Negative,
}

/// How a look-up at `keys` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lookup {
    Found,
    Nobody,
    /// No answer.
    Failed,
    /// Not made: too many were in vain.
    Refused,
}

/// What was wrong with a key that nobody issued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Strange {
    Malformed,
    Unknown,
    /// Not looked up for its address. It may be a good one that is not in memory.
    Refused,
}

/// Of the keys that one source knew.
struct Verified {
    calls: Counter,
    seconds: Histogram,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    calls: Family<CallLabels, Counter>,
    added: Histogram,
    sources: Arc<[Verified; 4]>,
    lookups: Family<ResultLabel, Counter>,
    strange: Family<KindLabel, Counter>,
    keyed: Family<ResultLabel, Counter>,
    pub(crate) upstreams: Upstreams,
    pub(crate) overrun: Counter,
    pub(crate) journal_bytes: Gauge<i64, AtomicI64>,
    pub(crate) unapplied: Gauge<i64, AtomicI64>,
}

impl Metrics {
    pub(crate) fn register(host: &Host) -> Self {
        let calls: Family<SourceLabel, Counter> = Family::default();
        let seconds: Family<SourceLabel, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(VERIFICATION_BUCKETS));
        let source = |source| {
            let label = SourceLabel { source };
            Verified {
                calls: calls.get_or_create(&label).clone(),
                seconds: seconds.get_or_create(&label).clone(),
            }
        };
        let metrics = Self {
            calls: Family::default(),
            added: Histogram::new(ADDED_BUCKETS),
            sources: Arc::new([
                source("local"),
                source("redis"),
                source("keys"),
                source("negative"),
            ]),
            lookups: Family::default(),
            strange: Family::default(),
            keyed: Family::default(),
            upstreams: Upstreams::default(),
            overrun: Counter::default(),
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
            registry.register("key_verifications", "Calls by who knew their key", calls);
            registry.register(
                "key_verification_seconds",
                "From the call to its key's record, by who knew it",
                seconds,
            );
            registry.register(
                "key_lookups",
                "Questions to the keys service by their end",
                own.lookups,
            );
            registry.register(
                "unknown_keys",
                "Calls with a key that nobody issued, or that was not looked up for its address",
                own.strange,
            );
            registry.register(
                "keyed_calls",
                "Calls with an idempotency key by what became of them",
                own.keyed,
            );
            own.upstreams.register(registry);
            registry.register("overrun_credits", "Cost above the hold", own.overrun);
            registry.register("journal_bytes", "Bytes of all journals", own.journal_bytes);
            registry.register(
                "journal_unapplied_records",
                "Records that a consumer has not applied",
                own.unapplied,
            );
        });
        metrics
    }

    /// It took so long to learn whose a key is, or that it is nobody's.
    pub(crate) fn verified(&self, source: Source, nanos: u64) {
        let [local, redis, keys, negative] = self.sources.as_ref();
        let verified = match source {
            Source::Local => local,
            Source::Redis => redis,
            Source::Keys => keys,
            Source::Negative => negative,
        };
        verified.calls.inc();
        verified
            .seconds
            .observe(std::time::Duration::from_nanos(nanos).as_secs_f64());
    }

    /// Counts a question to `keys`.
    pub(crate) fn looked_up(&self, lookup: Lookup) {
        let result = match lookup {
            Lookup::Found => "found",
            Lookup::Nobody => "nobody",
            Lookup::Failed => "failed",
            Lookup::Refused => "refused",
        };
        self.lookups.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a call with an idempotency key, by whether it was given an earlier answer, and what
    /// it was refused with.
    pub(crate) fn keyed(&self, is_replayed: bool, refusal: Option<Refusal>) {
        let result = match refusal {
            _ if is_replayed => "replayed",
            None => "answered",
            Some(Refusal::IdempotencyKeyInUse) => "in_use",
            Some(Refusal::IdempotencyKeyReused) => "reused",
            Some(Refusal::IdempotencyAnswerNotKept) => "not_kept",
            Some(Refusal::IdempotencyKeysExhausted) => "exhausted",
            Some(_) => "refused",
        };
        self.keyed.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a call with a strange key.
    pub(crate) fn strange(&self, strange: Strange) {
        let kind = match strange {
            Strange::Malformed => "malformed",
            Strange::Unknown => "unknown",
            Strange::Refused => "refused",
        };
        self.strange.get_or_create(&KindLabel { kind }).inc();
    }

    /// Offers the age of what is known of changes, read whenever somebody asks for it: noted from
    /// time to time, it would be young always.
    pub(crate) fn offer_staleness(host: &Host, seconds: impl Fn() -> f64 + Send + Sync + 'static) {
        let staleness = Live {
            name: "key_staleness_seconds",
            help: "Since the question whose answer was the last word on changed keys",
            read: Box::new(seconds),
        };
        host.metrics(|registry| registry.register_collector(Box::new(staleness)));
    }

    /// Offers how many calls are in flight.
    pub(crate) fn offer_in_flight(host: &Host, calls: impl Fn() -> u64 + Send + Sync + 'static) {
        let in_flight = Live {
            name: "calls_in_flight",
            help: "Calls that have begun and not ended, tunnels included",
            read: Box::new(move || i64::try_from(calls()).unwrap_or(i64::MAX)),
        };
        host.metrics(|registry| registry.register_collector(Box::new(in_flight)));
    }

    /// Counts an answer of a service.
    pub(crate) fn answered(&self, service: &Service, status: u16, added_nanos: u64) {
        let find = || self.counter(&service.name, &status.to_string());
        match service.answered(status, find) {
            Some(counter) => counter.inc(),
            None => find().inc(),
        };
        self.observe_added(added_nanos);
    }

    /// Counts a refusal. `service` is of the catalogue or empty.
    pub(crate) fn refused(&self, service: &str, code: &str, added_nanos: u64) {
        self.counter(service, code).inc();
        self.observe_added(added_nanos);
    }

    fn counter(&self, service: &str, code: &str) -> Counter {
        let labels = CallLabels {
            service: service.to_owned(),
            code: code.to_owned(),
        };
        self.calls.get_or_create(&labels).clone()
    }

    fn observe_added(&self, nanos: u64) {
        self.added
            .observe(std::time::Duration::from_nanos(nanos).as_secs_f64());
    }
}

/// A gauge that is read when it is asked for.
struct Live<N> {
    name: &'static str,
    help: &'static str,
    read: Box<dyn Fn() -> N + Send + Sync>,
}

impl<N> fmt::Debug for Live<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<N: EncodeGaugeValue + 'static> Collector for Live<N> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let value = ConstGauge::new((self.read)());
        let kind = ConstGauge::<N>::TYPE;
        let metric = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        value.encode(metric)
    }
}
