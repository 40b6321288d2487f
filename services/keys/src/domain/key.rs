//! Keys: what they may be made with, how they change, what state they are in.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use types::{Environment, KeyHash, KeyId, OrgId, Rate, Scope, UserId, parse_key_name};

use super::{
    anomaly::Restraints,
    metadata::{self, Metadata},
    policy::Policy,
};
use crate::error::{Error, Result};

/// Address blocks a key may list.
const ALLOW_MAX: usize = 64;
/// Scopes a key may have.
const SCOPES_MAX: usize = 64;
/// Characters of a reason.
const REASON_CHARS_MAX: usize = 200;
/// Calls a second, and at once: beyond this no limiter of ours is meant.
const RATE_MAX: u32 = 1_000_000;
/// After a rotation the old key goes on for so long at most.
const OVERLAP_SECONDS_MAX: u32 = 86_400;
/// Every status of a key.
const STATUSES: [&str; 5] = ["active", "throttled", "suspended", "revoked", "expired"];
/// Why a deleted key is revoked.
pub(crate) const DELETED: &str = "deleted";

/// What of a key can be chosen and changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Settings {
    pub(crate) name: String,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) daily_quota: Option<i64>,
    pub(crate) monthly_quota: Option<i64>,
    pub(crate) rate: Option<Rate>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) allow: Vec<IpNet>,
    pub(crate) metadata: Metadata,
    /// False while suspended, and once revoked.
    pub(crate) active: bool,
}

/// When and why a key was revoked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Revoked {
    pub(crate) at: Timestamp,
    pub(crate) reason: String,
}

/// A stored key.
#[derive(Clone, Debug)]
pub(crate) struct ApiKey {
    pub(crate) id: KeyId,
    pub(crate) org: OrgId,
    pub(crate) created_by: UserId,
    pub(crate) hash: KeyHash,
    /// With the pepper before, for gateways that use that one still.
    pub(crate) previous_hash: Option<KeyHash>,
    pub(crate) hint: String,
    pub(crate) environment: Environment,
    pub(crate) settings: Settings,
    pub(crate) restraints: Restraints,
    pub(crate) revoked: Option<Revoked>,
    pub(crate) last_used_at: Option<Timestamp>,
    pub(crate) last_used_ip: Option<IpAddr>,
    pub(crate) created_at: Timestamp,
    pub(crate) version: i64,
    /// The key it replaces.
    pub(crate) rotated_from: Option<KeyId>,
    /// The key that replaces it.
    pub(crate) rotated_to: Option<KeyId>,
    /// Under which key quota and rate are counted.
    pub(crate) limits_key: KeyId,
}

/// The wish for a new key, as it was sent.
#[derive(Clone, Default, Debug)]
pub(crate) struct Draft {
    pub(crate) name: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) daily_quota: Option<i64>,
    pub(crate) monthly_quota: Option<i64>,
    pub(crate) rate_per_second: Option<u32>,
    pub(crate) burst: Option<u32>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) allow: Vec<String>,
    pub(crate) metadata: Metadata,
}

/// The wish for a change, as it was sent; what is absent stays.
#[derive(Clone, Default, Debug)]
pub(crate) struct Edit {
    pub(crate) name: Option<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) daily_quota: Option<i64>,
    pub(crate) monthly_quota: Option<i64>,
    pub(crate) rate_per_second: Option<u32>,
    pub(crate) burst: Option<u32>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) allow: Option<Vec<String>>,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) active: Option<bool>,
}

fn quota(field: &'static str, calls: Option<i64>) -> Result<Option<i64>> {
    match calls {
        Some(calls) if calls < 1 => Err(Error::invalid(
            field,
            "must be at least 1; leave it out for no limit",
        )),
        calls => Ok(calls),
    }
}

/// In a change 0 lifts the quota.
fn changed_quota(field: &'static str, wish: Option<i64>, now: Option<i64>) -> Result<Option<i64>> {
    match wish {
        None => Ok(now),
        Some(0) => Ok(None),
        Some(calls) if calls < 0 => Err(Error::invalid(
            field,
            "must not be negative; 0 means no limit",
        )),
        Some(calls) => Ok(Some(calls)),
    }
}

fn rate(per_second: Option<u32>, burst: Option<u32>) -> Result<Option<Rate>> {
    let Some(per_second) = per_second else {
        return match burst {
            None => Ok(None),
            Some(_) => Err(Error::invalid(
                "burst",
                "needs a rate: set `rate_per_second` too, or leave `burst` out",
            )),
        };
    };
    let burst = burst.unwrap_or(per_second);
    for (field, calls) in [("rate_per_second", per_second), ("burst", burst)] {
        if !(1..=RATE_MAX).contains(&calls) {
            return Err(Error::invalid(
                field,
                format!("must be from 1 to {RATE_MAX}; leave it out for no limit"),
            ));
        }
    }
    Ok(Some(Rate { per_second, burst }))
}

