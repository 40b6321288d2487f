//! The periods of quotas: days and calendar months in UTC.

use std::fmt;

use jiff::{Timestamp, ToSpan, tz::TimeZone};

/// Which calendar a quota follows, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum QuotaKind {
    /// Days.
    Daily,
    /// Calendar months.
    Monthly,
}

/// From `start` on, before `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Period {
    /// Its first moment.
    pub start: Timestamp,
    /// The first moment of the next.
    pub end: Timestamp,
}

impl QuotaKind {
    /// The name, e.g. in tables and header fields.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Monthly => "monthly",
        }
    }

    /// The period `now` is in.
    #[must_use]
    pub fn period(self, now: Timestamp) -> Period {
        let today = now.to_zoned(TimeZone::UTC).date();
        let (first, next) = match self {
            Self::Daily => (today, today.checked_add(1.day())),
            Self::Monthly => {
                let first = today.first_of_month();
                (first, first.checked_add(1.month()))
            }
        };
        let [start, end] = [first, next.expect("no clock is in the year 9999")].map(|date| {
            let midnight = date.to_zoned(TimeZone::UTC);
            midnight.expect("UTC has every midnight").timestamp()
        });
        Period { start, end }
    }
}

impl fmt::Display for QuotaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
