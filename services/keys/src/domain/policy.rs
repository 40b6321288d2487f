//! The rules an organisation sets itself.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use types::{Environment, WebOrigin};

use super::second_factor;
use crate::error::{Error, Result};

/// A shorter life makes keys unusable.
const LIFETIME_SECONDS_MIN: i64 = 3600;
/// Ten years: longer is no limit.
const LIFETIME_SECONDS_MAX: i64 = 10 * 366 * 86_400;

/// Origins of an organisation.
const ORIGINS_MAX: usize = 20;

/// What happens to a key that is reported as leaked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LeakAction {
    Notify,
    Suspend,
    Revoke,
}

impl LeakAction {
    const ALL: [Self; 3] = [Self::Notify, Self::Suspend, Self::Revoke];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Suspend => "suspend",
            Self::Revoke => "revoke",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|action| action.as_str() == text);
        found.ok_or_else(|| Error::invalid("leak_action", "must be one of notify, suspend, revoke"))
    }
}

/// What happens to the keys of an anomaly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AnomalyAction {
    Notify,
    Throttle,
    Suspend,
}

impl AnomalyAction {
    const ALL: [Self; 3] = [Self::Notify, Self::Throttle, Self::Suspend];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Throttle => "throttle",
            Self::Suspend => "suspend",
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|action| action.as_str() == text);
        let problem = "must be one of notify, throttle, suspend";
        found.ok_or_else(|| Error::invalid("anomaly_action", problem))
    }
}

/// The rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Policy {
    pub(crate) live_keys_need_second_factor: bool,
    pub(crate) key_lifetime_seconds_max: Option<i64>,
    pub(crate) developers_may_create_live_keys: bool,
    pub(crate) leak_action: LeakAction,
    pub(crate) anomaly_action: AnomalyAction,
    /// Pages that may call with the organisation's keys; empty: CORS is not used.
    pub(crate) allowed_origins: Vec<WebOrigin>,
}

/// The wish for a change, as it was sent; what is absent stays.
#[derive(Clone, Default, Debug)]
pub(crate) struct PolicyWish {
    pub(crate) live_keys_need_second_factor: Option<bool>,
    pub(crate) key_lifetime_seconds_max: Option<i64>,
    pub(crate) developers_may_create_live_keys: Option<bool>,
    pub(crate) leak_action: Option<String>,
    pub(crate) anomaly_action: Option<String>,
    pub(crate) allowed_origins: Option<Vec<String>>,
}

impl PolicyWish {
    /// Decides what the policy becomes.
    pub(crate) fn apply(&self, old: &Policy) -> Result<Policy> {
        let key_lifetime_seconds_max = match self.key_lifetime_seconds_max {
            None => old.key_lifetime_seconds_max,
            Some(0) => None,
            Some(seconds) if (LIFETIME_SECONDS_MIN..=LIFETIME_SECONDS_MAX).contains(&seconds) => {
                Some(seconds)
            }
            Some(_) => {
                let problem = format!(
                    "must be from {LIFETIME_SECONDS_MIN} to {LIFETIME_SECONDS_MAX}; 0 means no \
                     limit"
                );
                return Err(Error::invalid("key_lifetime_seconds_max", problem));
            }
        };
        Ok(Policy {
            live_keys_need_second_factor: self
                .live_keys_need_second_factor
                .unwrap_or(old.live_keys_need_second_factor),
            key_lifetime_seconds_max,
            developers_may_create_live_keys: self
                .developers_may_create_live_keys
                .unwrap_or(old.developers_may_create_live_keys),
            leak_action: match &self.leak_action {
                Some(text) => LeakAction::parse(text)?,
                None => old.leak_action,
            },
            anomaly_action: match &self.anomaly_action {
                Some(text) => AnomalyAction::parse(text)?,
                None => old.anomaly_action,
            },
            allowed_origins: match &self.allowed_origins {
                Some(texts) => origins(texts)?,
                None => old.allowed_origins.clone(),
            },
        })
    }
}

/// Reads a list of origins; each stays once, in the order of the list.
pub(crate) fn origins(texts: &[String]) -> Result<Vec<WebOrigin>> {
    let mut origins = Vec::with_capacity(texts.len());
    for text in texts {
        let origin = WebOrigin::parse(text)
            .map_err(|problem| Error::invalid("allowed_origins", problem.to_string()))?;
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    if origins.len() > ORIGINS_MAX {
        let problem = format!("must be at most {ORIGINS_MAX} origins");
        return Err(Error::invalid("allowed_origins", problem));
    }
    if origins.len() > 1 && origins.iter().any(WebOrigin::is_any) {
        let problem = "`*` stands alone: it allows all that the others do";
        return Err(Error::invalid("allowed_origins", problem));
    }
    Ok(origins)
}

impl Policy {
    /// As the audit log shows it.
    pub(crate) fn facts(&self) -> Value {
        json!({
            "live_keys_need_second_factor": self.live_keys_need_second_factor,
            "key_lifetime_seconds_max": self.key_lifetime_seconds_max,
            "developers_may_create_live_keys": self.developers_may_create_live_keys,
            "leak_action": self.leak_action.as_str(),
            "anomaly_action": self.anomaly_action.as_str(),
            "allowed_origins": self.origin_texts(),
        })
    }

    /// The origins as they are stored and shown.
    pub(crate) fn origin_texts(&self) -> Vec<String> {
        let texts = self.allowed_origins.iter();
        texts.map(|origin| origin.as_str().to_owned()).collect()
    }

    /// Refuses a key that would live longer than the organisation allows.
    pub(crate) fn check_lifetime(
        &self,
        created_at: Timestamp,
        expires_at: Option<Timestamp>,
    ) -> Result<()> {
        let Some(seconds) = self.key_lifetime_seconds_max else {
            return Ok(());
        };
        let latest = created_at.saturating_add(SignedDuration::from_secs(seconds));
        let latest = latest.unwrap_or(Timestamp::MAX);
        if expires_at.is_some_and(|at| at <= latest) {
            return Ok(());
        }
        let problem = format!("must be {latest} or before: the organisation limits keys' lives");
        Err(Error::invalid("expires_at", problem))
    }

    /// Refuses to make a live key without a second factor, where the organisation wants one.
    pub(crate) fn check_second_factor(
        &self,
        environment: Environment,
        presented: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<()> {
        let needed = environment == Environment::Production && self.live_keys_need_second_factor;
        match needed && !second_factor::is_fresh(presented, now) {
            true => Err(Error::SecondFactorNeeded),
            false => Ok(()),
        }
    }
}
