//! The peppers of this moment: the current one, and the one before while keys wait for their first
//! use under the current one.

use crate::key::{KeyDigest, KeyHash, Pepper, PepperError, PresentedKey};

/// A pepper and the one before.
#[derive(Clone, Debug)]
pub struct Peppers {
    current: Pepper,
    previous: Option<Pepper>,
}

/// What is stored in place of a key.
#[derive(Clone, Debug)]
pub struct KeyHashes {
    /// With the current pepper.
    pub hash: KeyHash,
    /// With the one before.
    pub previous_hash: Option<KeyHash>,
    /// As [`KeyDigest::hash`], with the current pepper.
    pub report_hash: KeyHash,
    /// The same with the one before.
    pub previous_report_hash: Option<KeyHash>,
    /// Names the current pepper.
    pub pepper_id: String,
}

impl Peppers {
    /// Takes the texts of the two. The same twice is one: a rotation passes through that.
    ///
    /// # Errors
    /// One has fewer than 32 bytes.
    pub fn new(current: &str, previous: Option<&str>) -> Result<Self, PepperError> {
        let current = Pepper::new(current)?;
        let previous = previous.map(Pepper::new).transpose()?;
        let previous = previous.filter(|previous| previous.id() != current.id());
        Ok(Self { current, previous })
    }

    /// What new keys are hashed with.
    #[must_use]
    pub const fn current(&self) -> &Pepper {
        &self.current
    }

    /// The one before.
    #[must_use]
    pub const fn previous(&self) -> Option<&Pepper> {
        self.previous.as_ref()
    }

    /// Names both without telling them.
    #[must_use]
    pub fn ids(&self) -> (String, Option<String>) {
        (self.current.id(), self.previous.as_ref().map(Pepper::id))
    }

    /// The hashes of a key with both.
    #[must_use]
    pub fn hashes(&self, key: &PresentedKey) -> KeyHashes {
        let digest = key.digest();
        let (report_hash, previous_report_hash) = self.reports(&digest);
        KeyHashes {
            hash: key.hash(&self.current),
            previous_hash: self.previous.as_ref().map(|pepper| key.hash(pepper)),
            report_hash,
            previous_report_hash,
            pepper_id: self.current.id(),
        }
    }

    /// The hashes of a key's plain hash with both.
    #[must_use]
    pub fn reports(&self, digest: &KeyDigest) -> (KeyHash, Option<KeyHash>) {
        let previous = self.previous.as_ref().map(|pepper| digest.hash(pepper));
        (digest.hash(&self.current), previous)
    }
}
