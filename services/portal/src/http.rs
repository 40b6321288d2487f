//! The API: what is shared by all routes, and how they are put together.

mod access;
mod account;
mod anomalies;
mod audit;
mod catalogue;
mod document;
mod extract;
mod keys;
mod listen;
mod members;
mod once;
mod operator;
mod organisations;
mod problem;
mod sessions;
mod usage;
mod wallet;
mod wire;

use std::sync::Arc;

use axum::{Router, extract::DefaultBodyLimit, middleware, routing::get};
use proto::{
    anomaly_detector::v1::anomaly_detector_service_client::AnomalyDetectorServiceClient,
    channel::Channel,
    keys::v1::{
        keys_service_client::KeysServiceClient, people_service_client::PeopleServiceClient,
    },
    stats_aggregator::v1::stats_aggregator_service_client::StatsAggregatorServiceClient,
    usage_ingest::v1::usage_ingest_service_client::UsageIngestServiceClient,
    wallet::v1::wallet_service_client::WalletServiceClient,
};
use runtime::Host;
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{error::Error, metrics::Metrics, store::Store};

#[cfg(test)]
pub(crate) use document::text;
pub(crate) use listen::{bind, serve};

/// A longer body is refused.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// What every route may use.
pub(crate) struct Portal {
    host: Host,
    store: Store,
    metrics: Metrics,
    keys: KeysServiceClient<Channel>,
    people: PeopleServiceClient<Channel>,
    wallet: WalletServiceClient<Channel>,
    usage: UsageIngestServiceClient<Channel>,
    stats: StatsAggregatorServiceClient<Channel>,
    anomalies: AnomalyDetectorServiceClient<Channel>,
}

type App = axum::extract::State<Arc<Portal>>;

impl Portal {
    pub(crate) fn new(host: &Host, store: Store) -> anyhow::Result<Self> {
        let metrics = Metrics::default();
        host.metrics(|registry| metrics.register(registry));
        let channel = |service| host.operator_channel(service);
        Ok(Self {
            host: host.clone(),
            store,
            metrics,
            keys: KeysServiceClient::new(channel("keys")?),
            people: PeopleServiceClient::new(channel("keys")?),
            wallet: WalletServiceClient::new(channel("wallet")?),
            usage: UsageIngestServiceClient::new(channel("usage-ingest")?),
            stats: StatsAggregatorServiceClient::new(channel("stats-aggregator")?),
            anomalies: AnomalyDetectorServiceClient::new(channel("anomaly-detector")?),
        })
    }
}

type Routes = OpenApiRouter<Arc<Portal>>;

/// Routes for everybody.
fn open() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(account::sign_up))
        .routes(routes!(account::verify_email))
        .routes(routes!(account::request_password_reset))
        .routes(routes!(account::reset_password))
        .routes(routes!(sessions::log_in))
        .routes(routes!(catalogue::list_services))
}

/// Routes that need a session, or the operator token.
fn closed() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(sessions::log_out))
        .routes(routes!(sessions::second_factor))
        .routes(routes!(account::get_account))
        .routes(routes!(account::start_totp))
        .routes(routes!(account::confirm_totp))
        .routes(routes!(
            organisations::list_organisations,
            organisations::create_organisation
        ))
        .routes(routes!(organisations::get_organisation))
        .routes(routes!(members::list_members, members::add_member))
        .routes(routes!(members::update_member, members::remove_member))
        .routes(routes!(
            members::list_invitations,
            members::create_invitation
        ))
        .routes(routes!(members::accept_invitation))
        .routes(routes!(keys::list_keys, keys::create_key))
        .routes(routes!(keys::get_key, keys::update_key, keys::delete_key))
        .routes(routes!(keys::revoke_key))
        .routes(routes!(keys::rotate_key))
        .routes(routes!(keys::suspend_key))
        .routes(routes!(keys::restore_key))
        .routes(routes!(wallet::get_wallet))
        .routes(routes!(wallet::list_ledger))
        .routes(routes!(usage::list_calls))
        .routes(routes!(usage::get_call))
        .routes(routes!(usage::list_daily))
        .routes(routes!(anomalies::list_anomalies))
        .routes(routes!(anomalies::resolve_anomaly))
        .routes(routes!(audit::list_audit_log))
        .routes(routes!(operator::list_all_organisations))
        .routes(routes!(operator::grant_credits))
        .routes(routes!(operator::set_service))
        .routes(routes!(operator::set_route))
}

/// The document of all routes.
pub(crate) fn document() -> OpenApi {
    let (_, open) = open().split_for_parts();
    let (_, closed) = closed().split_for_parts();
    document::complete(open, closed)
}

/// All routes, ready to be served.
pub(crate) fn router(portal: Arc<Portal>) -> Router {
    let document: Arc<str> = document::text(&document()).into();
    let (open, _) = open().split_for_parts();
    let (closed, _) = closed().split_for_parts();
    // The last layer is the first to see a request: who asks is known before what was asked before.
    let closed = closed
        .route_layer(middleware::from_fn_with_state(portal.clone(), once::once))
        .route_layer(middleware::from_fn_with_state(
            portal.clone(),
            access::authenticate,
        ));
    open.merge(closed)
        .route(
            "/openapi.json",
            get(move || async move { document::answer(&document) }),
        )
        .fallback(async || Error::NotFound("route"))
        .method_not_allowed_fallback(async |uri: http::Uri| {
            Error::MethodNotAllowed(uri.path().to_owned())
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(
            portal.clone(),
            problem::finish,
        ))
        .with_state(portal)
}
