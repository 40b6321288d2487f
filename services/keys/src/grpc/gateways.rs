//! What gateways ask.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use proto::{
    convert::{from_timestamp, parse_id},
    keys::v1 as pb,
};
use tokio::time::Instant;
use tonic::Status;
use types::KeyHash;

use super::{Keys, wire};
use crate::{
    domain::{
        changes::{self, Eviction},
        key::ApiKey,
    },
    error::{Error, Result},
    store::{KeyUse, Report},
};

/// A gateway that was seen within this time lives.
const LIVE_SECONDS: i64 = 5;
/// So long a revocation waits for the gateways.
const CONFIRM_MAX: Duration = Duration::from_secs(5);
/// Between two looks at what they have applied.
const CONFIRM_POLL: Duration = Duration::from_millis(20);
/// Uses of keys in one message.
const USES_MAX: usize = 1000;
/// Attempts to move a key to another hash while it is being changed.
const REHASH_ATTEMPTS_MAX: u32 = 3;

fn hash(field: &'static str, bytes: &[u8]) -> Result<KeyHash> {
    KeyHash::from_slice(bytes).ok_or_else(|| Error::invalid(field, "must be 32 bytes"))
}

impl Keys {
    /// Finds the key of a hash. One found by the previous pepper's moves to the current one's.
    async fn find(
        &self,
        current: &KeyHash,
        previous: Option<&KeyHash>,
        pepper_id: &str,
    ) -> Result<Option<ApiKey>> {
        for _ in 0..REHASH_ATTEMPTS_MAX {
            let Some(key) = self.store.key_of(current, previous).await? else {
                return Ok(None);
            };
            if key.hash == *current || self.store.rehash(&key, current, pepper_id).await? {
                return Ok(Some(key));
            }
        }
        // It keeps changing: its next use moves it.
        self.store.key_of(current, previous).await
    }

    pub(super) async fn verify(
        &self,
        request: pb::VerifyKeyRequest,
    ) -> std::result::Result<pb::VerifyKeyResponse, Status> {
        let current = hash("key_hash", &request.key_hash)?;
        let previous = match request.previous_key_hash.is_empty() {
            true => None,
            false => Some(hash("previous_key_hash", &request.previous_key_hash)?),
        };
        let pepper_id = match request.pepper_id.is_empty() {
            true => self.pepper.id(),
            false => changes::pepper_id(&request.pepper_id)?,
        };
        // The position first: the record may be newer than it says, never older.
        let change = self.store.position().await?;
        let found = self.find(&current, previous.as_ref(), &pepper_id).await?;
        Ok(pb::VerifyKeyResponse {
            key: found.as_ref().map(wire::record),
            change,
        })
    }

    pub(super) async fn synchronise(
        &self,
        request: pb::SyncRequest,
    ) -> std::result::Result<pb::SyncResponse, Status> {
        let report = Report {
            journal: parse_id("journal_id", &request.journal_id)?,
            gateway: changes::gateway_name(&request.gateway)?,
            applied: request.applied_change,
        };
        let now = self.host.clock().now();
        self.store.note_gateway(&report, now).await?;
        // Positions first: what is read behind them may be newer than they say, never older.
        let position = self.store.position().await?;
        let changed = match report.applied {
            0 => Vec::new(),
            applied => self.store.changed_keys(applied, position).await?,
        };
        let eviction = changes::evict(report.applied, position, &changed);
        let (keys, reset) = match eviction {
            Eviction::Keys(keys) => (keys, false),
            Eviction::All => (Vec::new(), true),
        };
        let version = self.store.catalogue_version().await?;
        let catalogue = match version == request.catalogue_version && report.applied != 0 {
            true => None,
            false => Some(pb::Catalogue {
                version,
                services: self
                    .store
                    .services()
                    .await?
                    .iter()
                    .map(wire::service)
                    .collect(),
            }),
        };
        let live = self.store.gateways_since(live_since(now)).await?.len();
        let changed_key = |(hash, version): (KeyHash, i64)| pb::ChangedKey {
            key_hash: hash.bytes().to_vec(),
            version,
        };
        Ok(pb::SyncResponse {
            change: position,
            keys: keys.into_iter().map(changed_key).collect(),
            reset,
            catalogue,
            live_gateways: u32::try_from(live).unwrap_or(u32::MAX),
        })
    }

    pub(super) async fn touch(
        &self,
        request: pb::TouchKeysRequest,
    ) -> std::result::Result<pb::TouchKeysResponse, Status> {
        if request.uses.len() > USES_MAX {
            let problem = format!("must be at most {USES_MAX}: send the rest in another call");
            return Err(Error::invalid("uses", problem).into());
        }
        let now = self.host.clock().now();
        let mut uses = Vec::with_capacity(request.uses.len());
        for used in &request.uses {
            let at = match &used.at {
                // A gateway's clock that runs ahead must not hide later uses.
                Some(at) => from_timestamp("at", at)?.min(now),
                None => now,
            };
            let ip: Option<IpAddr> = match (used.ip.as_str(), used.ip.parse()) {
                ("", _) => None,
                (_, Ok(ip)) => Some(ip),
                (_, Err(_)) => return Err(Error::invalid("ip", "must be an IP address").into()),
            };
            let key = parse_id("key_id", &used.key_id)?;
            uses.push(KeyUse {
                key,
                at,
                ip: ip.map(IpNet::from),
            });
        }
        self.store.touch(&uses).await?;
        Ok(pb::TouchKeysResponse {})
    }

    /// Waits until the gateways that live now have applied a change. Who has, and who has not in
    /// time. One that starts later begins behind the change.
    pub(super) async fn confirm(&self, change: i64) -> Result<(u32, Vec<String>)> {
        let live = self
            .store
            .gateways_since(live_since(self.host.clock().now()))
            .await?;
        let journals: Vec<_> = live.iter().map(|gateway| gateway.journal).collect();
        let deadline = Instant::now() + CONFIRM_MAX;
        let mut gateways = live;
        loop {
            let waiting = gateways.iter().filter(|gateway| gateway.applied < change);
            let mut pending: Vec<_> = waiting.map(|gateway| gateway.name.clone()).collect();
            if pending.is_empty() || Instant::now() >= deadline {
                let confirmed = journals.len().saturating_sub(pending.len());
                pending.dedup();
                return Ok((u32::try_from(confirmed).unwrap_or(u32::MAX), pending));
            }
            tokio::time::sleep(CONFIRM_POLL).await;
            gateways = self.store.gateways_of(&journals).await?;
        }
    }
}

fn live_since(now: Timestamp) -> Timestamp {
    now.saturating_sub(SignedDuration::from_secs(LIVE_SECONDS))
        .unwrap_or(Timestamp::MIN)
}
