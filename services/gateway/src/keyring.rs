//! Finds the record of a presented key: in memory, in Redis, at the `keys` service.
//!
//! - Status, expiry and everything else are judged on every call, cached or not (`domain.rs`).
//! - A copy never replaces a newer version: changed keys leave a tombstone with their version, and
//!   no fill below it is taken, however long it was under way.
//! - Redis is believed only where the MAC is right and the copy was written after this process
//!   had its first news of changes; so neither a forged nor an old dump brings a key back.
//! - Unknown keys are remembered briefly and apart; misses of one key are one look-up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use ipnet::IpNet;
use prost::Message as _;
use proto::{
    channel::Channel,
    keys::v1::{KeyRecord, VerifyKeyRequest, keys_service_client::KeysServiceClient},
};
use quick_cache::sync::Cache;
use redis::AsyncCommands;
use runtime::Host;
use sha2::Sha256;
use types::{Gcra, KeyHash, KeyId, OrgId, Pepper, PresentedKey, QuotaKind, Rate, Refusal, UserId};

use crate::{
    config::Config,
    lease::{Account, Owner, Stated},
    lender::Lender,
    metrics::{Metrics, Source},
};

/// An unknown key is remembered so long.
const NEGATIVE_NANOS: u64 = 5_000_000_000;
/// Unknown keys remembered at most.
const NEGATIVE_MAX: usize = 50_000;
/// Without news of changes for so long, only young copies count.
const NEWS_NANOS_MAX: u64 = 5_000_000_000;
/// How young.
const BLIND_NANOS_MAX: u64 = 10_000_000_000;
/// Copies in Redis live so long.
const REDIS_SECONDS: u64 = 3_600;
/// Tombstones outlive every copy in Redis.
const TOMBSTONE_NANOS: u64 = 3_900_000_000_000;
/// A look-up at the `keys` service takes at most so long.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Look-ups of one key for one call: more than one only when the key changes meanwhile.
const LOOKUPS_MAX: u32 = 3;
/// Bytes of a MAC.
const MAC_BYTES: usize = 32;

/// A key as the edge uses it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: KeyId,
    pub(crate) org: OrgId,
    pub(crate) user: UserId,
    pub(crate) test: bool,
    pub(crate) scopes: Vec<String>,
    pub(crate) active: bool,
    pub(crate) revoked: bool,
    /// Unix microseconds.
    pub(crate) expires_at: Option<i64>,
    pub(crate) rate: Option<Rate>,
    pub(crate) allow: Vec<IpNet>,
    pub(crate) version: i64,
    /// Shared by the keys of a lineage, and by all copies of a key's record.
    pub(crate) limiter: Arc<Gcra>,
    pub(crate) account: Arc<Account>,
    /// Where its calls take permits, one for each quota: the day's, then the month's.
    pub(crate) quotas: Vec<Arc<Account>>,
    /// Minute of the last use that was reported.
    pub(crate) touched: AtomicI64,
    read_at: u64,
}

/// What is known of changes.
#[derive(Default)]
struct News {
    /// Monotonic nanoseconds of the last word from the `keys` service; 0 before the first.
    at: AtomicU64,
    /// Unix milliseconds; copies in Redis from before are not believed.
    redis_floor: AtomicI64,
    live_gateways: AtomicU64,
}

/// All keys this process knows.
pub(crate) struct Keyring {
    known: Cache<KeyHash, Arc<Entry>>,
    unknown: Cache<KeyHash, u64>,
    tombstones: papaya::HashMap<KeyHash, (i64, u64)>,
    /// Of the keys with a rate, by the key that holds their limits; about 100 bytes each, kept as
    /// long as the process lives.
    limiters: papaya::HashMap<KeyId, Arc<Gcra>>,
    news: News,
    pepper: Pepper,
    previous: Option<Pepper>,
    mac: Hmac<Sha256>,
    host: Host,
    channel: Channel,
    redis: Option<redis::aio::ConnectionManager>,
    lender: Arc<Lender>,
    metrics: Metrics,
}