/// In a change a rate of 0 lifts the limit; a new rate keeps the burst there is.
fn changed_rate(edit: &Edit, now: Option<Rate>) -> Result<Option<Rate>> {
    if edit.rate_per_second == Some(0) {
        return rate(None, edit.burst);
    }
    rate(
        edit.rate_per_second.or(now.map(|rate| rate.per_second)),
        edit.burst.or(now.map(|rate| rate.burst)),
    )
}

fn scopes(wishes: &[String], known: &[Scope]) -> Result<Vec<Scope>> {
    let choice = || {
        let names: Vec<&str> = known.iter().map(Scope::as_str).collect();
        match names.is_empty() {
            true => "there are none yet: create a service first".to_owned(),
            false => format!("choose from {}", names.join(", ")),
        }
    };
    if wishes.is_empty() {
        return Err(Error::invalid(
            "scopes",
            format!("must name at least one: {}", choice()),
        ));
    }
    if wishes.len() > SCOPES_MAX {
        return Err(Error::invalid(
            "scopes",
            format!("must be at most {SCOPES_MAX}"),
        ));
    }
    let mut chosen: Vec<Scope> = Vec::new();
    for wish in wishes {
        let Some(scope) = known.iter().find(|scope| scope.as_str() == wish) else {
            let wish: String = wish.chars().take(64).collect();
            let problem = format!("has `{wish}`, which does not exist: {}", choice());
            return Err(Error::invalid("scopes", problem));
        };
        if !chosen.contains(scope) {
            chosen.push(scope.clone());
        }
    }
    Ok(chosen)
}

fn expiry(at: Option<Timestamp>, now: Timestamp) -> Result<Option<Timestamp>> {
    match at {
        Some(at) if at <= now => Err(Error::invalid(
            "expires_at",
            format!("must be in the future, {at} is not; leave it out for a key without end"),
        )),
        at => Ok(at),
    }
}

/// Reads CIDR blocks; a single address is a block of one. Bits behind the prefix are cleared.
fn allow(blocks: &[String]) -> Result<Vec<IpNet>> {
    if blocks.len() > ALLOW_MAX {
        let problem = format!(
            "has {} entries; at most {ALLOW_MAX} are allowed",
            blocks.len()
        );
        return Err(Error::invalid("allow", problem));
    }
    let mut nets: Vec<IpNet> = Vec::new();
    for text in blocks {
        let parsed = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let Ok(net) = parsed else {
            let text: String = text.chars().take(64).collect();
            let problem = format!("has `{text}`; must be CIDR blocks such as 203.0.113.0/24");
            return Err(Error::invalid("allow", problem));
        };
        if !nets.contains(&net.trunc()) {
            nets.push(net.trunc());
        }
    }
    Ok(nets)
}

/// Reads which status to look for; empty means any.
pub(crate) fn status_wish(text: &str) -> Result<Option<String>> {
    match text {
        "" => Ok(None),
        text if STATUSES.contains(&text) => Ok(Some(text.to_owned())),
        _ => Err(Error::invalid(
            "status",
            format!("must be one of {}", STATUSES.join(", ")),
        )),
    }
}

/// Reads which part of a name to look for; empty means any.
pub(crate) fn name_part(text: &str) -> Result<Option<String>> {
    match text {
        "" => Ok(None),
        text => Ok(Some(parse_key_name("name", text)?)),
    }
}

/// Checks the reason of a revocation.
pub(crate) fn reason(text: &str) -> Result<String> {
    let text = text.trim();
    let fits = (1..=REASON_CHARS_MAX).contains(&text.chars().count())
        && !text.chars().any(char::is_control);
    if !fits {
        let problem = format!("must be 1–{REASON_CHARS_MAX} characters: say why");
        return Err(Error::invalid("reason", problem));
    }
    Ok(text.to_owned())
}

