//! Services and routes, as operators set them.

use axum::{Json, extract::State};
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App, Portal,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Path},
};
use crate::error::{Error, Result};

/// A service as it shall be; what is absent stays, or takes its default.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceWish {
    /// Where calls go; needed for a new service.
    #[schema(format = "uri", pattern = "^https?://")]
    upstream_url: Option<String>,
    /// Credits a call.
    #[schema(minimum = 0, maximum = 1_000_000)]
    base_cost_per_call: Option<i64>,
    /// False refuses calls.
    active: Option<bool>,
    #[schema(max_length = 80)]
    display_name: Option<String>,
    #[schema(max_length = 500)]
    description: Option<String>,
    /// Scope of the one route that a new service gets; absent: `<name>:call`.
    default_scope: Option<String>,
    /// What is spoken with the upstream: `http1` (default); `h2` (HTTP/2: by prior knowledge over
    /// http://, by ALPN over https://), which gRPC needs; `auto` (over https:// what the upstream
    /// prefers, over http:// HTTP/1.1).
    #[schema(pattern = "^(http1|h2|auto)?$")]
    protocol: Option<String>,
    /// Connections of one gateway to the upstream; 0 is the default, 4096.
    #[schema(minimum = 0, maximum = 65_536)]
    connections_max: Option<i64>,
    /// Milliseconds to a connection, TLS included; 0 is the default, 5 s.
    #[schema(minimum = 0, maximum = 60_000)]
    connect_timeout_ms: Option<i64>,
    /// What gateways ask each address of the upstream for (GET) to see whether it is well, which
    /// 2xx and 3xx say; empty (default): they do not ask. Begins at the root of the upstream,
    /// whatever the path of `upstream_url`; may have a query.
    #[schema(max_length = 256, pattern = r#"^(/[!$-;=?-_a-~]*)?$"#)]
    health_path: Option<String>,
}

/// A service with everything that operators set.
#[derive(Serialize, ToSchema)]
pub(super) struct FullService {
    service_id: String,
    /// As in the URL.
    name: String,
    display_name: String,
    description: String,
    icon: String,
    category: String,
    /// Where calls go.
    upstream_url: String,
    /// Credits a call; routes may differ.
    base_cost_per_call: i64,
    /// False: calls are refused.
    active: bool,
    routes: Vec<FullRoute>,
    /// Version of its prices.
    price_version: i64,
    /// Grows with every change of the service or of one of its routes; the ETag.
    version: i64,
    /// `http1`, `h2` or `auto`: what is spoken with the upstream.
    protocol: String,
    /// Connections of one gateway to the upstream.
    connections_max: i64,
    /// Milliseconds to a connection, TLS included.
    connect_timeout_ms: i64,
    /// What gateways ask each address of the upstream for; empty: they do not ask.
    health_path: String,
}

/// A route with everything that operators set.
#[derive(Serialize, ToSchema)]
pub(super) struct FullRoute {
    route_id: String,
    /// `*` or an HTTP method.
    method: String,
    /// Prefix of the path behind the service.
    path_prefix: String,
    /// Scope a key needs.
    scope: String,
    /// Credits a call. Absent: the service's base cost.
    cost: Option<i64>,
    /// `2xx` or `always`: which answers are charged.
    charge_on: String,
    /// `process`, `disk` or `replicated`.
    durability: String,
    /// Bytes a request's body may have.
    body_bytes_max: i64,
    /// Milliseconds to the upstream's first byte.
    timeout_ms: i64,
    /// Milliseconds between two pieces of the upstream's answer; then it breaks off.
    idle_timeout_ms: i64,
    /// Milliseconds from the first byte of the upstream's answer to its last; then it breaks off.
    total_timeout_ms: i64,
    pricing: Pricing,
}

/// What a route's calls cost beside a fixed number of credits, and when they are charged that did
/// not come to their end.
#[derive(Serialize, Deserialize, ToSchema, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Pricing {
    /// Prices of units that the upstream reports, on top of the cost; at most 8. None: every call
    /// costs the same.
    #[schema(max_items = 8)]
    pub(super) unit_prices: Vec<UnitPrice>,
    /// With unit prices: credits held while a call runs, and the most that it costs; else 0.
    #[schema(minimum = 0, maximum = 1_000_000)]
    pub(super) max_cost: i64,
    /// With unit prices, what a call costs whose units nobody reported: `max_cost` (default),
    /// `estimate` (from the bytes of its answer) or `base` (only the cost).
    #[schema(pattern = "^(max_cost|estimate|base)?$")]
    pub(super) unreported: String,
    /// When a call is charged whose client goes away: `answered` (default: once the upstream has
    /// answered with a status that is charged), `forwarded` (also before) or `free`.
    #[schema(pattern = "^(free|answered|forwarded)?$")]
    pub(super) on_client_abort: String,
    /// When a call is charged whose answer the upstream or the gateway breaks off: `free` (default)
    /// or `answered`.
    #[schema(pattern = "^(free|answered)?$")]
    pub(super) on_server_abort: String,
}

