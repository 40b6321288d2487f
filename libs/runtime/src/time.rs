//! Time and ids as values that are handed in.

use std::{
    marker::PhantomData,
    time::{Instant, SystemTime},
};

use jiff::Timestamp;
use types::{Id, Kind};
use uuid::Uuid;

/// The clock of a process. Everything that decides takes the time from here.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Wall-clock time.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// Wall-clock time for the trace interface.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that asks the system"
    )]
    pub fn system_time(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Nanoseconds since the process began; never goes back.
    #[must_use]
    pub fn monotonic_nanos(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Makes new ids.
#[derive(Clone, Debug, Default)]
pub struct Ids(PhantomData<()>);

impl Ids {
    /// A new UUIDv7 of a kind.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that makes ids")]
    pub fn new_id<K: Kind>(&self) -> Id<K> {
        Id::new(Uuid::now_v7())
    }
}
