//! A key makes many more calls in five minutes than it is used to.
//!
//! A bucket is five minutes by the clock; it is *active* when the key was used in it. It is a burst
//! when its calls are many at all, and more than ten times the mean of the active buckets in the
//! days before. One anomaly a key and hour by the clock.
//!
//! A bucket is judged whenever it grows, by the buckets before it, which are over by then: neither
//! batches nor the order within a bucket change the answer. A call that comes later than that
//! counts where it belongs and has its bucket judged; it takes back nothing that was flagged.

use std::collections::BTreeMap;

use serde_json::json;
use types::{KeyId, OrgId};

use super::{Call, Finding, HOUR, MINUTE, Micros, Rule, begin};

/// Length of a bucket.
pub(crate) const BUCKET: Micros = 5 * MINUTE;

/// What is still usual.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Fewer calls in a bucket are never a burst.
    pub(crate) calls: i64,
    /// Times the mean.
    pub(crate) factor: i64,
    /// Active buckets without which a key has no habits yet.
    pub(crate) history: i64,
}

/// What a key did in one bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Load {
    pub(crate) org: OrgId,
    pub(crate) calls: i64,
    pub(crate) credits: i64,
}

/// By key and begin of the bucket.
pub(crate) type Loads = BTreeMap<(KeyId, Micros), Load>;

/// The active buckets before one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct History {
    pub(crate) calls: i64,
    pub(crate) buckets: i64,
}

/// Counts calls by key and bucket.
pub(crate) fn loads<'a>(calls: impl IntoIterator<Item = &'a Call>) -> Loads {
    let mut loads = Loads::new();
    for call in calls {
        let load = loads
            .entry((call.key, begin(call.at, BUCKET)))
            .or_insert(Load {
                org: call.org,
                calls: 0,
                credits: 0,
            });
        load.calls += 1;
        load.credits += call.credits; // each cost has a limit
    }
    loads
}

/// Judges a bucket by those before it.
pub(crate) fn is_burst(calls: i64, history: History, limits: Limits) -> bool {
    // calls > factor × (calls before ÷ buckets before), without a fraction.
    let present = i128::from(calls) * i128::from(history.buckets);
    let usual = i128::from(limits.factor) * i128::from(history.calls);
    calls >= limits.calls && history.buckets >= limits.history && present > usual
}

/// What a burst of a key means.
pub(crate) fn finding(
    org: OrgId,
    key: KeyId,
    (bucket, calls): (Micros, i64),
    history: History,
) -> Finding {
    // Rounded down; a bucket of the history has one call at least.
    let mean = history.calls / history.buckets.max(1);
    Finding {
        rule: Rule::KeyBurst,
        identity: format!("{key}@{}", begin(bucket, HOUR)),
        org: Some(org),
        keys: vec![key],
        summary: format!("The key made {calls} calls within 5 minutes, it is used to {mean}"),
        evidence: json!({
            "calls": calls, "calls_before": history.calls, "buckets_before": history.buckets,
            "bucket_minutes": BUCKET / MINUTE,
        }),
        from: bucket,
        at: bucket,
    }
}
