//! The listener's TLS.

use std::sync::Arc;

use anyhow::Context as _;
use runtime::Generation;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use secrecy::ExposeSecret as _;

/// HTTP/2 where the client can.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS 1.2 or later with a chain of certificates and the key of the first, both as PEM.
///
/// # Errors
/// There is no certificate or no key, or they do not belong together.
pub(super) fn config(pair: &Generation) -> anyhow::Result<Arc<ServerConfig>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pair.current.expose_secret().as_bytes())
        .collect::<Result<_, _>>()
        .context("the certificate cannot be read")?;
    anyhow::ensure!(!chain.is_empty(), "there is no certificate");
    let key = pair.previous.as_ref().context("there is no key")?;
    let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes())
        .context("the key cannot be read")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and the key do not belong together")?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    // Sessions are resumed by what clients keep, so nothing is kept here for each of them.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}
