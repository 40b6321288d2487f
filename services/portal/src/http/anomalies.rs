//! Unusual behaviour of keys.

use axum::{Json, extract::State};
use http::StatusCode;
use proto::anomaly_detector::v1 as pb;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::AnomalyId;
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    access::Caller,
    extract::{Page, Path, Query, cut, id},
    wire::{embedded, filled, moment, rfc3339},
};
use crate::{domain::Action, error::Result};

/// An anomaly.
#[derive(Serialize, ToSchema)]
pub(super) struct Anomaly {
    anomaly_id: String,
    org_id: String,
    key_id: String,
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

/// A page of anomalies, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Anomalies {
    anomalies: Vec<Anomaly>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Which anomalies.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AnomaliesPage {
    /// Also those that were dealt with.
    include_resolved: Option<bool>,
    /// Entries of a page at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(max_length = 400)]
    cursor: Option<String>,
}

/// Lists the anomalies; the newest 1000 can be reached.
#[utoipa::path(get, path = "/v1/organisations/{org}/anomalies", tag = "anomalies",
    params(AnomaliesPage), responses((status = 200, body = Anomalies, description = "One page")))]
pub(super) async fn list_anomalies(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(it): Query<AnomaliesPage>,
) -> Result<Json<Anomalies>> {
    let org = app.scope(&caller, &org, Action::ViewAnomalies).await?;
    let request = caller.request(pb::ListAnomaliesRequest {
        org_id: org.to_string(),
        include_resolved: it.include_resolved.unwrap_or(false),
    })?;
    let found = app.anomalies.clone().list_anomalies(request).await?;
    let page = Page {
        limit: it.limit,
        cursor: it.cursor,
    };
    let found = found.into_inner().anomalies;
    let (found, next_cursor) = cut(found, &page, |it| &it.anomaly_id)?;
    let anomalies = found.into_iter().map(|it| Anomaly {
        at: moment(it.at.as_ref()),
        resolved_at: rfc3339(it.resolved_at.as_ref()),
        details: embedded(&it.details),
        anomaly_id: it.anomaly_id,
        org_id: it.org_id,
        key_id: it.key_id,
        kind: it.kind,
        summary: it.summary,
        resolved_by: filled(it.resolved_by),
    });
    Ok(Json(Anomalies {
        anomalies: anomalies.collect(),
        next_cursor,
    }))
}

/// Marks an anomaly as dealt with; again changes nothing.
#[utoipa::path(post, path = "/v1/organisations/{org}/anomalies/{anomaly}/resolve",
    tag = "anomalies", responses((status = 204, description = "Resolved")))]
pub(super) async fn resolve_anomaly(
    State(app): App,
    caller: Caller,
    Path((org, anomaly)): Path<(String, String)>,
) -> Result<StatusCode> {
    let org = app.scope(&caller, &org, Action::ResolveAnomaly).await?;
    let anomaly: AnomalyId = id("anomaly", &anomaly)?;
    let request = caller.request(pb::ResolveAnomalyRequest {
        anomaly_id: anomaly.to_string(),
        org_id: org.to_string(),
    })?;
    app.anomalies.clone().resolve_anomaly(request).await?;
    Ok(StatusCode::NO_CONTENT)
}