/// The price of a unit: `credits` for each `per` of it. The sum of a call is rounded up once.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UnitPrice {
    /// As the upstream reports it, such as `tokens`.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,32}$")]
    unit: String,
    /// Credits for `per` units.
    #[schema(minimum = 1, maximum = 1_000_000)]
    credits: i64,
    /// Absent: 1.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000_000)]
    per: i64,
    /// Where an answer tells the count, besides the header or trailer `tollgate-usage`: a JSON
    /// pointer (RFC 6901) into a JSON answer, or into the last event of a stream that has it.
    #[serde(default)]
    #[schema(max_length = 200)]
    pointer: String,
    /// Bytes of an answer that stand for one unit in an estimate; 0: none.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_000_000_000)]
    bytes_per_unit: i64,
}

impl From<pb::UnitPrice> for UnitPrice {
    fn from(it: pb::UnitPrice) -> Self {
        Self {
            unit: it.unit,
            credits: it.credits,
            per: it.per,
            pointer: it.pointer,
            bytes_per_unit: it.bytes_per_unit,
        }
    }
}

impl From<UnitPrice> for pb::UnitPrice {
    fn from(it: UnitPrice) -> Self {
        Self {
            unit: it.unit,
            credits: it.credits,
            per: it.per,
            pointer: it.pointer,
            bytes_per_unit: it.bytes_per_unit,
        }
    }
}

impl Pricing {
    /// Of a route, which keeps the rest.
    pub(super) fn take(route: &mut pb::Route) -> Self {
        Self {
            unit_prices: std::mem::take(&mut route.unit_prices)
                .into_iter()
                .map(Into::into)
                .collect(),
            max_cost: route.max_cost,
            unreported: std::mem::take(&mut route.unreported),
            on_client_abort: std::mem::take(&mut route.on_client_abort),
            on_server_abort: std::mem::take(&mut route.on_server_abort),
        }
    }
}

impl From<pb::Route> for FullRoute {
    fn from(mut it: pb::Route) -> Self {
        Self {
            pricing: Pricing::take(&mut it),
            route_id: it.route_id,
            method: it.method,
            path_prefix: it.path_prefix,
            scope: it.scope,
            cost: it.cost,
            charge_on: it.charge_on,
            durability: it.durability,
            body_bytes_max: it.body_bytes_max,
            timeout_ms: it.timeout_ms,
            idle_timeout_ms: it.idle_timeout_ms,
            total_timeout_ms: it.total_timeout_ms,
        }
    }
}

impl From<pb::Service> for FullService {
    fn from(it: pb::Service) -> Self {
        Self {
            service_id: it.service_id,
            name: it.name,
            display_name: it.display_name,
            description: it.description,
            icon: it.icon,
            category: it.category,
            upstream_url: it.upstream_url,
            base_cost_per_call: it.base_cost_per_call,
            active: it.active,
            routes: it.routes.into_iter().map(Into::into).collect(),
            price_version: it.price_version,
            version: it.version,
            protocol: it.protocol,
            connections_max: it.connections_max,
            connect_timeout_ms: it.connect_timeout_ms,
            health_path: it.health_path,
        }
    }
}

fn present(service: Option<pb::Service>) -> Result<Tagged<FullService>> {
    let service = service.ok_or(Error::NotFound("service"))?;
    Ok(Tagged {
        version: service.version,
        body: service.into(),
    })
}

/// The catalogue as operators see it.
#[derive(Serialize, ToSchema)]
pub(super) struct FullServices {
    /// By name.
    services: Vec<FullService>,
    /// Every scope that keys may have.
    scopes: Vec<String>,
}

async fn catalogue(app: &Portal, caller: &Caller) -> Result<pb::ListServicesResponse> {
    caller.operators_only()?;
    let request = caller.request(pb::ListServicesRequest {})?;
    Ok(app.keys.clone().list_services(request).await?.into_inner())
}

/// Lists services and routes with everything that operators set.
#[utoipa::path(get, path = "/v1/operator/services", tag = "operator",
    responses((status = 200, body = FullServices, description = "The catalogue")))]
pub(super) async fn list_full_services(
    State(app): App,
    caller: Caller,
) -> Result<Json<FullServices>> {
    let found = catalogue(&app, &caller).await?;
    Ok(Json(FullServices {
        services: found.services.into_iter().map(Into::into).collect(),
        scopes: found.scopes,
    }))
}

