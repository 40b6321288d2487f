//! Where a service may be: asked when it is saved. The gateways ask again whenever they connect,
//! for a name can stand for another address by then.

use std::time::Duration;

use types::Networks;
use url::{Host, Url};

use crate::{
    domain::catalogue::{outside, upstream_url},
    error::{Error, Result},
};

/// A name is looked up for so long; one that is not found by then may exist later.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Refuses an address, or a name that stands for one, that calls must not be sent to.
pub(super) async fn check(networks: &Networks, text: &str) -> Result<()> {
    let checked = upstream_url(text)?;
    let Ok(url) = Url::parse(&checked) else {
        return Ok(()); // it was parsed a moment ago
    };
    let name = match url.host() {
        Some(Host::Ipv4(v4)) => return outside(networks, "the address", [v4.into()]),
        Some(Host::Ipv6(v6)) => return outside(networks, "the address", [v6.into()]),
        Some(Host::Domain(name)) => name,
        None => return Err(Error::invalid("upstream_url", "must have a host")),
    };
    let port = url.port_or_known_default().unwrap_or_default();
    let asked = tokio::net::lookup_host((name, port));
    match tokio::time::timeout(LOOKUP_TIMEOUT, asked).await {
        Ok(Ok(found)) => outside(networks, name, found.map(|it| it.ip())),
        // Nobody knows it here, or yet.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}
