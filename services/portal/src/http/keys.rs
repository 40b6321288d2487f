//! Keys.

use std::collections::BTreeMap;

use axum::{Json, extract::State, response::Response};
use http::StatusCode;
use proto::{keys::v1 as pb, wallet::v1::QuotaKind};
use serde::{Deserialize, Serialize};
use types::{KeyId, OrgId};
use utoipa::{
    IntoParams, ToSchema,
    openapi::schema::{Object, ObjectBuilder, Type},
};

use super::{
    App, Portal,
    access::{Caller, Who},
    account::shown_once,
    etag::{IfMatch, Tagged},
    extract::{Body, Path, Query, id, size},
    key_use::Uses,
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
    /// What owners note of it; no service ever sees it.
    metadata: BTreeMap<String, String>,
    /// Calls that count for the daily quota so far. Absent: it has none, or the wallet, which
    /// knows, does not answer.
    daily_used: Option<i64>,
    /// As `daily_used`, for the monthly quota.
    monthly_used: Option<i64>,
    /// `active`, `throttled`, `suspended`, `revoked` or `expired`.
    status: String,
    /// Why it is suspended, or else throttled. Absent when somebody suspended it by hand.
    suspended_reason: Option<String>,
    /// An anomaly throttles it to a call a second, whatever its status.
    throttled: bool,
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

impl Key {
    pub(super) fn new(it: pb::Key, uses: &Uses) -> Self {
        Self {
            daily_used: uses.of(&it, QuotaKind::Daily, it.daily_quota),
            monthly_used: uses.of(&it, QuotaKind::Monthly, it.monthly_quota),
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
            metadata: it.metadata.into_iter().collect(),
            status: it.status,
            suspended_reason: filled(it.suspended_reason),
            throttled: it.throttled,
            revoked_reason: filled(it.revoked_reason),
            last_used_ip: filled(it.last_used_ip),
            version: it.version,
            rotated_from: filled(it.rotated_from),
            rotated_to: filled(it.rotated_to),
        }
    }
}

/// A key with what it has used, and its version.
async fn tagged(app: &Portal, caller: &Caller, key: pb::Key) -> Tagged<Key> {
    let uses = app.uses(caller, std::slice::from_ref(&key)).await;
    Tagged {
        version: key.version,
        body: Key::new(key, &uses),
    }
}

/// A key of this organisation that the caller may see.
pub(super) async fn find(app: &Portal, caller: &Caller, org: &str, key: &str) -> Result<pb::Key> {
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

/// Which keys, and which page of them.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct KeysPage {
    /// Only keys of this status.
    #[param(inline)]
    status: Option<KeyStatus>,
    /// Only keys whose name contains this, in any case.
    #[param(min_length = 1, max_length = 80)]
    name: Option<String>,
    /// Entries of a page at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(max_length = 400)]
    cursor: Option<String>,
}

/// What state a key is in.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyStatus {
    Active,
    /// An anomaly has slowed it down.
    Throttled,
    Suspended,
    Revoked,
    Expired,
}

impl KeyStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Throttled => "throttled",
            Self::Suspended => "suspended",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

/// Lists the keys.
#[utoipa::path(get, path = "/v1/organisations/{org}/keys", tag = "keys", params(KeysPage),
    responses((status = 200, body = Keys, description = "One page")))]
pub(super) async fn list_keys(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(page): Query<KeysPage>,
) -> Result<Json<Keys>> {
    let org: OrgId = id("organisation", &org)?;
    let status = page.status.map(KeyStatus::as_str);
    let request = caller.request(pb::ListKeysRequest {
        org_id: org.to_string(),
        page_size: size(page.limit)?,
        page_token: domain::page_token(page.cursor.as_deref())?,
        status: status.unwrap_or_default().to_owned(),
        name: page.name.unwrap_or_default(),
    })?;
    let found = app.keys.clone().list_keys(request).await?.into_inner();
    let uses = app.uses(&caller, &found.keys).await;
    let keys = found.keys.into_iter().map(|key| Key::new(key, &uses));
    Ok(Json(Keys {
        keys: keys.collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

/// What may be noted of a key.
fn metadata() -> Object {
    let value = ObjectBuilder::new()
        .schema_type(Type::String)
        .max_length(Some(200));
    ObjectBuilder::new()
        .description(Some("Names of 1–40 characters, values of at most 200"))
        .additional_properties(Some(value))
        .max_properties(Some(20))
        .build()
}

/// A new key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    #[schema(min_length = 1, max_length = 80)]
    name: String,
    /// `production` or `test`.
    #[schema(pattern = "^(production|test)$")]
    environment: String,
    /// From the catalogue, `GET /v1/services`.
    #[schema(min_items = 1, max_items = 64)]
    scopes: Vec<String>,
    /// For operators, who must say it: `usr_…`, a member. A person's keys are its own.
    #[schema(pattern = "^usr_[0-9a-f]{32}$")]
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
    /// What to note of it, at most 20 entries.
    #[serde(default)]
    #[schema(schema_with = metadata)]
    metadata: BTreeMap<String, String>,
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
    let user_id = match (&caller.who, it.user_id) {
        (_, Some(user)) => user,
        (Who::User(person), None) => person.user.to_string(),
        (Who::Operator, None) => {
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
        metadata: it.metadata.into_iter().collect(),
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
) -> Result<Tagged<Key>> {
    let key = find(&app, &caller, &org, &key).await?;
    Ok(tagged(&app, &caller, key).await)
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
    /// All of it as it shall be, as when a key is created.
    #[schema(schema_with = metadata)]
    metadata: Option<BTreeMap<String, String>>,
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
) -> Result<Tagged<Key>> {
    let found = find(&app, &caller, &org, &key).await?;
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
        set_metadata: it.metadata.is_some(),
        metadata: it.metadata.unwrap_or_default().into_iter().collect(),
        expected_version: seen,
        ..pb::UpdateKeyRequest::default()
    };
    change(&app, &caller, request).await
}

async fn change(app: &Portal, caller: &Caller, it: pb::UpdateKeyRequest) -> Result<Tagged<Key>> {
    let done = app.keys.clone().update_key(caller.request(it)?).await?;
    let key = done.into_inner().key.ok_or(Error::NotFound("key"))?;
    Ok(tagged(app, caller, key).await)
}

async fn switch(
    app: &Portal,
    caller: &Caller,
    (org, key): (String, String),
    active: bool,
) -> Result<Tagged<Key>> {
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
) -> Result<Tagged<Key>> {
    switch(&app, &caller, at, false).await
}

/// Restores a suspended key.
#[utoipa::path(post, path = "/v1/organisations/{org}/keys/{key}/restore", tag = "keys",
    responses((status = 200, body = Key, description = "Restored")))]
pub(super) async fn restore_key(
    State(app): App,
    caller: Caller,
    Path(at): Path<(String, String)>,
) -> Result<Tagged<Key>> {
    switch(&app, &caller, at, true).await
}
