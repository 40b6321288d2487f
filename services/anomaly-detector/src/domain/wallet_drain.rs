//! A wallet falls from above half of what it held to a tenth of it within an hour.
//!
//! The hour begins when the balance crosses 50 percent; where that is not known, when the credits
//! came in. Each crossing is told once for each time that credits come in, in any order and any
//! number of times: more that is known can only add an anomaly.

use std::collections::BTreeMap;

use serde_json::json;
use types::{KeyId, OrgId};

use super::{Finding, KEYS_MAX, MINUTE, Micros, Rule};

/// Percent of the reference above which a wallet is before it falls.
const HIGH: u32 = 50;
/// And at or below which it is afterwards.
const LOW: u32 = 10;

/// What is still usual.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// A wallet that held less is nobody's loss.
    pub(crate) reference: i64,
    /// How long a fall takes.
    pub(crate) within: Micros,
    /// Percent of the spend that makes a key concerned.
    pub(crate) key_percent: i64,
}

/// A balance that has crossed a share of the reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Crossing {
    pub(crate) percent: u32,
    pub(crate) balance: i64,
    pub(crate) at: Micros,
}

/// What is known of a wallet since credits came in last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fall {
    pub(crate) org: OrgId,
    /// The balance then.
    pub(crate) reference: i64,
    pub(crate) reference_at: Micros,
    pub(crate) crossings: Vec<Crossing>,
}

/// A fall that was too fast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Drain {
    pub(crate) from: Micros,
    pub(crate) at: Micros,
    /// What was left.
    pub(crate) balance: i64,
    /// What calls have cost meanwhile at least.
    pub(crate) spent: i64,
}

/// Judges what is known of a fall.
pub(crate) fn judge(fall: &Fall, limits: Limits) -> Option<Drain> {
    let crossing = |percent| fall.crossings.iter().find(|it| it.percent == percent);
    let low = crossing(LOW)?;
    let from = crossing(HIGH).map_or(fall.reference_at, |high| high.at);
    let is_drain = fall.reference >= limits.reference && low.at - from <= limits.within;
    is_drain.then_some(Drain {
        from,
        at: low.at,
        balance: low.balance,
        // It was above half of the reference before.
        spent: (fall.reference / 2).saturating_sub(low.balance),
    })
}

/// The keys that spent a good part, by what each has spent.
pub(crate) fn spenders(spent: &BTreeMap<KeyId, i64>, percent: i64) -> Vec<KeyId> {
    let total: i128 = spent.values().map(|credits| i128::from(*credits)).sum();
    let is_part =
        |credits: i64| credits > 0 && i128::from(credits) * 100 >= i128::from(percent) * total;
    let parts = spent.iter().filter(|(_, credits)| is_part(**credits));
    parts.map(|(key, _)| *key).take(KEYS_MAX).collect()
}

/// What a drain means.
pub(crate) fn finding(fall: &Fall, drain: Drain, keys: Vec<KeyId>) -> Finding {
    let Fall {
        org,
        reference,
        reference_at,
        ..
    } = fall;
    let minutes = (drain.at - drain.from) / MINUTE + 1;
    Finding {
        rule: Rule::WalletDrain,
        identity: format!("{org}@{reference_at}"),
        org: Some(*org),
        keys,
        summary: format!(
            "The wallet fell from more than half of {reference} credits to {} within {minutes} min",
            drain.balance
        ),
        evidence: json!({
            "reference": reference, "balance": drain.balance,
            "seconds": (drain.at - drain.from) / 1_000_000,
        }),
        from: drain.from,
        at: drain.at,
    }
}
