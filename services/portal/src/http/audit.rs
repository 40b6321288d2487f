//! The audit log.

use axum::{Json, extract::State};
use proto::keys::v1 as pb;
use serde::Serialize;
use serde_json::Value;
use types::OrgId;
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    extract::{Page, Path, Query, id},
    wire::{embedded, filled, moment},
};
use crate::{domain, error::Result};

/// Who did what.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditEntry {
    id: i64,
    /// `operator` or `usr_…`
    actor: String,
    /// Such as `key.revoked`.
    action: String,
    /// The object's id.
    target: String,
    /// Before and after, without secrets.
    #[schema(value_type = Object)]
    details: Value,
    #[schema(format = DateTime)]
    at: String,
    /// From where. Absent: the system by itself.
    address: Option<String>,
}

/// A page of the log, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditLog {
    entries: Vec<AuditEntry>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Lists the audit log: owners and admins see all, developers their own actions, billing what
/// concerns payment.
#[utoipa::path(get, path = "/v1/organisations/{org}/audit-log", tag = "audit", params(Page),
    responses((status = 200, body = AuditLog, description = "One page")))]
pub(super) async fn list_audit_log(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<AuditLog>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::ListAuditLogRequest {
        org_id: org.to_string(),
        page_size: page.size()?,
        page_token: page.token()?,
    })?;
    let found = app.keys.clone().list_audit_log(request).await?;
    let found = found.into_inner();
    let entries = found.entries.into_iter().map(|it| AuditEntry {
        at: moment(it.at.as_ref()),
        details: embedded(&it.details),
        id: it.id,
        actor: it.actor,
        action: it.action,
        target: it.target,
        address: filled(it.address),
    });
    Ok(Json(AuditLog {
        entries: entries.collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}
