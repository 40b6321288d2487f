//! The rates of a key, and what an answer says of limits: RateLimit fields of
//! draft-ietf-httpapi-ratelimit-headers-11.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use types::{Gcra, QuotaKind, Rate, Share};

/// Limits that an answer names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Limits {
    /// Of the key, while an anomaly throttles it.
    pub(crate) throttle: Option<RateLeft>,
    /// Of the key, each second.
    pub(crate) rate: Option<RateLeft>,
    /// A quota that is used up. One that is not is unnamed: what others hold of it is unknown here.
    pub(crate) spent: Option<QuotaSpent>,
}

/// A rate, the calls left at once, and the seconds until there are more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RateLeft {
    pub(crate) rate: Rate,
    /// This gateway's part, from which the call has taken.
    share: Share,
    pub(crate) left: u32,
    pub(crate) wait: u64,
}

/// A rate, and its limiter on this gateway. Copies of a record share the limiter.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    pub(crate) rate: Rate,
    pub(crate) limiter: Arc<Gcra>,
}

impl Pace {
    /// Takes a place for a call at `now` (monotonic nanoseconds).
    ///
    /// # Errors
    /// There is none: what an answer says of it.
    pub(crate) fn take(&self, gateways: u32, now: u64) -> Result<RateLeft, RateLeft> {
        let (rate, share) = (self.rate, self.rate.share(gateways));
        let left = |left, wait| RateLeft {
            rate,
            share,
            left,
            wait,
        };
        match self.limiter.admit(share, now) {
            Ok(()) => Ok(left(self.limiter.remaining(share, now), 1)),
            Err(wait) => Err(left(0, wait.div_ceil(1_000_000_000).max(1))),
        }
    }

    /// Gives a place back, because a later check has refused the call.
    pub(crate) fn give_back(&self, taken: RateLeft) {
        self.limiter.give_back(taken.share);
    }
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
        for (name, left) in [("throttle", self.throttle), ("key", self.rate)] {
            let Some(RateLeft {
                rate, left, wait, ..
            }) = left
            else {
                continue;
            };
            policies.push(format!("\"{name}\";q={};w=1", rate.per_second));
            states.push(format!("\"{name}\";r={left};t={wait}"));
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
        let pace = |per_second, burst| Pace {
            rate: Rate { per_second, burst },
            limiter: Arc::default(),
        };
        let rate = pace(10, 4).take(1, 5).ok();
        let slow = pace(1, 1);
        assert!(slow.take(3, 5).is_ok(), "the first one");
        let throttle = slow.take(3, 5).err();
        let now = "2026-02-27T23:59:58.5Z".parse().expect("a time");
        let spent = Some(QuotaSpent::new(QuotaKind::Monthly, 50, now));
        let [policy, state] = put(Limits {
            throttle,
            rate,
            spent,
        });
        let month = 28 * 86_400;
        let policies =
            format!("\"throttle\";q=1;w=1, \"key\";q=10;w=1, \"monthly\";q=50;w={month}");
        assert_eq!(policy, Some(policies), "of all gateways, not of this one");
        assert_eq!(
            state.as_deref(),
            Some("\"throttle\";r=0;t=3, \"key\";r=3;t=1, \"monthly\";r=0;t=86402")
        );
    }

    #[test]
    fn a_period_ends_in_at_least_a_second() {
        let now = "2026-02-28T23:59:59.9999Z".parse().expect("a time");
        let spent = QuotaSpent::new(QuotaKind::Daily, 5, now);
        assert_eq!((spent.window, spent.wait), (86_400, 1));
    }
}
