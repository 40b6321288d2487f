//! Services, routes and prices.

use std::net::IpAddr;

use serde_json::{Value, json};
use types::{CALL_COST_MAX, NameError, Networks, RouteId, Scope, ServiceId, ServiceName};
use url::Url;

use super::price::{self, Pricing};
use crate::error::{Error, Result};

const DISPLAY_NAME_CHARS_MAX: usize = 80;
const DESCRIPTION_CHARS_MAX: usize = 500;
const PATH_PREFIX_BYTES_MAX: usize = 512;
const METHOD_BYTES_MAX: usize = 16;
const BODY_BYTES_DEFAULT: i64 = 10 * 1024 * 1024;
const BODY_BYTES_MAX: i64 = 1024 * 1024 * 1024;
const TIMEOUT_MS_DEFAULT: i64 = 60_000;
const TIMEOUT_MS_MAX: i64 = 3_600_000;
const IDLE_TIMEOUT_MS_DEFAULT: i64 = 300_000;
const IDLE_TIMEOUT_MS_MAX: i64 = 3_600_000;
const TOTAL_TIMEOUT_MS_DEFAULT: i64 = 86_400_000;
const TOTAL_TIMEOUT_MS_MAX: i64 = 86_400_000;
const CONNECTIONS_DEFAULT: i64 = 4_096;
const CONNECTIONS_MAX: i64 = 65_536;
const CONNECT_TIMEOUT_MS_DEFAULT: i64 = 5_000;
const CONNECT_TIMEOUT_MS_MAX: i64 = 60_000;
const HEALTH_PATH_BYTES_MAX: usize = 256;

/// How gateways speak with an upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Manner {
    pub(crate) protocol: String,
    /// Of one gateway.
    pub(crate) connections_max: i64,
    pub(crate) connect_timeout_ms: i64,
    /// What its addresses are asked for to see whether they are well; empty: they are not asked.
    pub(crate) health_path: String,
}

/// Everything an operator sets of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ServiceSettings {
    pub(crate) display_name: String,
    pub(crate) description: String,
    pub(crate) upstream_url: String,
    pub(crate) base_cost: i64,
    pub(crate) active: bool,
    pub(crate) manner: Manner,
}

/// A stored service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) id: ServiceId,
    pub(crate) name: ServiceName,
    pub(crate) settings: ServiceSettings,
    pub(crate) icon: String,
    pub(crate) category: String,
    pub(crate) price_version: i64,
    pub(crate) version: i64,
    pub(crate) routes: Vec<Route>,
}

/// What identifies a route within its service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) method: String,
    pub(crate) path_prefix: String,
}

/// Everything an operator sets of a route.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RouteSettings {
    pub(crate) scope: Scope,
    pub(crate) cost: Option<i64>,
    pub(crate) charge_on: String,
    pub(crate) durability: String,
    pub(crate) body_bytes_max: i64,
    pub(crate) timeout_ms: i64,
    pub(crate) idle_timeout_ms: i64,
    pub(crate) total_timeout_ms: i64,
    pub(crate) pricing: Pricing,
}

/// A stored route.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) id: RouteId,
    pub(crate) place: Place,
    pub(crate) settings: RouteSettings,
}

/// The wish for a service, as it was sent; what is absent stays or takes its default.
#[derive(Clone, Default, Debug)]
pub(crate) struct ServiceWish {
    pub(crate) upstream_url: Option<String>,
    pub(crate) base_cost: Option<i64>,
    pub(crate) active: Option<bool>,
    pub(crate) display_name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) connections_max: Option<i64>,
    pub(crate) connect_timeout_ms: Option<i64>,
    pub(crate) health_path: Option<String>,
}

/// The wish for a route, as it was sent; empty and 0 stand for the default.
#[derive(Clone, Default, Debug)]
pub(crate) struct RouteWish {
    pub(crate) method: String,
    pub(crate) path_prefix: String,
    pub(crate) scope: String,
    pub(crate) cost: Option<i64>,
    pub(crate) charge_on: String,
    pub(crate) durability: String,
    pub(crate) body_bytes_max: i64,
    pub(crate) timeout_ms: i64,
    pub(crate) idle_timeout_ms: i64,
    pub(crate) total_timeout_ms: i64,
    pub(crate) pricing: Pricing,
}

