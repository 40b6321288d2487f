//! What the threads share of the listener: who may come in, how long he is waited for, and counts.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
};

use arc_swap::ArcSwap;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge},
};
use runtime::{Host, Succession};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    census::{Census, Full, Guest},
    limits::DESCRIPTORS_PER_RESERVED,
    patience::Patience,
    tls,
};
use crate::Config;

#[derive(Clone, Hash, PartialEq, Eq, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

type Reasons = Family<ReasonLabel, Counter>;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// What it says comes over TLS.
    pub(crate) is_secure: bool,
}

impl Peer {
    /// As addresses say it.
    pub(crate) const fn scheme(self) -> &'static str {
        match self.is_secure {
            true => "https",
            false => "http",
        }
    }
}

/// What the listener is told.
#[derive(Debug)]
pub(crate) struct Rules {
    /// None: no TLS.
    pub(crate) tls: Option<Succession>,
    pub(crate) connections_max: usize,
    pub(crate) connections_per_address_max: usize,
    pub(crate) patience: Patience,
}

/// The listener, of all threads.
pub(crate) struct Door {
    census: Arc<Census>,
    pub(super) patience: Patience,
    /// None: no TLS.
    pub(super) tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    refused: Reasons,
    cut: Reasons,
}

impl Door {
    /// Opens the door as configured.
    ///
    /// # Errors
    /// The certificate or its key cannot be used.
    pub(crate) fn new(host: &Host, config: &Config) -> anyhow::Result<Self> {
        let rules = &config.door;
        let all_max = fit_descriptors(rules.connections_max);
        // Behind proxies, addresses are the proxies'.
        let of_one_max = (config.trusted_hops == 0).then_some(rules.connections_per_address_max);
        let door = Self {
            census: Arc::new(Census::new(all_max, of_one_max)),
            patience: rules.patience,
            tls: open_tls(host, rules.tls.as_ref())?,
            refused: Reasons::default(),
            cut: Reasons::default(),
        };
        let (refused, cut) = (door.refused.clone(), door.cut.clone());
        let present = Present(Arc::clone(&door.census));
        host.metrics(move |registry| {
            registry.register(
                "connections_refused",
                "Connections that were not taken, by what there were too many of",
                refused,
            );
            registry.register(
                "connections_cut",
                "Connections that were ended for what their client did, or did not",
                cut,
            );
            registry.register_collector(Box::new(present));
        });
        Ok(door)
    }

    /// Lets a connection in, if there is room for it.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Guest> {
        match self.census.enter(address) {
            Ok(guest) => Some(guest),
            Err(full) => {
                let reason = match full {
                    Full::All => "all",
                    Full::Address => "address",
                };
                self.refused.get_or_create(&ReasonLabel { reason }).inc();
                None
            }
        }
    }

    /// A connection was ended for what its client did.
    pub(super) fn note_cut(&self, reason: &'static str) {
        let count: &Counter<u64, AtomicU64> = &self.cut.get_or_create(&ReasonLabel { reason });
        count.inc();
    }
}

/// Each connection is a descriptor. The process takes as many as it may have; where these are too
/// few, fewer connections are taken.
fn fit_descriptors(connections_max: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let have = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let fits = have.map(|have| have.saturating_sub(have / DESCRIPTORS_PER_RESERVED));
    let fits = fits.and_then(|fits| usize::try_from(fits).ok());
    let Some(fits) = fits.filter(|fits| *fits < connections_max) else {
        return connections_max;
    };
    tracing::warn!(
        connections = fits,
        "fewer connections are taken than configured: raise the limit of open files"
    );
    fits
}

fn open_tls(
    host: &Host,
    files: Option<&Succession>,
) -> anyhow::Result<Option<Arc<ArcSwap<rustls::ServerConfig>>>> {
    let Some(files) = files else {
        return Ok(None);
    };
    let current = Arc::new(ArcSwap::new(tls::config(&files.read()?)?));
    let replaced = Arc::clone(&current);
    host.watch("reload-certificate", files.clone(), move |pair| {
        replaced.store(tls::config(pair)?);
        tracing::info!("the listener has a certificate to show");
        Ok(())
    });
    Ok(Some(current))
}

/// Offers how many connections there are.
struct Present(Arc<Census>);

impl fmt::Debug for Present {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Present")
    }
}

impl Collector for Present {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let count = ConstGauge::new(i64::try_from(self.0.all()).unwrap_or(i64::MAX));
        let kind = prometheus_client::metrics::MetricType::Gauge;
        let metric =
            encoder.encode_descriptor("connections", "Connections of clients", None, kind)?;
        count.encode(metric)
    }
}
