//! What an answer says of limits: RateLimit fields of draft-ietf-httpapi-ratelimit-headers-11.

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use types::{QuotaKind, Rate};

/// Limits that an answer names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Limits {
    /// Of the key, each second.
    pub(crate) rate: Option<RateLeft>,
    /// A quota that is used up. One that is not is unnamed: what others hold of it is unknown here.
    pub(crate) spent: Option<QuotaSpent>,
}

/// A rate, the calls left at once, and the seconds until there are more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RateLeft {
    pub(crate) rate: Rate,
    pub(crate) left: u32,
    pub(crate) wait: u64,
}

/// A quota without permits until its period ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct QuotaSpent {
    pub(crate) kind: QuotaKind,
    pub(crate) calls: i64,
    /// Seconds of the whole period.
    pub(crate) window: u64,
    /// Seconds until its end, at least 1.
    pub(crate) wait: u64,
}

impl QuotaSpent {
    pub(crate) fn new(kind: QuotaKind, calls: i64, now: Timestamp) -> Self {
        let period = kind.period(now);
        let seconds = |from: Timestamp, to: Timestamp| {
            let millis = to.as_millisecond().saturating_sub(from.as_millisecond());
            u64::try_from(millis).unwrap_or(0).div_ceil(1_000)
        };
        Self {
            kind,
            calls,
            window: seconds(period.start, period.end),
            wait: seconds(now, period.end).max(1),
        }
    }
}

impl Limits {
    /// Adds the fields to an answer.
    pub(crate) fn put(&self, headers: &mut HeaderMap) {
        let mut policies = Vec::new();
        let mut states = Vec::new();
        if let Some(RateLeft { rate, left, wait }) = self.rate {
            policies.push(format!("\"key\";q={};w=1", rate.per_second));
            states.push(format!("\"key\";r={left};t={wait}"));
        }
        if let Some(QuotaSpent {
            kind,
            calls,
            window,
            wait,
        }) = self.spent
        {
            policies.push(format!("\"{kind}\";q={calls};w={window}"));
            states.push(format!("\"{kind}\";r=0;t={wait}"));
        }
        for (name, items) in [("ratelimit-policy", policies), ("ratelimit", states)] {
            if items.is_empty() {
                continue;
            }
            if let Ok(value) = HeaderValue::try_from(items.join(", ")) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(limits: Limits) -> [Option<String>; 2] {
        let mut headers = HeaderMap::new();
        limits.put(&mut headers);
        ["ratelimit-policy", "ratelimit"].map(|name| {
            let value = headers.get(name)?;
            Some(value.to_str().expect("plain").to_owned())
        })
    }

    #[test]
    fn an_answer_names_the_limit_and_when_it_ends() {
        assert_eq!(put(Limits::default()), [None, None]);
        let rate = Rate {
            per_second: 10,
            burst: 20,
        };
        let rate = Some(RateLeft {
            rate,
            left: 3,
            wait: 1,
        });
        let now = "2026-02-27T23:59:58.5Z".parse().expect("a time");
        let spent = Some(QuotaSpent::new(QuotaKind::Monthly, 50, now));
        let [policy, state] = put(Limits { rate, spent });
        let month = 28 * 86_400;
        let policies = format!("\"key\";q=10;w=1, \"monthly\";q=50;w={month}");
        assert_eq!(policy, Some(policies));
        assert_eq!(
            state.as_deref(),
            Some("\"key\";r=3;t=1, \"monthly\";r=0;t=86402")
        );
    }

    #[test]
    fn a_period_ends_in_at_least_a_second() {
        let now = "2026-02-28T23:59:59.9999Z".parse().expect("a time");
        let spent = QuotaSpent::new(QuotaKind::Daily, 5, now);
        assert_eq!((spent.window, spent.wait), (86_400, 1));
    }
}
