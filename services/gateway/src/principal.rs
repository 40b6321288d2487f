//! The header that tells an upstream who is calling, signed so that it can believe it.
//!
//! `v=1; org=…; key=…; env=…; scopes="…"; req=…; t=UNIX; sig=HEX`, where `sig` is HMAC-SHA256
//! with the shared secret over everything before `; sig=`.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use http::HeaderName;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use smallvec::SmallVec;
use types::Environment;

use crate::keyring::Entry;

/// Bytes of a beginning that need no memory of their own: those of most keys.
const TEXT_BYTES: usize = 192;

/// Name of the header.
pub(crate) const PRINCIPAL: HeaderName = HeaderName::from_static("tollgate-principal");

/// Signs principals.
#[derive(Clone)]
pub(crate) struct Signer(Hmac<Sha256>);

/// What all principals of one key begin with: written once, and hashed as far as it goes.
pub(crate) struct Beginning {
    text: SmallVec<[u8; TEXT_BYTES]>,
    mac: Hmac<Sha256>,
}

impl fmt::Debug for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Beginning(..)")
    }
}

impl Signer {
    pub(crate) fn new(secret: &SecretString) -> anyhow::Result<Self> {
        Ok(Self(Hmac::new_from_slice(
            secret.expose_secret().as_bytes(),
        )?))
    }

    /// Appends the header's value. `request` is an id as text.
    pub(crate) fn write(
        &self,
        text: &mut Vec<u8>,
        entry: &Entry,
        request: &[u8],
        unix_seconds: i64,
    ) {
        let beginning = entry.principal.get_or_init(|| self.begin(entry));
        text.extend_from_slice(&beginning.text);
        let begin = text.len();
        text.extend_from_slice(request);
        text.extend_from_slice(b"; t=");
        text.extend_from_slice(itoa::Buffer::new().format(unix_seconds).as_bytes());
        let mut mac = beginning.mac.clone();
        mac.update(text.get(begin..).unwrap_or_default());
        text.extend_from_slice(b"; sig=");
        let mut digits = [0; 64];
        hex::encode_to_slice(mac.finalize().into_bytes(), &mut digits).expect("two a byte");
        text.extend_from_slice(&digits);
    }

    fn begin(&self, entry: &Entry) -> Beginning {
        let environment = if entry.test {
            Environment::Test
        } else {
            Environment::Production
        };
        let mut text = String::from("v=1; org=");
        entry.org.push_to(&mut text);
        text.push_str("; key=");
        entry.key.push_to(&mut text);
        text.push_str("; env=");
        text.push_str(environment.as_str());
        text.push_str("; scopes=\"");
        let mut text = SmallVec::from_slice(text.as_bytes());
        text.extend_from_slice(entry.scopes.as_bytes());
        text.extend_from_slice(b"\"; req=");
        let mut mac = self.0.clone();
        mac.update(&text);
        Beginning { text, mac }
    }
}
