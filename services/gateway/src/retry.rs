//! Waiting between attempts at what is away, until it is back or the process stops.

use std::time::Duration;

use runtime::Stop;

/// The first wait; each one is twice as long as the one before, up to the longest.
const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(1);

/// How long to wait before the next attempt.
#[derive(Debug)]
pub(crate) struct Retry(Duration);

impl Retry {
    pub(crate) fn new() -> Self {
        Self(WAIT_MIN)
    }

    /// True until there was a wait.
    pub(crate) fn is_first(&self) -> bool {
        self.0 == WAIT_MIN
    }

    /// Waits; false when `stop` was requested meanwhile.
    pub(crate) async fn pause(&mut self, stop: &Stop) -> bool {
        let waited = tokio::select! {
            () = tokio::time::sleep(self.0) => true,
            () = stop.requested() => false,
        };
        self.0 = self.0.saturating_mul(2).min(WAIT_MAX);
        waited
    }
}
