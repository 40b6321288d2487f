//! Calls, their receipts, and totals of days.

use axum::{Json, extract::State};
use proto::{stats_aggregator::v1 as stats, usage_ingest::v1 as pb};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::{KeyId, RequestId};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    access::Caller,
    extract::{Path, Query, id, size},
    wire::{embedded, filled, moment},
};
use crate::{
    domain::{self, Action},
    error::{Error, Result},
};

/// The receipt of a call.
#[derive(Serialize, ToSchema)]
pub(super) struct Call {
    /// As in `x-request-id` of the answer.
    request_id: String,
    api_key_id: String,
    org_id: String,
    /// Name of the service.
    service: String,
    /// Path behind the service.
    endpoint: String,
    method: String,
    /// Given to the client.
    status_code: u32,
    response_time_ms: i64,
    credits_used: i64,
    /// Units that the service reported; `tollgate:estimated` when one that has a price was not, and
    /// `tollgate:overrun` for credits above the route's `max_cost`, which nobody paid.
    #[schema(value_type = Object)]
    details: Value,
    ip_address: String,
    /// ISO 3166 alpha-2, `ZZ` when unknown.
    country: String,
    user_agent: String,
    /// When the call ended.
    #[schema(format = DateTime)]
    timestamp: String,
    /// `production` or `test`.
    environment: String,
    /// `completed`, `client_aborted`, `upstream_aborted`, `refused`, `upstream_failed` or
    /// `gateway_aborted`.
    disposition: String,
    /// Why it was refused.
    code: Option<String>,
    /// The call whose kept answer this one was given, by its idempotency key.
    replay_of: Option<String>,
    /// The price it was admitted under.
    price_version: i64,
    /// Lease the credits came from, 32 hex digits; absent when nothing was charged.
    lease_id: Option<String>,
    /// The wallet that paid: `organisation`, or `test` for the key's creator's test credits.
    wallet: &'static str,
    trace_id: Option<String>,
}

impl From<pb::Call> for Call {
    fn from(it: pb::Call) -> Self {
        Self {
            timestamp: moment(it.timestamp.as_ref()),
            details: match embedded(&it.details) {
                Value::Null => Value::Object(serde_json::Map::new()),
                details => details,
            },
            wallet: match it.environment.as_str() {
                "test" => "test",
                _ => "organisation",
            },
            lease_id: filled(hex::encode(&it.lease_id)),
            request_id: it.request_id,
            api_key_id: it.api_key_id,
            org_id: it.org_id,
            service: it.service,
            endpoint: it.endpoint,
            method: it.method,
            status_code: it.status_code,
            response_time_ms: it.response_time_ms,
            credits_used: it.credits_used,
            ip_address: it.ip_address,
            country: it.country,
            user_agent: it.user_agent,
            environment: it.environment,
            disposition: it.disposition,
            code: filled(it.code),
            replay_of: filled(it.replay_of),
            price_version: it.price_version,
            trace_id: filled(it.trace_id),
        }
    }
}

/// A page of calls, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Calls {
    calls: Vec<Call>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Which calls.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CallsPage {
    /// Only calls of this key, `key_…`.
    key: Option<String>,
    /// Entries of a page at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(max_length = 400)]
    cursor: Option<String>,
}

/// Lists the calls.
#[utoipa::path(get, path = "/v1/organisations/{org}/usage/calls", tag = "usage",
    params(CallsPage), responses((status = 200, body = Calls, description = "One page")))]
pub(super) async fn list_calls(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(page): Query<CallsPage>,
) -> Result<Json<Calls>> {
    let org = app.scope(&caller, &org, Action::ViewCalls).await?;
    let key = match page.key {
        None => String::new(),
        Some(text) => match text.parse::<KeyId>() {
            Ok(key) => key.to_string(),
            Err(error) => return Err(Error::invalid("key", error.to_string())),
        },
    };
    let request = caller.request(pb::ListCallsRequest {
        org_id: org.to_string(),
        page_size: size(page.limit)?,
        page_token: domain::page_token(page.cursor.as_deref())?,
        api_key_id: key,
    })?;
    let found = app.usage.clone().list_calls(request).await?.into_inner();
    Ok(Json(Calls {
        calls: found.calls.into_iter().map(Into::into).collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

/// Reads the receipt of a call.
#[utoipa::path(get, path = "/v1/organisations/{org}/usage/calls/{request}", tag = "usage",
    responses((status = 200, body = Call, description = "The receipt")))]
pub(super) async fn get_call(
    State(app): App,
    caller: Caller,
    Path((org, request)): Path<(String, String)>,
) -> Result<Json<Call>> {
    let org = app.scope(&caller, &org, Action::ViewCalls).await?;
    let call: RequestId = id("call", &request)?;
    let request = caller.request(pb::GetCallRequest {
        request_id: call.to_string(),
        org_id: org.to_string(),
    })?;
    let found = app.usage.clone().get_call(request).await?.into_inner();
    Ok(Json(found.call.ok_or(Error::NotFound("call"))?.into()))
}

/// One day and environment.
#[derive(Serialize, ToSchema)]
pub(super) struct Day {
    /// UTC.
    #[schema(format = Date)]
    date: String,
    /// `production` or `test`.
    environment: String,
    /// Refused calls included.
    total_requests: i64,
    total_credits: i64,
    /// Calls answered with 2xx or 3xx.
    successful_requests: i64,
    /// Per cent with two decimals.
    success_rate: String,
    /// Calls per service.
    #[schema(value_type = Object)]
    services_breakdown: Value,
}

/// Days, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Days {
    days: Vec<Day>,
}

/// Which days, in UTC.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DaysRange {
    /// First day; 30 days ago if absent.
    #[param(format = Date)]
    from: Option<String>,
    /// Last day, inclusive; today if absent.
    #[param(format = Date)]
    to: Option<String>,
}

/// Lists totals of days.
#[utoipa::path(get, path = "/v1/organisations/{org}/usage/daily", tag = "usage",
    params(DaysRange), responses((status = 200, body = Days, description = "The days")))]
pub(super) async fn list_daily(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(range): Query<DaysRange>,
) -> Result<Json<Days>> {
    let org = app.scope(&caller, &org, Action::ViewTotals).await?;
    let request = caller.request(stats::ListDailyRequest {
        org_id: org.to_string(),
        from: range.from.unwrap_or_default(),
        to: range.to.unwrap_or_default(),
    })?;
    let found = app.stats.clone().list_daily(request).await?.into_inner();
    let days = found.days.into_iter().map(|it| Day {
        services_breakdown: embedded(&it.services_breakdown),
        date: it.date,
        environment: it.environment,
        total_requests: it.total_requests,
        total_credits: it.total_credits,
        successful_requests: it.successful_requests,
        success_rate: it.success_rate,
    });
    Ok(Json(Days {
        days: days.collect(),
    }))
}
