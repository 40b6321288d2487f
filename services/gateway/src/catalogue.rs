//! Services and routes as the edge uses them: an immutable snapshot.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use http::{HeaderValue, Method, uri::Authority};
use prometheus_client::metrics::counter::Counter;
use proto::keys::v1 as wire;
use types::ServiceId;

use crate::{charge::Terms, path};

/// Statuses that are counted without a look-up, from [`STATUS_MIN`].
const STATUSES: usize = 500;
const STATUS_MIN: u16 = 100;

/// A route whose answers were of another shape is not tried again for so long.
const UNLIKE_NANOS: u64 = 5_000_000_000;

/// What must be true of a call's record before its last byte leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Durability {
    /// Written to the journal: survives the process.
    Process,
    /// On disk: survives the machine's power.
    Disk,
    /// In the stream: survives the machine.
    Replicated,
}

/// What is spoken with an upstream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Protocol {
    Http1,
    /// By prior knowledge, or over TLS by ALPN.
    H2,
    /// Over TLS what the upstream prefers, else HTTP/1.1.
    Auto,
}

/// Where a service's calls go, and how.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Upstream {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// Of the whole gateway.
    pub(crate) connections_max: usize,
    /// TLS included.
    pub(crate) connect_timeout: Duration,
    /// What each address is asked for to see whether it is well, with its query; from the root,
    /// not behind `Service::base_path`.
    pub(crate) health_path: Option<Box<str>>,
}

/// A service of the catalogue.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) id: ServiceId,
    pub(crate) name: String,
    pub(crate) active: bool,
    pub(crate) upstream: Upstream,
    /// For the `Host` header.
    pub(crate) authority: HeaderValue,
    /// Put before the path; without a slash at its end.
    pub(crate) base_path: String,
    pub(crate) price_version: i64,
    routes: Vec<Route>,
    /// Counters of its answers by status: found once, and then without a look-up.
    answered: [OnceLock<Counter>; STATUSES],
}

/// A part of a service.
#[derive(Debug)]
pub(crate) struct Route {
    method: Option<Method>,
    prefix: String,
    pub(crate) scope: String,
    pub(crate) terms: Terms,
    pub(crate) durability: Durability,
    pub(crate) body_bytes_max: u64,
    /// To the head of the answer.
    pub(crate) timeout: Duration,
    /// Between two pieces of the answer.
    pub(crate) idle_timeout: Duration,
    /// From the head of the answer to its end.
    pub(crate) total_timeout: Duration,
    /// Its answers are not of the common shape, until this monotonic nanosecond; then one call
    /// tries again. 0: they are.
    unlike_until: AtomicU64,
}

/// All services.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    pub(crate) version: i64,
    services: HashMap<String, Arc<Service>, RandomState>,
}

impl Catalogue {
    /// Takes what `keys` sent. A service that makes no sense is left out, loudly.
    pub(crate) fn from_wire(wire: wire::Catalogue) -> Self {
        let mut services = HashMap::default();
        for service in wire.services {
            let name = service.name.clone();
            match Service::from_wire(service) {
                Ok(service) => {
                    services.insert(name, Arc::new(service));
                }
                Err(error) => {
                    tracing::error!(service = name, %error, "a service cannot be used");
                }
            }
        }
        Self {
            version: wire.version,
            services,
        }
    }

    pub(crate) fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(name)
    }
}

impl Service {
    /// Whether HTTP/1.1 without TLS is spoken with its upstream.
    pub(crate) fn is_plain(&self) -> bool {
        !self.upstream.tls && self.upstream.protocol != Protocol::H2
    }

