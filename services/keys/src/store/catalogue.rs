//! Services, routes and scopes.

use jiff_sqlx::ToSqlx;
use serde_json::Value;
use sqlx::PgConnection;
use types::{RouteId, Scope, ServiceId, ServiceName};
use uuid::Uuid;

use super::{Store, Tx, corrupt};
use crate::{
    domain::{
        catalogue::{Manner, Place, Route, RouteSettings, Service, ServiceSettings},
        price::{self, Pricing},
    },
    error::{Error, Result},
};

struct ServiceRow {
    id: Uuid,
    name: String,
    display_name: String,
    description: String,
    upstream_url: String,
    base_cost_per_call: i64,
    icon: String,
    category: String,
    is_active: bool,
    price_version: i64,
    version: i64,
    protocol: String,
    connections_max: i64,
    connect_timeout_ms: i64,
    health_path: String,
}

struct RouteRow {
    id: Uuid,
    service_id: Uuid,
    method: String,
    path_prefix: String,
    scope: String,
    cost: Option<i64>,
    charge_on: String,
    durability: String,
    body_bytes_max: i64,
    timeout_ms: i64,
    idle_timeout_ms: i64,
    total_timeout_ms: i64,
    unit_prices: Value,
    max_cost: i64,
    unreported: String,
    on_client_abort: String,
    on_server_abort: String,
}

fn service(row: ServiceRow) -> Result<Service> {
    Ok(Service {
        id: ServiceId::new(row.id),
        name: row
            .name
            .parse()
            .map_err(|error| corrupt("service", error))?,
        settings: ServiceSettings {
            display_name: row.display_name,
            description: row.description,
            upstream_url: row.upstream_url,
            base_cost: row.base_cost_per_call,
            active: row.is_active,
            manner: Manner {
                protocol: row.protocol,
                connections_max: row.connections_max,
                connect_timeout_ms: row.connect_timeout_ms,
                health_path: row.health_path,
            },
        },
        icon: row.icon,
        category: row.category,
        price_version: row.price_version,
        version: row.version,
        routes: Vec::new(),
    })
}

fn route(row: RouteRow) -> Result<Route> {
    Ok(Route {
        id: RouteId::new(row.id),
        place: Place {
            method: row.method,
            path_prefix: row.path_prefix,
        },
        settings: RouteSettings {
            scope: row.scope.parse().map_err(|error| corrupt("scope", error))?,
            cost: row.cost,
            charge_on: row.charge_on,
            durability: row.durability,
            body_bytes_max: row.body_bytes_max,
            timeout_ms: row.timeout_ms,
            idle_timeout_ms: row.idle_timeout_ms,
            total_timeout_ms: row.total_timeout_ms,
            pricing: Pricing {
                unit_prices: price::from_json(row.unit_prices)
                    .map_err(|error| corrupt("unit_prices", error))?,
                max_cost: row.max_cost,
                unreported: row.unreported,
                on_client_abort: row.on_client_abort,
                on_server_abort: row.on_server_abort,
            },
        },
    })
}

/// Reads the routes of services.
async fn with_routes(connection: &mut PgConnection, rows: Vec<ServiceRow>) -> Result<Vec<Service>> {
    let mut services = rows.into_iter().map(service).collect::<Result<Vec<_>>>()?;
    let ids: Vec<_> = services.iter().map(|service| service.id.uuid()).collect();
    let select = sqlx::query_as!(
        RouteRow,
        r#"
        select id, service_id, method, path_prefix, scope, cost, charge_on, durability,
               body_bytes_max, timeout_ms, idle_timeout_ms, total_timeout_ms, unit_prices, max_cost,
               unreported, on_client_abort, on_server_abort
          from keys.routes
         where service_id = any($1)
         order by path_prefix, method"#,
        &ids,
    );
    for row in select.fetch_all(&mut *connection).await? {
        let owner = ServiceId::new(row.service_id);
        if let Some(service) = services.iter_mut().find(|service| service.id == owner) {
            service.routes.push(route(row)?);
        }
    }
    Ok(services)
}

impl Store {
    /// All services, by name.
    pub(crate) async fn services(&self) -> Result<Vec<Service>> {
        let mut connection = self.pool.acquire().await?;
        let select = sqlx::query_as!(
            ServiceRow,
            r#"
            select id, name, display_name, description, upstream_url, base_cost_per_call, icon,
                   category, is_active, price_version, version, protocol, connections_max,
                   connect_timeout_ms, health_path
              from keys.services
             order by name"#,
        );
        let rows = select.fetch_all(&mut *connection).await?;
        with_routes(&mut connection, rows).await
    }

    /// The change that made the catalogue what it is; 0 when there was none.
    pub(crate) async fn catalogue_version(&self) -> Result<i64> {
        let select = sqlx::query_scalar!(
            r#"select coalesce(max(id), 0) as "version!" from keys.changes where key_hash is null"#
        );
        Ok(select.fetch_one(&self.pool).await?)
    }

    /// Every scope a key may have, by name.
    pub(crate) async fn scopes(&self) -> Result<Vec<Scope>> {
        scopes(&mut *self.pool.acquire().await?).await
    }
}

async fn scopes(connection: &mut PgConnection) -> Result<Vec<Scope>> {
    let select = sqlx::query_scalar!("select name from keys.scopes order by name");
    let names = select.fetch_all(connection).await?;
    names
        .iter()
        .map(|name| name.parse().map_err(|error| corrupt("scope", error)))
        .collect()
}

impl Tx {
    /// Every scope a key may have, by name.
    pub(crate) async fn scopes(&mut self) -> Result<Vec<Scope>> {
        scopes(&mut self.inner).await
    }

