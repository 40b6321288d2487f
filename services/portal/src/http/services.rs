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
}

impl From<pb::Route> for FullRoute {
    fn from(it: pb::Route) -> Self {
        Self {
            route_id: it.route_id,
            method: it.method,
            path_prefix: it.path_prefix,
            scope: it.scope,
            cost: it.cost,
            charge_on: it.charge_on,
            durability: it.durability,
            body_bytes_max: it.body_bytes_max,
            timeout_ms: it.timeout_ms,
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
        }),
        expected_version: seen,
    })?;
    let done = app.keys.clone().set_route(request).await?;
    present(done.into_inner().service)
}
