//! `tollgate service` and `tollgate route`: what is for sale, where, for how much.

use clap::{ArgAction, Args, Subcommand};
use proto::keys::v1 as wire;
use serde_json::{Value, json};

use crate::connect::System;
use crate::failure::Result;
use crate::output::Output;

/// Acts on services.
#[derive(Subcommand)]
pub(crate) enum Service {
    /// Create or change a service; what is not named stays
    #[command(
        after_help = "Examples:\n  tollgate service set pdf --upstream http://10.0.0.7:8000 \
        --cost 2\n  tollgate service set pdf --health-path /healthz\n  tollgate service set speech \
        --upstream https://speech.example.com --protocol h2"
    )]
    Set(Box<Set>),
    /// List the catalogue
    List,
}

/// A service as it shall be.
#[derive(Args)]
pub(crate) struct Set {
    /// As in the URL: a-z, 0-9 and -, beginning with a letter
    name: String,
    /// Where calls go, http:// or https://; needed for a new service
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Credits a call; routes may differ
    #[arg(long, value_name = "N")]
    cost: Option<i64>,
    /// `false` refuses calls
    #[arg(long, value_name = "BOOL", action = ArgAction::Set)]
    active: Option<bool>,
    /// Name for people
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// Description for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Scope of the route that a new service gets; NAME:call if absent
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    /// What is spoken with the upstream: http1, h2 (HTTP/2, which gRPC needs) or auto (over
    /// https:// what the upstream prefers)
    #[arg(long, value_name = "NAME")]
    protocol: Option<String>,
    /// Connections of one gateway to the upstream; 0: the default
    #[arg(long, value_name = "N")]
    connections_max: Option<i64>,
    /// Milliseconds to a connection, TLS included; 0: the default
    #[arg(long, value_name = "N")]
    connect_timeout_ms: Option<i64>,
    /// Path on the upstream that gateways ask each of its addresses for, to see whether it is well;
    /// '' switches that off
    #[arg(long, value_name = "PATH")]
    health_path: Option<String>,
    /// Change only this version
    #[arg(long, value_name = "N")]
    if_version: Option<i64>,
}

/// Acts on routes.
#[derive(Subcommand)]
pub(crate) enum Route {
    /// Create or change the route of a service with this method and prefix
    #[command(
        after_help = "Examples:\n  tollgate route set ai --method POST --prefix /images \
        --scope ai:write --cost 10\n  tollgate route set ai --method POST --prefix /chat \
        --scope ai:write --cost 1 --max-cost 50 \\\n      \
        --unit tokens=3/1000,pointer=/usage/total_tokens,bytes=4 --unreported estimate"
    )]
    Set(SetRoute),
}

/// A route as it shall be.
#[derive(Args)]
pub(crate) struct SetRoute {
    /// Name of the service
    service: String,
    /// HTTP method, or * for all
    #[arg(long, default_value = "*")]
    method: String,
    /// Prefix of the path behind the service; the longest that fits decides
    #[arg(long, value_name = "PATH", default_value = "/")]
    prefix: String,
    /// Scope a key needs
    #[arg(long)]
    scope: String,
    /// Credits a call; the service's if absent
    #[arg(long, value_name = "N")]
    cost: Option<i64>,
    /// Which answers are charged: 2xx or always
    #[arg(long, default_value = "2xx")]
    charge_on: String,
    /// What a call waits for: process, disk or replicated
    #[arg(long, default_value = "process")]
    durability: String,
    /// Bytes a request's body may have; 0: the default
    #[arg(long, value_name = "N", default_value_t = 0)]
    body_bytes_max: i64,
    /// Milliseconds to the first byte of the answer; 0: the default
    #[arg(long, value_name = "N", default_value_t = 0)]
    timeout_ms: i64,
    /// Milliseconds between two pieces of the answer; 0: the default
    #[arg(long, value_name = "N", default_value_t = 0)]
    idle_timeout_ms: i64,
    /// Milliseconds from the first byte of the answer to its last; 0: the default
    #[arg(long, value_name = "N", default_value_t = 0)]
    total_timeout_ms: i64,
    /// Price of a unit that the upstream reports: UNIT=CREDITS[/PER][,pointer=/JSON/POINTER]
    /// [,bytes=BYTES_PER_UNIT]; may be repeated
    #[arg(long = "unit", value_name = "PRICE", value_parser = unit_price)]
    units: Vec<wire::UnitPrice>,
    /// With unit prices: credits held while a call runs, and the most that it costs
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_cost: i64,
    /// With unit prices, what a call costs that reports none: max_cost, estimate or base
    #[arg(long, default_value = "", hide_default_value = true)]
    unreported: String,
    /// When a call is charged whose client goes away: free, answered or forwarded
    #[arg(long, default_value = "answered")]
    on_client_abort: String,
    /// When a call is charged whose answer breaks off: free or answered
    #[arg(long, default_value = "free")]
    on_server_abort: String,
    /// Change only this version of the service
    #[arg(long, value_name = "N")]
    if_version: Option<i64>,
}

