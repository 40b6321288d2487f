//! Keeps the gateway's knowledge of keys and services young.
//!
//! Once a second, and at once when the bus hints at a change, the gateway tells `keys` how far it
//! has applied the change log and is told what is new. The bus only saves time: cut off from it,
//! a gateway is a second late, not wrong.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use proto::{
    channel::Channel,
    keys::v1::{KeyUse, SyncRequest, TouchKeysRequest, keys_service_client::KeysServiceClient},
};
use runtime::{Host, Stop};
use tokio::sync::{Notify, mpsc};
use types::{JournalId, KeyHash};

use crate::{catalogue::Catalogue, edge::Edge};

/// Between two questions without a hint.
const PERIOD: Duration = Duration::from_secs(1);
/// An answer takes at most so long.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Ended lives named in one message; those before were named by the lives between.
const ENDED_MAX: usize = 100;
/// Uses of keys sent in one message.
pub(crate) const TOUCHES_MAX: usize = 1_000;
/// Uses are gathered for so long.
const TOUCH_PERIOD: Duration = Duration::from_secs(5);

/// Asks `keys` until told to stop.
pub(crate) async fn run(
    edge: Arc<Edge>,
    channel: Channel,
    mut own: Own,
    hint: Arc<Notify>,
    stop: Stop,
) {
    let mut change = 0;
    let mut warned = false;
    while !stop.is_requested() {
        match ask(&edge, &channel, &own, change).await {
            Ok(newest) => {
                own.ended.clear();
                // What was applied is reported at once, so that a revocation is confirmed soon.
                let news = newest != change;
                change = newest;
                warned = false;
                if news {
                    continue;
                }
            }
            Err(error) => {
                if !warned {
                    tracing::warn!(error = format!("{error:#}"), "no news of keys, trying on");
                }
                warned = true;
            }
        }
        edge.keyring.prune();
        let pause = if edge.is_ready() {
            PERIOD
        } else {
            Duration::from_millis(50)
        };
        tokio::select! {
            () = hint.notified() => {}
            () = tokio::time::sleep(pause) => {}
            () = stop.requested() => {}
        }
    }
    // Nobody needs to wait for us any more; who does not hear of it waits a little.
    own.ended.push(JournalId::new(edge.journal.id()));
    if let Err(error) = ask(&edge, &channel, &own, change).await {
        tracing::debug!(error = format!("{error:#}"), "left without a word to keys");
    }
}

/// What a gateway says of itself.
pub(crate) struct Own {
    /// A stable name.
    pub(crate) name: String,
    /// Earlier lives in its journal directory: it holds the lock, so they have ended.
    pub(crate) ended: Vec<JournalId>,
}

async fn ask(edge: &Edge, channel: &Channel, own: &Own, change: i64) -> anyhow::Result<i64> {
    let (pepper_id, previous_pepper_id) = edge.keyring.hashing().ids();
    let mut request = tonic::Request::new(SyncRequest {
        journal_id: JournalId::new(edge.journal.id()).to_string(),
        gateway: own.name.clone(),
        applied_change: change,
        catalogue_version: edge.catalogue.load().version,
        origins_change: edge.origins.load().change,
        pepper_id,
        previous_pepper_id: previous_pepper_id.unwrap_or_default(),
        ended_journals: own
            .ended
            .iter()
            .rev()
            .take(ENDED_MAX)
            .map(JournalId::to_string)
            .collect(),
    });
    request.set_timeout(TIMEOUT);
    let asked_at = edge.clock.monotonic_nanos();
    let news = KeysServiceClient::new(channel.clone())
        .sync(request)
        .await?
        .into_inner();
    if news.reset {
        edge.keyring.reset();
    }
    if let Some(origins) = edge.origins.load().with(&news)? {
        edge.origins.store(Arc::new(origins));
    }
    let mut changed = Vec::with_capacity(news.keys.len());
    for key in news.keys {
        if let Some(hash) = KeyHash::from_slice(&key.key_hash) {
            edge.keyring.changed(hash, key.version);
            changed.push(hash);
        }
    }
    if let Some(catalogue) = news.catalogue {
        tracing::info!(version = catalogue.version, "the catalogue has changed");
        edge.catalogue
            .store(Arc::new(Catalogue::from_wire(catalogue)));
    }
    edge.keyring.informed(news.live_gateways, asked_at);
    // Last: a slow Redis must not make revocations late.
    edge.keyring.forget_in_redis(&changed).await;
    // Told of a part of the organisations' origins: the rest is asked for at once.
    Ok(match news.origins.is_empty() {
        true => news.change,
        false => news.change.min(news.origins_change),
    })
}

/// Turns messages on the bus into hints.
pub(crate) async fn listen(host: Host, hint: Arc<Notify>, stop: Stop) {
    let mut changes = match host.nats().subscribe("keys.v1.changed.*").await {
        Ok(changes) => changes,
        Err(error) => {
            tracing::error!(%error, "changes of keys will be a second late");
            return;
        }
    };
    loop {
        tokio::select! {
            change = changes.next() => match change {
                Some(_) => hint.notify_one(),
                None => return,
            },
            () = stop.requested() => return,
        }
    }
}

/// Reports the last use of keys, gathered.
pub(crate) async fn touch(channel: Channel, mut uses: mpsc::Receiver<KeyUse>, stop: Stop) {
    let mut gathered = Vec::with_capacity(TOUCHES_MAX);
    loop {
        tokio::select! {
            () = tokio::time::sleep(TOUCH_PERIOD) => {}
            () = stop.requested() => return,
        }
        while gathered.len() < TOUCHES_MAX
            && let Ok(used) = uses.try_recv()
        {
            gathered.push(used);
        }
        if gathered.is_empty() {
            continue;
        }
        let request = TouchKeysRequest {
            uses: std::mem::take(&mut gathered),
        };
        if let Err(status) = KeysServiceClient::new(channel.clone())
            .touch_keys(request)
            .await
        {
            // The next use of the key says it again.
            tracing::debug!(code = ?status.code(), "last uses were not reported");
        }
    }
}
