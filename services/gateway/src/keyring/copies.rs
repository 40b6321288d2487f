//! Copies of records in Redis, which other gateways read before they ask `keys`.
//!
//! Redis is believed only where the MAC is right, under the very name it was made for, and where
//! the copy was written after this process had its first news of changes. So neither a forged
//! copy, nor one that was moved, nor an old dump brings a key back.

use std::sync::atomic::{AtomicI64, Ordering};

use prost::Message as _;
use proto::keys::v1::KeyRecord;
use redis::AsyncCommands;
use types::KeyHash;

use crate::hashing::{MAC_BYTES, Sought};

/// Copies in Redis live so long.
const REDIS_SECONDS: u64 = 3_600;
/// Bytes of the time of writing.
const WRITTEN_BYTES: usize = 8;

/// The copies in Redis.
pub(super) struct Copies {
    /// Redis may be down, or not be there at all: then there are none.
    redis: Option<redis::aio::ConnectionManager>,
    /// Unix milliseconds; copies from before are not believed. 0: none is.
    floor: AtomicI64,
}

impl Copies {
    pub(super) fn new(redis: Option<redis::aio::ConnectionManager>) -> Self {
        Self {
            redis,
            floor: AtomicI64::new(0),
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

    pub(super) async fn read(&self, key: &Sought) -> Option<KeyRecord> {
        let mut redis = self.redis.clone()?;
        let copy: Option<Vec<u8>> = redis.get(key.hash.cache_name()).await.ok()?;
        self.open(key, &copy?)
    }

    /// Leaves a copy for other gateways, as old as the question to `keys`. False when there is
    /// none now.
    pub(super) async fn write(&self, key: &Sought, record: &KeyRecord, asked_at: i64) -> bool {
        let Some(mut redis) = self.redis.clone() else {
            return false;
        };
        let copy = Self::seal(key, record, asked_at);
        let name = key.hash.cache_name();
        let stored: redis::RedisResult<()> = redis.set_ex(&name, copy, REDIS_SECONDS).await;
        if let Err(error) = &stored {
            tracing::debug!(%error, "no copy of a key was left in Redis");
        }
        stored.is_ok()
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