    fn from_wire(wire: wire::Service) -> anyhow::Result<Self> {
        let url = url::Url::parse(&wire.upstream_url)?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            other => anyhow::bail!("`{other}` is neither http nor https"),
        };
        let host = url
            .host_str()
            .ok_or_else(|| anyhow::anyhow!("the URL has no host"))?;
        let port = url
            .port_or_known_default()
            .ok_or_else(|| anyhow::anyhow!("the URL has no port"))?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let mut routes = Vec::with_capacity(wire.routes.len());
        for route in wire.routes {
            routes.push(Route::from_wire(route, wire.base_cost_per_call)?);
        }
        // The first match wins: longer prefixes first, and a named method before any.
        routes.sort_by(|a, b| {
            (b.prefix.len(), b.method.is_some()).cmp(&(a.prefix.len(), a.method.is_some()))
        });
        Ok(Self {
            id: wire.service_id.parse()?,
            active: wire.active,
            upstream: Upstream {
                tls,
                host: host
                    .trim_start_matches('[')
                    .trim_end_matches(']')
                    .to_owned(),
                port,
                protocol: match wire.protocol.as_str() {
                    "h2" => Protocol::H2,
                    "auto" => Protocol::Auto,
                    _ => Protocol::Http1,
                },
                connections_max: usize::try_from(wire.connections_max)?,
                connect_timeout: millis(wire.connect_timeout_ms)?,
                health_path: Some(wire.health_path)
                    .filter(|path| !path.is_empty())
                    .map(String::into_boxed_str),
            },
            authority: HeaderValue::try_from(authority.parse::<Authority>()?.as_str())?,
            base_path: url.path().trim_end_matches('/').to_owned(),
            price_version: wire.price_version,
            routes,
            answered: [const { OnceLock::new() }; STATUSES],
            name: wire.name,
        })
    }

    /// The counter of its answers with a status, which `make` finds the first time. None for a
    /// status outside the five classes.
    pub(crate) fn answered(&self, status: u16, make: impl FnOnce() -> Counter) -> Option<&Counter> {
        let at = usize::from(status.checked_sub(STATUS_MIN)?);
        Some(self.answered.get(at)?.get_or_init(make))
    }

    /// The route of a method and a path behind the service.
    pub(crate) fn route(&self, method: &Method, path: &str) -> Option<&Route> {
        let path = if path.is_empty() { "/" } else { path };
        self.routes.iter().find(|route| {
            route
                .method
                .as_ref()
                .is_none_or(|expected| expected == method)
                && path::matches(&route.prefix, path)
        })
    }
}

fn millis(millis: i64) -> anyhow::Result<Duration> {
    Ok(Duration::from_millis(u64::try_from(millis)?))
}

impl Route {
    /// Whether an answer of the common shape (`listen::express`) is to be expected at `now`.
    pub(crate) fn is_like_most(&self, now: u64) -> bool {
        let until = self.unlike_until.load(Ordering::Relaxed);
        until == 0 || (until <= now && self.claim_try(until, now))
    }

    /// True for one of those who find that it may be tried again.
    fn claim_try(&self, until: u64, now: u64) -> bool {
        let next = now.saturating_add(UNLIKE_NANOS);
        let claimed =
            self.unlike_until
                .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed);
        claimed.is_ok()
    }

    /// Notes whether an answer was of the common shape.
    pub(crate) fn answered_like_most(&self, is_so: bool, now: u64) {
        let until = match is_so {
            true => 0,
            false => now.saturating_add(UNLIKE_NANOS),
        };
        if self.unlike_until.load(Ordering::Relaxed) != until {
            self.unlike_until.store(until, Ordering::Relaxed);
        }
    }

    fn from_wire(mut wire: wire::Route, base_cost: i64) -> anyhow::Result<Self> {
        let cost = wire.cost.unwrap_or(base_cost);
        Ok(Self {
            terms: Terms::from_wire(&mut wire, cost)?,
            method: match wire.method.as_str() {
                "*" => None,
                method => Some(method.parse()?),
            },
            // As `path::matches` reads it, so that the longer of two is the longer match.
            prefix: wire.path_prefix.trim_end_matches('/').to_owned(),
            scope: wire.scope,
            durability: match wire.durability.as_str() {
                "disk" => Durability::Disk,
                "replicated" => Durability::Replicated,
                _ => Durability::Process,
            },
            body_bytes_max: u64::try_from(wire.body_bytes_max)?,
            timeout: millis(wire.timeout_ms)?,
            idle_timeout: millis(wire.idle_timeout_ms)?,
            total_timeout: millis(wire.total_timeout_ms)?,
            unlike_until: AtomicU64::new(0),
        })
    }
}
