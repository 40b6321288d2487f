//! Copies of records in Redis, which other gateways read before they ask `keys`.
//!
//! Redis is believed only where the MAC is right, under the very name it was made for, and where
//! the copy was written after this process had its first news of changes. So neither a forged
//! copy, nor one that was moved, nor an old dump brings a key back.
//!
//! No call waits for Redis longer than it would for `keys`: copies are left behind its back, and a
//! Redis that has failed is left alone for a moment.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use prost::Message as _;
use proto::keys::v1::KeyRecord;
use redis::AsyncCommands;
use tokio::sync::mpsc;
use types::KeyHash;

use crate::hashing::{MAC_BYTES, Sought};

/// Copies in Redis live so long.
const REDIS_SECONDS: u64 = 3_600;
/// Bytes of the time of writing.
const WRITTEN_BYTES: usize = 8;
/// A copy is read within so long, or `keys` is asked, which takes no longer.
const PATIENCE: Duration = Duration::from_millis(20);
/// Redis is left alone for so long after it has failed.
const REST_NANOS: u64 = 1_000_000_000;
/// Copies waiting to be written; those that find no room are not left.
pub(crate) const WAITING_MAX: usize = 1_000;

/// The copies in Redis.
pub(super) struct Copies {
    /// Redis may be down, or not be there at all: then there are none.
    redis: Option<redis::aio::ConnectionManager>,
    /// Unix milliseconds; copies from before are not believed. 0: none is.
    floor: AtomicI64,
    /// Monotonic nanoseconds; Redis is not asked before.
    rests_until: AtomicU64,
    waiting: mpsc::Sender<SealedCopy>,
}

/// A copy to be left for other gateways.
pub(crate) struct SealedCopy {
    pub(super) hash: KeyHash,
    pub(super) version: i64,
    sealed: Vec<u8>,
}

impl Copies {
    /// What is to be left comes out at the other end of `waiting`.
    pub(super) fn new(
        redis: Option<redis::aio::ConnectionManager>,
        waiting: mpsc::Sender<SealedCopy>,
    ) -> Self {
        Self {
            redis,
            floor: AtomicI64::new(0),
            rests_until: AtomicU64::new(0),
            waiting,
        }
    }

    /// Copies from before (Unix milliseconds) are not believed.
    pub(super) fn believe_from(&self, millis: i64) {
        self.floor.store(millis, Ordering::Release);
    }

    /// True once it is known which copies to believe.
    pub(super) fn are_believed(&self) -> bool {
        self.floor.load(Ordering::Acquire) > 0
    }

    /// A copy as it is written: the MAC over everything behind it and over the name.
    pub(super) fn seal(key: &Sought, record: &KeyRecord, asked_at: i64) -> Vec<u8> {
        let mut body = asked_at.to_le_bytes().to_vec();
        body.extend_from_slice(&record.encode_to_vec());
        let mut copy = key.hashing.tag(&key.hash, &body).to_vec();
        copy.extend_from_slice(&body);
        copy
    }

    /// The record of a copy, if it may be believed.
    pub(super) fn open(&self, key: &Sought, copy: &[u8]) -> Option<KeyRecord> {
        let (tag, body) = copy.split_at_checked(MAC_BYTES)?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(
            tag,
            &key.hashing.tag(&key.hash, body)[..],
        )) {
            tracing::warn!("a copy in Redis has a wrong MAC and was not believed");
            return None;
        }
        let (written, record) = body.split_at_checked(WRITTEN_BYTES)?;
        let written = i64::from_le_bytes(written.try_into().ok()?);
        let floor = self.floor.load(Ordering::Acquire);
        if floor == 0 || written < floor {
            return None;
        }
        KeyRecord::decode(record).ok()
    }

    /// The copy of a key at `now` (monotonic nanoseconds).
    pub(super) async fn read(&self, key: &Sought, now: u64) -> Option<KeyRecord> {
        let mut redis = self.redis.clone().filter(|_| !self.rests(now))?;
        let name = key.hash.cache_name();
        let read = tokio::time::timeout(PATIENCE, redis.get::<_, Option<Vec<u8>>>(name)).await;
        let Ok(Ok(copy)) = read else {
            self.rest(now);
            return None;
        };
        self.open(key, &copy?)
    }

    /// Is Redis left alone at `now` (monotonic nanoseconds)?
    fn rests(&self, now: u64) -> bool {
        now < self.rests_until.load(Ordering::Relaxed)
    }

    fn rest(&self, now: u64) {
        let until = now.saturating_add(REST_NANOS);
        self.rests_until.fetch_max(until, Ordering::Relaxed);
    }

    /// Has a copy left for other gateways, as old as the question to `keys`. Does not wait.
    pub(super) fn leave(&self, key: &Sought, record: &KeyRecord, asked_at: i64) {
        if self.redis.is_none() {
            return;
        }
        let copy = SealedCopy {
            hash: key.hash,
            version: record.version,
            sealed: Self::seal(key, record, asked_at),
        };
        // Without it another gateway asks `keys`.
        if self.waiting.try_send(copy).is_err() {
            tracing::debug!("too many copies of keys wait for Redis, one is not left");
        }
    }

    /// Writes a copy at `now` (monotonic nanoseconds). False when there is none then.
    pub(super) async fn write(&self, copy: &SealedCopy, now: u64) -> bool {
        let Some(mut redis) = self.redis.clone().filter(|_| !self.rests(now)) else {
            return false;
        };
        let name = copy.hash.cache_name();
        let stored: redis::RedisResult<()> = redis.set_ex(name, &copy.sealed, REDIS_SECONDS).await;
        if let Err(error) = &stored {
            self.rest(now);
            tracing::debug!(%error, "no copy of a key was left in Redis");
        }
        // It may be there all the same when only the answer was late.
        true
    }

    /// Removes copies of keys that have changed.
    pub(super) async fn forget(&self, hashes: &[KeyHash]) {
        let Some(mut redis) = self.redis.clone().filter(|_| !hashes.is_empty()) else {
            return;
        };
        let names: Vec<String> = hashes.iter().map(KeyHash::cache_name).collect();
        let gone: redis::RedisResult<()> = redis.del(names).await;
        if let Err(error) = gone {
            tracing::debug!(%error, "copies in Redis were not removed; tombstones overrule them");
        }
    }
}
