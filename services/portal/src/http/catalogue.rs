//! What is for sale.

use axum::{Json, extract::State};
use proto::keys::v1 as pb;
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, extract::Client, services::Pricing};
use crate::error::Result;

/// A service.
#[derive(Serialize, ToSchema)]
pub(super) struct Service {
    service_id: String,
    /// As in the URL.
    name: String,
    display_name: String,
    description: String,
    icon: String,
    category: String,
    /// Credits a call; routes may differ.
    base_cost_per_call: i64,
    /// False: calls are refused.
    active: bool,
    routes: Vec<Route>,
    /// Version of its prices.
    price_version: i64,
}

/// What part of a service needs which scope and costs how much.
#[derive(Serialize, ToSchema)]
pub(super) struct Route {
    /// `*` or an HTTP method.
    method: String,
    /// Prefix of the path behind the service.
    path_prefix: String,
    /// Scope a key needs.
    scope: String,
    /// Credits a call.
    cost: i64,
    /// `2xx` or `always`: which answers are charged.
    charge_on: String,
    pricing: Pricing,
}

/// Where calls go is the operator's business and not said.
impl From<pb::Service> for Service {
    fn from(it: pb::Service) -> Self {
        let base = it.base_cost_per_call;
        let routes = it.routes.into_iter().map(|mut route| Route {
            pricing: Pricing::take(&mut route),
            cost: route.cost.unwrap_or(base),
            method: route.method,
            path_prefix: route.path_prefix,
            scope: route.scope,
            charge_on: route.charge_on,
        });
        Self {
            routes: routes.collect(),
            service_id: it.service_id,
            name: it.name,
            display_name: it.display_name,
            description: it.description,
            icon: it.icon,
            category: it.category,
            base_cost_per_call: base,
            active: it.active,
            price_version: it.price_version,
        }
    }
}

/// The catalogue.
#[derive(Serialize, ToSchema)]
pub(super) struct Services {
    /// By name.
    services: Vec<Service>,
    /// Every scope that keys may have.
    scopes: Vec<String>,
}

/// Lists services with their prices and scopes.
#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, body = Services, description = "The catalogue")))]
pub(super) async fn list_services(State(app): App, client: Client) -> Result<Json<Services>> {
    let request = client.request(pb::ListServicesRequest {})?;
    let found = app.keys.clone().list_services(request).await?.into_inner();
    Ok(Json(Services {
        services: found.services.into_iter().map(Into::into).collect(),
        scopes: found.scopes,
    }))
}
