//! What only operators do for organisations and people.

use axum::{Json, extract::State};
use http::StatusCode;
use proto::{keys::v1 as pb, wallet::v1 as wallet};
use serde::{Deserialize, Serialize};
use types::UserId;
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    extract::{Body, Page, Path, Query, id},
    once::IdempotencyKey,
    organisations::Organisations,
};
use crate::{
    domain::{self, Action},
    error::Result,
};

/// Lists all organisations.
#[utoipa::path(get, path = "/v1/operator/organisations", tag = "operator", params(Page),
    responses((status = 200, body = Organisations, description = "One page")))]
pub(super) async fn list_all_organisations(
    State(app): App,
    caller: Caller,
    Query(page): Query<Page>,
) -> Result<Json<Organisations>> {
    caller.operators_only()?;
    let request = caller.request(pb::ListOrganisationsRequest {
        page_size: page.size()?,
        page_token: page.token()?,
    })?;
    let found = app.keys.clone().list_organisations(request).await?;
    let found = found.into_inner();
    Ok(Json(Organisations {
        organisations: found.organisations.into_iter().map(Into::into).collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

/// Credits to give.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Grant {
    #[schema(minimum = 1, maximum = 1_000_000_000_000_i64)]
    credits: i64,
    #[schema(min_length = 1, max_length = 200)]
    reason: String,
}

/// The wallet afterwards.
#[derive(Serialize, ToSchema)]
pub(super) struct Granted {
    balance: i64,
}

/// Gives credits to an organisation.
#[utoipa::path(post, path = "/v1/operator/organisations/{org}/credits", tag = "operator",
    request_body = Grant, responses((status = 201, body = Granted, description = "Given")))]
pub(super) async fn grant_credits(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    key: Option<IdempotencyKey>,
    Body(it): Body<Grant>,
) -> Result<(StatusCode, Json<Granted>)> {
    caller.operators_only()?;
    let org = app.scope(&caller, &org, Action::ViewWallet).await?;
    // The wallet recognises a repetition too: the portal may die between its grant and our note.
    let once = key.map_or_else(|| app.host.random(), |key| key.digest());
    let request = caller.request(wallet::GrantCreditsRequest {
        org_id: org.to_string(),
        credits: it.credits,
        reason: it.reason,
        idempotency_key: format!("api-{}", hex::encode(once)),
    })?;
    let done = app.wallet.clone().grant_credits(request).await?;
    let balance = done.into_inner().balance;
    Ok((StatusCode::CREATED, Json(Granted { balance })))
}

/// Takes the second factor away from somebody who has lost it. Every session of the user ends, and
/// the user is told by mail.
#[utoipa::path(post, path = "/v1/operator/users/{user}/second-factor/reset", tag = "operator",
    responses((status = 204, description = "The second factor is off")))]
pub(super) async fn reset_second_factor(
    State(app): App,
    caller: Caller,
    Path(user): Path<String>,
) -> Result<StatusCode> {
    caller.operators_only()?;
    let user: UserId = id("user", &user)?;
    let request = caller.request(pb::ResetSecondFactorRequest {
        user_id: user.to_string(),
    })?;
    app.people.clone().reset_second_factor(request).await?;
    Ok(StatusCode::NO_CONTENT)
}
