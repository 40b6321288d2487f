//! The rules an organisation has set itself.

use axum::extract::State;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use types::OrgId;
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Path, id},
};
use crate::error::{Error, Result};

/// The rules.
#[derive(Serialize, ToSchema)]
pub(super) struct Policy {
    /// Creating or rotating a live key needs a second factor not older than 10 minutes.
    live_keys_need_second_factor: bool,
    /// Seconds from creation. Absent: keys may live for ever.
    key_lifetime_seconds_max: Option<i64>,
    /// Whether developers may create, rotate and revoke live keys of their own.
    developers_may_create_live_keys: bool,
    /// What happens to a key reported as leaked: `notify`, `suspend` or `revoke`.
    leak_action: String,
    /// What happens to the keys of an anomaly: `notify`, `throttle` or `suspend`.
    anomaly_action: String,
    /// Origins of web pages that may call with the organisation's keys, or `*` for all; calls from
    /// other pages are refused. Empty: no page may read an answer, and none is refused.
    allowed_origins: Vec<String>,
    /// That of the organisation; the ETag.
    version: i64,
}

impl From<pb::Policy> for Tagged<Policy> {
    fn from(it: pb::Policy) -> Self {
        Self {
            version: it.version,
            body: Policy {
                live_keys_need_second_factor: it.live_keys_need_second_factor,
                key_lifetime_seconds_max: it.key_lifetime_seconds_max,
                developers_may_create_live_keys: it.developers_may_create_live_keys,
                leak_action: it.leak_action,
                anomaly_action: it.anomaly_action,
                allowed_origins: it.allowed_origins,
                version: it.version,
            },
        }
    }
}

/// Reads the policy.
#[utoipa::path(get, path = "/v1/organisations/{org}/policy", tag = "organisations",
    responses((status = 200, body = Policy, description = "The policy",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn get_policy(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
) -> Result<Tagged<Policy>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::GetPolicyRequest {
        org_id: org.to_string(),
    })?;
    let found = app.keys.clone().get_policy(request).await?;
    let found = found.into_inner().policy;
    Ok(found.ok_or(Error::NotFound("policy"))?.into())
}

/// What shall change; the rest stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyChange {
    live_keys_need_second_factor: Option<bool>,
    /// 0 lifts the limit; else 3600 or more. Keys that exist keep their end.
    #[schema(minimum = 0, maximum = 316_224_000)]
    key_lifetime_seconds_max: Option<i64>,
    developers_may_create_live_keys: Option<bool>,
    /// `notify`, `suspend` or `revoke`.
    #[schema(pattern = "^(notify|suspend|revoke)$")]
    leak_action: Option<String>,
    /// `notify`, `throttle` or `suspend`.
    #[schema(pattern = "^(notify|throttle|suspend)$")]
    anomaly_action: Option<String>,
    /// Replaces the list: `scheme://host[:port]`, at most 20, or `*` alone.
    #[schema(max_items = 20)]
    allowed_origins: Option<Vec<String>>,
}

/// Changes the policy. With `If-Match` only the version that the caller has seen.
#[utoipa::path(patch, path = "/v1/organisations/{org}/policy", tag = "organisations",
    request_body = PolicyChange,
    params(("if-match" = Option<String>, Header, description = "The ETag of a policy")),
    responses((status = 200, body = Policy, description = "As it is now",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn update_policy(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    IfMatch(seen): IfMatch,
    Body(it): Body<PolicyChange>,
) -> Result<Tagged<Policy>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::SetPolicyRequest {
        org_id: org.to_string(),
        live_keys_need_second_factor: it.live_keys_need_second_factor,
        key_lifetime_seconds_max: it.key_lifetime_seconds_max,
        developers_may_create_live_keys: it.developers_may_create_live_keys,
        leak_action: it.leak_action,
        anomaly_action: it.anomaly_action,
        allowed_origins: it.allowed_origins.map(|origins| pb::Origins { origins }),
        expected_version: seen,
    })?;
    let done = app.keys.clone().set_policy(request).await?;
    let now = done.into_inner().policy;
    Ok(now.ok_or(Error::NotFound("policy"))?.into())
}
