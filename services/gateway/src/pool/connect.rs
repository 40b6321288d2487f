//! Connects to upstreams, and to nothing that only our own machines may reach.
//!
//! What is judged is the address that is connected to, not the name: one that stood for another
//! address when the service was saved gets nobody any further.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use runtime::Clock;
use tokio::net::TcpStream;
use types::{Gcra, Networks, Rate};

use crate::{
    catalogue::Upstream,
    metrics::{Connect, Metrics},
};

/// Forbidden addresses that are logged.
const COMPLAINTS: Rate = Rate {
    per_second: 1,
    burst: 5,
};

/// The address is neither public nor listed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{0} is neither public nor in TOLLGATE_GATEWAY_UPSTREAM_NETWORKS")]
pub(crate) struct Forbidden(IpAddr);

/// Opens connections for one thread.
pub(crate) struct Connector {
    networks: Arc<Networks>,
    metrics: Metrics,
    clock: Clock,
    complaints: Gcra,
}

impl Connector {
    pub(crate) fn new(networks: Arc<Networks>, metrics: Metrics, clock: Clock) -> Self {
        Self {
            networks,
            metrics,
            clock,
            complaints: Gcra::default(),
        }
    }

    /// A connection to the first address of an upstream that takes one.
    pub(crate) async fn connect(&self, upstream: &Upstream) -> anyhow::Result<TcpStream> {
        let found = tokio::net::lookup_host((upstream.host.as_str(), upstream.port)).await?;
        let mut failed = io::Error::from(io::ErrorKind::AddrNotAvailable).into();
        for address in found {
            match self.connect_to(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn connect_to(&self, address: SocketAddr) -> anyhow::Result<TcpStream> {
        if !self.networks.allow(address.ip()) {
            return Err(Forbidden(address.ip()).into());
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Counts how an attempt ended, and complains of an address that is forbidden.
    pub(crate) fn note(&self, upstream: &Upstream, failed: Option<&anyhow::Error>) {
        let forbidden = failed.and_then(|error| error.downcast_ref::<Forbidden>());
        self.metrics.connected(match (failed, forbidden) {
            (None, _) => Connect::Opened,
            (Some(_), None) => Connect::Failed,
            (Some(_), Some(_)) => Connect::Forbidden,
        });
        let Some(forbidden) = forbidden else {
            return;
        };
        let now = self.clock.monotonic_nanos();
        if self.complaints.admit(COMPLAINTS, now).is_ok() {
            tracing::warn!(
                upstream = upstream.host,
                address = %forbidden.0,
                "an upstream is where calls must not be sent: list its network if it is ours"
            );
        }
    }
}
