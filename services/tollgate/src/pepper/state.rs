//! Which pepper is used by whom.

use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::System;
use crate::failure::{Failure, Result};

/// A process that hashes keys.
pub(super) struct Holder {
    pub(super) service: String,
    pub(super) name: String,
    pub(super) pepper: String,
    pub(super) previous: Option<String>,
}

/// As `keys` sees it.
pub(super) struct State {
    pepper: String,
    previous: Option<String>,
    counts: Vec<(String, i64)>,
    pub(super) holders: Vec<Holder>,
}

fn some(id: String) -> Option<String> {
    (!id.is_empty()).then_some(id)
}

impl State {
    pub(super) async fn read(system: &System) -> Result<Self> {
        let request = wire::GetPeppersRequest {};
        let answer = system.keys()?.get_peppers(request).await?.into_inner();
        let holders = answer.holders.into_iter().map(|holder| Holder {
            service: holder.service,
            name: holder.name,
            pepper: holder.pepper_id,
            previous: some(holder.previous_pepper_id),
        });
        let counts = answer.counts.into_iter();
        Ok(Self {
            pepper: answer.pepper_id,
            previous: some(answer.previous_pepper_id),
            counts: counts.map(|count| (count.pepper_id, count.keys)).collect(),
            holders: holders.collect(),
        })
    }

    /// Keys hashed with one of these.
    fn keys(&self, is_one: impl Fn(&String) -> bool) -> i64 {
        let counted = self.counts.iter().filter(|(pepper, _)| is_one(pepper));
        counted.map(|(_, keys)| keys).sum()
    }

    /// Keys that need the pepper before.
    pub(super) fn waiting(&self) -> i64 {
        self.keys(|pepper| Some(pepper) == self.previous.as_ref())
    }

    /// Who it is that …
    pub(super) fn names(&self, is_one: impl Fn(&Holder) -> bool) -> Vec<String> {
        let ones = self.holders.iter().filter(|holder| is_one(holder));
        ones.map(|it| format!("{} {}", it.service, it.name))
            .collect()
    }

    /// Refuses as long as somebody has not this pepper: with the next one it would be two behind,
    /// and refuse keys that have moved on.
    pub(super) fn check_holders(&self, pepper: &str) -> Result {
        let others = self.names(|holder| holder.pepper != pepper);
        if others.is_empty() {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "not everybody has pepper {pepper}, which the file holds: {}. Look at `tollgate pepper \
             status`; a service that reads its pepper from a variable must be restarted",
            others.join(", ")
        )))
    }

    pub(super) fn summary(&self) -> Value {
        let lost = self.keys(|it| *it != self.pepper && Some(it) != self.previous.as_ref());
        json!({
            "pepper_id": self.pepper,
            "previous_pepper_id": self.previous,
            "current_keys": self.keys(|it| *it == self.pepper),
            "waiting_keys": self.waiting(),
            "lost_keys": lost,
        })
    }

    pub(super) fn show_holders(&self) -> Vec<Value> {
        let shown = self.holders.iter().map(|holder| {
            json!({
                "service": holder.service,
                "name": holder.name,
                "pepper_id": holder.pepper,
                "previous_pepper_id": holder.previous,
            })
        });
        shown.collect()
    }

    pub(super) fn show(&self) -> Value {
        let mut all = self.summary();
        all["holders"] = Value::Array(self.show_holders());
        let counts = self.counts.iter();
        all["keys"] = counts
            .map(|(pepper, keys)| json!({ "pepper_id": pepper, "keys": keys }))
            .collect();
        all
    }
}
