//! The rules, as functions of what was seen and what is flagged already.
//!
//! A rule reads event time only. What is found has an identity made of its facts, so whoever finds
//! it again, after a repetition or in another instance, finds the same one.

pub(crate) mod country_spread;
pub(crate) mod key_burst;
pub(crate) mod key_mass_creation;
pub(crate) mod service_after_silence;
pub(crate) mod unknown_key_spray;
pub(crate) mod wallet_drain;
pub(crate) mod windows;

use types::{KeyId, OrgId};

/// Microseconds since 1970 UTC, as journals have them.
pub(crate) type Micros = i64;
pub(crate) const MINUTE: Micros = 60_000_000;
pub(crate) const HOUR: Micros = 60 * MINUTE;
pub(crate) const DAY: Micros = 24 * HOUR;

/// Keys of one anomaly at most; more are evidence enough.
pub(crate) const KEYS_MAX: usize = 100;

/// What can be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    CountrySpread,
    KeyBurst,
    ServiceAfterSilence,
    WalletDrain,
    KeyMassCreation,
    UnknownKeySpray,
}

impl Rule {
    pub(crate) const ALL: [Self; 6] = [
        Self::CountrySpread,
        Self::KeyBurst,
        Self::ServiceAfterSilence,
        Self::WalletDrain,
        Self::KeyMassCreation,
        Self::UnknownKeySpray,
    ];

    /// The `kind` of its anomalies, as everybody knows it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::CountrySpread => "country_spread",
            Self::KeyBurst => "key_burst",
            Self::ServiceAfterSilence => "service_after_silence",
            Self::WalletDrain => "wallet_drain",
            Self::KeyMassCreation => "key_mass_creation",
            Self::UnknownKeySpray => "unknown_key_spray",
        }
    }
}

/// One call of a key, as far as the rules are concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) key: KeyId,
    pub(crate) org: OrgId,
    pub(crate) at: Micros,
    /// Nothing for an unknown place.
    pub(crate) country: Option<country_spread::Country>,
    /// Empty for one that does not exist.
    pub(crate) service: String,
    /// Credits of the organisation; a call with a test key costs it none.
    pub(crate) credits: i64,
}

/// What a rule has found.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Finding {
    pub(crate) rule: Rule,
    /// With the rule: which anomaly this is. Two findings of one identity are one anomaly.
    pub(crate) identity: String,
    /// None: it concerns the whole platform.
    pub(crate) org: Option<OrgId>,
    /// Those it concerns, at most [`KEYS_MAX`], in order.
    pub(crate) keys: Vec<KeyId>,
    /// For a person.
    pub(crate) summary: String,
    /// For a program.
    pub(crate) evidence: serde_json::Value,
    /// The window that met the rule, both ends included.
    pub(crate) from: Micros,
    pub(crate) at: Micros,
}

impl Finding {
    /// The key, when it concerns exactly one.
    pub(crate) fn key(&self) -> Option<KeyId> {
        match self.keys.as_slice() {
            [key] => Some(*key),
            _ => None,
        }
    }
}

/// The beginning of the period of a length that a moment lies in.
pub(crate) fn begin(at: Micros, period: Micros) -> Micros {
    at - at.rem_euclid(period)
}

/// Closed intervals, sorted and disjoint.
type Intervals = Vec<(Micros, Micros)>;

/// Joins intervals that are less than `apart` from each other.
fn union(mut intervals: Intervals, apart: Micros) -> Intervals {
    intervals.sort_unstable();
    let mut union = Intervals::with_capacity(intervals.len());
    for (from, to) in intervals {
        match union.last_mut() {
            Some((_, end)) if from - *end < apart => *end = to.max(*end),
            _ => union.push((from, to)),
        }
    }
    union
}
