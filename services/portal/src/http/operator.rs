//! What only operators do: organisations, credits, services, routes.

use axum::{Json, extract::State};
use http::StatusCode;
use proto::{keys::v1 as pb, wallet::v1 as wallet};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    catalogue::Service,
    extract::{Body, Page, Path, Query},
    organisations::Organisations,
};
use crate::{
    domain::{self, Action},
    error::{Error, Result},
};

/// Lists all organisations.
#[utoipa::path(get, path = "/v1/operator/organisations", tag = "operator", params(Page),
    responses((status = 200, body = Organisations, description = "One page")))]
pub(super) async fn list_all_organisations(
    State(app): App,
    caller: Caller,
    Query(page): Query<Page>,
) -> Result<Json<Organisations>> {
    caller.operators_only()?;
    let request = caller.request(pb::ListOrganisationsRequest {
        page_size: page.size()?,
        page_token: page.token()?,
    })?;
    let found = app.keys.clone().list_organisations(request).await?;
    let found = found.into_inner();
    Ok(Json(Organisations {
        organisations: found.organisations.into_iter().map(Into::into).collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

/// Credits to give.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Grant {
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    credits: i64,
    #[schema(min_length = 1, max_length = 200)]
    reason: String,
}

/// The wallet afterwards.
#[derive(Serialize, ToSchema)]
pub(super) struct Granted {
    balance: i64,
}

/// Gives credits to an organisation.
#[utoipa::path(post, path = "/v1/operator/organisations/{org}/credits", tag = "operator",
    request_body = Grant, responses((status = 201, body = Granted, description = "Given")))]
pub(super) async fn grant_credits(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Body(it): Body<Grant>,
) -> Result<(StatusCode, Json<Granted>)> {
    caller.operators_only()?;
    let org = app.scope(&caller, &org, Action::ViewWallet).await?;
    // Whether the request is a repetition was decided before it came here.
    let once: [u8; 16] = app.host.random();
    let request = caller.request(wallet::GrantCreditsRequest {
        org_id: org.to_string(),
        credits: it.credits,
        reason: it.reason,
        idempotency_key: format!("api-{}", hex::encode(once)),
    })?;
    let done = app.wallet.clone().grant_credits(request).await?;
    let balance = done.into_inner().balance;
    Ok((StatusCode::CREATED, Json(Granted { balance })))
}

/// A service as it shall be; what is absent stays, or takes its default.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceWish {
    /// Where calls go; needed for a new service.
    upstream_url: Option<String>,
    /// Credits a call.
    #[schema(minimum = 0, maximum = 1_000_000)]
    base_cost_per_call: Option<i64>,
    /// False refuses calls.
    active: Option<bool>,
    display_name: Option<String>,
    description: Option<String>,
    /// Scope of the one route that a new service gets; absent: `<name>:call`.
    default_scope: Option<String>,
}

fn present(service: Option<pb::Service>) -> Result<Json<Service>> {
    Ok(Json(service.ok_or(Error::NotFound("service"))?.into()))
}

/// Creates or changes a service.
#[utoipa::path(put, path = "/v1/operator/services/{service}", tag = "operator",
    request_body = ServiceWish,
    responses((status = 200, body = Service, description = "As it is now")))]
pub(super) async fn set_service(
    State(app): App,
    caller: Caller,
    Path(name): Path<String>,
    Body(it): Body<ServiceWish>,
) -> Result<Json<Service>> {
    caller.operators_only()?;
    let request = caller.request(pb::SetServiceRequest {
        name,
        upstream_url: it.upstream_url,
        base_cost_per_call: it.base_cost_per_call,
        active: it.active,
        display_name: it.display_name,
        description: it.description,
        default_scope: it.default_scope,
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
    method: String,
    /// Prefix of the path behind the service; `/` (default) is all of it.
    #[serde(default)]
    path_prefix: String,
    /// Scope a key needs.
    scope: String,
    /// Absent: the service's base cost.
    #[schema(minimum = 0, maximum = 1_000_000)]
    cost: Option<i64>,
    /// `2xx` (default) or `always`: which answers are charged.
    #[serde(default)]
    charge_on: String,
    /// `process` (default), `disk` or `replicated`.
    #[serde(default)]
    durability: String,
    /// Bytes a request's body may have; absent: 10 MiB.
    #[serde(default)]
    #[schema(minimum = 0)]
    body_bytes_max: i64,
    /// Milliseconds to the upstream's first byte; absent: 60 s.
    #[serde(default)]
    #[schema(minimum = 0)]
    timeout_ms: i64,
}

/// Creates or changes a route of a service.
#[utoipa::path(put, path = "/v1/operator/services/{service}/routes", tag = "operator",
    request_body = RouteWish,
    responses((status = 200, body = Service, description = "The service as it is now")))]
pub(super) async fn set_route(
    State(app): App,
    caller: Caller,
    Path(service): Path<String>,
    Body(it): Body<RouteWish>,
) -> Result<Json<Service>> {
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
    })?;
    let done = app.keys.clone().set_route(request).await?;
    present(done.into_inner().service)
}
