//! Tells the bus of addresses from which unknown keys keep coming.

use std::{collections::HashMap, sync::Arc, time::Duration};

use prost::Message as _;
use proto::events::v1::UnknownKeysSighted;
use runtime::{Host, Stop};
use tokio::sync::mpsc;
use types::JournalId;

use super::{
    SIGHTINGS_MAX, Strangers,
    table::{Count, Origin, WINDOW_NANOS},
};

/// Between two looks at those who have passed their limit.
const PERIOD: Duration = Duration::from_secs(1);
/// So long before its end a minute is as good as over.
const END_NANOS: u64 = 3_000_000_000;
/// Times its limit from which an address is reported before its minute ends.
const LARGE_TIMES: u32 = 10;
/// A message is handed over within so long, or the next minute's has to do.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Who is to be reported, and when who was.
pub(super) struct Sightings {
    /// Calls that are reported at once.
    large: u32,
    waiting: Vec<Origin>,
    reported: HashMap<Origin, u64>,
}

impl Sightings {
    /// For addresses that may have so many keys looked up in a minute.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            large: limit.saturating_mul(LARGE_TIMES),
            waiting: Vec::new(),
            reported: HashMap::new(),
        }
    }

    /// An address has passed its limit.
    pub(super) fn add(&mut self, origin: Origin) {
        if self.waiting.len() < SIGHTINGS_MAX && !self.waiting.contains(&origin) {
            self.waiting.push(origin);
        }
    }

    /// What to report now: each address at most once a minute, when that is about to end and the
    /// number of its calls says something, or at once when it is large. Who is quiet again
    /// meanwhile is forgotten, as are all beyond so many a minute.
    pub(super) fn due(
        &mut self,
        now: u64,
        passed: impl Fn(Origin) -> Option<Count>,
    ) -> Vec<(Origin, Count)> {
        self.reported
            .retain(|_, at| now < at.saturating_add(WINDOW_NANOS));
        let mut due = Vec::new();
        for origin in std::mem::take(&mut self.waiting) {
            let Some(count) = passed(origin) else {
                continue;
            };
            let ends = now.saturating_add(END_NANOS) >= count.ends;
            let is_ripe = ends || count.calls >= self.large;
            if self.reported.contains_key(&origin) || !is_ripe {
                self.waiting.push(origin);
            } else if self.reported.len() < SIGHTINGS_MAX {
                self.reported.insert(origin, now);
                due.push((origin, count));
            }
        }
        due
    }
}

/// Publishes what is sighted until told to stop.
pub(crate) async fn report(
    (host, journal): (Host, JournalId),
    strangers: Arc<Strangers>,
    mut passed: mpsc::Receiver<Origin>,
    stop: Stop,
) {
    let mut sightings = Sightings::new(strangers.lookups_max);
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.requested() => return,
        }
        while let Ok(origin) = passed.try_recv() {
            sightings.add(origin);
        }
        let now = host.clock().monotonic_nanos();
        for (origin, count) in sightings.due(now, |origin| strangers.passed(origin, now)) {
            publish(&host, journal, origin, count, now).await;
        }
    }
}

async fn publish(host: &Host, journal: JournalId, origin: Origin, count: Count, now: u64) {
    let age = WINDOW_NANOS.saturating_sub(count.ends.saturating_sub(now)) / 1_000;
    let age = i64::try_from(age).unwrap_or_default();
    let sighted = UnknownKeysSighted {
        journal_id: journal.to_string(),
        address: origin.to_string(),
        attempts: count.calls.into(),
        minute_unix_micros: host.clock().now().as_microsecond().saturating_sub(age),
    };
    tracing::warn!(
        address = %origin,
        attempts = count.calls,
        lookups = count.in_vain,
        "unknown keys keep coming from one address"
    );
    let nats = host.nats();
    let subject = format!("anomaly.v1.sighted.{journal}");
    let handed_over = nats.publish(subject, sighted.encode_to_vec().into());
    match tokio::time::timeout(PUBLISH_TIMEOUT, handed_over).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the sighting was not published"),
        Err(_) => tracing::warn!("the sighting was not published in time"),
    }
}
