//! Finds the record of a presented key: in memory, in Redis, at the `keys` service.
//!
//! - Status, expiry and everything else are judged on every call, cached or not (`domain.rs`).
//! - A copy never replaces a newer version: changed keys leave a tombstone with their version, and
//!   no fill below it is taken, however long it was under way.
//! - Redis is believed only as far as `copies` says.
//! - Unknown keys are remembered briefly and apart; misses of one key are one look-up, and what
//!   look-ups in vain may cost is bounded by `strangers`.

mod copies;
mod entry;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::{ArcSwap, Guard};
use foldhash::fast::RandomState;
use proto::{
    channel::Channel,
    keys::v1::{KeyRecord, VerifyKeyRequest, keys_service_client::KeysServiceClient},
};
use quick_cache::{
    UnitWeighter,
    sync::{Cache, DefaultLifecycle},
};
use runtime::{Host, Stop, mutant};
use tokio::sync::mpsc;
use types::{KeyHash, Refusal};

pub(crate) use self::{copies::SealedCopy, entry::Entry};
use self::{
    copies::{Believed, Copies},
    entry::Limiters,
};
use crate::{
    config::Config,
    hashing::{Hashing, Sought},
    lender::Lender,
    metrics::{Lookup, Metrics, Source},
    refuse::Refused,
    strangers::{Origin, Strangers},
};

/// An unknown key is remembered so long.
const NEGATIVE_NANOS: u64 = 5_000_000_000;
/// Unknown keys remembered at most.
const NEGATIVE_MAX: usize = 50_000;
/// Without news of changes for so long, only young copies count.
const NEWS_NANOS_MAX: u64 = 5_000_000_000;
/// How young.
const BLIND_NANOS_MAX: u64 = 10_000_000_000;
/// An address pays for an unknown key once in so long.
const PAID_NANOS: u64 = 60_000_000_000;
/// Tombstones outlive every copy in Redis.
const TOMBSTONE_NANOS: u64 = 3_900_000_000_000;
/// A look-up at the `keys` service takes at most so long.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// Look-ups of one key for one call: more than one only when the key changes meanwhile.
const LOOKUPS_MAX: u32 = 3;

/// The record of a key, or that there is none; and who knew.
pub(crate) type Found = (Option<Arc<Entry>>, Source);

/// A key that was looked up in vain.
#[derive(Clone, Copy)]
struct Unknown {
    /// Monotonic nanoseconds; then it is looked up again.
    until: u64,
    /// Who has paid for the look-up, and until when he need not pay for another.
    paid: (Origin, u64),
}

/// What is known of changes.
#[derive(Default)]
struct News {
    /// Monotonic nanoseconds of the last word from the `keys` service; 0 before the first.
    at: AtomicU64,
    live_gateways: AtomicU32,
}

/// All keys this process knows.
pub(crate) struct Keyring {
    known: Cache<KeyHash, Arc<Entry>, UnitWeighter, RandomState>,
    unknown: Cache<KeyHash, Unknown>,
    tombstones: papaya::HashMap<KeyHash, (i64, u64)>,
    limiters: Limiters,
    news: News,
    hashing: ArcSwap<Hashing>,
    copies: Copies,
    host: Host,
    channel: Channel,
    lender: Arc<Lender>,
    strangers: Arc<Strangers>,
    metrics: Metrics,
}

impl Keyring {
    /// Also returns the copies that are to be left for other gateways.
    pub(crate) fn new(
        host: &Host,
        config: &Config,
        lender: Arc<Lender>,
        strangers: Arc<Strangers>,
        metrics: Metrics,
    ) -> anyhow::Result<(Self, mpsc::Receiver<SealedCopy>)> {
        let generation = config.peppers.read().context("API_KEY_PEPPER")?;
        let (copies, left) = Copies::new(host.redis());
        let keyring = Self {
            known: Cache::with(
                config.keys_max,
                u64::try_from(config.keys_max).unwrap_or(u64::MAX),
                UnitWeighter,
                RandomState::default(),
                DefaultLifecycle::default(),
            ),
            unknown: Cache::new(NEGATIVE_MAX),
            tombstones: papaya::HashMap::new(),
            limiters: Limiters::default(),
            news: News::default(),
            hashing: ArcSwap::from_pointee(Hashing::new(&generation)?),
            copies,
            host: host.clone(),
            channel: host.channel("keys")?,
            lender,
            strangers,
            metrics,
        };
        Ok((keyring, left))
    }

    fn now(&self) -> u64 {
        self.host.clock().monotonic_nanos()
    }

    /// The record in memory, if it may be believed at `now` (monotonic nanoseconds). No I/O.
    pub(crate) fn cached(&self, hash: &KeyHash, now: u64) -> Option<Arc<Entry>> {
        let entry = self.known.get(hash)?;
        self.is_believed(&entry, now).then_some(entry)
    }

