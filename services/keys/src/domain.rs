//! Decisions: values and the time in, values out.

pub(crate) mod catalogue;
pub(crate) mod changes;
pub(crate) mod key;
pub(crate) mod organisation;
pub(crate) mod rights;

use serde_json::{Map, Value, json};

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