impl Keyring {
    pub(crate) fn new(
        host: &Host,
        config: &Config,
        lender: Arc<Lender>,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let pepper = config
            .pepper
            .clone()
            .ok_or_else(|| anyhow::anyhow!("no pepper"))?;
        // The MAC's key comes from the pepper, which Redis does not hold.
        let probe = types::NewKey::from_random(types::Environment::Test, &[0; 28]);
        let seed = probe.presented().hash(&pepper);
        let mut mac = Hmac::<Sha256>::new_from_slice(seed.bytes())?;
        mac.update(b"tollgate redis v1");
        Ok(Self {
            known: Cache::new(config.keys_max),
            unknown: Cache::new(NEGATIVE_MAX),
            tombstones: papaya::HashMap::new(),
            limiters: papaya::HashMap::new(),
            news: News::default(),
            pepper,
            previous: config.previous_pepper.clone(),
            mac,
            host: host.clone(),
            channel: host.channel("keys")?,
            redis: host.redis(),
            lender,
            metrics,
        })
    }

    fn now(&self) -> u64 {
        self.host.clock().monotonic_nanos()
    }

    /// The record in memory, if it may be believed. No I/O.
    pub(crate) fn cached(&self, hash: &KeyHash) -> Option<Arc<Entry>> {
        self.known.get(hash).filter(|entry| self.is_believed(entry))
    }

    fn is_believed(&self, entry: &Entry) -> bool {
        let now = self.now();
        let informed = now.saturating_sub(self.news.at.load(Ordering::Acquire)) <= NEWS_NANOS_MAX;
        let young = now.saturating_sub(entry.read_at) <= BLIND_NANOS_MAX;
        informed || young
    }

    pub(crate) fn hash(&self, key: &PresentedKey) -> KeyHash {
        key.hash(&self.pepper)
    }

    /// True for a key that was unknown a moment ago. No I/O.
    pub(crate) fn is_unknown(&self, hash: &KeyHash) -> bool {
        self.unknown
            .get(hash)
            .is_some_and(|until| self.now() < until)
    }

    /// Looks a key up outside this process. Callers with the same key share one look-up.
    ///
    /// # Errors
    /// No such key, or nobody can be asked.
    pub(crate) async fn find(
        &self,
        hash: KeyHash,
        previous: Option<KeyHash>,
    ) -> Result<Arc<Entry>, Refusal> {
        for _ in 0..LOOKUPS_MAX {
            if let Some(entry) = self.look_up(hash, previous).await? {
                return Ok(entry);
            }
        }
        Err(Refusal::CreditsUnavailable)
    }

    /// One look-up; nothing when the key changed meanwhile.
    async fn look_up(
        &self,
        hash: KeyHash,
        previous: Option<KeyHash>,
    ) -> Result<Option<Arc<Entry>>, Refusal> {
        // A copy that is no longer believed must not be what others are given. What is under way
        // stays: a plain `remove` would take the place from under it, and each caller would ask.
        self.known
            .remove_if(&hash, |entry| !self.is_believed(entry));
        let guard = match self.known.get_value_or_guard_async(&hash).await {
            Ok(entry) => return Ok(Some(entry)),
            Err(guard) => guard,
        };
        if self.is_unknown(&hash) {
            self.metrics.verified(Source::Negative);
            return Err(Refusal::InvalidKey);
        }
        let read_at = self.now();
        if let Some(record) = self.copy_in_redis(&hash).await
            && let Some(entry) = self.take(&hash, &record, read_at)
        {
            self.metrics.verified(Source::Redis);
            if guard.insert(Arc::clone(&entry)).is_err() {
                tracing::debug!("a key changed while it was read");
            }
            return Ok(self.unless_outdated(&hash, entry));
        }
        let asked_at = self.host.clock().now().as_millisecond();
        let record = self.ask_keys(&hash, previous).await?;
        self.metrics.verified(Source::Keys);
        let Some(record) = record else {
            self.unknown
                .insert(hash, read_at.saturating_add(NEGATIVE_NANOS));
            // Created while it was looked for: the next call finds it.
            if self.has_changed(&hash) {
                self.unknown.remove(&hash);
            }
            return Err(Refusal::InvalidKey);
        };
        let Some(entry) = self.take(&hash, &record, read_at) else {
            return Ok(None);
        };
        self.to_redis(&hash, &record, asked_at).await;
        if guard.insert(Arc::clone(&entry)).is_err() {
            tracing::debug!("a key changed while it was read");
        }
        Ok(self.unless_outdated(&hash, entry))
    }

    /// A change may have come while a copy was on its way in: look again after the insertion.
    fn unless_outdated(&self, hash: &KeyHash, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let version = entry.version;
        if self.is_outdated(hash, version) {
            self.known.remove_if(hash, |entry| entry.version <= version);
            return None;
        }
        Some(entry)
    }

    fn has_changed(&self, hash: &KeyHash) -> bool {
        self.tombstones.pin().contains_key(hash)
    }

