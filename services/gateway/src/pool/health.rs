//! When an address of an upstream is left alone: pure, the time is an argument.
//!
//! - Only failures in a row count, and only those that are the address's fault.
//! - What a client may cause, such as a call that takes too long, ends the use of an address only
//!   while others are used: nobody can switch a service off for all.
//! - An address that is left alone is tried again by one call at a time, ever more rarely while
//!   that fails.

use std::time::Duration;

use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// Failures in a row after which an address is left alone.
pub(crate) const FAILURES_MAX: u32 = 5;
/// For so long at first; each failed trial doubles it, up to the longest.
pub(crate) const REST_MIN: Duration = Duration::from_millis(500);
pub(crate) const REST_MAX: Duration = Duration::from_secs(15);

/// How an address fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It does not let itself be connected to: no client can cause that.
    Connect,
    /// It gives no answer in time, breaks off, or says itself that it cannot (502, 503, 504).
    Call,
}

/// What is known of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Health {
    /// It is used; so many attempts in a row have failed.
    Used { connects: u32, calls: u32 },
    /// It is left alone.
    Resting {
        until: Instant,
        rest: Duration,
        fault: Fault,
    },
    /// One call tries it.
    Tried { rest: Duration, fault: Fault },
}

/// What a call may do with an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leave {
    /// Use it.
    Use,
    /// Try it, alone.
    Try,
    /// Leave it alone for so long.
    Wait(Duration),
}

impl Health {
    pub(crate) const NEW: Self = Self::Used {
        connects: 0,
        calls: 0,
    };

    /// Whether every call may use it.
    pub(crate) fn is_used(self) -> bool {
        matches!(self, Self::Used { .. })
    }

    /// What a call may do now.
    pub(crate) fn leave(self, now: Instant) -> Leave {
        match self {
            Self::Used { .. } => Leave::Use,
            Self::Resting { until, .. } if now >= until => Leave::Try,
            Self::Resting { until, .. } => Leave::Wait(until.saturating_duration_since(now)),
            // The call that tries it will tell.
            Self::Tried { .. } => Leave::Wait(REST_MIN),
        }
    }

    /// After a call that takes the leave to try it.
    pub(crate) fn tried(self) -> Self {
        match self {
            Self::Resting { rest, fault, .. } => Self::Tried { rest, fault },
            other => other,
        }
    }

    /// After a connection was opened. It tells all where none could be.
    pub(crate) fn connected(self) -> Self {
        match self {
            Self::Used { calls, .. } => Self::Used { connects: 0, calls },
            Self::Tried {
                fault: Fault::Connect,
                ..
            } => Self::NEW,
            other => other,
        }
    }

    /// After an answer. One to a call from before the rest says nothing of now.
    pub(crate) fn answered(self) -> Self {
        match self {
            Self::Used { .. } | Self::Tried { .. } => Self::NEW,
            resting @ Self::Resting { .. } => resting,
        }
    }

    /// After a failure that is the address's; with `may_rest`, calls alone may end its use.
    pub(crate) fn failed(self, fault: Fault, may_rest: bool, now: Instant) -> Self {
        match self {
            Self::Used { connects, calls } => {
                let (count, rests) = match fault {
                    Fault::Connect => (connects.saturating_add(1), true),
                    Fault::Call => (calls.saturating_add(1), may_rest),
                };
                match (fault, rests && count >= FAILURES_MAX) {
                    (_, true) => Self::rest(now, REST_MIN, fault),
                    (Fault::Connect, false) => Self::Used {
                        connects: count,
                        calls,
                    },
                    (Fault::Call, false) => Self::Used {
                        connects,
                        calls: count,
                    },
                }
            }
            Self::Tried { rest, .. } => {
                Self::rest(now, rest.saturating_mul(2).min(REST_MAX), fault)
            }
            resting @ Self::Resting { .. } => resting,
        }
    }

    /// After a trial that told nothing, as of a client that has gone: the next call tries.
    pub(crate) fn untold(self, now: Instant) -> Self {
        match self {
            Self::Tried { rest, fault } => Self::Resting {
                until: now,
                rest,
                fault,
            },
            other => other,
        }
    }

    fn rest(now: Instant, rest: Duration, fault: Fault) -> Self {
        let until = now.checked_add(rest).unwrap_or(now);
        Self::Resting { until, rest, fault }
    }
}
