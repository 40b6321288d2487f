//! The header that tells an upstream who is calling, signed so that it can believe it.
//!
//! `v=1; org=…; key=…; env=…; scopes="…"; req=…; t=UNIX; sig=HEX`, where `sig` is HMAC-SHA256
//! with the shared secret over everything before `; sig=`.

use hmac::{Hmac, KeyInit, Mac};
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use types::{Environment, RequestId};

use crate::keyring::Entry;

/// Name of the header.
pub(crate) const PRINCIPAL: &str = "tollgate-principal";

/// Signs principals.
#[derive(Clone)]
pub(crate) struct Signer(Hmac<Sha256>);

impl Signer {
    pub(crate) fn new(secret: &SecretString) -> anyhow::Result<Self> {
        Ok(Self(Hmac::new_from_slice(
            secret.expose_secret().as_bytes(),
        )?))
    }

    pub(crate) fn header(
        &self,
        entry: &Entry,
        request: RequestId,
        unix_seconds: i64,
    ) -> Option<HeaderValue> {
        let environment = if entry.test {
            Environment::Test
        } else {
            Environment::Production
        };
        let text = format!(
            "v=1; org={}; key={}; env={}; scopes=\"{}\"; req={request}; t={unix_seconds}",
            entry.org,
            entry.key,
            environment.as_str(),
            entry.scopes.join(" "),
        );
        let mut mac = self.0.clone();
        mac.update(text.as_bytes());
        let signature = hex::encode(mac.finalize().into_bytes());
        HeaderValue::try_from(format!("{text}; sig={signature}")).ok()
    }
}
