//! The header that tells an upstream who is calling, signed so that it can believe it.
//!
//! `v=1; org=…; key=…; env=…; scopes="…"; req=…; t=UNIX; sig=HEX`, where `sig` is HMAC-SHA256
//! with the shared secret over everything before `; sig=`.

use hmac::{Hmac, KeyInit, Mac};
use http::HeaderName;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use types::{Environment, RequestId};

use crate::keyring::Entry;

/// Name of the header.
pub(crate) const PRINCIPAL: HeaderName = HeaderName::from_static("tollgate-principal");

/// Signs principals.
#[derive(Clone)]
pub(crate) struct Signer(Hmac<Sha256>);

impl Signer {
    pub(crate) fn new(secret: &SecretString) -> anyhow::Result<Self> {
        Ok(Self(Hmac::new_from_slice(
            secret.expose_secret().as_bytes(),
        )?))
    }

    /// Appends the header's value.
    pub(crate) fn write(
        &self,
        text: &mut String,
        entry: &Entry,
        request: RequestId,
        unix_seconds: i64,
    ) {
        let begin = text.len();
        let environment = if entry.test {
            Environment::Test
        } else {
            Environment::Production
        };
        text.push_str("v=1; org=");
        entry.org.push_to(text);
        text.push_str("; key=");
        entry.key.push_to(text);
        text.push_str("; env=");
        text.push_str(environment.as_str());
        text.push_str("; scopes=\"");
        for (index, scope) in entry.scopes.iter().enumerate() {
            if index > 0 {
                text.push(' ');
            }
            text.push_str(scope);
        }
        text.push_str("\"; req=");
        request.push_to(text);
        text.push_str("; t=");
        text.push_str(itoa::Buffer::new().format(unix_seconds));
        let mut mac = self.0.clone();
        mac.update(text.get(begin..).unwrap_or_default().as_bytes());
        text.push_str("; sig=");
        let mut digits = [0; 64];
        hex::encode_to_slice(mac.finalize().into_bytes(), &mut digits).expect("two a byte");
        text.push_str(std::str::from_utf8(&digits).expect("digits"));
    }
}