    /// Locks a service until the transaction ends, and reads it with its routes.
    pub(crate) async fn lock_service(&mut self, name: &ServiceName) -> Result<Option<Service>> {
        let lock = sqlx::query_as!(
            ServiceRow,
            r#"
            select id, name, display_name, description, upstream_url, base_cost_per_call, icon,
                   category, is_active, price_version, version, protocol, connections_max,
                   connect_timeout_ms, health_path
              from keys.services
             where name = $1
               for no key update"#,
            name.as_str(),
        );
        let rows = lock.fetch_all(&mut *self.inner).await?;
        // In a statement of its own: it sees what was written before the lock was ours.
        Ok(with_routes(&mut self.inner, rows).await?.pop())
    }

    /// A service as this transaction has made it.
    pub(crate) async fn read_service(&mut self, name: &ServiceName) -> Result<Service> {
        let service = self.lock_service(name).await?;
        service.ok_or_else(|| Error::not_found("service", name))
    }

    /// Creates a service.
    pub(crate) async fn insert_service(
        &mut self,
        id: ServiceId,
        name: &ServiceName,
        settings: &ServiceSettings,
    ) -> Result<()> {
        let insert = sqlx::query!(
            r#"
            insert into keys.services (
                id, name, display_name, description, upstream_url, base_cost_per_call,
                is_active, created_at, updated_at, protocol, connections_max, connect_timeout_ms,
                health_path)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9, $10, $11, $12)"#,
            id.uuid(),
            name.as_str(),
            settings.display_name,
            settings.description,
            settings.upstream_url,
            settings.base_cost,
            settings.active,
            self.at.to_sqlx(),
            settings.manner.protocol,
            settings.manner.connections_max,
            settings.manner.connect_timeout_ms,
            settings.manner.health_path,
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Changes a service; its price version grows when the base cost changes. It is locked. The
    /// service as it is then.
    pub(crate) async fn save_service(
        &mut self,
        service: Service,
        settings: ServiceSettings,
    ) -> Result<Service> {
        let update = sqlx::query!(
            r#"
            update keys.services
               set display_name = $2, description = $3, upstream_url = $4,
                   base_cost_per_call = $5, is_active = $6, updated_at = $7, protocol = $8,
                   connections_max = $9, connect_timeout_ms = $10, health_path = $11,
                   version = version + 1,
                   price_version = price_version
                       + case when base_cost_per_call = $5 then 0 else 1 end
             where id = $1
            returning version, price_version"#,
            service.id.uuid(),
            settings.display_name,
            settings.description,
            settings.upstream_url,
            settings.base_cost,
            settings.active,
            self.at.to_sqlx(),
            settings.manner.protocol,
            settings.manner.connections_max,
            settings.manner.connect_timeout_ms,
            settings.manner.health_path,
        );
        let row = update.fetch_one(&mut *self.inner).await?;
        Ok(Service {
            settings,
            version: row.version,
            price_version: row.price_version,
            ..service
        })
    }

    /// Makes a new version of a service whose routes change, and of its prices if they do. It is
    /// locked.
    pub(crate) async fn routes_changed(&mut self, id: ServiceId, reprices: bool) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.services
               set version = version + 1, updated_at = $2,
                   price_version = price_version + case when $3 then 1 else 0 end
             where id = $1"#,
            id.uuid(),
            self.at.to_sqlx(),
            reprices,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Adds a scope to the catalogue, unless it is there.
    pub(crate) async fn ensure_scope(&mut self, scope: &Scope, service: ServiceId) -> Result<()> {
        let insert = sqlx::query!(
            r#"
            insert into keys.scopes (name, service_id)
            values ($1, $2)
            on conflict (name) do nothing"#,
            scope.as_str(),
            service.uuid(),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Creates or changes the route at a place of a service. The service is locked.
    pub(crate) async fn save_route(
        &mut self,
        new: RouteId,
        service: ServiceId,
        place: &Place,
        settings: &RouteSettings,
    ) -> Result<RouteId> {
        let upsert = sqlx::query_scalar!(
            r#"
            insert into keys.routes (
                id, service_id, method, path_prefix, scope, cost, charge_on, durability,
                body_bytes_max, timeout_ms, unit_prices, max_cost, unreported, on_client_abort,
                on_server_abort, idle_timeout_ms, total_timeout_ms)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
            on conflict (service_id, method, path_prefix) do update
               set scope = excluded.scope, cost = excluded.cost,
                   charge_on = excluded.charge_on, durability = excluded.durability,
                   body_bytes_max = excluded.body_bytes_max, timeout_ms = excluded.timeout_ms,
                   unit_prices = excluded.unit_prices, max_cost = excluded.max_cost,
                   unreported = excluded.unreported,
                   on_client_abort = excluded.on_client_abort,
                   on_server_abort = excluded.on_server_abort,
                   idle_timeout_ms = excluded.idle_timeout_ms,
                   total_timeout_ms = excluded.total_timeout_ms
            returning id"#,
            new.uuid(),
            service.uuid(),
            place.method,
            place.path_prefix,
            settings.scope.as_str(),
            settings.cost,
            settings.charge_on,
            settings.durability,
            settings.body_bytes_max,
            settings.timeout_ms,
            price::to_json(&settings.pricing.unit_prices),
            settings.pricing.max_cost,
            settings.pricing.unreported,
            settings.pricing.on_client_abort,
            settings.pricing.on_server_abort,
            settings.idle_timeout_ms,
            settings.total_timeout_ms,
        );
        Ok(RouteId::new(upsert.fetch_one(&mut *self.inner).await?))
    }
}
