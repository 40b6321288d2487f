//! Signing in and out, and the second factor.

use axum::{Json, extract::State};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::StatusCode;
use jiff::Timestamp;
use proto::{convert::from_timestamp, keys::v1 as pb};
use serde::{Deserialize, Serialize};
use types::{Id, UserId};
use utoipa::ToSchema;

use super::{
    App, Portal,
    access::{Caller, TOKEN_PREFIX, as_operator, token_hash},
    extract::{Body, Client},
    wire::moment,
};
use crate::{
    domain::SESSION_LIFE,
    error::{Error, Result},
    store::NewSession,
};

/// Who signs in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogIn {
    email: String,
    password: String,
    /// Six digits of the authenticator, or a recovery code; where a second factor is on.
    code: Option<String>,
}

/// A session, to be sent as `Authorization: Bearer …`.
#[derive(Serialize, ToSchema)]
pub(super) struct Session {
    /// Shown this once. Good for 30 days, and 12 hours without use.
    token: String,
    user_id: String,
    email_verified: bool,
    #[schema(format = DateTime)]
    expires_at: String,
}

/// What a second factor has shown.
struct SecondFactor {
    epoch: i64,
    at: Timestamp,
}

async fn verify(app: &Portal, user: UserId, code: String) -> Result<SecondFactor> {
    let request = as_operator(pb::VerifySecondFactorRequest {
        user_id: user.to_string(),
        code,
    })?;
    let done = app.people.clone().verify_second_factor(request).await?;
    let done = done.into_inner();
    let at = match &done.at {
        Some(at) => from_timestamp("at", at)?,
        None => app.host.clock().now(),
    };
    Ok(SecondFactor {
        epoch: done.session_epoch,
        at,
    })
}

/// Signs in. Where a second factor is on and `code` is missing, the answer is 403
/// `second_factor_required`: ask for the code and send the whole again.
#[utoipa::path(post, path = "/v1/login", tag = "sessions", request_body = LogIn,
    responses((status = 200, body = Session, description = "A new session")))]
pub(super) async fn log_in(
    State(app): App,
    client: Client,
    Body(it): Body<LogIn>,
) -> Result<Json<Session>> {
    let request = as_operator(pb::AuthenticateRequest {
        email: it.email,
        password: it.password,
        address: client.peer.0.to_string(),
    })?;
    let known = app.people.clone().authenticate(request).await?.into_inner();
    let user: UserId = known
        .user_id
        .parse()
        .map_err(|error| Error::Internal(anyhow::Error::new::<types::IdError>(error)))?;
    let mut epoch = known.session_epoch;
    let mut second_factor_at = None;
    if known.second_factor_required {
        let code = it.code.ok_or(Error::SecondFactorRequired)?;
        let shown = verify(&app, user, code).await?;
        (epoch, second_factor_at) = (shown.epoch, Some(shown.at));
    }
    let random: [u8; 32] = app.host.random();
    let token = format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random));
    let now = app.host.clock().now();
    let id: Id<types::Key> = app.host.ids().new_id();
    let new = NewSession {
        id: id.uuid(),
        token_hash: token_hash(&token),
        user,
        epoch,
        expires_at: now + SESSION_LIFE,
        second_factor_at,
        address: client.peer.0,
        user_agent: &client.user_agent,
    };
    app.store.insert_session(&new, now).await?;
    Ok(Json(Session {
        token,
        user_id: user.to_string(),
        email_verified: known.email_verified,
        expires_at: new.expires_at.to_string(),
    }))
}

/// Ends the session.
#[utoipa::path(post, path = "/v1/logout", tag = "sessions",
    responses((status = 204, description = "The token is void")))]
pub(super) async fn log_out(State(app): App, caller: Caller) -> Result<StatusCode> {
    app.store.delete_session(caller.person()?.session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A code.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SecondFactorCode {
    /// Six digits, or a recovery code.
    #[schema(min_length = 1, max_length = 64)]
    code: String,
}

/// When it was shown.
#[derive(Serialize, ToSchema)]
pub(super) struct SecondFactorShown {
    /// What needs a fresh second factor works for 10 minutes from here.
    #[schema(format = DateTime)]
    second_factor_at: String,
}

/// Shows the second factor again, for what needs a fresh one.
#[utoipa::path(post, path = "/v1/second-factor", tag = "sessions",
    request_body = SecondFactorCode,
    responses((status = 200, body = SecondFactorShown, description = "Noted in the session")))]
pub(super) async fn second_factor(
    State(app): App,
    caller: Caller,
    Body(it): Body<SecondFactorCode>,
) -> Result<Json<SecondFactorShown>> {
    let person = caller.person()?;
    let shown = verify(&app, person.user, it.code).await?;
    app.store
        .step_up(person.session, shown.epoch, shown.at)
        .await?;
    let second_factor_at = moment(Some(&proto::convert::timestamp(shown.at)));
    Ok(Json(SecondFactorShown { second_factor_at }))
}
