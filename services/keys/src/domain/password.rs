//! Passwords: which are accepted, and how they are stored.

use argon2::{Algorithm, Argon2, Params, Version};
use subtle::ConstantTimeEq as _;

use crate::error::{Error, Result};

/// Characters of a password; shorter is guessed, longer only burns time.
const CHARS_MIN: usize = 10;
const CHARS_MAX: usize = 200;
/// argon2id: memory in KiB, passes, lanes.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

pub(crate) const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
const STORED_BYTES: usize = SALT_BYTES + HASH_BYTES;

/// A password as the table keeps it: the salt, then the hash.
#[derive(Clone)]
pub(crate) struct Stored([u8; STORED_BYTES]);

impl Stored {
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Hashes a password: slow and with much memory, on purpose.
    pub(crate) fn new(password: &str, salt: [u8; SALT_BYTES]) -> Result<Self> {
        let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(HASH_BYTES));
        let params = params.map_err(|error| Error::Internal(anyhow::anyhow!("{error}")))?;
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut hash = [0; HASH_BYTES];
        argon
            .hash_password_into(password.as_bytes(), &salt, &mut hash)
            .map_err(|error| Error::Internal(anyhow::anyhow!("argon2: {error}")))?;
        let mut stored = [0; STORED_BYTES];
        let (front, back) = stored.split_at_mut(SALT_BYTES);
        front.copy_from_slice(&salt);
        back.copy_from_slice(&hash);
        Ok(Self(stored))
    }

    /// Is this the password? Takes as long for a wrong one.
    pub(crate) fn is(&self, password: &str) -> Result<bool> {
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&self.0[..SALT_BYTES]);
        let given = Self::new(password, salt)?;
        Ok(given.0.ct_eq(&self.0).into())
    }
}

/// Checks a new password by its length only: rules about characters make worse ones.
pub(crate) fn check(field: &'static str, password: &str) -> Result<()> {
    let chars = password.chars().count();
    if !(CHARS_MIN..=CHARS_MAX).contains(&chars) {
        let problem = format!("must be {CHARS_MIN}–{CHARS_MAX} characters");
        return Err(Error::invalid(field, problem));
    }
    Ok(())
}

/// Can this be anybody's password? Others are not worth a hash.
pub(crate) fn is_possible(password: &str) -> bool {
    password.chars().count() <= CHARS_MAX
}
