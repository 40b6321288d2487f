//! How calls add up, and which periods may be asked for.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, ToSpan, civil::Date, tz::Offset};
use types::{Credits, Environment, OrgId};

use crate::error::{Error, Result};

/// Days of one question about days.
pub(crate) const DAYS_MAX: i32 = 366;
/// Days before today that are answered when the caller does not say.
const DAYS_DEFAULT: i32 = 30;
/// Hours before now that are answered when the caller does not say.
const HOURS_DEFAULT: i64 = 24;
const HOUR: i64 = 3600;

/// What statistics need to know of a call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Call {
    pub(crate) org: OrgId,
    pub(crate) at: Timestamp,
    pub(crate) environment: Environment,
    pub(crate) service: String,
    pub(crate) credits: Credits,
    pub(crate) successful: bool,
}

/// Sums over calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sums {
    pub(crate) requests: i64,
    pub(crate) credits: Credits,
    pub(crate) successful: i64,
}

impl Sums {
    /// The sums of both; nothing when they do not fit.
    pub(crate) fn plus(self, other: Self) -> Option<Self> {
        Some(Self {
            requests: self.requests.checked_add(other.requests)?,
            credits: self.credits.checked_add(other.credits)?,
            successful: self.successful.checked_add(other.successful)?,
        })
    }
}

impl From<&Call> for Sums {
    fn from(call: &Call) -> Self {
        Self {
            requests: 1,
            credits: call.credits,
            successful: i64::from(call.successful),
        }
    }
}

/// One row of `daily_stats`, as a change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Daily {
    pub(crate) sums: Sums,
    pub(crate) services: BTreeMap<String, i64>,
}

/// Changes by the keys of their rows; the maps' order is the order of the locks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Changes {
    hours: BTreeMap<HourlyKey, Sums>,
}

/// A row of `hourly_stats`.
pub(crate) type HourlyKey = (OrgId, Timestamp, Environment, String);
/// A row of `daily_stats`.
pub(crate) type DailyKey = (OrgId, Date, Environment);

impl Changes {
    /// Adds a call. No record costs more than `CALL_COST_MAX`, so no number of records that can be
    /// in memory is too much.
    pub(crate) fn add(&mut self, call: Call) {
        let one = Sums::from(&call);
        let key = (call.org, hour_of(call.at), call.environment, call.service);
        let sums = self.hours.entry(key).or_default();
        *sums = sums.plus(one).expect("each cost has a limit");
    }

    /// Changes by hour and service.
    pub(crate) fn hours(&self) -> &BTreeMap<HourlyKey, Sums> {
        &self.hours
    }

    /// The same by day, with calls per service. A day is a whole number of hours.
    pub(crate) fn days(&self) -> BTreeMap<DailyKey, Daily> {
        let mut days: BTreeMap<_, Daily> = BTreeMap::new();
        for ((org, hour, environment, service), sums) in &self.hours {
            let day = days.entry((*org, day_of(*hour), *environment)).or_default();
            day.sums = day.sums.plus(*sums).expect("each cost has a limit");
            *day.services.entry(service.clone()).or_default() += sums.requests;
        }
        days
    }
}

/// A call succeeded when its client was given a 2xx or 3xx, or the protocol it asked for.
pub(crate) fn is_success(status: u32) -> bool {
    status == 101 || (200..400).contains(&status)
}

/// The UTC day of a moment.
pub(crate) fn day_of(at: Timestamp) -> Date {
    Offset::UTC.to_datetime(at).date()
}

/// The hour a moment lies in. Calls are never before 1970.
fn hour_of(at: Timestamp) -> Timestamp {
    let seconds = at.as_second();
    Timestamp::from_second(seconds - seconds.rem_euclid(HOUR)).unwrap_or(at)
}

/// The days asked for, both inclusive: by default the last thirty and today.
pub(crate) fn days(from: &str, to: &str, now: Timestamp) -> Result<(Date, Date)> {
    let today = day_of(now);
    let to = if to.is_empty() { today } else { day("to", to)? };
    let from = if from.is_empty() {
        to.saturating_sub(DAYS_DEFAULT.days())
    } else {
        day("from", from)?
    };
    let last = from.saturating_add((DAYS_MAX - 1).days());
    if from > to || to > last {
        return Err(Error::PeriodLength { days_max: DAYS_MAX });
    }
    Ok((from, to))
}

fn day(field: &'static str, text: &str) -> Result<Date> {
    let day: Option<Date> = text.parse().ok();
    // Years of four digits: nobody has others, and PostgreSQL not all of them.
    day.filter(|day| day.year() >= 1970).ok_or(Error::Period {
        field,
        form: "a day such as 2026-01-31",
    })
}

/// The first hour asked for: by default a day ago.
pub(crate) fn first_hour(from: &str, now: Timestamp) -> Result<Timestamp> {
    if from.is_empty() {
        let ago = now.saturating_sub(SignedDuration::from_hours(HOURS_DEFAULT));
        return Ok(hour_of(ago.unwrap_or(now)));
    }
    let from: Option<Timestamp> = from.parse().ok();
    from.filter(|from| *from >= Timestamp::UNIX_EPOCH)
        .map(hour_of)
        .ok_or(Error::Period {
            field: "from",
            form: "a time such as 2026-01-31T08:00:00Z",
        })
}
