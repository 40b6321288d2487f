//! Keys.

use axum::{Json, extract::State, response::Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use types::{KeyId, OrgId};
use utoipa::ToSchema;

use super::{
    App, Portal,
    access::Caller,
    account::shown_once,
    extract::{Body, IfMatch, Page, Path, Query, id},
    wire::{filled, moment, parse_time, rfc3339},
};
use crate::{
    domain,
    error::{Error, Result},
};

/// A key as people see it: never the key, never its hash.
#[derive(Serialize, ToSchema)]
pub(super) struct Key {
    key_id: String,
    org_id: String,
    /// `usr_…`
    created_by: String,
    name: String,
    /// `sk_live` or `sk_test`.
    prefix: String,
    /// Last four characters.
    hint: String,
    scopes: Vec<String>,
    /// `production` or `test`.
    environment: String,
    /// Calls a UTC day. Absent: unlimited.
    daily_quota: Option<i64>,
    /// Calls a UTC month. Absent: unlimited.
    monthly_quota: Option<i64>,
    /// Absent: unlimited.
    rate_per_second: Option<u32>,
    /// Calls at once beyond the rate.
    burst: u32,
    /// CIDR blocks; empty: from anywhere.
    allow: Vec<String>,
    /// `active`, `suspended`, `revoked` or `expired`.
    status: String,
    revoked_reason: Option<String>,
    #[schema(format = DateTime)]
    revoked_at: Option<String>,
    /// Absent: never.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// Absent: not used yet. Noted at most once a minute.
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    last_used_ip: Option<String>,
    #[schema(format = DateTime)]
    created_at: String,
    /// Grows with every change; the ETag.
    version: i64,
    /// `key_…` it replaces.
    rotated_from: Option<String>,
    /// `key_…` that replaces it.
    rotated_to: Option<String>,
}

impl From<pb::Key> for Key {
    fn from(it: pb::Key) -> Self {
        Self {
            revoked_at: rfc3339(it.revoked_at.as_ref()),
            expires_at: rfc3339(it.expires_at.as_ref()),
            last_used_at: rfc3339(it.last_used_at.as_ref()),
            created_at: moment(it.created_at.as_ref()),
            key_id: it.key_id,
            org_id: it.org_id,
            created_by: it.created_by,
            name: it.name,
            prefix: it.prefix,
            hint: it.hint,
            scopes: it.scopes,
            environment: it.environment,
            daily_quota: it.daily_quota,
            monthly_quota: it.monthly_quota,
            rate_per_second: it.rate_per_second,
            burst: it.burst,
            allow: it.allow,
            status: it.status,
            revoked_reason: filled(it.revoked_reason),
            last_used_ip: filled(it.last_used_ip),
            version: it.version,
            rotated_from: filled(it.rotated_from),
            rotated_to: filled(it.rotated_to),
        }
    }
}

type Tagged = ([(HeaderName, HeaderValue); 1], Json<Key>);

fn tagged(key: pb::Key) -> Result<Tagged> {
    let tag = HeaderValue::from_str(&format!("\"{}\"", key.version));
    let tag = tag.map_err(|error| Error::Internal(anyhow::Error::new(error)))?;
    Ok(([(header::ETAG, tag)], Json(key.into())))
}

/// A key of this organisation that the caller may see.
async fn find(app: &Portal, caller: &Caller, org: &str, key: &str) -> Result<pb::Key> {
    let (org, key): (OrgId, KeyId) = (id("organisation", org)?, id("key", key)?);
    let request = caller.request(pb::GetKeyRequest {
        key_id: key.to_string(),
    })?;
    let found = app.keys.clone().get_key(request).await?.into_inner().key;
    // A key of another organisation of the caller is not here either.
    let is_here = |it: &pb::Key| it.org_id == org.to_string();
    found.filter(is_here).ok_or(Error::NotFound("key"))
}

/// A page of keys, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Keys {
    keys: Vec<Key>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Lists the keys.
#[utoipa::path(get, path = "/v1/organisations/{org}/keys", tag = "keys", params(Page),
    responses((status = 200, body = Keys, description = "One page")))]
pub(super) async fn list_keys(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<Keys>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::ListKeysRequest {
        org_id: org.to_string(),
        page_size: page.size()?,
        page_token: page.token()?,
    })?;
    let found = app.keys.clone().list_keys(request).await?.into_inner();
    Ok(Json(Keys {
        keys: found.keys.into_iter().map(Into::into).collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

/// A new key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    #[schema(min_length = 1, max_length = 80)]
    name: String,
    /// `production` or `test`.
    environment: String,
    /// From the catalogue, `GET /v1/services`.
    #[schema(min_items = 1, max_items = 64)]
    scopes: Vec<String>,
    /// For operators, who must say it: `usr_…`, a member. A person's keys are its own.
    user_id: Option<String>,
    /// Calls a UTC day. Absent: unlimited.
    #[schema(minimum = 1)]
    daily_quota: Option<i64>,
    /// Calls a UTC month. Absent: unlimited.
    #[schema(minimum = 1)]
    monthly_quota: Option<i64>,
    /// Absent: unlimited.
    #[schema(minimum = 1, maximum = 1_000_000)]
    rate_per_second: Option<u32>,
    /// Calls at once. Absent: the rate. Needs a rate.
    #[schema(minimum = 1, maximum = 1_000_000)]
    burst: Option<u32>,
    /// Absent: never.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// CIDR blocks or single addresses; absent: from anywhere.
    #[schema(max_items = 64)]
    #[serde(default)]
    allow: Vec<String>,
}

/// The key, this once.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedKey {
    key_id: String,
    /// The key itself; it is stored nowhere. Absent in the answer to a repeated request: rotate
    /// the key if the first answer was lost.
    key: Option<String>,
}

/// Creates a key and returns it, this once.
#[utoipa::path(post, path = "/v1/organisations/{org}/keys", tag = "keys", request_body = NewKey,
    responses((status = 201, body = CreatedKey, description = "Created")))]
