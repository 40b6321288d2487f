//! A key wakes after a long silence and uses a service that it never used before.
//!
//! Uses of a key that are less than the silence apart form an *episode*. The first use of a service
//! is an anomaly when its episode began at most an hour before and was not the key's first. The
//! hour is there because a key that is tried out may begin with what it always did, and because
//! calls of one moment arrive in any order.
//!
//! Kept of each service are the first and the last use and the latest silence between them: older
//! silences look like use. That joins episodes and never splits one, so it hides no use that is
//! judged when it happens and makes no anomaly that was none.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;
use types::{KeyId, OrgId};

use super::{Call, DAY, Finding, HOUR, Micros, Rule, union};

/// When a key used one service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Use {
    pub(crate) first: Micros,
    pub(crate) last: Micros,
    /// The last use before and the first one after the latest silence of its own.
    pub(crate) silence: Option<(Micros, Micros)>,
}

impl Use {
    fn of(at: Micros) -> Self {
        Self {
            first: at,
            last: at,
            silence: None,
        }
    }

    /// Adds a use. `long`: what counts as silence.
    fn widen(&mut self, at: Micros, long: Micros) {
        let is_long = |from: Micros, until: Micros| until - from >= long;
        if at > self.last {
            if is_long(self.last, at) {
                self.silence = Some((self.last, at));
            }
            self.last = at;
        } else if at < self.first {
            if self.silence.is_none() && is_long(at, self.first) {
                self.silence = Some((at, self.first));
            }
            self.first = at;
        } else if let Some((from, until)) = self.silence
            && from < at
            && at < until
        {
            // What remains of the silence, the later part first.
            let parts = [(at, until), (from, at)];
            self.silence = parts
                .into_iter()
                .find(|(from, until)| is_long(*from, *until));
        }
    }

    /// The times of use.
    fn spans(&self) -> Vec<(Micros, Micros)> {
        match self.silence {
            Some((from, until)) => vec![(self.first, from), (until, self.last)],
            None => vec![(self.first, self.last)],
        }
    }
}

/// The uses of one key, by service.
pub(crate) type Uses = BTreeMap<String, Use>;

/// What a batch has changed of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Merged {
    pub(crate) org: OrgId,
    /// All that is known of the key by now.
    pub(crate) uses: Uses,
    /// Services whose use has to be written.
    pub(crate) touched: Vec<String>,
    /// Whether a first use is news: only then the key has to be judged.
    pub(crate) is_new: bool,
}

/// Adds a batch to what is known of its keys, call by call.
pub(crate) fn merge(
    mut known: BTreeMap<KeyId, Uses>,
    calls: &[Call],
    long: Micros,
) -> BTreeMap<KeyId, Merged> {
    let mut merged: BTreeMap<KeyId, Merged> = BTreeMap::new();
    for call in calls {
        let of_key = merged.entry(call.key).or_insert_with(|| Merged {
            org: call.org,
            uses: known.remove(&call.key).unwrap_or_default(),
            touched: Vec::new(),
            is_new: false,
        });
        match of_key.uses.get_mut(&call.service) {
            Some(used) => {
                let before = *used;
                used.widen(call.at, long);
                if *used == before {
                    continue;
                }
                // No later use makes a first one follow a silence.
                of_key.is_new |= used.first != before.first;
            }
            None => {
                of_key.uses.insert(call.service.clone(), Use::of(call.at));
                of_key.is_new = true;
            }
        }
        if !of_key.touched.contains(&call.service) {
            of_key.touched.push(call.service.clone());
        }
    }
    merged
}

/// A service and the silence that its first use came after.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Waking {
    pub(crate) service: String,
    pub(crate) first: Micros,
    pub(crate) silent_from: Micros,
    pub(crate) silent_until: Micros,
}

/// Judges all services of a key. Calls of what does not exist end a silence, but are no use.
pub(crate) fn judge(uses: &Uses, long: Micros) -> Vec<Waking> {
    let episodes = union(uses.values().flat_map(Use::spans).collect(), long);
    let mut found = Vec::new();
    for (service, Use { first, .. }) in uses.iter().filter(|(service, _)| !service.is_empty()) {
        for pair in episodes.windows(2) {
            let [(_, silent_from), (woken, end)] = pair else {
                continue;
            };
            if (*woken..=*end).contains(first) && first - woken <= HOUR {
                found.push(Waking {
                    service: service.clone(),
                    first: *first,
                    silent_from: *silent_from,
                    silent_until: *woken,
                });
            }
        }
    }
    found
}

/// What a waking of a key means.
pub(crate) fn finding(org: OrgId, key: KeyId, waking: &Waking) -> Finding {
    let Waking {
        service,
        first,
        silent_from,
        silent_until,
    } = waking;
    let days = (silent_until - silent_from) / DAY;
    let time = |at: Micros| Timestamp::from_microsecond(at).map(|at| at.to_string());
    Finding {
        rule: Rule::ServiceAfterSilence,
        identity: format!("{key}/{service}"),
        org: Some(org),
        keys: vec![key],
        summary: format!(
            "The key was silent for {days} days and then used {service}, which it never had before"
        ),
        evidence: json!({
            "service": service,
            "silent_from": time(*silent_from).ok(),
            "silent_until": time(*silent_until).ok(),
        }),
        from: *silent_from,
        at: *first,
    }
}
