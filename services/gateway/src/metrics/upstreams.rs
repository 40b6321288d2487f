//! What is counted of connections to upstreams.

use std::sync::atomic::AtomicI64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::ResultLabel;

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// How an attempt to connect to an upstream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Connect {
    Opened,
    Failed,
    /// Not made: the address is neither public nor listed.
    Forbidden,
}

/// How waiting for a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waited {
    Served,
    Refused,
}

/// Why a request is sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Repeat {
    /// It never left.
    Unsent,
    /// The upstream says that it has not looked at it.
    Refused,
    /// It changes nothing.
    Idempotent,
    /// The same, at another address than the one that took it and broke off.
    Elsewhere,
}

/// Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Upstreams {
    connects: Family<ResultLabel, Counter>,
    waits: Family<ResultLabel, Counter>,
    repeats: Family<ReasonLabel, Counter>,
    rests: Counter,
    checks: Family<ResultLabel, Counter>,
    connections: Gauge<i64, AtomicI64>,
}

impl Upstreams {
    pub(super) fn register(self, registry: &mut Registry) {
        registry.register(
            "upstream_connects",
            "Connections to upstreams by how their opening ended",
            self.connects,
        );
        registry.register(
            "upstream_connections",
            "Connections to upstreams, counted every 5 seconds",
            self.connections,
        );
        registry.register(
            "upstream_waits",
            "Calls that waited for a connection to an upstream, by how that ended",
            self.waits,
        );
        registry.register(
            "upstream_repeats",
            "Requests that were sent to an upstream again",
            self.repeats,
        );
        registry.register(
            "upstream_rests",
            "Times that an address of an upstream was left alone because it failed",
            self.rests,
        );
        registry.register(
            "upstream_checks",
            "Addresses of upstreams that were asked whether they are well, by their answers",
            self.checks,
        );
    }

    pub(crate) fn checked(&self, is_good: bool) {
        let result = if is_good { "good" } else { "bad" };
        self.checks.get_or_create(&ResultLabel { result }).inc();
    }

    pub(crate) fn connected(&self, connect: Connect) {
        let result = match connect {
            Connect::Opened => "opened",
            Connect::Failed => "failed",
            Connect::Forbidden => "forbidden",
        };
        self.connects.get_or_create(&ResultLabel { result }).inc();
    }

    pub(crate) fn waited(&self, waited: Waited) {
        let result = match waited {
            Waited::Served => "served",
            Waited::Refused => "refused",
        };
        self.waits.get_or_create(&ResultLabel { result }).inc();
    }

    pub(crate) fn repeated(&self, repeat: Repeat) {
        let reason = match repeat {
            Repeat::Unsent => "unsent",
            Repeat::Refused => "refused",
            Repeat::Idempotent => "idempotent",
            Repeat::Elsewhere => "elsewhere",
        };
        self.repeats.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An address is left alone from now on.
    pub(crate) fn rests(&self) {
        self.rests.inc();
    }

    /// One thread has `now` connections where it had `before`.
    pub(crate) fn connections(&self, before: usize, now: usize) {
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let more = signed(now).saturating_sub(signed(before));
        self.connections.inc_by(more);
    }
}