pub(super) async fn create_key(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Body(it): Body<NewKey>,
) -> Result<Response> {
    let org: OrgId = id("organisation", &org)?;
    let user_id = match (&caller, it.user_id) {
        (_, Some(user)) => user,
        (Caller::User(person), None) => person.user.to_string(),
        (Caller::Operator, None) => {
            return Err(Error::invalid("user_id", "is needed from operators"));
        }
    };
    let request = caller.request(pb::CreateKeyRequest {
        org_id: org.to_string(),
        user_id,
        name: it.name,
        environment: it.environment,
        scopes: it.scopes,
        daily_quota: it.daily_quota,
        monthly_quota: it.monthly_quota,
        rate_per_second: it.rate_per_second,
        burst: it.burst,
        expires_at: parse_time("expires_at", it.expires_at.as_deref())?,
        allow: it.allow,
    })?;
    let made = app.keys.clone().create_key(request).await?.into_inner();
    let whole = CreatedKey {
        key_id: made.key_id.clone(),
        key: Some(made.key),
    };
    let kept = CreatedKey {
        key_id: made.key_id,
        key: None,
    };
    shown_once(StatusCode::CREATED, &whole, &kept)
}

/// Reads a key.
#[utoipa::path(get, path = "/v1/organisations/{org}/keys/{key}", tag = "keys",
    responses((status = 200, body = Key, description = "The key",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn get_key(
    State(app): App,
    caller: Caller,
    Path((org, key)): Path<(String, String)>,
) -> Result<Tagged> {
    tagged(find(&app, &caller, &org, &key).await?)
}

/// What shall change; the rest stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyChange {
    #[schema(min_length = 1, max_length = 80)]
    name: Option<String>,
    #[schema(min_items = 1, max_items = 64)]
    scopes: Option<Vec<String>>,
    /// 0: unlimited.
    #[schema(minimum = 0)]
    daily_quota: Option<i64>,
    /// 0: unlimited.
    #[schema(minimum = 0)]
    monthly_quota: Option<i64>,
    /// 0: unlimited.
    #[schema(minimum = 0, maximum = 1_000_000)]
    rate_per_second: Option<u32>,
    #[schema(minimum = 1, maximum = 1_000_000)]
    burst: Option<u32>,
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// CIDR blocks or single addresses; an empty list: from anywhere.
    #[schema(max_items = 64)]
    allow: Option<Vec<String>>,
}

/// Changes a key. With `If-Match` only the version that the caller has seen.
#[utoipa::path(patch, path = "/v1/organisations/{org}/keys/{key}", tag = "keys",
    request_body = KeyChange,
    params(("if-match" = Option<String>, Header, description = "The ETag of a key that was read")),
    responses((status = 200, body = Key, description = "The key as it is now",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn update_key(
    State(app): App,
    caller: Caller,
    Path((org, key)): Path<(String, String)>,
    IfMatch(seen): IfMatch,
    Body(it): Body<KeyChange>,
) -> Result<Tagged> {
    let found = find(&app, &caller, &org, &key).await?;
    if let Some(seen) = seen
        && seen != found.version
    {
        return Err(Error::PreconditionFailed { now: found.version });
    }
    if it.scopes.as_ref().is_some_and(Vec::is_empty) {
        return Err(Error::invalid("scopes", "must not be empty"));
    }
    let request = pb::UpdateKeyRequest {
        key_id: found.key_id,
        name: it.name,
        scopes: it.scopes.unwrap_or_default(),
        daily_quota: it.daily_quota,
        monthly_quota: it.monthly_quota,
        rate_per_second: it.rate_per_second,
        burst: it.burst,
        expires_at: parse_time("expires_at", it.expires_at.as_deref())?,
        set_allow: it.allow.is_some(),
        allow: it.allow.unwrap_or_default(),
        expected_version: seen,
        ..pb::UpdateKeyRequest::default()
    };
    change(&app, &caller, request).await
}

async fn change(app: &Portal, caller: &Caller, it: pb::UpdateKeyRequest) -> Result<Tagged> {
    let done = app.keys.clone().update_key(caller.request(it)?).await?;
    let key = done.into_inner().key;
    tagged(key.ok_or(Error::NotFound("key"))?)
}

async fn switch(
    app: &Portal,
    caller: &Caller,
    (org, key): (String, String),
    active: bool,
) -> Result<Tagged> {
    let found = find(app, caller, &org, &key).await?;
    let request = pb::UpdateKeyRequest {
        key_id: found.key_id,
        active: Some(active),
        ..pb::UpdateKeyRequest::default()
    };
    change(app, caller, request).await
}

/// Suspends a key until it is restored.
#[utoipa::path(post, path = "/v1/organisations/{org}/keys/{key}/suspend", tag = "keys",
    responses((status = 200, body = Key, description = "Suspended")))]
pub(super) async fn suspend_key(
    State(app): App,
    caller: Caller,
    Path(at): Path<(String, String)>,
) -> Result<Tagged> {
    switch(&app, &caller, at, false).await
}

/// Restores a suspended key.
#[utoipa::path(post, path = "/v1/organisations/{org}/keys/{key}/restore", tag = "keys",
    responses((status = 200, body = Key, description = "Restored")))]
pub(super) async fn restore_key(
    State(app): App,
    caller: Caller,
    Path(at): Path<(String, String)>,
) -> Result<Tagged> {
    switch(&app, &caller, at, true).await
}

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
