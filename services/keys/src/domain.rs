//! Decisions: values and the time in, values out.

pub(crate) mod anomaly;
pub(crate) mod audit_chain;
pub(crate) mod catalogue;
pub(crate) mod changes;
pub(crate) mod invitation;
pub(crate) mod key;
pub(crate) mod leak;
pub(crate) mod mail;
pub(crate) mod metadata;
pub(crate) mod organisation;
pub(crate) mod pace;
pub(crate) mod password;
pub(crate) mod pepper;
pub(crate) mod policy;
pub(crate) mod price;
pub(crate) mod rights;
pub(crate) mod second_factor;
pub(crate) mod throttle;
pub(crate) mod token;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Refuses to change anything but the version somebody has seen.
pub(crate) fn expect_version(seen: Option<i64>, now: i64) -> Result<()> {
    match seen {
        Some(seen) if seen != now => Err(Error::Stale { now }),
        _ => Ok(()),
    }
}

/// Keeps what differs, for the audit log: `{"before": {…}, "after": {…}}`.
pub(crate) fn difference(before: &Value, after: &Value) -> Value {
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else {
        return json!({ "before": before, "after": after });
    };
    let pick = |from: &Map<String, Value>, other: &Map<String, Value>| -> Map<String, Value> {
        let differs = |entry: &(&String, &Value)| other.get(entry.0) != Some(entry.1);
        from.iter()
            .filter(differs)
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    json!({ "before": pick(old, new), "after": pick(new, old) })
}
