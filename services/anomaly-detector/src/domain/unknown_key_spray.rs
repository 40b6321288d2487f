//! Keys that nobody issued keep coming from one address: somebody is guessing, or has lost track.
//! An address is what gateways count by: of IPv6 it is a network.
//!
//! Counts are by address and minute over all gateways, and they only grow. A minute meets the rule
//! by its own count, or by that of the ten minutes it ends. One anomaly an address and hour by the
//! clock; it belongs to no organisation.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Finding, HOUR, MINUTE, Micros, Rule, begin};

/// Minutes that count together.
const MINUTES: i64 = 10;
/// From the begin of the first of them to that of the last.
pub(crate) const SPAN: Micros = (MINUTES - 1) * MINUTE;

/// What is still usual.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Calls in a minute that are not any more.
    pub(crate) minute: i64,
    /// Calls in ten minutes that are not any more.
    pub(crate) ten_minutes: i64,
}

/// Calls with unknown keys, by the begin of their minute.
pub(crate) type Minutes = BTreeMap<Micros, i64>;

/// Judges everything that is kept of an address: the first minute of each hour that met the rule.
pub(crate) fn judge(address: &str, minutes: &Minutes, limits: Limits) -> Vec<Finding> {
    let mut found: BTreeMap<Micros, Finding> = BTreeMap::new();
    for (minute, calls) in minutes {
        let ten: i64 = minutes.range(minute - SPAN..=*minute).map(|(_, n)| n).sum();
        let (from, said) = if *calls >= limits.minute {
            (*minute, format!("{calls} calls within a minute"))
        } else if ten >= limits.ten_minutes {
            (
                minute - SPAN,
                format!("{ten} calls within {MINUTES} minutes"),
            )
        } else {
            continue;
        };
        let hour = begin(*minute, HOUR);
        found.entry(hour).or_insert_with(|| Finding {
            rule: Rule::UnknownKeySpray,
            identity: format!("{address}@{hour}"),
            org: None,
            keys: Vec::new(),
            summary: format!("{address} made {said} with keys that nobody issued"),
            evidence: json!({
                "address": address, "minute_calls": calls, "ten_minutes_calls": ten,
            }),
            from: from.max(0),
            at: *minute,
        });
    }
    found.into_values().collect()
}
