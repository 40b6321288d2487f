//! Unusual behaviour of keys, wallets, organisations and addresses.

use axum::{Json, extract::State};
use proto::{anomaly_detector::v1 as pb, keys::v1 as keys};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::AnomalyId;
use utoipa::{IntoParams, ToSchema};

use super::{
    App, Portal,
    access::Caller,
    extract::{Page, Path, Query, id},
    wire::{embedded, filled, moment, rfc3339},
};
use crate::{
    domain::{self, Action},
    error::Result,
};

/// An anomaly.
#[derive(Serialize, ToSchema)]
pub(super) struct Anomaly {
    anomaly_id: String,
    /// Absent: it concerns the whole platform.
    org_id: Option<String>,
    /// Absent: it concerns no key, or several.
    key_id: Option<String>,
    /// Every key concerned.
    key_ids: Vec<String>,
    /// The rule that was met, such as `country_spread`.
    kind: String,
    /// A sentence.
    summary: String,
    /// Evidence.
    #[schema(value_type = Object)]
    details: Value,
    #[schema(format = DateTime)]
    at: String,
    /// Absent: open.
    #[schema(format = DateTime)]
    resolved_at: Option<String>,
    /// `operator` or `usr_…`
    resolved_by: Option<String>,
}

impl From<pb::Anomaly> for Anomaly {
    fn from(it: pb::Anomaly) -> Self {
        Self {
            at: moment(it.at.as_ref()),
            resolved_at: rfc3339(it.resolved_at.as_ref()),
            details: embedded(&it.details),
            anomaly_id: it.anomaly_id,
            org_id: filled(it.org_id),
            key_id: filled(it.key_id),
            key_ids: it.key_ids,
            kind: it.kind,
            summary: it.summary,
            resolved_by: filled(it.resolved_by),
        }
    }
}

/// A page of anomalies, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Anomalies {
    anomalies: Vec<Anomaly>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Which anomalies a list shows.
#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum AnomalyState {
    /// Nobody has dealt with them yet.
    #[default]
    Open,
    /// They were dealt with.
    Resolved,
    /// Both.
    All,
}

impl AnomalyState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Resolved => "resolved",
            Self::All => "all",
        }
    }
}

/// Which anomalies, and which page of them.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AnomaliesPage {
    /// Open ones unless said otherwise.
    #[param(inline)]
    state: Option<AnomalyState>,
    /// Entries of a page at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(max_length = 400)]
    cursor: Option<String>,
}

/// What resolving has set free.
#[derive(Serialize, ToSchema)]
pub(super) struct Resolved {
    /// Keys that the anomaly suspends or throttles no more.
    restored_key_ids: Vec<String>,
    /// Live gateways that have confirmed.
    confirmed_gateways: u32,
    /// Live gateways that have not yet.
    pending_gateways: Vec<String>,
}

impl Portal {
    /// Anomalies of an organisation; of all and of the platform where `org_id` is empty.
    async fn anomalies_page(
        &self,
        caller: &Caller,
        org_id: String,
        it: AnomaliesPage,
    ) -> Result<Json<Anomalies>> {
        let page = Page {
            limit: it.limit,
            cursor: it.cursor,
        };
        let request = caller.request(pb::ListAnomaliesRequest {
            org_id,
            page_size: page.size()?,
            page_token: page.token()?,
            state: it.state.unwrap_or_default().as_str().to_owned(),
        })?;
        let found = self.anomalies.clone().list_anomalies(request).await?;
        let found = found.into_inner();
        Ok(Json(Anomalies {
            anomalies: found.anomalies.into_iter().map(Into::into).collect(),
            next_cursor: domain::cursor(&found.next_page_token),
        }))
    }

    /// Restores what the anomaly has imposed, then notes that it was dealt with. In this order: an
    /// anomaly is open as long as anything of it is in force.
    async fn resolve(
        &self,
        caller: &Caller,
        org_id: String,
        anomaly: &str,
    ) -> Result<Json<Resolved>> {
        let anomaly: AnomalyId = id("anomaly", anomaly)?;
        let request = caller.request(keys::LiftAnomalyRequest {
            anomaly_id: anomaly.to_string(),
            org_id: org_id.clone(),
        })?;
        let lifted = self.keys.clone().lift_anomaly(request).await?.into_inner();
        let request = caller.request(pb::ResolveAnomalyRequest {
            anomaly_id: anomaly.to_string(),
            org_id,
        })?;
        self.anomalies.clone().resolve_anomaly(request).await?;
        Ok(Json(Resolved {
            restored_key_ids: lifted.key_ids,
            confirmed_gateways: lifted.confirmed_gateways,
            pending_gateways: lifted.pending_gateways,
        }))
    }
}

/// Lists the anomalies of an organisation.
#[utoipa::path(get, path = "/v1/organisations/{org}/anomalies", tag = "anomalies",
    params(AnomaliesPage), responses((status = 200, body = Anomalies, description = "One page")))]
pub(super) async fn list_anomalies(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(it): Query<AnomaliesPage>,
) -> Result<Json<Anomalies>> {
    let org = app.scope(&caller, &org, Action::ViewAnomalies).await?;
    app.anomalies_page(&caller, org.to_string(), it).await
}

/// Marks an anomaly as dealt with and restores the keys it has suspended or throttled; again
/// changes nothing.
#[utoipa::path(post, path = "/v1/organisations/{org}/anomalies/{anomaly}/resolve",
    tag = "anomalies", responses((status = 200, body = Resolved, description = "Resolved")))]
pub(super) async fn resolve_anomaly(
    State(app): App,
    caller: Caller,
    Path((org, anomaly)): Path<(String, String)>,
) -> Result<Json<Resolved>> {
    let org = app.scope(&caller, &org, Action::ResolveAnomaly).await?;
    app.resolve(&caller, org.to_string(), &anomaly).await
}

/// Lists the anomalies of all organisations, and those of the whole platform.
#[utoipa::path(get, path = "/v1/operator/anomalies", tag = "operator",
    params(AnomaliesPage), responses((status = 200, body = Anomalies, description = "One page")))]
pub(super) async fn list_all_anomalies(
    State(app): App,
    caller: Caller,
    Query(it): Query<AnomaliesPage>,
) -> Result<Json<Anomalies>> {
    caller.operators_only()?;
    app.anomalies_page(&caller, String::new(), it).await
}

/// As an organisation's route, for any anomaly.
#[utoipa::path(post, path = "/v1/operator/anomalies/{anomaly}/resolve", tag = "operator",
    responses((status = 200, body = Resolved, description = "Resolved")))]
pub(super) async fn resolve_any_anomaly(
    State(app): App,
    caller: Caller,
    Path(anomaly): Path<String>,
) -> Result<Json<Resolved>> {
    caller.operators_only()?;
    app.resolve(&caller, String::new(), &anomaly).await
}