    fn is_believed(&self, entry: &Entry, now: u64) -> bool {
        !self.is_blind_at(now) || now.saturating_sub(entry.read_at) <= BLIND_NANOS_MAX
    }

    /// True when nothing was heard of changes for so long that what is in memory has to be asked
    /// for again.
    pub(crate) fn is_blind(&self) -> bool {
        self.is_blind_at(self.now())
    }

    fn is_blind_at(&self, now: u64) -> bool {
        let at = self.news.at.load(Ordering::Acquire);
        now.saturating_sub(at) > NEWS_NANOS_MAX
    }

    /// What keys are hashed with at this moment. No I/O, no lock.
    pub(crate) fn hashing(&self) -> Guard<Arc<Hashing>> {
        self.hashing.load()
    }

    /// Hashes with other peppers from here on. What is known by the old hashes goes: it would be
    /// asked for by nobody, and once the pepper after this one is used, no change of these keys is
    /// announced by them any more.
    pub(crate) fn replace(&self, hashing: Hashing) {
        let ids = hashing.ids();
        if self.hashing.load().ids() == ids {
            return;
        }
        self.hashing.store(Arc::new(hashing));
        if self.is_informed() {
            self.reset();
        }
        let (pepper, before) = ids;
        tracing::info!(pepper, before, "keys are hashed with other peppers");
    }

    /// True for a key that was unknown a moment ago. No I/O.
    pub(crate) fn is_unknown(&self, hash: &KeyHash) -> bool {
        self.unknown
            .get(hash)
            .is_some_and(|unknown| self.now() < unknown.until)
    }

    /// Looks a key up outside this process, for a caller at this address. Callers with the same key
    /// share one look-up.
    ///
    /// # Errors
    /// Nobody can be asked, or the address has asked in vain too often.
    pub(crate) async fn find(&self, key: &Sought, by: Origin) -> Result<Found, Refused> {
        for _ in 0..LOOKUPS_MAX {
            if let Some(found) = self.look_up(key, by).await? {
                return Ok(found);
            }
        }
        Err(Refusal::CreditsUnavailable.into())
    }

    /// One look-up; nothing when the key changed meanwhile.
    async fn look_up(&self, key: &Sought, by: Origin) -> Result<Option<Found>, Refused> {
        let hash = &key.hash;
        // A copy that is no longer believed must not be what others are given. What is under way
        // stays: a plain `remove` would take the place from under it, and each caller would ask.
        let now = self.now();
        self.known
            .remove_if(hash, |entry| !self.is_believed(entry, now));
        let guard = match self.known.get_value_or_guard_async(hash).await {
            Ok(entry) => return Ok(self.unless_outdated(hash, entry)),
            Err(guard) => guard,
        };
        if self.is_unknown(hash) {
            return Ok(Some((None, Source::Negative)));
        }
        let read_at = self.now();
        if let Some(copy) = self.copies.read(key, read_at).await
            && let Some(entry) = self.take_copy(hash, &copy, read_at)
        {
            if guard.insert(Arc::clone(&entry)).is_err() {
                tracing::debug!("a key changed while it was read");
            }
            return Ok(self.unless_outdated(hash, entry));
        }
        let asked_at = self.host.clock().now().as_millisecond();
        let Some(record) = self.ask(key, by).await? else {
            return Ok(Some((None, Source::Keys)));
        };
        let Some(entry) = self.take(hash, &record, Source::Keys, read_at) else {
            return Ok(None);
        };
        self.copies.leave(key, &record, asked_at);
        if guard.insert(Arc::clone(&entry)).is_err() {
            tracing::debug!("a key changed while it was read");
        }
        Ok(self.unless_outdated(hash, entry))
    }

    /// Asks `keys` when it is the caller's turn, on the account of his address.
    async fn ask(&self, key: &Sought, by: Origin) -> Result<Option<KeyRecord>, Refused> {
        let _turn = self.strangers.turn().await?;
        let asked_at = self.now();
        let blamed = (!self.is_blind()).then_some(by);
        let taken = self.strangers.take_lookup(blamed, asked_at);
        taken.inspect_err(|_| self.metrics.looked_up(Lookup::Refused))?;
        let answer = self.ask_keys(key).await;
        self.metrics.looked_up(match &answer {
            Ok(Some(_)) => Lookup::Found,
            Ok(None) => Lookup::Nobody,
            Err(_) => Lookup::Failed,
        });
        match &answer {
            Ok(None) => self.note_unknown(&key.hash, by, asked_at),
            _ => self.strangers.give_lookup_back(),
        }
        Ok(answer?)
    }

