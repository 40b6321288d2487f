//! Keeps a subscription to a stream alive.

use std::{ops::RangeInclusive, time::Duration};

use crate::host::{Host, Stop};

/// A subscription that lived so long begins again at once.
const LIVED_LONG_NANOS: u64 = 10_000_000_000;

/// Subscribes again whenever the subscription ends, until told to stop. The pause before grows from
/// the begin of `pauses` to its end, doubled each time.
pub(crate) async fn supervise<F>(
    host: &Host,
    consumer: &str,
    pauses: RangeInclusive<Duration>,
    stop: &Stop,
    subscription: impl Fn() -> F,
) where
    F: Future<Output = anyhow::Result<()>>,
{
    let (min, max) = pauses.into_inner();
    let mut pause = min;
    while !stop.is_requested() {
        let began = host.clock().monotonic_nanos();
        let ended = tokio::select! {
            ended = subscription() => ended,
            () = stop.requested() => return,
        };
        if let Err(error) = ended {
            tracing::warn!(
                consumer,
                error = format!("{error:#}"),
                "the subscription was lost, starting another"
            );
        }
        let lived = host.clock().monotonic_nanos().saturating_sub(began);
        pause = if lived > LIVED_LONG_NANOS {
            min
        } else {
            (pause * 2).min(max)
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.requested() => return,
        }
    }
}
