//! What keys are hashed with. It is replaced while calls go on: whoever begins with one generation
//! of peppers ends with it.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use runtime::Generation;
use secrecy::ExposeSecret;
use sha2::Sha256;
use types::{Environment, KeyHash, NewKey, Peppers, PresentedKey};

/// Bytes of a MAC.
pub(crate) const MAC_BYTES: usize = 32;

/// The peppers of one moment, and what is derived from them.
pub(crate) struct Hashing {
    peppers: Peppers,
    /// Of copies in Redis.
    mac: Hmac<Sha256>,
}

/// A key that is looked for, hashed by one generation.
pub(crate) struct Sought {
    /// With the current pepper.
    pub(crate) hash: KeyHash,
    /// With the one before, when there is one.
    pub(crate) previous: Option<KeyHash>,
    /// Stored with `hash` when the key is found by the one before.
    pub(crate) report: KeyHash,
    pub(crate) hashing: Arc<Hashing>,
}

impl Hashing {
    pub(crate) fn new(generation: &Generation) -> anyhow::Result<Self> {
        let previous = generation.previous.as_ref();
        let peppers = Peppers::new(
            generation.current.expose_secret(),
            previous.map(ExposeSecret::expose_secret),
        )?;
        // The MAC's key comes from the pepper, which Redis does not hold.
        let probe = NewKey::from_random(Environment::Test, &[0; 28]);
        let seed = probe.presented().hash(peppers.current());
        let mut mac = Hmac::<Sha256>::new_from_slice(seed.bytes())?;
        mac.update(b"tollgate redis v1");
        Ok(Self { peppers, mac })
    }

    /// Names the pepper and the one before.
    pub(crate) fn ids(&self) -> (String, Option<String>) {
        self.peppers.ids()
    }

    pub(crate) fn hash(&self, key: &PresentedKey) -> KeyHash {
        key.hash(self.peppers.current())
    }

    /// What a look-up needs of a key whose hash is known.
    pub(crate) fn seek(self: Arc<Self>, hash: KeyHash, key: &PresentedKey) -> Sought {
        Sought {
            hash,
            previous: self.peppers.previous().map(|pepper| key.hash(pepper)),
            report: key.digest().hash(self.peppers.current()),
            hashing: self,
        }
    }

    /// The MAC of a copy in Redis.
    pub(crate) fn tag(&self, hash: &KeyHash, body: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = self.mac.clone();
        mac.update(hash.bytes());
        mac.update(body);
        mac.finalize().into_bytes().into()
    }
}