    /// Remembers a key that nobody issued.
    fn note_unknown(&self, hash: &KeyHash, by: Origin, asked_at: u64) {
        let before = self.unknown.get(hash).map(|unknown| unknown.paid);
        // A client that keeps calling with one wrong key has brought one.
        let paid = before.filter(|(who, until)| *who == by && asked_at < *until);
        let paid = paid.unwrap_or_else(|| {
            self.strangers.note_lookup_in_vain(by, asked_at);
            (by, asked_at.saturating_add(PAID_NANOS))
        });
        let until = asked_at.saturating_add(NEGATIVE_NANOS);
        self.unknown.insert(*hash, Unknown { until, paid });
        // Created while it was looked for: the next call finds it.
        if self.has_changed(hash) {
            self.unknown.remove(hash);
        }
    }

    /// A change may have come while a copy was on its way in: look again after the insertion.
    fn unless_outdated(&self, hash: &KeyHash, entry: Arc<Entry>) -> Option<Found> {
        let (version, source) = (entry.version, entry.source);
        if self.is_outdated(hash, version) {
            self.known.remove_if(hash, |entry| entry.version <= version);
            return None;
        }
        Some((Some(entry), source))
    }

    fn has_changed(&self, hash: &KeyHash) -> bool {
        self.tombstones.pin().contains_key(hash)
    }

    fn is_outdated(&self, hash: &KeyHash, version: i64) -> bool {
        let tombstones = self.tombstones.pin();
        let newest = tombstones.get(hash).map(|(newest, _)| *newest);
        newest.is_some_and(|newest| version < newest) && !mutant!("gateway.fills_unchecked")
    }

    /// Takes a copy at `now` (monotonic nanoseconds). It is as old as its record: whoever has no
    /// news believes it no longer than what he has read himself.
    fn take_copy(&self, hash: &KeyHash, copy: &Believed, now: u64) -> Option<Arc<Entry>> {
        let wall = self.host.clock().now().as_millisecond();
        let age = u64::try_from(wall.saturating_sub(copy.asked_at)).unwrap_or(0);
        let asked_at = now.saturating_sub(age.saturating_mul(1_000_000));
        let entry = self.take(hash, &copy.record, Source::Redis, asked_at)?;
        self.is_believed(&entry, now).then_some(entry)
    }

    fn take(
        &self,
        hash: &KeyHash,
        record: &KeyRecord,
        source: Source,
        read_at: u64,
    ) -> Option<Arc<Entry>> {
        if self.is_outdated(hash, record.version) {
            return None;
        }
        match entry::read(record, source, read_at, &self.limiters, &self.lender) {
            Ok(entry) => Some(Arc::new(entry)),
            Err(error) => {
                tracing::error!(%error, key.id = record.key_id, "a key's record makes no sense");
                None
            }
        }
    }

    async fn ask_keys(&self, key: &Sought) -> Result<Option<KeyRecord>, Refusal> {
        let bytes = |hash: &KeyHash| hash.bytes().to_vec();
        let mut request = tonic::Request::new(VerifyKeyRequest {
            key_hash: bytes(&key.hash),
            previous_key_hash: key.previous.as_ref().map(bytes).unwrap_or_default(),
            pepper_id: key.hashing.ids().0,
            report_hash: bytes(&key.report),
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

    /// Leaves copies for other gateways, until told to stop.
    pub(crate) async fn leave_copies(&self, mut left: mpsc::Receiver<SealedCopy>, stop: Stop) {
        self.copies.connect().await;
        loop {
            let copy = tokio::select! {
                copy = left.recv() => copy,
                () = stop.requested() => None,
            };
            let Some(copy) = copy else { return };
            let is_outdated = || self.is_outdated(&copy.hash, copy.version);
            // Its key has changed while it waited.
            if is_outdated() {
                continue;
            }
            self.copies.write(&copy).await;
            // A change that came meanwhile has removed what was there before.
            if is_outdated() {
                self.copies.forget(std::slice::from_ref(&copy.hash)).await;
            }
        }
    }

    /// Removes copies of keys that have changed.
    pub(crate) async fn forget_in_redis(&self, hashes: &[KeyHash]) {
        self.copies.forget(hashes).await;
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
        // First: a fill that believes an older copy after this was begun before, and loses its
        // place below.
        let now = self.host.clock().now().as_millisecond();
        self.copies.believe_from(now);
        self.known.clear();
        self.unknown.clear();
    }

    /// All changes up to the question, asked at a monotonic nanosecond, are known.
    pub(crate) fn informed(&self, live_gateways: u32, asked_at: u64) {
        if !self.copies.are_believed() {
            self.reset();
        }
        self.news
            .live_gateways
            .store(live_gateways, Ordering::Relaxed);
        self.news.at.store(asked_at, Ordering::Release);
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

    /// Gateways that share a key's rates, this one among them.
    pub(crate) fn live_gateways(&self) -> u32 {
        self.news.live_gateways.load(Ordering::Relaxed).max(1)
    }

    /// Drops tombstones that nothing can contradict any more.
    pub(crate) fn prune(&self) {
        let now = self.now();
        self.tombstones.pin().retain(|_, (_, until)| now < *until);
    }
}

#[cfg(test)]
pub(crate) mod tests;
