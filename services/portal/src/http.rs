//! The API: what is shared by all routes, and how they are put together.

mod access;
mod account;
mod anomalies;
mod audit;
mod catalogue;
mod document;
mod endings;
mod etag;
mod extract;
mod invitations;
mod key_format;
mod key_use;
mod keys;
mod leaks;
mod listen;
mod members;
mod once;
mod operator;
mod organisations;
mod pace;
mod policy;
mod problem;
mod reviews;
mod services;
mod sessions;
mod totp;
mod usage;
mod wallet;
mod wire;

use std::sync::Arc;

use axum::{Extension, Router, extract::DefaultBodyLimit, middleware, routing::get};
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

use self::{extract::Client, pace::Pace};
use crate::{
    error::{Error, Result},
    metrics::Metrics,
    store::Store,
};

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
    pace: Pace,
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
            pace: Pace::default(),
            keys: KeysServiceClient::new(channel("keys")?),
            people: PeopleServiceClient::new(channel("keys")?),
            wallet: WalletServiceClient::new(channel("wallet")?),
            usage: UsageIngestServiceClient::new(channel("usage-ingest")?),
            stats: StatsAggregatorServiceClient::new(channel("stats-aggregator")?),
            anomalies: AnomalyDetectorServiceClient::new(channel("anomaly-detector")?),
        })
    }
}

impl Portal {
    /// Refuses strangers who ask too often.
    fn strangers(&self, client: &Client) -> Result<()> {
        let now = self.host.clock().monotonic_nanos();
        self.pace.take(client.address, now)
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
        .routes(routes!(invitations::show_invitation))
        .routes(routes!(key_format::get_key_format))
        .routes(routes!(key_format::check_key_format))
        .routes(routes!(leaks::report_leaked_keys))
}

/// Routes of people about themselves.
fn personal() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(sessions::log_out))
        .routes(routes!(sessions::second_factor))
        .routes(routes!(
            sessions::list_sessions,
            sessions::end_other_sessions
        ))
        .routes(routes!(sessions::end_session))
        .routes(routes!(account::get_account, account::update_account))
        .routes(routes!(account::change_password))
        .routes(routes!(account::resend_verification))
        .routes(routes!(totp::start_totp))
        .routes(routes!(totp::confirm_totp))
        .routes(routes!(totp::disable_totp))
        .routes(routes!(totp::renew_recovery_codes))
        .routes(routes!(invitations::accept_invitation))
}

/// Routes about organisations and who belongs to them.
fn organisational() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(
            organisations::list_organisations,
            organisations::create_organisation
        ))
        .routes(routes!(
            organisations::get_organisation,
            organisations::update_organisation
        ))
        .routes(routes!(policy::get_policy, policy::update_policy))
        .routes(routes!(members::leave))
        .routes(routes!(members::transfer))
        .routes(routes!(members::list_members, members::add_member))
        .routes(routes!(
            members::get_member,
            members::update_member,
            members::remove_member
        ))
        .routes(routes!(
            invitations::list_invitations,
            invitations::create_invitation
        ))
        .routes(routes!(invitations::resend_invitation))
        .routes(routes!(invitations::revoke_invitation))
        .routes(routes!(audit::list_audit_log))
}

/// Routes about keys, and what is done with them.
fn about_keys() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(keys::list_keys, keys::create_key))
        .routes(routes!(
            keys::get_key,
            keys::update_key,
            endings::delete_key
        ))
        .routes(routes!(endings::revoke_key))
        .routes(routes!(endings::rotate_key))
        .routes(routes!(keys::suspend_key))
        .routes(routes!(keys::restore_key))
        .routes(routes!(reviews::list_key_reviews))
        .routes(routes!(reviews::keep_key))
        .routes(routes!(wallet::get_wallet))
        .routes(routes!(wallet::list_ledger))
        .routes(routes!(usage::list_calls))
        .routes(routes!(usage::get_call))
        .routes(routes!(usage::list_daily))
        .routes(routes!(anomalies::list_anomalies))
        .routes(routes!(anomalies::resolve_anomaly))
}

/// Routes of operators.
fn operational() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(anomalies::list_all_anomalies))
        .routes(routes!(anomalies::resolve_any_anomaly))
        .routes(routes!(operator::list_all_organisations))
        .routes(routes!(operator::reset_second_factor))
        .routes(routes!(services::list_full_services))
        .routes(routes!(services::get_service, services::set_service))
        .routes(routes!(services::set_route))
}

/// Routes whose services recognise repetitions themselves.
fn repeatable() -> Routes {
    OpenApiRouter::new().routes(routes!(operator::grant_credits))
}

/// Routes that need a session, or the operator token.
fn closed() -> Routes {
    personal()
        .merge(organisational())
        .merge(about_keys())
        .merge(operational())
}

/// The document of all routes.
pub(crate) fn document() -> OpenApi {
    let (_, open) = open().split_for_parts();
    let (_, closed) = closed().merge(repeatable()).split_for_parts();
    document::complete(open, closed)
}

/// All routes, ready to be served.
pub(crate) fn router(portal: Arc<Portal>) -> Router {
    let document: Arc<str> = document::text(&document()).into();
    let (open, _) = open().split_for_parts();
    let (closed, _) = closed().split_for_parts();
    let (repeatable, _) = repeatable().split_for_parts();
    let once = middleware::from_fn_with_state(portal.clone(), once::once);
    // The last layer is the first to see a request: who asks is known before what was asked before.
    let repeatable = repeatable
        .route_layer(once.clone())
        .route_layer(Extension(once::Repeatable));
    let closed =
        closed
            .route_layer(once)
            .merge(repeatable)
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
