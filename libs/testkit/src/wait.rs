//! Waiting for a condition instead of for a time.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

const INTERVAL_MIN: Duration = Duration::from_millis(5);
const INTERVAL_MAX: Duration = Duration::from_millis(100);

/// Repeats `attempt` until it succeeds, at most for `within`; the error tells `what` was awaited
/// and what the last attempt saw.
///
/// ```ignore
/// let row = eventually(Duration::from_secs(5), "the call is booked", || async {
///     find(id).await.ok_or_else(|| "no row yet".to_owned())
/// });
/// ```
pub async fn eventually<T, E, F, Fut>(within: Duration, what: &str, mut attempt: F) -> Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + within;
    let mut interval = INTERVAL_MIN;
    let mut last_seen = "nothing: the first attempt never answered".to_owned();
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(seen)) => last_seen = seen.to_string(),
            Err(_elapsed) => return Err(gave_up(within, what, &last_seen)),
        }
        if Instant::now() + interval >= deadline {
            return Err(gave_up(within, what, &last_seen));
        }
        sleep(interval).await;
        interval = (interval * 2).min(INTERVAL_MAX);
    }
}

fn gave_up(within: Duration, what: &str, last_seen: &str) -> anyhow::Error {
    anyhow!("waited {within:?} in vain until {what}; last seen: {last_seen}")
}
