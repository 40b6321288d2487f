//! Tells the bus what has changed, and keeps house.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use prost::Message;
use proto::events::v1::{KeyCreated, KeysChanged};
use redis::AsyncCommands;
use runtime::{
    Clock, Stop, crash_point,
    streams::{self, Streams},
};
use tokio::sync::Notify;
use tracing::{debug, info, warn};
use types::{KeyHash, KeyId};

use crate::{
    domain::throttle,
    peppers::{self, Current},
    store::{Created, Pending, Store},
};

/// Changes, or new keys, published in one transaction. More changes: the next follows at once.
const BATCH_CHANGES_MAX: i64 = 100;
/// Without a nudge the outbox is looked into this often: another instance may have died.
const POLL: Duration = Duration::from_millis(500);
/// While the bus cannot be reached, the pause grows up to this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A batch that is not acknowledged within this time is tried again.
const PUBLISH_MAX: Duration = Duration::from_secs(10);
/// A gateway that was not seen for so long does not come back under the same journal.
const FORGET_GATEWAYS_HOURS: i64 = 24;
/// An anomaly that was lifted so long ago and never heard of does not come any more: its stream
/// keeps it for 7 days.
const FORGET_ANOMALIES_HOURS: i64 = 8 * 24;

/// Publishes committed changes, at least once. A message is a hint: gateways that miss it find the
/// change at their next synchronisation.
pub(crate) struct Relay {
    store: Store,
    streams: Streams,
    clock: Clock,
    redis: Option<redis::aio::ConnectionManager>,
    nudge: Arc<Notify>,
}

impl Relay {
    pub(crate) fn new(
        store: Store,
        streams: Streams,
        clock: Clock,
        redis: Option<redis::aio::ConnectionManager>,
        nudge: Arc<Notify>,
    ) -> Self {
        Self {
            store,
            streams,
            clock,
            redis,
            nudge,
        }
    }

    /// Runs until told to stop. Whatever it has not marked is published by the next life.
    pub(crate) async fn run(self, stop: Stop) {
        let mut pause = POLL;
        let mut has_stream = false;
        loop {
            let batch = self.publish_pending(&mut has_stream);
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

    /// Publishes a batch of everything there is. Returns how many changes there were.
    async fn publish_pending(&self, has_stream: &mut bool) -> anyhow::Result<i64> {
        if !*has_stream {
            self.streams.ensure(streams::KEYS).await?;
            *has_stream = true;
        }
        // Gateways first: a new key can wait to be talked about.
        let changes = self.publish_changes().await?;
        self.publish_created().await?;
        Ok(changes)
    }

    /// Announces the oldest new keys, then forgets them.
    async fn publish_created(&self) -> anyhow::Result<()> {
        let mut tx = self.store.work("relay", self.clock.now()).await?;
        let created = tx.claim_created(BATCH_CHANGES_MAX).await?;
        if created.is_empty() {
            return Ok(());
        }
        for key in &created {
            let subject = format!("keys.v1.created.{}", key.org);
            let event = created_event(key);
            self.streams
                .publish(subject, &event.key_id, "", &event)
                .await?;
        }
        crash_point!("keys.created_published");
        let keys: Vec<KeyId> = created.iter().map(|key| key.key).collect();
        tx.forget_created(&keys).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Publishes the oldest changes, then marks them: the other order would lose them if we die in
    /// between. Returns how many there were.
    async fn publish_changes(&self) -> anyhow::Result<i64> {
        let mut tx = self.store.work("relay", self.clock.now()).await?;
        let pending = tx.claim_pending(BATCH_CHANGES_MAX).await?;
        if pending.is_empty() {
            return Ok(0);
        }
        try_join_all(pending.iter().map(|change| self.publish(change))).await?;
        crash_point!("keys.outbox_published");
        self.forget_copies(&pending).await;
        let changes: Vec<i64> = pending.iter().map(|change| change.change).collect();
        tx.mark_published(&changes, self.clock.now()).await?;
        tx.commit().await?;
        crash_point!("keys.outbox_marked");
        Ok(i64::try_from(pending.len())?)
    }

    /// Removes the copies that gateways share. Those who hear of the change do so too; this is for
    /// one that hears of nothing but still reaches Redis.
    async fn forget_copies(&self, pending: &[Pending]) {
        let hashes = pending.iter().filter_map(|change| change.hash.as_ref());
        let names: Vec<String> = hashes.map(KeyHash::cache_name).collect();
        let Some(mut redis) = self.redis.clone().filter(|_| !names.is_empty()) else {
            return;
        };
        let gone: redis::RedisResult<()> = redis.del(names).await;
        if let Err(error) = gone {
            debug!(%error, "copies in Redis were not removed; gateways with news do not take them");
        }
    }

    async fn publish(&self, pending: &Pending) -> anyhow::Result<()> {
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
        self.streams.put(subject, headers, message.into()).await
    }
}

fn created_event(key: &Created) -> KeyCreated {
    KeyCreated {
        key_id: key.key.to_string(),
        org_id: key.org.to_string(),
        created_by: key.created_by.to_string(),
        environment: key.environment.clone(),
        at_unix_micros: key.at.as_microsecond(),
    }
}

/// Forgets what nobody needs any more.
pub(crate) async fn keep_house(store: Store, peppers: Current, now: Timestamp) {
    let forget = now.saturating_sub(SignedDuration::from_hours(FORGET_GATEWAYS_HOURS));
    let work = async {
        store
            .forget_gateways(forget.unwrap_or(Timestamp::MIN))
            .await?;
        let tries = now.saturating_sub(throttle::FORGET);
        store.forget_tries(tries.unwrap_or(Timestamp::MIN)).await?;
        let lifted = now.saturating_sub(SignedDuration::from_hours(FORGET_ANOMALIES_HOURS));
        store
            .forget_anomalies(lifted.unwrap_or(Timestamp::MIN))
            .await?;
        peppers::keep_house(&store, &peppers, now).await
    };
    if let Err(error) = work.await {
        warn!(%error, "housekeeping is put off");
    }
}
