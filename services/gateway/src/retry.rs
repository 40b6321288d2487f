//! Waiting between attempts at what is away, until it is back or the process stops.

use std::time::Duration;

use runtime::{Host, Stop};
use types::JournalId;

use crate::journal;

/// The first wait; each one is twice as long as the one before, up to the longest.
const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_secs(1);
/// What went well for so long has nothing to do with an earlier failure.
const WELL_MIN: Duration = Duration::from_secs(60);
/// The same complaint is not made again before.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);

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

/// Work on a journal that must not end while the process lives: without it the journal grows until
/// calls are refused.
pub(crate) struct Insistence {
    host: Host,
    journal: JournalId,
    /// Of this life: the process is worth nothing without it.
    is_own: bool,
    retry: Retry,
    failed_at: Duration,
    complaint: Complaint,
}

impl Insistence {
    pub(crate) fn new(host: &Host, journal: JournalId, is_own: bool) -> Self {
        Self {
            host: host.clone(),
            journal,
            is_own,
            retry: Retry::new(),
            failed_at: Duration::ZERO,
            complaint: Complaint::default(),
        }
    }

    /// Waits until the work is to be tried again. `false`: `stop` was requested, or the error
    /// cannot pass. Then the process ends if the journal is its own, since the next one looks at
    /// the disk anew. One of an earlier life stays for an operator: each life would end for it.
    pub(crate) async fn may_pass(&mut self, error: &anyhow::Error, stop: &Stop) -> bool {
        if stop.is_requested() {
            return false;
        }
        let (now, error_text) = (monotonic(&self.host), format!("{error:#}"));
        if is_final(error) {
            tracing::error!(
                journal.id = %self.journal,
                error = error_text,
                "a journal is unusable: see `tollgate journal inspect`"
            );
            if self.is_own {
                self.host.fail("the journal cannot be shipped");
            }
            return false;
        }
        if now.saturating_sub(self.failed_at) > WELL_MIN {
            self.retry = Retry::new();
        }
        if self.complaint.is_due(now) {
            tracing::error!(
                journal.id = %self.journal,
                error = error_text,
                "a journal is not shipped; trying again"
            );
        }
        let waited = self.retry.pause(stop).await;
        self.failed_at = monotonic(&self.host);
        waited
    }
}

/// An error of the journal that stays, or a panic: an assertion about it has failed.
fn is_final(error: &anyhow::Error) -> bool {
    let journal = error.downcast_ref::<journal::Error>();
    journal.is_some_and(journal::Error::is_final) || error.is::<tokio::task::JoinError>()
}

/// Something that is complained of now and then, not each time that it happens.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Option<Duration>);

impl Complaint {
    pub(crate) fn is_due(&mut self, now: Duration) -> bool {
        let is_due = self
            .0
            .is_none_or(|last| now.saturating_sub(last) >= COMPLAINT_PERIOD);
        if is_due {
            self.0 = Some(now);
        }
        is_due
    }
}

/// The clock that patience is measured by.
pub(crate) fn monotonic(host: &Host) -> Duration {
    Duration::from_nanos(host.clock().monotonic_nanos())
}

#[cfg(test)]
mod tests;
