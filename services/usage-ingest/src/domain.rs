//! What a row holds, which partitions there must be, what is too old to keep, and pages.

pub(crate) mod idempotency;

use std::{fmt, net::IpAddr, str::FromStr};

use jiff::{Timestamp, ToSpan, civil::Date, tz::Offset};
use types::{Environment, JournalId, KeyId, LeaseId, OrgId, RequestId, ServiceId, UserId};
use uuid::Uuid;

use self::idempotency::Claim;
use crate::error::Error;

/// Days ahead for which partitions are kept ready.
const DAYS_AHEAD: i32 = 7;
/// Digits of a trace id.
const TRACE_ID_DIGITS: usize = 32;

/// How a call ended, as tables hold it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Disposition {
    Completed,
    ClientAborted,
    UpstreamAborted,
    Refused,
    UpstreamFailed,
    GatewayAborted,
}

impl Disposition {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientAborted => "client_aborted",
            Self::UpstreamAborted => "upstream_aborted",
            Self::Refused => "refused",
            Self::UpstreamFailed => "upstream_failed",
            Self::GatewayAborted => "gateway_aborted",
        }
    }
}

/// A call as it is written. Whoever holds one may trust every field to fit its column.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Row {
    pub(crate) journal: JournalId,
    pub(crate) seq: i64,
    pub(crate) at: Timestamp,
    pub(crate) request: RequestId,
    pub(crate) key: Option<KeyId>,
    pub(crate) org: OrgId,
    pub(crate) user: Option<UserId>,
    pub(crate) service_id: Option<ServiceId>,
    pub(crate) service: String,
    pub(crate) endpoint: String,
    pub(crate) method: String,
    pub(crate) status: i32,
    pub(crate) response_time_ms: i64,
    pub(crate) upstream_time_ms: i64,
    pub(crate) credits: i64,
    pub(crate) details: serde_json::Value,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) country: String,
    pub(crate) user_agent: String,
    pub(crate) environment: Environment,
    pub(crate) disposition: Disposition,
    pub(crate) code: String,
    pub(crate) lease: Option<(LeaseId, i64)>,
    /// Leases of the permits it used; a key has at most two quotas.
    pub(crate) permits: [Option<LeaseId>; 2],
    pub(crate) price_version: i64,
    pub(crate) trace_id: String,
    pub(crate) request_bytes: i64,
    pub(crate) response_bytes: i64,
    /// The call whose kept answer it was given.
    pub(crate) replay_of: Option<RequestId>,
    /// The idempotency key that it has.
    pub(crate) claim: Option<Claim>,
}

impl Row {
    /// Drops what identifies a person when the call is older than `days` at `now`: a journal that
    /// turns up late must not bring back what would have been erased.
    pub(crate) fn without_old_personal_data(mut self, now: Timestamp, days: u32) -> Self {
        if now.duration_since(self.at) >= jiff::SignedDuration::from_hours(24 * i64::from(days)) {
            self.ip = None;
            self.user_agent.clear();
        }
        self
    }
}

/// The UTC day of a moment: the partition of its row.
pub(crate) fn day_of(at: Timestamp) -> Date {
    Offset::UTC.to_datetime(at).date()
}

/// The days that must have a partition: yesterday, for stragglers, to a week ahead, so that a week
/// of failed runs costs nothing.
pub(crate) fn partition_days(today: Date) -> Vec<Date> {
    (-1..=DAYS_AHEAD)
        .map(|ahead| today.saturating_add(ahead.days()))
        .collect()
}

/// The first day whose personal data is still kept. Days are erased whole, once their last moment
/// is old enough; one more hour lets every transaction end that found it young.
pub(crate) fn first_day_kept(now: Timestamp, days: u32) -> Date {
    let an_hour_ago = now
        .saturating_sub(jiff::SignedDuration::from_hours(1))
        .unwrap_or(now);
    day_of(an_hour_ago).saturating_sub(i64::from(days).days())
}

/// The trace id inside a W3C `traceparent`, or nothing when it has none.
pub(crate) fn trace_id(traceparent: &str) -> &str {
    let digits = traceparent.split('-').nth(1).unwrap_or_default();
    let fits = digits.len() == TRACE_ID_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if fits { digits } else { "" }
}

/// Text as PostgreSQL can hold it: a NUL, which it cannot, becomes the replacement character.
pub(crate) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Where a page ended: calls are listed by time, journal and position, newest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cursor {
    pub(crate) at: Timestamp,
    pub(crate) journal: Uuid,
    pub(crate) seq: i64,
}

impl Cursor {
    /// Before the first page.
    pub(crate) const START: Self = Self {
        at: Timestamp::MAX,
        journal: Uuid::max(),
        seq: i64::MAX,
    };
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{}.{}",
            self.at.as_microsecond(),
            self.journal.simple(),
            self.seq
        )
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split('.');
        let (Some(at), Some(journal), Some(seq), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::PageToken);
        };
        let at = at
            .parse()
            .ok()
            .and_then(|micros| Timestamp::from_microsecond(micros).ok());
        let (Some(at), Ok(journal), Ok(seq)) = (at, Uuid::try_parse(journal), seq.parse()) else {
            return Err(Error::PageToken);
        };
        // Before 1970 there are no calls, and far before it PostgreSQL has no time.
        if at < Timestamp::UNIX_EPOCH {
            return Err(Error::PageToken);
        }
        Ok(Self { at, journal, seq })
    }
}
