//! How many keys an organisation may make.

use jiff::{SignedDuration, Timestamp};

/// Keys made are counted over so long.
const WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// What was made until then does not count any more.
pub(crate) fn start(now: Timestamp) -> Timestamp {
    now.saturating_sub(WINDOW).unwrap_or(Timestamp::MIN)
}

/// How long to wait until a key may be made, when the n-th newest was made at `created`, of n that
/// may be made within the window; in whole seconds. `None`: it may be made now.
pub(crate) fn wait(created: Timestamp, now: Timestamp) -> Option<SignedDuration> {
    let left = now.duration_until(created.saturating_add(WINDOW).ok()?);
    let whole = left.as_secs() + i64::from(left.subsec_nanos() > 0);
    (left.is_positive()).then(|| SignedDuration::from_secs(whole))
}