    fn is_outdated(&self, hash: &KeyHash, version: i64) -> bool {
        self.tombstones
            .pin()
            .get(hash)
            .is_some_and(|(newest, _)| version < *newest)
    }

    fn take(&self, hash: &KeyHash, record: &KeyRecord, read_at: u64) -> Option<Arc<Entry>> {
        if self.is_outdated(hash, record.version) {
            return None;
        }
        match self.entry(record, read_at) {
            Ok(entry) => Some(Arc::new(entry)),
            Err(error) => {
                tracing::error!(%error, key.id = record.key_id, "a key's record makes no sense");
                None
            }
        }
    }

    fn entry(&self, record: &KeyRecord, read_at: u64) -> anyhow::Result<Entry> {
        let org: OrgId = record.org_id.parse()?;
        let user: UserId = record.created_by.parse()?;
        let owner = if record.test {
            Owner::TestUser(user)
        } else {
            Owner::Organisation(org)
        };
        let expires_at = match &record.expires_at {
            Some(at) => Some(proto::convert::from_timestamp("expires_at", at)?.as_microsecond()),
            None => None,
        };
        Ok(Entry {
            key: record.key_id.parse()?,
            org,
            user,
            test: record.test,
            scopes: record.scopes.clone(),
            active: record.active,
            revoked: record.revoked,
            expires_at,
            rate: record.rate_per_second.map(|per_second| Rate {
                per_second,
                burst: record.burst.max(1),
            }),
            allow: record
                .allow
                .iter()
                .map(|net| net.parse())
                .collect::<Result<_, _>>()?,
            version: record.version,
            limiter: self.limiter(record)?,
            account: self.lender.account(owner),
            quotas: self.quotas(record, org)?,
            touched: AtomicI64::new(0),
            read_at,
        })
    }

    /// The limiter of a key's rate, which its lineage shares.
    fn limiter(&self, record: &KeyRecord) -> anyhow::Result<Arc<Gcra>> {
        if record.rate_per_second.is_none() {
            return Ok(Arc::default());
        }
        let limiters = self.limiters.pin();
        let key = holder_of_limits(record)?;
        Ok(Arc::clone(limiters.get_or_insert_with(key, Arc::default)))
    }

    /// The accounts of a key's quotas, which its lineage shares.
    fn quotas(&self, record: &KeyRecord, org: OrgId) -> anyhow::Result<Vec<Arc<Account>>> {
        let by: KeyId = record.key_id.parse()?;
        let key = holder_of_limits(record)?;
        let quotas = [
            (QuotaKind::Daily, record.daily_quota),
            (QuotaKind::Monthly, record.monthly_quota),
        ];
        let accounts = quotas.into_iter().filter_map(|(kind, calls)| {
            let (calls, version) = (calls?, record.version);
            let account = self.lender.account(Owner::Quota { org, key, kind });
            account.state(Stated { by, version, calls });
            Some(account)
        });
        Ok(accounts.collect())
    }

    async fn ask_keys(
        &self,
        hash: &KeyHash,
        previous: Option<KeyHash>,
    ) -> Result<Option<KeyRecord>, Refusal> {
        let mut request = tonic::Request::new(VerifyKeyRequest {
            key_hash: hash.bytes().to_vec(),
            previous_key_hash: previous
                .map(|hash| hash.bytes().to_vec())
                .unwrap_or_default(),
            pepper_id: self.pepper.id(),
        });
        request.set_timeout(LOOKUP_TIMEOUT);
        match KeysServiceClient::new(self.channel.clone())
            .verify_key(request)
            .await
        {
            Ok(answer) => Ok(answer.into_inner().key),
            Err(status) => {
                tracing::warn!(code = ?status.code(), error = status.message(), "no key look-up");
                Err(Refusal::CreditsUnavailable)
            }
        }
    }

    /// The key's hash under the pepper before, when there is one.
    pub(crate) fn previous_hash(&self, key: &PresentedKey) -> Option<KeyHash> {
        self.previous.as_ref().map(|pepper| key.hash(pepper))
    }

    fn redis_key(hash: &KeyHash) -> String {
        format!("apikey:{}", hex::encode(hash.bytes()))
    }

    fn tag(&self, hash: &KeyHash, body: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = self.mac.clone();
        mac.update(hash.bytes());
        mac.update(body);
        mac.finalize().into_bytes().into()
    }

