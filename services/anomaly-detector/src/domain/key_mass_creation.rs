//! More keys than usual are made in an organisation within an hour; [`windows`](super::windows)
//! says what that means exactly.
//!
//! What is made in the hour after belongs to the same anomaly: it grows as long as it is open.

use serde_json::json;
use types::{AnomalyId, KeyId, OrgId};

use super::{
    Finding, KEYS_MAX, Micros, Rule,
    windows::{self, Seen, Verdict, WINDOW},
};

/// A key and when it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Created {
    pub(crate) key: KeyId,
    pub(crate) at: Micros,
}

/// Judges all keys that are kept of an organisation.
pub(crate) fn judge(
    created: &[Created],
    known: &[(AnomalyId, Micros)],
    usual: usize,
) -> Verdict<KeyId> {
    let seen: Vec<Seen<KeyId>> = created
        .iter()
        .map(|Created { key, at }| Seen {
            what: *key,
            first: *at,
            last: *at,
        })
        .collect();
    windows::judge(&seen, known, usual)
}

/// What a flag at a moment means by now.
pub(crate) fn finding(org: OrgId, at: Micros, created: &[Created], usual: usize) -> Finding {
    let around = at - WINDOW..=at + WINDOW;
    let mut keys: Vec<KeyId> = created
        .iter()
        .filter(|created| around.contains(&created.at))
        .map(|created| created.key)
        .collect();
    keys.sort_unstable();
    let count = keys.len();
    keys.truncate(KEYS_MAX);
    Finding {
        rule: Rule::KeyMassCreation,
        identity: format!("{org}@{at}"),
        org: Some(org),
        keys,
        summary: format!("{count} keys were made in the organisation within a short time"),
        evidence: json!({ "keys": count, "keys_max": usual }),
        from: (at - WINDOW).max(0),
        at,
    }
}
