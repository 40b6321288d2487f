//! Tells the bus what has changed, and keeps house.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::{HeaderMap, header::NATS_MESSAGE_ID, jetstream};
use jiff::{SignedDuration, Timestamp};
use prost::Message;
use proto::events::v1::KeysChanged;
use runtime::{Clock, Stop, crash_point, streams};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::{
    domain::throttle,
    store::{Pending, Store},
};

/// What the stream of key changes holds.
const SUBJECT: &str = "keys.v1.changed.*";
/// Changes published in one transaction. More: the next follows at once.
const BATCH_CHANGES_MAX: i64 = 100;
/// Without a nudge the outbox is looked into this often: another instance may have died.
const POLL: Duration = Duration::from_millis(500);
/// While the bus cannot be reached, the pause grows up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A batch that is not acknowledged within this time is tried again.
const PUBLISH_MAX: Duration = Duration::from_secs(10);
/// A gateway that was not seen for so long does not come back under the same journal.
const FORGET_GATEWAYS_HOURS: i64 = 24;

/// Publishes committed changes, at least once. A message is a hint: gateways that miss it find the
/// change at their next synchronisation.
pub(crate) struct Relay {
    store: Store,
    jetstream: jetstream::Context,
    clock: Clock,
    nudge: Arc<Notify>,
}

impl Relay {
    pub(crate) fn new(
        store: Store,
        jetstream: jetstream::Context,
        clock: Clock,
        nudge: Arc<Notify>,
    ) -> Self {
        Self {
            store,
            jetstream,
            clock,
            nudge,
        }
    }

    /// Runs until told to stop. Whatever it has not marked is published by the next life.
    pub(crate) async fn run(self, stop: Stop) {
        let mut pause = POLL;
        let mut has_stream = false;
        loop {
            let batch = self.publish_batch(&mut has_stream);
            let outcome = tokio::select! {
                outcome = tokio::time::timeout(PUBLISH_MAX, batch) => outcome,
                () = stop.requested() => return,
            };
            match outcome.context("publishing takes too long").flatten() {
                Ok(BATCH_CHANGES_MAX) => continue,
                Ok(_) => {
                    if pause > POLL {
                        info!("key changes are published again");
                    }
                    pause = POLL;
                }
                Err(error) => {
                    if pause == POLL {
                        warn!(
                            error = format!("{error:#}"),
                            "key changes wait to be published"
                        );
                    }
                    has_stream = false;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
            tokio::select! {
                () = stop.requested() => return,
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Publishes the oldest changes, then marks them: the other order would lose them if we die in
    /// between. Returns how many there were.
    async fn publish_batch(&self, has_stream: &mut bool) -> anyhow::Result<i64> {
        if !*has_stream {
            streams::ensure(&self.jetstream, streams::KEYS, SUBJECT).await?;
            *has_stream = true;
        }
        let mut tx = self.store.begin("relay", self.clock.now()).await?;
        let pending = tx.claim_pending(BATCH_CHANGES_MAX).await?;
        if pending.is_empty() {
            return Ok(0);
        }
        let mut acknowledgements = Vec::with_capacity(pending.len());
        for change in &pending {
            acknowledgements.push(self.publish(change).await?);
        }
        for acknowledgement in acknowledgements {
            acknowledgement.await?;
        }
        crash_point!("keys.outbox_published");
        let changes: Vec<i64> = pending.iter().map(|change| change.change).collect();
        tx.mark_published(&changes, self.clock.now()).await?;
        tx.commit().await?;
        crash_point!("keys.outbox_marked");
        Ok(i64::try_from(pending.len())?)
    }

    async fn publish(
        &self,
        pending: &Pending,
    ) -> anyhow::Result<jetstream::context::PublishAckFuture> {
        let subject = match pending.key {
            Some(key) => format!("keys.v1.changed.{key}"),
            None => "keys.v1.changed.catalogue".to_owned(),
        };
        let mut headers = HeaderMap::new();
        // With its time: positions begin again when the log is restored from a backup.
        let id = format!("keys-{}-{}", pending.change, pending.at.as_microsecond());
        headers.insert(NATS_MESSAGE_ID, id);
        let message = KeysChanged {
            change: pending.change,
        }
        .encode_to_vec();
        Ok(self
            .jetstream
            .publish_with_headers(subject, headers, message.into())
            .await?)
    }
}

/// Forgets gateways that are gone, and says which keys still wait for the present pepper.
pub(crate) async fn keep_house(
    store: Store,
    now: Timestamp,
    pepper: String,
    pepper_previous: Option<String>,
) {
    let forget = now.saturating_sub(SignedDuration::from_hours(FORGET_GATEWAYS_HOURS));
    let work = async {
        store
            .forget_gateways(forget.unwrap_or(Timestamp::MIN))
            .await?;
        let tries = now.saturating_sub(throttle::FORGET);
        store.forget_tries(tries.unwrap_or(Timestamp::MIN)).await?;
        store.peppers(&pepper, pepper_previous.as_deref()).await
    };
    match work.await {
        Ok(peppers) if peppers.lost > 0 => warn!(
            keys.lost = peppers.lost,
            "keys are hashed with a pepper that is not configured, they cannot be used"
        ),
        Ok(peppers) if peppers.waiting > 0 => {
            info!(
                keys.waiting = peppers.waiting,
                "keys wait for their first use under the pepper"
            );
        }
        Ok(_) => {}
        Err(error) => warn!(%error, "housekeeping is put off"),
    }
}