fn cost(field: &'static str, credits: i64) -> Result<i64> {
    if !(0..=CALL_COST_MAX).contains(&credits) {
        return Err(Error::invalid(
            field,
            format!("must be from 0 to {CALL_COST_MAX} credits"),
        ));
    }
    Ok(credits)
}

fn text(field: &'static str, text: &str, chars_max: usize) -> Result<String> {
    let text = text.trim();
    if text.chars().count() > chars_max || text.chars().any(char::is_control) {
        let problem = format!("must be at most {chars_max} characters, none a control character");
        return Err(Error::invalid(field, problem));
    }
    Ok(text.to_owned())
}

/// Checks where calls go: an absolute `http` or `https` address to which a path can be added.
pub(crate) fn upstream_url(text: &str) -> Result<String> {
    let field = "upstream_url";
    let example = "such as https://pdf.internal:8443/v2";
    let Ok(url) = Url::parse(text.trim()) else {
        return Err(Error::invalid(
            field,
            format!("must be an absolute address {example}"),
        ));
    };
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(Error::invalid(
            field,
            format!("must begin with http:// or https://, {example}"),
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid(
            field,
            "must not carry a user or password: everybody sees it",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::invalid(
            field,
            "must not have a `?` or `#`: calls bring their own",
        ));
    }
    // The path of a call begins with `/`.
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Checks what upstreams are asked for to see whether they are well.
pub(crate) fn health_path(text: &str) -> Result<String> {
    let field = "health_path";
    if !text.is_empty() && !text.starts_with('/') {
        return Err(Error::invalid(
            field,
            "must begin with `/`, such as /healthz, or be empty for no checks",
        ));
    }
    let bytes = text.len();
    if bytes > HEALTH_PATH_BYTES_MAX {
        return Err(Error::invalid(
            field,
            format!("must be at most {HEALTH_PATH_BYTES_MAX} bytes, not {bytes}: shorten it"),
        ));
    }
    // What would end the request's line, would not be sent, or is refused by HTTP libraries.
    let is_strange = |it: &char| !it.is_ascii_graphic() || "#\"<>`".contains(*it);
    if let Some(strange) = text.chars().find(is_strange) {
        let problem =
            format!("must not contain {strange:?}: percent-encode it, as %20 stands for a space");
        return Err(Error::invalid(field, problem));
    }
    Ok(text.to_owned())
}

/// Refuses a host with an address that is neither public nor listed. A name is refused for one of
/// several: the gateways would call it sooner or later.
pub(crate) fn outside(
    networks: &Networks,
    host: &str,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<()> {
    let refused = |address: &IpAddr| !networks.allow(*address);
    match addresses.into_iter().find(refused) {
        None => Ok(()),
        Some(address) => Err(Error::invalid(
            "upstream_url",
            format!(
                "must be on the public internet: {host} is {address}; list its network in \
                 TOLLGATE_KEYS_UPSTREAM_NETWORKS and TOLLGATE_GATEWAY_UPSTREAM_NETWORKS if it is \
                 yours"
            ),
        )),
    }
}

impl ServiceWish {
    /// Decides what the service becomes; `now` is absent for a new one.
    pub(crate) fn apply(
        &self,
        name: &ServiceName,
        now: Option<&ServiceSettings>,
    ) -> Result<ServiceSettings> {
        let upstream = match (&self.upstream_url, now) {
            (Some(url), _) => upstream_url(url)?,
            (None, Some(now)) => now.upstream_url.clone(),
            (None, None) => {
                return Err(Error::invalid(
                    "upstream_url",
                    "is required for a new service",
                ));
            }
        };
        let display_name = match (&self.display_name, now) {
            (Some(wish), _) => text("display_name", wish, DISPLAY_NAME_CHARS_MAX)?,
            (None, Some(now)) => now.display_name.clone(),
            (None, None) => name.to_string(),
        };
        let description = match (&self.description, now) {
            (Some(wish), _) => text("description", wish, DESCRIPTION_CHARS_MAX)?,
            (None, now) => now.map(|now| now.description.clone()).unwrap_or_default(),
        };
        let base_cost = self.base_cost.or(now.map(|now| now.base_cost)).unwrap_or(1);
        Ok(ServiceSettings {
            display_name,
            description,
            upstream_url: upstream,
            base_cost: cost("base_cost_per_call", base_cost)?,
            active: self.active.or(now.map(|now| now.active)).unwrap_or(true),
            manner: self.manner(now.map(|now| &now.manner))?,
        })
    }

    fn manner(&self, now: Option<&Manner>) -> Result<Manner> {
        let protocol = self.protocol.as_deref();
        let protocol = protocol.or(now.map(|now| now.protocol.as_str()));
        let connections = self.connections_max.or(now.map(|now| now.connections_max));
        let timeout = self.connect_timeout_ms;
        let timeout = timeout.or(now.map(|now| now.connect_timeout_ms));
        let path = self.health_path.as_deref();
        let path = path.or(now.map(|now| now.health_path.as_str()));
        Ok(Manner {
            protocol: word(
                "protocol",
                protocol.unwrap_or_default(),
                &["http1", "h2", "auto"],
            )?,
            connections_max: bounded(
                "connections_max",
                connections.unwrap_or_default(),
                CONNECTIONS_DEFAULT,
                CONNECTIONS_MAX,
            )?,
            connect_timeout_ms: bounded(
                "connect_timeout_ms",
                timeout.unwrap_or_default(),
                CONNECT_TIMEOUT_MS_DEFAULT,
                CONNECT_TIMEOUT_MS_MAX,
            )?,
            health_path: health_path(path.unwrap_or_default())?,
        })
    }
}

fn place(method: &str, path_prefix: &str) -> Result<Place> {
    let method = if method.is_empty() { "*" } else { method };
    let is_method = (1..=METHOD_BYTES_MAX).contains(&method.len())
        && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if method != "*" && !is_method {
        return Err(Error::invalid(
            "method",
            "must be `*` or an HTTP method such as POST",
        ));
    }
    let path_prefix = if path_prefix.is_empty() {
        "/"
    } else {
        path_prefix
    };
    let is_prefix = path_prefix.starts_with('/')
        && path_prefix.len() <= PATH_PREFIX_BYTES_MAX
        && path_prefix
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._~/-".contains(&byte))
        && !path_prefix.contains("//")
        && !path_prefix.contains("..");
    if !is_prefix {
        let problem = format!(
            "must begin with `/` and be at most {PATH_PREFIX_BYTES_MAX} of A-Z, a-z, 0-9 and \
             `._~/-`, without `//` or `..`"
        );
        return Err(Error::invalid("path_prefix", problem));
    }
    Ok(Place {
        method: method.to_owned(),
        path_prefix: path_prefix.to_owned(),
    })
}

/// Reads a scope, which begins with the name of its service.
fn scope_of(service: &ServiceName, text: &str) -> Result<Scope> {
    let scope: Scope = text.parse()?;
    match scope.as_str().split_once(':') {
        Some((word, _)) if word == service.as_str() => Ok(scope),
        _ => Err(Error::invalid(
            "scope",
            format!("must begin with `{service}:`"),
        )),
    }
}

/// The scope of the route that a new service gets.
pub(crate) fn default_scope(service: &ServiceName, wish: Option<&str>) -> Result<Scope> {
    match wish {
        Some(text) => scope_of(service, text),
        None => scope_of(service, &format!("{service}:call")),
    }
}

/// One of a few words; the first is the default.
pub(super) fn word(field: &'static str, text: &str, words: &[&str]) -> Result<String> {
    if text.is_empty() {
        return Ok(words.first().copied().unwrap_or_default().to_owned());
    }
    if !words.contains(&text) {
        return Err(Error::invalid(
            field,
            format!("must be one of {}", words.join(", ")),
        ));
    }
    Ok(text.to_owned())
}

fn bounded(field: &'static str, number: i64, default: i64, max: i64) -> Result<i64> {
    match number {
        0 => Ok(default),
        number if (1..=max).contains(&number) => Ok(number),
        _ => Err(Error::invalid(
            field,
            format!("must be from 1 to {max}; 0 means {default}"),
        )),
    }
}

impl RouteWish {
    /// Decides where the route stands and what it says.
    pub(crate) fn check(&self, service: &ServiceName) -> Result<(Place, RouteSettings)> {
        let settings = RouteSettings {
            scope: scope_of(service, &self.scope)?,
            cost: self.cost.map(|credits| cost("cost", credits)).transpose()?,
            charge_on: word("charge_on", &self.charge_on, &["2xx", "always"])?,
            durability: word(
                "durability",
                &self.durability,
                &["process", "disk", "replicated"],
            )?,
            body_bytes_max: bounded(
                "body_bytes_max",
                self.body_bytes_max,
                BODY_BYTES_DEFAULT,
                BODY_BYTES_MAX,
            )?,
            timeout_ms: bounded(
                "timeout_ms",
                self.timeout_ms,
                TIMEOUT_MS_DEFAULT,
                TIMEOUT_MS_MAX,
            )?,
            idle_timeout_ms: bounded(
                "idle_timeout_ms",
                self.idle_timeout_ms,
                IDLE_TIMEOUT_MS_DEFAULT,
                IDLE_TIMEOUT_MS_MAX,
            )?,
            total_timeout_ms: bounded(
                "total_timeout_ms",
                self.total_timeout_ms,
                TOTAL_TIMEOUT_MS_DEFAULT,
                TOTAL_TIMEOUT_MS_MAX,
            )?,
            pricing: self.pricing.clone().check(self.cost)?,
        };
        Ok((place(&self.method, &self.path_prefix)?, settings))
    }

    /// The route that a new service gets: everything needs one scope.
    pub(crate) fn everything(scope: &Scope) -> Self {
        Self {
            scope: scope.to_string(),
            ..Self::default()
        }
    }
}

/// Whether a call may cost something else than before. A new route counts: its calls were priced
/// by a shorter prefix until now.
pub(crate) fn reprices(before: Option<&RouteSettings>, after: &RouteSettings) -> bool {
    before.is_none_or(|before| (before.cost, &before.pricing) != (after.cost, &after.pricing))
}

impl ServiceSettings {
    /// As the audit log shows it.
    pub(crate) fn facts(&self) -> Value {
        json!({
            "display_name": self.display_name,
            "description": self.description,
            "upstream_url": self.upstream_url,
            "base_cost_per_call": self.base_cost,
            "active": self.active,
            "protocol": self.manner.protocol,
            "connections_max": self.manner.connections_max,
            "connect_timeout_ms": self.manner.connect_timeout_ms,
            "health_path": self.manner.health_path,
        })
    }
}

impl RouteSettings {
    /// As the audit log shows it.
    pub(crate) fn facts(&self, place: &Place) -> Value {
        json!({
            "method": place.method,
            "path_prefix": place.path_prefix,
            "scope": self.scope.as_str(),
            "cost": self.cost,
            "charge_on": self.charge_on,
            "durability": self.durability,
            "body_bytes_max": self.body_bytes_max,
            "timeout_ms": self.timeout_ms,
            "idle_timeout_ms": self.idle_timeout_ms,
            "total_timeout_ms": self.total_timeout_ms,
            "unit_prices": price::to_json(&self.pricing.unit_prices),
            "max_cost": self.pricing.max_cost,
            "unreported": self.pricing.unreported,
            "on_client_abort": self.pricing.on_client_abort,
            "on_server_abort": self.pricing.on_server_abort,
        })
    }
}

/// Reads the name of a service in a field of another name.
pub(crate) fn service_name(field: &'static str, text: &str) -> Result<ServiceName> {
    text.parse()
        .map_err(|NameError { problem, .. }| Error::Invalid { field, problem })
}
