//! Services, routes and scopes.

use proto::keys::v1 as pb;
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{ServiceId, ServiceName};

use super::{Keys, operators_only, upstream, wire};
use crate::{
    domain::{
        catalogue::{RouteWish, Service, ServiceWish, default_scope, reprices, service_name},
        difference, expect_version,
        price::Pricing,
    },
    error::{Error, Result},
    store::Tx,
};

/// Creates a service with one route: everything needs the default scope.
async fn create(
    tx: &mut Tx,
    keys: &Keys,
    name: &ServiceName,
    wish: &ServiceWish,
    scope: Option<&str>,
) -> Result<Service> {
    let settings = wish.apply(name, None)?;
    let scope = default_scope(name, scope)?;
    let (place, route) = RouteWish::everything(&scope).check(name)?;
    let ids = keys.host.ids();
    let service: ServiceId = ids.new_id();
    tx.insert_service(service, name, &settings).await?;
    tx.ensure_scope(&scope, service).await?;
    let route_id = tx.save_route(ids.new_id(), service, &place, &route).await?;
    let details = json!({ "after": settings.facts() });
    tx.audit(None, "service.created", service, details);
    let details = json!({ "after": route.facts(&place) });
    tx.audit(None, "route.created", route_id, details);
    tx.read_service(name).await
}

impl Keys {
    /// Announces a change of the catalogue and commits it.
    async fn publish(&self, mut tx: Tx) -> Result<()> {
        tx.announce_change();
        tx.commit().await?;
        self.committed();
        Ok(())
    }

    pub(super) async fn offer(
        &self,
        actor: Actor,
        request: pb::SetServiceRequest,
    ) -> std::result::Result<pb::SetServiceResponse, Status> {
        operators_only(actor, "change services")?;
        let name = service_name("name", &request.name)?;
        let wish = ServiceWish {
            upstream_url: request.upstream_url,
            base_cost: request.base_cost_per_call,
            active: request.active,
            display_name: request.display_name,
            description: request.description,
            protocol: request.protocol,
            connections_max: request.connections_max,
            connect_timeout_ms: request.connect_timeout_ms,
            health_path: request.health_path,
        };
        if let Some(url) = &wish.upstream_url {
            upstream::check(&self.upstream_networks, url).await?;
        }
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let found = tx.lock_service(&name).await?;
        let version = found.as_ref().map_or(0, |service| service.version);
        expect_version(request.expected_version, version)?;
        let service = match found {
            None => {
                let scope = request.default_scope.as_deref();
                create(&mut tx, self, &name, &wish, scope).await?
            }
            Some(service) => {
                let settings = wish.apply(&name, Some(&service.settings))?;
                if settings == service.settings {
                    return Ok(pb::SetServiceResponse {
                        service: Some(wire::service(&service)),
                    });
                }
                let details = difference(&service.settings.facts(), &settings.facts());
                tx.audit(None, "service.updated", service.id, details);
                tx.save_service(service, settings).await?
            }
        };
        self.publish(tx).await?;
        Ok(pb::SetServiceResponse {
            service: Some(wire::service(&service)),
        })
    }

    pub(super) async fn services(&self) -> std::result::Result<pb::ListServicesResponse, Status> {
        let services = self.store.services().await?;
        Ok(pb::ListServicesResponse {
            services: services.iter().map(wire::service).collect(),
            scopes: wire::scopes(&self.store.scopes().await?),
        })
    }

    pub(super) async fn route(
        &self,
        actor: Actor,
        request: pb::SetRouteRequest,
    ) -> std::result::Result<pb::SetRouteResponse, Status> {
        operators_only(actor, "change routes")?;
        let name = service_name("service", &request.service)?;
        let Some(route) = request.route else {
            return Err(Error::invalid("route", "is missing: say scope and place").into());
        };
        let wish = RouteWish {
            method: route.method,
            path_prefix: route.path_prefix,
            scope: route.scope,
            cost: route.cost,
            charge_on: route.charge_on,
            durability: route.durability,
            body_bytes_max: route.body_bytes_max,
            timeout_ms: route.timeout_ms,
            idle_timeout_ms: route.idle_timeout_ms,
            total_timeout_ms: route.total_timeout_ms,
            pricing: Pricing {
                unit_prices: route.unit_prices.into_iter().map(Into::into).collect(),
                max_cost: route.max_cost,
                unreported: route.unreported,
                on_client_abort: route.on_client_abort,
                on_server_abort: route.on_server_abort,
            },
        };
        let (place, settings) = wish.check(&name)?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let Some(service) = tx.lock_service(&name).await? else {
            return Err(Error::not_found("service", &name).into());
        };
        expect_version(request.expected_version, service.version)?;
        let before = service.routes.iter().find(|route| route.place == place);
        let old = before.map(|route| &route.settings);
        if old == Some(&settings) {
            return Ok(pb::SetRouteResponse {
                service: Some(wire::service(&service)),
            });
        }
        tx.ensure_scope(&settings.scope, service.id).await?;
        let new = self.host.ids().new_id();
        let id = tx.save_route(new, service.id, &place, &settings).await?;
        tx.routes_changed(service.id, reprices(old, &settings))
            .await?;
        let (action, details) = match old {
            Some(old) => (
                "route.updated",
                difference(&old.facts(&place), &settings.facts(&place)),
            ),
            None => ("route.created", json!({ "after": settings.facts(&place) })),
        };
        tx.audit(None, action, id, details);
        let service = tx.read_service(&name).await?;
        self.publish(tx).await?;
        Ok(pb::SetRouteResponse {
            service: Some(wire::service(&service)),
        })
    }
}