impl Draft {
    /// Decides whether the wish makes a key.
    pub(crate) fn check(
        &self,
        known: &[Scope],
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Settings> {
        let expires_at = expiry(self.expires_at, now)?;
        policy.check_lifetime(now, expires_at)?;
        Ok(Settings {
            name: parse_key_name("name", &self.name)?,
            scopes: scopes(&self.scopes, known)?,
            daily_quota: quota("daily_quota", self.daily_quota)?,
            monthly_quota: quota("monthly_quota", self.monthly_quota)?,
            rate: rate(self.rate_per_second, self.burst)?,
            expires_at,
            allow: allow(&self.allow)?,
            metadata: metadata::check(&self.metadata)?,
            active: true,
        })
    }
}

impl Edit {
    /// Decides what the key becomes. A revoked key does not change any more, and one that was
    /// rotated can only be suspended and restored until it ends.
    pub(crate) fn apply(
        &self,
        key: &ApiKey,
        known: &[Scope],
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Settings> {
        if key.revoked.is_some() {
            return Err(Error::Conflict(
                "a revoked key does not change: create a new one",
            ));
        }
        let old = &key.settings;
        let new = self.merge(old, known, now)?;
        let only_activity = Settings {
            active: old.active,
            ..new.clone()
        };
        if key.rotated_to.is_some() && only_activity != *old {
            return Err(Error::Conflict(
                "a rotated key only ends: change the key that replaces it",
            ));
        }
        if new.expires_at != old.expires_at {
            policy.check_lifetime(key.created_at, new.expires_at)?;
        }
        Ok(new)
    }

    fn merge(&self, old: &Settings, known: &[Scope], now: Timestamp) -> Result<Settings> {
        Ok(Settings {
            name: match &self.name {
                Some(name) => parse_key_name("name", name)?,
                None => old.name.clone(),
            },
            scopes: match self.scopes.is_empty() {
                true => old.scopes.clone(),
                false => scopes(&self.scopes, known)?,
            },
            daily_quota: changed_quota("daily_quota", self.daily_quota, old.daily_quota)?,
            monthly_quota: changed_quota("monthly_quota", self.monthly_quota, old.monthly_quota)?,
            rate: changed_rate(self, old.rate)?,
            expires_at: match self.expires_at {
                Some(at) => expiry(Some(at), now)?,
                None => old.expires_at,
            },
            allow: match &self.allow {
                Some(blocks) => allow(blocks)?,
                None => old.allow.clone(),
            },
            metadata: match &self.metadata {
                Some(wish) => metadata::check(wish)?,
                None => old.metadata.clone(),
            },
            active: self.active.unwrap_or(old.active),
        })
    }
}

impl Settings {
    /// As the audit log shows it.
    pub(crate) fn facts(&self) -> Value {
        json!({
            "name": self.name,
            "scopes": self.scopes.iter().map(Scope::as_str).collect::<Vec<_>>(),
            "daily_quota": self.daily_quota,
            "monthly_quota": self.monthly_quota,
            "rate_per_second": self.rate.map(|rate| rate.per_second),
            "burst": self.rate.map(|rate| rate.burst),
            "expires_at": self.expires_at.map(|at| at.to_string()),
            "allow": self.allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "metadata": self.metadata,
            "active": self.active,
        })
    }
}

impl ApiKey {
    /// As the audit log shows it.
    pub(crate) fn facts(&self) -> Value {
        let throttle = self.restraints.throttle.as_ref();
        let mut facts = self.settings.facts();
        facts["suspended_reason"] = json!(self.restraints.suspended_reason);
        facts["throttle_per_second"] = json!(throttle.map(|throttle| throttle.per_second));
        facts["throttle_reason"] = json!(throttle.map(|throttle| throttle.reason.as_str()));
        facts
    }

    /// What is noted when this key becomes another.
    pub(crate) fn change_to(&self, changed: &Self) -> &'static str {
        let is_same = self.settings.active == changed.settings.active
            && self.restraints == changed.restraints;
        match changed.settings.active {
            _ if is_same => "key.updated",
            true => "key.restored",
            false => "key.suspended",
        }
    }

    /// `active`, `throttled`, `suspended`, `revoked` or `expired`.
    pub(crate) fn status(&self, now: Timestamp) -> &'static str {
        if self.revoked.is_some() {
            return "revoked";
        }
        if !self.settings.active {
            return "suspended";
        }
        match self.settings.expires_at {
            Some(end) if end <= now => "expired",
            _ if self.restraints.throttle.is_some() => "throttled",
            _ => "active",
        }
    }

    /// Why the key is suspended, or else throttled; `None` when it is neither, or when somebody
    /// suspended it by hand.
    pub(crate) fn held_reason(&self) -> Option<&str> {
        let throttle = self.restraints.throttle.as_ref();
        match self.settings.active {
            true => throttle.map(|throttle| throttle.reason.as_str()),
            false => self.restraints.suspended_reason.as_deref(),
        }
    }
}

/// How a key is rotated: what the new one is made with, and when the old one ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rotation {
    pub(crate) settings: Settings,
    pub(crate) old_ends_at: Timestamp,
}

impl ApiKey {
    /// Decides how the key is rotated. The new key takes everything over, its end too: rotating
    /// prolongs nothing. Both are counted under one `limits_key`, so nothing doubles while they
    /// overlap and no period begins anew. What anomalies impose stays with the old one: it was its
    /// text that behaved unusually.
    pub(crate) fn rotate(&self, overlap_seconds: u32, now: Timestamp) -> Result<Rotation> {
        let refused = match self.status(now) {
            _ if self.rotated_to.is_some() => Some("the key was rotated already"),
            "revoked" => Some("a revoked key cannot be rotated: create a new one"),
            "expired" => Some("an expired key cannot be rotated: create a new one"),
            "suspended" => Some("a suspended key cannot be rotated: restore it first"),
            _ => None,
        };
        if let Some(reason) = refused {
            return Err(Error::Conflict(reason));
        }
        if overlap_seconds > OVERLAP_SECONDS_MAX {
            let problem = format!("must be from 0 to {OVERLAP_SECONDS_MAX}");
            return Err(Error::invalid("overlap_seconds", problem));
        }
        let overlap = SignedDuration::from_secs(i64::from(overlap_seconds));
        let end = now.saturating_add(overlap).unwrap_or(Timestamp::MAX);
        let old_ends_at = self.settings.expires_at.map_or(end, |own| own.min(end));
        Ok(Rotation {
            settings: self.settings.clone(),
            old_ends_at,
        })
    }
}