    async fn copy_in_redis(&self, hash: &KeyHash) -> Option<KeyRecord> {
        let mut redis = self.redis.clone()?;
        let copy: Option<Vec<u8>> = redis.get(Self::redis_key(hash)).await.ok()?;
        let copy = copy?;
        let (tag, body) = copy.split_at_checked(MAC_BYTES)?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(
            tag,
            &self.tag(hash, body)[..],
        )) {
            tracing::warn!("a copy in Redis has a wrong MAC and was not believed");
            return None;
        }
        let (written, record) = body.split_at_checked(8)?;
        let written = i64::from_le_bytes(written.try_into().ok()?);
        let floor = self.news.redis_floor.load(Ordering::Acquire);
        if floor == 0 || written < floor {
            return None;
        }
        KeyRecord::decode(record).ok()
    }

    /// Leaves a copy for other gateways, as old as the question to `keys`. Redis may be down: then
    /// there is none.
    async fn to_redis(&self, hash: &KeyHash, record: &KeyRecord, asked_at: i64) {
        let Some(mut redis) = self.redis.clone() else {
            return;
        };
        let mut body = asked_at.to_le_bytes().to_vec();
        body.extend_from_slice(&record.encode_to_vec());
        let mut copy = self.tag(hash, &body).to_vec();
        copy.extend_from_slice(&body);
        let name = Self::redis_key(hash);
        let stored: redis::RedisResult<()> = redis.set_ex(&name, copy, REDIS_SECONDS).await;
        if let Err(error) = stored {
            tracing::debug!(%error, "no copy of a key was left in Redis");
            return;
        }
        if self.is_outdated(hash, record.version) {
            self.forget_in_redis(std::slice::from_ref(hash)).await;
        }
    }

    /// Removes copies of keys that have changed.
    pub(crate) async fn forget_in_redis(&self, hashes: &[KeyHash]) {
        let Some(mut redis) = self.redis.clone().filter(|_| !hashes.is_empty()) else {
            return;
        };
        let names: Vec<String> = hashes.iter().map(Self::redis_key).collect();
        let gone: redis::RedisResult<()> = redis.del(names).await;
        if let Err(error) = gone {
            tracing::debug!(%error, "copies in Redis were not removed; tombstones overrule them");
        }
    }

    /// A key has changed: older copies are void.
    pub(crate) fn changed(&self, hash: KeyHash, version: i64) {
        let until = self.now().saturating_add(TOMBSTONE_NANOS);
        self.tombstones.pin().update_or_insert(
            hash,
            |(newest, _)| ((*newest).max(version), until),
            (version, until),
        );
        self.known.remove_if(&hash, |entry| entry.version < version);
        self.unknown.remove(&hash);
    }

    /// Too much has changed, or nothing was heard for long: forget everything.
    pub(crate) fn reset(&self) {
        self.known.clear();
        self.unknown.clear();
        let now = self.host.clock().now().as_millisecond();
        self.news.redis_floor.store(now, Ordering::Release);
    }

    /// All changes up to now are known.
    pub(crate) fn informed(&self, live_gateways: u32) {
        if self.news.redis_floor.load(Ordering::Acquire) == 0 {
            self.reset();
        }
        self.news
            .live_gateways
            .store(u64::from(live_gateways.max(1)), Ordering::Relaxed);
        self.news.at.store(self.now(), Ordering::Release);
    }

    /// True once changes have been heard of.
    pub(crate) fn is_informed(&self) -> bool {
        self.news.at.load(Ordering::Acquire) > 0
    }

    /// Seconds since the last word on changes.
    pub(crate) fn staleness_seconds(&self) -> f64 {
        let at = self.news.at.load(Ordering::Acquire);
        Duration::from_nanos(self.now().saturating_sub(at)).as_secs_f64()
    }

    /// This gateway's share of a key's rate. A burst is shared as well, but never below one.
    pub(crate) fn share(&self, rate: Rate) -> Rate {
        let gateways = self.news.live_gateways.load(Ordering::Relaxed);
        let gateways = u32::try_from(gateways).unwrap_or(1).max(1);
        Rate {
            per_second: rate.per_second.div_ceil(gateways).max(1),
            burst: rate.burst.div_ceil(gateways).max(1),
        }
    }

    /// Drops tombstones that nothing can contradict any more.
    pub(crate) fn prune(&self) {
        let now = self.now();
        self.tombstones.pin().retain(|_, (_, until)| now < *until);
    }
}

/// The key under which limits are counted: the first of a lineage.
fn holder_of_limits(record: &KeyRecord) -> anyhow::Result<KeyId> {
    Ok(match record.limits_key_id.as_str() {
        "" => record.key_id.parse()?,
        first => first.parse()?,
    })
}

#[cfg(test)]
pub(crate) mod tests;
