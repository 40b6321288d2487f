//! The format of API keys, and their hashes.
//!
//! `sk_live_` or `sk_test_`, then 43 base64url characters: 28 random bytes and the CRC-32 (IEEE)
//! of prefix and bytes, big-endian. The checksum lets a typo or a scanner's noise be refused
//! without a look-up; it protects nothing secret.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::names::Environment;

/// Random bytes in a key.
pub const KEY_RANDOM_BYTES: usize = 28;
/// Characters behind the prefix.
pub const KEY_BODY_CHARS: usize = 43;
/// `sk_live_`
const PREFIX_CHARS: usize = 8;
/// Below this a pepper adds too little.
const PEPPER_BYTES_MIN: usize = 32;

/// A key whose format and checksum are right. Nothing is known yet of whether it was ever issued.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct PresentedKey {
    text: [u8; PREFIX_CHARS + KEY_BODY_CHARS],
    #[zeroize(skip)]
    environment: Environment,
}

/// Why a text is no key. Callers are told one thing for all of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Neither `sk_live_` nor `sk_test_`, or the wrong length.
    #[error("not of the form sk_live_ or sk_test_ and {KEY_BODY_CHARS} characters")]
    Shape,
    /// The characters do not carry their checksum.
    #[error("the checksum is wrong")]
    Checksum,
}

fn checksum(prefix: &[u8], random: &[u8]) -> [u8; 4] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(prefix);
    crc.update(random);
    crc.finalize().to_be_bytes()
}

impl PresentedKey {
    /// Reads a presented key. Needs no I/O and no secret.
    ///
    /// # Errors
    /// Shape or checksum are wrong.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let text = text.as_ref();
        let environment = match text.get(..PREFIX_CHARS) {
            Some(b"sk_live_") => Environment::Production,
            Some(b"sk_test_") => Environment::Test,
            _ => return Err(KeyError::Shape),
        };
        let text: [u8; PREFIX_CHARS + KEY_BODY_CHARS] = match text.try_into() {
            Ok(text) => text,
            Err(_) => return Err(KeyError::Shape),
        };
        let (prefix, body) = text.split_at(PREFIX_CHARS);
        let mut bytes = [0; KEY_RANDOM_BYTES + 4];
        match URL_SAFE_NO_PAD.decode_slice(body, &mut bytes) {
            Ok(length) if length == bytes.len() => {}
            _ => return Err(KeyError::Shape),
        }
        let (random, crc) = bytes.split_at(KEY_RANDOM_BYTES);
        let right = checksum(prefix, random) == crc;
        bytes.zeroize();
        if !right {
            return Err(KeyError::Checksum);
        }
        Ok(Self { text, environment })
    }

    /// What the prefix says. The row decides, not the prefix.
    #[must_use]
    pub const fn environment(&self) -> Environment {
        self.environment
    }

    /// sha256(key ‖ pepper).
    #[must_use]
    pub fn hash(&self, pepper: &Pepper) -> KeyHash {
        let mut sha = Sha256::new();
        sha.update(self.text);
        sha.update(&pepper.text);
        KeyHash(sha.finalize().into())
    }

    /// sha256(key): what somebody sends who has found the key and does not pass it on.
    #[must_use]
    pub fn digest(&self) -> KeyDigest {
        KeyDigest(Sha256::digest(self.text).into())
    }
}

impl fmt::Debug for PresentedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresentedKey(..)")
    }
}

/// A key that was just made. Its text is given out once and stored nowhere.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct NewKey(String);

impl NewKey {
    /// Makes the key of 28 bytes from the operating system's generator.
    #[must_use]
    pub fn from_random(environment: Environment, random: &[u8; KEY_RANDOM_BYTES]) -> Self {
        let prefix = environment.key_prefix();
        let mut text = format!("{prefix}_");
        let crc = checksum(text.as_bytes(), random);
        let mut bytes = [0; KEY_RANDOM_BYTES + 4];
        let (left, right) = bytes.split_at_mut(KEY_RANDOM_BYTES);
        left.copy_from_slice(random);
        right.copy_from_slice(&crc);
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        bytes.zeroize();
        Self(text)
    }

    /// The key itself, for the one answer that carries it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The last four characters, shown in lists.
    #[must_use]
    pub fn hint(&self) -> String {
        let skip = self.0.len().saturating_sub(4);
        self.0.chars().skip(skip).collect()
    }

    /// As a caller would present it.
    ///
    /// # Panics
    /// Never: what `from_random` makes, `parse` accepts.
    #[must_use]
    pub fn presented(&self) -> PresentedKey {
        PresentedKey::parse(&self.0).expect("a new key has the right form")
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NewKey(..)")
    }
}

/// What is stored of a key. Compared in constant time.
#[derive(Clone, Copy, Eq)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Reads the 32 bytes of a row or message.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes, for look-ups.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Under which name Redis holds a copy of the key's record.
    #[must_use]
    pub fn cache_name(&self) -> String {
        format!("apikey:{}", hex::encode(self.0))
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        // By words: each call compares two, and by bytes that takes ten times as long.
        let (ours, theirs) = (self.0.as_chunks::<8>().0, other.0.as_chunks::<8>().0);
        let differing = ours.iter().zip(theirs).fold(0, |bits, (ours, theirs)| {
            bits | (u64::from_ne_bytes(*ours) ^ u64::from_ne_bytes(*theirs))
        });
        differing.ct_eq(&0).into()
    }
}

impl std::hash::Hash for KeyHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

/// sha256(key), without a pepper. It is sent to us and never stored.
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// Reads the 32 bytes of a message.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// sha256(words ‖ digest ‖ pepper): what is stored, so that a key is found by its digest and
    /// nobody without the pepper can tell whether a digest is of one of ours.
    #[must_use]
    pub fn hash(&self, pepper: &Pepper) -> KeyHash {
        let mut sha = Sha256::new();
        sha.update(b"tollgate report hash");
        sha.update(self.0);
        sha.update(&pepper.text);
        KeyHash(sha.finalize().into())
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyDigest(..)")
    }
}

/// The secret that is hashed with every key: the variable's text, as it is.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Pepper {
    text: Vec<u8>,
    #[zeroize(skip)]
    id: [u8; 4],
}

/// The pepper is too short.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("must have at least {PEPPER_BYTES_MIN} bytes, has {0}")]
pub struct PepperError(usize);

impl Pepper {
    /// Takes the text of the variable.
    ///
    /// # Errors
    /// Fewer than 32 bytes.
    pub fn new(text: &str) -> Result<Self, PepperError> {
        if text.len() < PEPPER_BYTES_MIN {
            return Err(PepperError(text.len()));
        }
        let mut sha = Sha256::new();
        sha.update(b"tollgate pepper id");
        sha.update(text.as_bytes());
        let digest: [u8; 32] = sha.finalize().into();
        let [a, b, c, d, ..] = digest;
        Ok(Self {
            text: text.as_bytes().to_vec(),
            id: [a, b, c, d],
        })
    }

    /// Names the pepper without telling it: eight hex digits, stored beside each hash.
    #[must_use]
    pub fn id(&self) -> String {
        hex::encode(self.id)
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pepper({})", self.id())
    }
}
