//! Which pepper a key is hashed with, while processes change theirs at different moments.
//!
//! A gateway finds a key under the hash it has now or had before, whichever pepper it uses itself,
//! and is told of every change of the key under the hash it holds it by.

use types::KeyHash;

use super::key::ApiKey;
use crate::error::{Error, Result};

/// A pepper's name, and that of the one before.
pub(crate) type Ids = (String, Option<String>);

/// What a gateway looks for.
#[derive(Debug)]
pub(crate) struct Sought {
    pub(crate) hash: KeyHash,
    /// The same key's hash with the gateway's pepper before, and what is stored beside `hash`.
    pub(crate) previous: Option<(KeyHash, KeyHash)>,
    /// Names the pepper of `hash`.
    pub(crate) pepper_id: String,
}

impl Sought {
    /// Reads a request.
    pub(crate) fn new(
        hash: &[u8],
        previous: &[u8],
        report: &[u8],
        pepper_id: &str,
    ) -> Result<Self> {
        let previous = match previous.is_empty() {
            true => None,
            false => {
                let previous = key_hash("previous_key_hash", previous)?;
                Some((previous, key_hash("report_hash", report)?))
            }
        };
        Ok(Self {
            hash: key_hash("key_hash", hash)?,
            previous,
            pepper_id: pepper_id.to_owned(),
        })
    }

    /// Whether the key moves to the gateway's pepper: it is hashed with the one before. Only then:
    /// a gateway that is late must not move it back.
    pub(crate) fn moves(&self, key: &ApiKey) -> Option<Move> {
        let (previous, report) = self.previous?;
        if key.hash == self.hash || key.hash != previous {
            return None;
        }
        Some(Move {
            from: previous,
            to: self.hash,
            report,
            pepper_id: self.pepper_id.clone(),
        })
    }
}

/// A key's way from one pepper to the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Move {
    pub(crate) from: KeyHash,
    pub(crate) to: KeyHash,
    pub(crate) report: KeyHash,
    pub(crate) pepper_id: String,
}

/// Whether a gateway has no pepper in common with us. Then changes are announced under hashes that
/// it does not hold keys by, and it may keep none.
pub(crate) fn is_stranger(gateway: &Ids, ours: &Ids) -> bool {
    let has =
        |(current, previous): &Ids, id: &str| current == id || previous.as_deref() == Some(id);
    let previous = gateway.1.as_deref();
    !has(ours, &gateway.0) && !previous.is_some_and(|id| has(ours, id))
}

/// How many keys that are not revoked stand where.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Standing {
    /// Hashed with the current pepper.
    pub(crate) current: i64,
    /// Hashed with the one before: they move at their first use.
    pub(crate) waiting: i64,
    /// Hashed with a pepper nobody has any more: they cannot be used.
    pub(crate) lost: i64,
}

impl Standing {
    /// Adds up what is counted by pepper.
    pub(crate) fn of(counts: &[(String, i64)], (current, previous): &Ids) -> Self {
        let mut standing = Self::default();
        for (pepper, keys) in counts {
            let place = if pepper == current {
                &mut standing.current
            } else if Some(pepper) == previous.as_ref() {
                &mut standing.waiting
            } else {
                &mut standing.lost
            };
            *place += keys;
        }
        standing
    }
}

/// What the audit log says of peppers that were loaded; `None`: nothing has changed.
pub(crate) fn change(before: &Ids, after: &Ids) -> Option<&'static str> {
    if before.0 != after.0 {
        return Some("pepper.rotated");
    }
    match (&before.1, &after.1) {
        (before, after) if before == after => None,
        (_, None) => Some("pepper.retired"),
        (_, Some(_)) => Some("pepper.restored"),
    }
}

fn key_hash(field: &'static str, bytes: &[u8]) -> Result<KeyHash> {
    KeyHash::from_slice(bytes).ok_or_else(|| Error::invalid(field, "must be 32 bytes"))
}