/// Reads a service with its routes.
#[utoipa::path(get, path = "/v1/operator/services/{service}", tag = "operator",
    responses((status = 200, body = FullService, description = "The service",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn get_service(
    State(app): App,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Tagged<FullService>> {
    let found = catalogue(&app, &caller).await?.services;
    present(found.into_iter().find(|service| service.name == name))
}

/// Creates or changes a service. With `If-Match` only the version that the caller has seen.
#[utoipa::path(put, path = "/v1/operator/services/{service}", tag = "operator",
    request_body = ServiceWish,
    params(("if-match" = Option<String>, Header, description = "The ETag of a service")),
    responses((status = 200, body = FullService, description = "As it is now",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn set_service(
    State(app): App,
    caller: Caller,
    Path(name): Path<String>,
    IfMatch(seen): IfMatch,
    Body(it): Body<ServiceWish>,
) -> Result<Tagged<FullService>> {
    caller.operators_only()?;
    let request = caller.request(pb::SetServiceRequest {
        name,
        upstream_url: it.upstream_url,
        base_cost_per_call: it.base_cost_per_call,
        active: it.active,
        display_name: it.display_name,
        description: it.description,
        default_scope: it.default_scope,
        expected_version: seen,
        protocol: it.protocol,
        connections_max: it.connections_max,
        connect_timeout_ms: it.connect_timeout_ms,
        health_path: it.health_path,
    })?;
    let done = app.keys.clone().set_service(request).await?;
    present(done.into_inner().service)
}

/// A route as it shall be; method and prefix name it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteWish {
    /// `*` (default) or an HTTP method.
    #[serde(default)]
    #[schema(pattern = "^(\\*|[A-Z]{1,16})?$")]
    method: String,
    /// Prefix of the path behind the service; `/` (default) is all of it.
    #[serde(default)]
    path_prefix: String,
    /// Scope a key needs; begins with the name of the service.
    #[schema(pattern = "^[a-z][a-z0-9-]{0,62}:[a-z][a-z0-9-]{0,62}$")]
    scope: String,
    /// Absent: the service's base cost.
    #[schema(minimum = 0, maximum = 1_000_000)]
    cost: Option<i64>,
    /// `2xx` (default) or `always`: which answers are charged.
    #[serde(default)]
    #[schema(pattern = "^(2xx|always)?$")]
    charge_on: String,
    /// `process` (default), `disk` or `replicated`.
    #[serde(default)]
    #[schema(pattern = "^(process|disk|replicated)?$")]
    durability: String,
    /// Bytes a request's body may have; absent: 10 MiB.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_073_741_824)]
    body_bytes_max: i64,
    /// Milliseconds to the upstream's first byte; absent: 60 s.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 3_600_000)]
    timeout_ms: i64,
    /// Milliseconds between two pieces of the upstream's answer; then it breaks off. Absent: 5 min.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 3_600_000)]
    idle_timeout_ms: i64,
    /// Milliseconds from the first byte of the upstream's answer to its last; then it breaks off.
    /// Absent: a day.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 86_400_000)]
    total_timeout_ms: i64,
    /// Absent: every call costs the same, and is charged once it is answered unless the answer
    /// breaks off.
    #[serde(default)]
    pricing: Pricing,
}

/// Creates or changes a route of a service. With `If-Match` only the version of the service that
/// the caller has seen.
#[utoipa::path(put, path = "/v1/operator/services/{service}/routes", tag = "operator",
    request_body = RouteWish,
    params(("if-match" = Option<String>, Header, description = "The ETag of a service")),
    responses((status = 200, body = FullService, description = "The service as it is now",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn set_route(
    State(app): App,
    caller: Caller,
    Path(service): Path<String>,
    IfMatch(seen): IfMatch,
    Body(it): Body<RouteWish>,
) -> Result<Tagged<FullService>> {
    caller.operators_only()?;
    let request = caller.request(pb::SetRouteRequest {
        service,
        route: Some(pb::Route {
            route_id: String::new(),
            method: it.method,
            path_prefix: it.path_prefix,
            scope: it.scope,
            cost: it.cost,
            charge_on: it.charge_on,
            durability: it.durability,
            body_bytes_max: it.body_bytes_max,
            timeout_ms: it.timeout_ms,
            idle_timeout_ms: it.idle_timeout_ms,
            total_timeout_ms: it.total_timeout_ms,
            unit_prices: it.pricing.unit_prices.into_iter().map(Into::into).collect(),
            max_cost: it.pricing.max_cost,
            unreported: it.pricing.unreported,
            on_client_abort: it.pricing.on_client_abort,
            on_server_abort: it.pricing.on_server_abort,
        }),
        expected_version: seen,
    })?;
    let done = app.keys.clone().set_route(request).await?;
    present(done.into_inner().service)
}
