//! Copies of records in Redis, which other gateways read before they ask `keys`.
//!
//! Redis is believed only where the MAC is right, under the very name it was made for, and where
//! the copy was written after this process had its first news of changes. So neither a forged
//! copy, nor one that was moved, nor an old dump brings a key back.
//!
//! No call waits for Redis longer than it would for `keys`: copies are left behind its back, and
//! who has read in vain does not ask again for a moment.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

use prost::Message as _;
use proto::keys::v1::KeyRecord;
use redis::AsyncCommands;
use tokio::sync::mpsc::{self, error::TrySendError};
use types::KeyHash;

use crate::hashing::{MAC_BYTES, Sought};

/// Copies in Redis live so long.
const REDIS_SECONDS: u64 = 3_600;
/// Bytes of the time of the question to `keys`.
const ASKED_AT_BYTES: usize = 8;
/// A copy is read within so long, or `keys` is asked, which takes no longer.
const PATIENCE_NANOS: u64 = 20_000_000;
/// Nothing is read for so long after that has failed.
const REST_NANOS: u64 = 1_000_000_000;
/// Copies waiting to be written; those that find no room are not left.
const WAITING_MAX: usize = 1_000;

/// The copies in Redis.
pub(super) struct Copies {
    /// Redis may be down, or not be there at all: then there are none.
    redis: Option<redis::aio::ConnectionManager>,
    /// Unix milliseconds; copies from before are not believed. 0: none is.
    floor: AtomicI64,
    /// Monotonic nanoseconds; nothing is read before.
    rests_until: AtomicU64,
    waiting: mpsc::Sender<SealedCopy>,
}

/// A copy that may be believed.
#[derive(Debug, PartialEq)]
pub(super) struct Believed {
    pub(super) record: KeyRecord,
    /// Unix milliseconds: `keys` was asked for it then, by whoever has left it.
    pub(super) asked_at: i64,
}

/// A copy to be left for other gateways.
pub(crate) struct SealedCopy {
    pub(super) hash: KeyHash,
    pub(super) version: i64,
    sealed: Vec<u8>,
}

impl Copies {
    /// Also returns where the copies come out that are to be left.
    pub(super) fn new(
        redis: Option<redis::aio::ConnectionManager>,
    ) -> (Self, mpsc::Receiver<SealedCopy>) {
        let (waiting, left) = mpsc::channel(WAITING_MAX);
        let copies = Self {
            redis,
            floor: AtomicI64::new(0),
            rests_until: AtomicU64::new(0),
            waiting,
        };
        (copies, left)
    }

    /// Connects, for as long as that takes: nobody who reads waits until it is done.
    pub(super) async fn connect(&self) {
        let Some(mut redis) = self.redis.clone() else {
            return;
        };
        if let Err(error) = redis.ping::<()>().await {
            tracing::debug!(%error, "Redis does not answer yet");
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

    /// What a copy says, if it may be believed.
    pub(super) fn open(&self, key: &Sought, copy: &[u8]) -> Option<Believed> {
        let (tag, body) = copy.split_at_checked(MAC_BYTES)?;
        if !bool::from(subtle::ConstantTimeEq::ct_eq(
            tag,
            &key.hashing.tag(&key.hash, body)[..],
        )) {
            tracing::warn!("a copy in Redis has a wrong MAC and was not believed");
            return None;
        }
        let (asked_at, record) = body.split_at_checked(ASKED_AT_BYTES)?;
        let asked_at = i64::from_le_bytes(asked_at.try_into().ok()?);
        let floor = self.floor.load(Ordering::Acquire);
        if floor == 0 || asked_at < floor {
            return None;
        }
        let record = KeyRecord::decode(record).ok()?;
        Some(Believed { record, asked_at })
    }

    /// The copy of a key at `now` (monotonic nanoseconds).
    pub(super) async fn read(&self, key: &Sought, now: u64) -> Option<Believed> {
        let rests = now < self.rests_until.load(Ordering::Relaxed);
        let mut redis = self.redis.clone().filter(|_| !rests)?;
        let name = key.hash.cache_name();
        let patience = Duration::from_nanos(PATIENCE_NANOS);
        let read = tokio::time::timeout(patience, redis.get::<_, Option<Vec<u8>>>(name)).await;
        let Ok(Ok(copy)) = read else {
            let until = now.saturating_add(PATIENCE_NANOS + REST_NANOS);
            self.rests_until.fetch_max(until, Ordering::Relaxed);
            return None;
        };
        self.open(key, &copy?)
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
        // Without it another gateway asks `keys`. After the last call nobody leaves any.
        if let Err(TrySendError::Full(_)) = self.waiting.try_send(copy) {
            tracing::debug!("too many copies of keys wait for Redis, one is not left");
        }
    }

    /// Writes a copy. It may be there also when that has failed.
    pub(super) async fn write(&self, copy: &SealedCopy) {
        let Some(mut redis) = self.redis.clone() else {
            return;
        };
        let name = copy.hash.cache_name();
        let stored: redis::RedisResult<()> = redis.set_ex(name, &copy.sealed, REDIS_SECONDS).await;
        if let Err(error) = &stored {
            tracing::debug!(%error, "no copy of a key was left in Redis");
        }
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
