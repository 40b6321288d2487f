//! Anomalies: what the policy of an organisation does to its keys, and how that is undone.
//!
//! A key that is suspended or throttled is so by everything that *holds* it: anomalies that are not
//! lifted. Whoever suspends it by hand, or because it leaked, takes the suspension over: from then
//! on no anomaly holds it, and lifting one changes nothing.

use serde_json::{Value, json};
use types::{AnomalyId, KeyId, OrgId};

use super::{key::ApiKey, policy::AnomalyAction};

/// What a throttled key has left: enough to see that it is alive.
pub(crate) const THROTTLE_PER_SECOND: u32 = 1;
/// Keys of one anomaly.
const KEYS_MAX: usize = 100;
/// Characters of a kind.
const KIND_CHARS_MAX: usize = 64;
/// Characters of a summary: it stands in mails.
const SUMMARY_CHARS_MAX: usize = 500;

/// An anomaly as it was flagged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Anomaly {
    pub(crate) id: AnomalyId,
    /// `None`: it concerns the whole platform.
    pub(crate) org: Option<OrgId>,
    pub(crate) kind: String,
    pub(crate) summary: String,
    /// In the order in which they are locked, each once.
    pub(crate) keys: Vec<KeyId>,
}

impl Anomaly {
    /// Checks what was flagged; the error says which rule it breaks.
    pub(crate) fn new(
        id: AnomalyId,
        org: Option<OrgId>,
        kind: String,
        summary: String,
        mut keys: Vec<KeyId>,
    ) -> Result<Self, String> {
        let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
        if !(1..=KIND_CHARS_MAX).contains(&kind.len()) || !kind.chars().all(is_word) {
            return Err(format!("kind: must be 1–{KIND_CHARS_MAX} of a-z and _"));
        }
        if summary.chars().count() > SUMMARY_CHARS_MAX || summary.chars().any(char::is_control) {
            return Err(format!(
                "summary: must be at most {SUMMARY_CHARS_MAX} characters, none a control character"
            ));
        }
        keys.sort_unstable();
        keys.dedup();
        if keys.len() > KEYS_MAX {
            return Err(format!("key_ids: must be at most {KEYS_MAX}"));
        }
        Ok(Self {
            id,
            org,
            kind,
            summary,
            keys,
        })
    }

    /// As the audit log shows it; `keys` are those that whoever reads it may know of.
    pub(crate) fn facts(&self, keys: impl Iterator<Item = KeyId>, action: &str) -> Value {
        let keys: Vec<String> = keys.map(|key| key.to_string()).collect();
        json!({ "kind": self.kind, "summary": self.summary, "keys": keys, "action": action })
    }
}

/// Why an anomaly holds a key, for people.
pub(crate) fn reason(anomaly: AnomalyId, kind: &str) -> String {
    format!("anomaly {kind}, {anomaly}")
}

/// What an anomaly does to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Restraint {
    Throttle,
    Suspend,
}

impl Restraint {
    /// What a policy does to keys; `None`: it only tells.
    pub(crate) fn of(action: AnomalyAction) -> Option<Self> {
        match action {
            AnomalyAction::Notify => None,
            AnomalyAction::Throttle => Some(Self::Throttle),
            AnomalyAction::Suspend => Some(Self::Suspend),
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Throttle => "throttle",
            Self::Suspend => "suspend",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let all = [Self::Throttle, Self::Suspend];
        all.into_iter().find(|restraint| restraint.as_str() == text)
    }

    /// The entry of the audit log.
    pub(crate) const fn audited(self) -> &'static str {
        match self {
            Self::Throttle => "key.throttled",
            Self::Suspend => "key.suspended",
        }
    }
}

/// An anomaly that holds a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Hold {
    pub(crate) anomaly: AnomalyId,
    pub(crate) kind: String,
    pub(crate) restraint: Restraint,
}

/// Calls a second an anomaly leaves a key, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Throttle {
    pub(crate) per_second: u32,
    pub(crate) reason: String,
}

/// How a key is restrained, beside being active or not.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Restraints {
    /// `None` for an active key, and for one that somebody suspended by hand.
    pub(crate) suspended_reason: Option<String>,
    pub(crate) throttle: Option<Throttle>,
}

impl Restraints {
    pub(crate) fn suspended_because(&self, reason: Option<String>) -> Self {
        Self {
            suspended_reason: reason,
            throttle: self.throttle.clone(),
        }
    }

    fn throttled_because(&self, reason: Option<String>) -> Self {
        let per_second = THROTTLE_PER_SECOND;
        Self {
            suspended_reason: self.suspended_reason.clone(),
            throttle: reason.map(|reason| Throttle { per_second, reason }),
        }
    }
}

/// A key's activity and restraints after a decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Outcome {
    pub(crate) active: bool,
    pub(crate) restraints: Restraints,
}

impl Outcome {
    /// How the key is now.
    pub(crate) fn now(key: &ApiKey) -> Self {
        Self {
            active: key.settings.active,
            restraints: key.restraints.clone(),
        }
    }
}

/// Decides what an anomaly makes of a key. `None`: the key is left alone, it has ended or somebody
/// suspended it. The outcome may be what is: then another anomaly did the same before.
pub(crate) fn impose(key: &ApiKey, holds: &[Hold], hold: &Hold) -> Option<Outcome> {
    let now = Outcome::now(key);
    let suspends = |hold: &Hold| hold.restraint == Restraint::Suspend;
    if key.revoked.is_some() || (!now.active && !holds.iter().any(suspends)) {
        return None;
    }
    let why = reason(hold.anomaly, &hold.kind);
    match hold.restraint {
        Restraint::Suspend if !now.active => Some(now),
        Restraint::Throttle if now.restraints.throttle.is_some() => Some(now),
        Restraint::Suspend => Some(Outcome {
            active: false,
            restraints: now.restraints.suspended_because(Some(why)),
        }),
        Restraint::Throttle => Some(Outcome {
            active: now.active,
            restraints: now.restraints.throttled_because(Some(why)),
        }),
    }
}

/// Decides what a key becomes when an anomaly that has held it does so no more; `others` still do.
pub(crate) fn relieve(key: &ApiKey, lifted: Restraint, others: &[Hold]) -> Outcome {
    let now = Outcome::now(key);
    if key.revoked.is_some() {
        return now;
    }
    let next = others.iter().find(|hold| hold.restraint == lifted);
    let next = next.map(|hold| reason(hold.anomaly, &hold.kind));
    match lifted {
        Restraint::Suspend => Outcome {
            active: next.is_none(),
            restraints: now.restraints.suspended_because(next),
        },
        Restraint::Throttle => Outcome {
            active: now.active,
            restraints: now.restraints.throttled_because(next),
        },
    }
}

/// Decides what restrains a key after somebody has restored it (nothing), or suspended it (the
/// suspension is the person's own), or neither.
pub(crate) fn by_hand(now: &Restraints, active: Option<bool>) -> Restraints {
    match active {
        Some(true) => Restraints::default(),
        Some(false) => now.suspended_because(None),
        None => now.clone(),
    }
}