pub(crate) async fn run(command: Service, system: &System, output: &Output) -> Result {
    let mut keys = system.keys()?;
    match command {
        Service::Set(wish) => {
            let request = wire::SetServiceRequest {
                name: wish.name,
                upstream_url: wish.upstream,
                base_cost_per_call: wish.cost,
                active: wish.active,
                display_name: wish.display_name,
                description: wish.description,
                default_scope: wish.scope,
                expected_version: wish.if_version,
                protocol: wish.protocol,
                connections_max: wish.connections_max,
                connect_timeout_ms: wish.connect_timeout_ms,
                health_path: wish.health_path,
            };
            let set = keys.set_service(request).await?.into_inner().service;
            output.record(&set.as_ref().map_or(Value::Null, show));
        }
        Service::List => {
            let listed = keys
                .list_services(wire::ListServicesRequest {})
                .await?
                .into_inner();
            if output.is_json() {
                let services: Vec<Value> = listed.services.iter().map(show).collect();
                output.json(&json!({ "services": services, "scopes": listed.scopes }));
                return Ok(());
            }
            let columns = [
                ("name", "NAME"),
                ("upstream_url", "UPSTREAM"),
                ("base_cost_per_call", "COST"),
                ("active", "ACTIVE"),
                ("description", "DESCRIPTION"),
            ];
            output.list(
                "services",
                &columns,
                listed.services.iter().map(show).collect(),
            );
        }
    }
    Ok(())
}

pub(crate) async fn run_route(command: Route, system: &System, output: &Output) -> Result {
    let Route::Set(wish) = command;
    let route = wire::Route {
        route_id: String::new(),
        method: wish.method,
        path_prefix: wish.prefix,
        scope: wish.scope,
        cost: wish.cost,
        charge_on: wish.charge_on,
        durability: wish.durability,
        body_bytes_max: wish.body_bytes_max,
        timeout_ms: wish.timeout_ms,
        idle_timeout_ms: wish.idle_timeout_ms,
        total_timeout_ms: wish.total_timeout_ms,
        unit_prices: wish.units,
        max_cost: wish.max_cost,
        unreported: wish.unreported,
        on_client_abort: wish.on_client_abort,
        on_server_abort: wish.on_server_abort,
    };
    let request = wire::SetRouteRequest {
        service: wish.service,
        route: Some(route),
        expected_version: wish.if_version,
    };
    let set = system
        .keys()?
        .set_route(request)
        .await?
        .into_inner()
        .service;
    output.record(&set.as_ref().map_or(Value::Null, show));
    Ok(())
}

fn show_price(price: &wire::UnitPrice) -> Value {
    json!({
        "unit": price.unit,
        "credits": price.credits,
        "per": price.per,
        "pointer": price.pointer,
        "bytes_per_unit": price.bytes_per_unit,
    })
}

/// Reads `tokens=3/1000,pointer=/usage/total_tokens,bytes=4`. What the parts may be is the
/// service's to say.
fn unit_price(text: &str) -> std::result::Result<wire::UnitPrice, String> {
    let mut parts = text.split(',');
    let (unit, price) = parts
        .next()
        .and_then(|part| part.split_once('='))
        .ok_or("write UNIT=CREDITS or UNIT=CREDITS/PER, such as tokens=3/1000")?;
    let number = |text: &str| {
        text.parse::<i64>()
            .map_err(|error| format!("`{text}` is no whole number: {error}"))
    };
    let (credits, per) = price.split_once('/').unwrap_or((price, "1"));
    let mut read = wire::UnitPrice {
        unit: unit.to_owned(),
        credits: number(credits)?,
        per: number(per)?,
        ..wire::UnitPrice::default()
    };
    for part in parts {
        match part.split_once('=') {
            Some(("pointer", pointer)) => pointer.clone_into(&mut read.pointer),
            Some(("bytes", bytes)) => read.bytes_per_unit = number(bytes)?,
            _ => return Err(format!("`{part}` is neither pointer=… nor bytes=…")),
        }
    }
    Ok(read)
}

fn show(service: &wire::Service) -> Value {
    let routes = service.routes.iter().map(|route| {
        json!({
            "route_id": route.route_id,
            "method": route.method,
            "path_prefix": route.path_prefix,
            "scope": route.scope,
            "cost": route.cost,
            "charge_on": route.charge_on,
            "durability": route.durability,
            "body_bytes_max": route.body_bytes_max,
            "timeout_ms": route.timeout_ms,
            "idle_timeout_ms": route.idle_timeout_ms,
            "total_timeout_ms": route.total_timeout_ms,
            "unit_prices": route.unit_prices.iter().map(show_price).collect::<Vec<_>>(),
            "max_cost": route.max_cost,
            "unreported": route.unreported,
            "on_client_abort": route.on_client_abort,
            "on_server_abort": route.on_server_abort,
        })
    });
    json!({
        "service_id": service.service_id,
        "name": service.name,
        "display_name": service.display_name,
        "description": service.description,
        "upstream_url": service.upstream_url,
        "base_cost_per_call": service.base_cost_per_call,
        "active": service.active,
        "price_version": service.price_version,
        "version": service.version,
        "protocol": service.protocol,
        "connections_max": service.connections_max,
        "connect_timeout_ms": service.connect_timeout_ms,
        "health_path": service.health_path,
        "routes": routes.collect::<Vec<_>>(),
    })
}
