//! How keys end: revoked, deleted, rotated.

use axum::{Json, extract::State, response::Response};
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    account::shown_once,
    extract::{Body, Path},
    keys::find,
    wire::rfc3339,
};
use crate::error::Result;

/// Why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reason {
    #[schema(min_length = 1, max_length = 200)]
    reason: String,
}

/// Who knows that a key has ended.
#[derive(Serialize, ToSchema)]
pub(super) struct Ended {
    key_id: String,
    /// Live gateways that have confirmed.
    confirmed_gateways: u32,
    /// Names of live gateways that have not within 5 seconds.
    pending_gateways: Vec<String>,
}

/// Revokes a key for good, and answers when the live gateways have confirmed.
#[utoipa::path(post, path = "/v1/organisations/{org}/keys/{key}/revoke", tag = "keys",
    request_body = Reason, responses((status = 200, body = Ended, description = "Revoked")))]
pub(super) async fn revoke_key(
    State(app): App,
    caller: Caller,
    Path((org, key)): Path<(String, String)>,
    Body(it): Body<Reason>,
) -> Result<Json<Ended>> {
    let key_id = find(&app, &caller, &org, &key).await?.key_id;
    let request = caller.request(pb::RevokeKeyRequest {
        key_id: key_id.clone(),
        reason: it.reason,
    })?;
    let done = app.keys.clone().revoke_key(request).await?.into_inner();
    Ok(Json(Ended {
        key_id,
        confirmed_gateways: done.confirmed_gateways,
        pending_gateways: done.pending_gateways,
    }))
}

/// Deletes a key: unusable and hidden; its usage stays.
#[utoipa::path(delete, path = "/v1/organisations/{org}/keys/{key}", tag = "keys",
    responses((status = 200, body = Ended, description = "Deleted")))]
pub(super) async fn delete_key(
    State(app): App,
    caller: Caller,
    Path((org, key)): Path<(String, String)>,
) -> Result<Json<Ended>> {
    let key_id = find(&app, &caller, &org, &key).await?.key_id;
    let request = caller.request(pb::DeleteKeyRequest {
        key_id: key_id.clone(),
    })?;
    let done = app.keys.clone().delete_key(request).await?.into_inner();
    Ok(Json(Ended {
        key_id,
        confirmed_gateways: done.confirmed_gateways,
        pending_gateways: done.pending_gateways,
    }))
}

/// How a key is replaced.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rotation {
    /// How long the old key goes on; never beyond its own expiry.
    #[schema(minimum = 0, maximum = 86400)]
    overlap_seconds: u32,
}

/// The new key, this once.
#[derive(Serialize, ToSchema)]
pub(super) struct RotatedKey {
    /// `key_…` of the new key.
    key_id: String,
    /// The key itself; it is stored nowhere. Absent in the answer to a repeated request.
    key: Option<String>,
    /// When the old key ends.
    #[schema(format = DateTime)]
    old_expires_at: Option<String>,
}

/// Replaces a key by a new one with the same settings, returned this once.
#[utoipa::path(post, path = "/v1/organisations/{org}/keys/{key}/rotate", tag = "keys",
    request_body = Rotation,
    responses((status = 201, body = RotatedKey, description = "Rotated")))]
pub(super) async fn rotate_key(
    State(app): App,
    caller: Caller,
    Path((org, key)): Path<(String, String)>,
    Body(it): Body<Rotation>,
) -> Result<Response> {
    let found = find(&app, &caller, &org, &key).await?;
    let request = caller.request(pb::RotateKeyRequest {
        key_id: found.key_id,
        overlap_seconds: it.overlap_seconds,
    })?;
    let made = app.keys.clone().rotate_key(request).await?.into_inner();
    let answer = |key| RotatedKey {
        key_id: made.key_id.clone(),
        key,
        old_expires_at: rfc3339(made.old_expires_at.as_ref()),
    };
    let (whole, kept) = (answer(Some(made.key.clone())), answer(None));
    shown_once(StatusCode::CREATED, &whole, &kept)
}
