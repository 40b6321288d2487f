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
        pepper::{self, Sought},
    },
    error::{Error, Result},
    peppers::live_since,
    store::{KeyUse, Report},
};

/// So long a revocation waits for the gateways.
const CONFIRM_MAX: Duration = Duration::from_secs(5);
/// Between two looks at what they have applied.
const CONFIRM_POLL: Duration = Duration::from_millis(20);
/// A gateway that was seen within this time may still act on what it knew: it mistrusts its memory
/// after 5 seconds without news, and then believes copies of the last 10. The rest is a margin.
const BELIEF: SignedDuration = SignedDuration::from_secs(20);
/// Uses of keys in one message.
const USES_MAX: usize = 1000;
/// Organisations whose origins a gateway is told at once.
const ORIGINS_MAX: usize = 500;
/// Times a key is read while it moves to another pepper: once before, once after.
const READS_MAX: u32 = 3;

impl Keys {
    /// Finds the key of a hash. One that is hashed with the gateway's pepper before moves first,
    /// and is read after that: whatever changes it from then on is announced under the new hash.
    async fn find(&self, sought: &Sought) -> Result<Option<ApiKey>> {
        let previous = sought.previous.map(|(hash, _)| hash);
        for _ in 0..READS_MAX {
            let found = self.store.key_of(&sought.hash, previous.as_ref()).await?;
            let Some((key, way)) = found
                .as_ref()
                .and_then(|key| Some((key.id, sought.moves(key)?)))
            else {
                return Ok(found);
            };
            self.store.rehash(key, &way).await?;
        }
        let cause = anyhow::anyhow!("a key moves to and fro between peppers");
        Err(Error::Unavailable(cause))
    }

    pub(super) async fn verify(
        &self,
        request: pb::VerifyKeyRequest,
    ) -> std::result::Result<pb::VerifyKeyResponse, Status> {
        let pepper_id = match request.pepper_id.is_empty() {
            true => self.peppers.load().current().id(),
            false => changes::pepper_id(&request.pepper_id)?,
        };
        let sought = Sought::new(
            &request.key_hash,
            &request.previous_key_hash,
            &request.report_hash,
            &pepper_id,
        )?;
        // The position first: the record may be newer than it says, never older.
        let change = self.store.position().await?;
        let found = self.find(&sought).await?;
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
            peppers: (
                changes::pepper_id(&request.pepper_id)?,
                match request.previous_pepper_id.as_str() {
                    "" => None,
                    id => Some(changes::pepper_id(id)?),
                },
            ),
        };
        let ended = changes::ended(&request.ended_journals)?;
        let now = self.host.clock().now();
        self.store.note_gateway(&report, now).await?;
        self.store.end_gateways(&ended).await?;
        // Positions first: what is read behind them may be newer than they say, never older.
        let position = self.store.position().await?;
        let changed = match report.applied {
            0 => Vec::new(),
            applied => self.store.changed_keys(applied, position).await?,
        };
        let eviction = match pepper::is_stranger(&report.peppers, &self.peppers.load().ids()) {
            true => Eviction::All,
            false => changes::evict(report.applied, position, &changed),
        };
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
        let origins = self.origins(request.origins_change, position).await?;
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
            ..origins
        })
    }

    /// What a gateway that knows origins up to `known` is told of them.
    async fn origins(&self, known: i64, position: i64) -> Result<pb::SyncResponse> {
        // A position ahead of ours is of another history: the log was restored from a backup.
        let origins_reset = known > position;
        let known = if origins_reset { 0 } else { known };
        let changed = self.store.origins(known, position, ORIGINS_MAX).await?;
        let origins_change = match changed.last() {
            Some(last) if changed.len() == ORIGINS_MAX => last.change,
            _ => position,
        };
        let origins = changed.into_iter().map(|it| pb::OrganisationOrigins {
            org_id: it.org.to_string(),
            allowed_origins: it.allowed,
        });
        Ok(pb::SyncResponse {
            origins: origins.collect(),
            origins_change,
            origins_reset,
            ..pb::SyncResponse::default()
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

    /// Waits until the gateways that may still act on what they knew have applied a change. Who
    /// has, and who has not in time. One that starts later begins behind the change.
    pub(super) async fn confirm(&self, change: i64) -> Result<(u32, Vec<String>)> {
        let now = self.host.clock().now();
        let since = now.saturating_sub(BELIEF).unwrap_or(Timestamp::MIN);
        let live = self.store.gateways_since(since).await?;
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
