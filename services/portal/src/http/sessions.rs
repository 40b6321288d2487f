//! Signing in and out, and the second factor.

use std::net::IpAddr;

use axum::{Json, extract::State};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use http::StatusCode;
use jiff::Timestamp;
use proto::{convert::from_timestamp, keys::v1 as pb};
use serde::{Deserialize, Serialize};
use types::UserId;
use utoipa::ToSchema;

use super::{
    App, Portal,
    access::{Caller, Person, TOKEN_PREFIX, as_operator, token_hash},
    extract::{Body, Client, Path, id},
    wire::moment,
};
use crate::{
    domain::{SESSION_LIFE, SessionId},
    error::{Error, Result},
    store::NewSession,
};

/// Who signs in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LogIn {
    #[schema(format = Email, max_length = 254)]
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

async fn verify(app: &Portal, address: IpAddr, user: UserId, code: String) -> Result<SecondFactor> {
    let message = pb::VerifySecondFactorRequest {
        user_id: user.to_string(),
        code,
    };
    let request = as_operator(address, message)?;
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
    let request = client.request(pb::AuthenticateRequest {
        email: it.email,
        password: it.password,
        address: client.address.to_string(),
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
        let shown = verify(&app, client.address, user, code).await?;
        (epoch, second_factor_at) = (shown.epoch, Some(shown.at));
    }
    let (token, expires_at) = begin(&app, &client, user, epoch, second_factor_at).await?;
    Ok(Json(Session {
        token,
        user_id: user.to_string(),
        email_verified: known.email_verified,
        expires_at: expires_at.to_string(),
    }))
}

/// Begins a session; its token leaves once, with the answer.
pub(super) async fn begin(
    app: &Portal,
    client: &Client,
    user: UserId,
    epoch: i64,
    second_factor_at: Option<Timestamp>,
) -> Result<(String, Timestamp)> {
    let random: [u8; 32] = app.host.random();
    let token = format!("{TOKEN_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random));
    let now = app.host.clock().now();
    let new = NewSession {
        id: app.host.ids().new_id(),
        token_hash: token_hash(&token),
        user,
        epoch,
        expires_at: now + SESSION_LIFE,
        second_factor_at,
        address: client.address,
        user_agent: &client.user_agent,
    };
    app.store.insert_session(&new, now).await?;
    Ok((token, new.expires_at))
}

/// Ends the session.
#[utoipa::path(post, path = "/v1/logout", tag = "sessions",
    responses((status = 204, description = "The token is void")))]
pub(super) async fn log_out(State(app): App, caller: Caller) -> Result<StatusCode> {
    let person = caller.person()?;
    app.store
        .delete_session(person.user, person.session)
        .await?;
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
    client: Client,
    Body(it): Body<SecondFactorCode>,
) -> Result<Json<SecondFactorShown>> {
    let person = caller.person()?;
    let shown = verify(&app, client.address, person.user, it.code).await?;
    app.store
        .step_up(person.user, person.session, shown.epoch, shown.at)
        .await?;
    let second_factor_at = moment(Some(&proto::convert::timestamp(shown.at)));
    Ok(Json(SecondFactorShown { second_factor_at }))
}

/// A session, without its token.
#[derive(Serialize, ToSchema)]
pub(super) struct SignedIn {
    /// `web_…`
    session_id: String,
    /// Whether it is the one that asks.
    current: bool,
    #[schema(format = DateTime)]
    created_at: String,
    /// Noted at most once a minute.
    #[schema(format = DateTime)]
    last_seen_at: String,
    #[schema(format = DateTime)]
    expires_at: String,
    /// When a second factor was presented in it last.
    #[schema(format = DateTime)]
    second_factor_at: Option<String>,
    /// Where it began.
    address: String,
    /// What signed in, as it named itself.
    user_agent: String,
}

/// Sessions, the last used first.
#[derive(Serialize, ToSchema)]
pub(super) struct Sessions {
    sessions: Vec<SignedIn>,
}

/// Lists the caller's sessions that live.
#[utoipa::path(get, path = "/v1/account/sessions", tag = "sessions",
    responses((status = 200, body = Sessions, description = "All of them")))]
pub(super) async fn list_sessions(State(app): App, caller: Caller) -> Result<Json<Sessions>> {
    let person = caller.person()?;
    let now = app.host.clock().now();
    let found = app
        .store
        .sessions_of(person.user, person.epoch, now)
        .await?;
    let sessions = found.into_iter().map(|it| SignedIn {
        session_id: it.id.to_string(),
        current: it.id == person.session,
        created_at: it.created_at.to_string(),
        last_seen_at: it.last_seen_at.to_string(),
        expires_at: it.expires_at.to_string(),
        second_factor_at: it.second_factor_at.map(|at| at.to_string()),
        address: it.address.to_string(),
        user_agent: it.user_agent,
    });
    Ok(Json(Sessions {
        sessions: sessions.collect(),
    }))
}

/// Ends one of the caller's sessions.
#[utoipa::path(delete, path = "/v1/account/sessions/{session}", tag = "sessions",
    responses((status = 204, description = "Its token is void")))]
pub(super) async fn end_session(
    State(app): App,
    caller: Caller,
    Path(session): Path<String>,
) -> Result<StatusCode> {
    let person = caller.person()?;
    let session: SessionId = id("session", &session)?;
    match app.store.delete_session(person.user, session).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Error::NotFound("session")),
    }
}

/// How many ended.
#[derive(Serialize, ToSchema)]
pub(super) struct EndedSessions {
    ended: u64,
}

/// Ends every session of the caller but the one that asks.
#[utoipa::path(delete, path = "/v1/account/sessions", tag = "sessions",
    responses((status = 200, body = EndedSessions, description = "Their tokens are void")))]
pub(super) async fn end_other_sessions(
    State(app): App,
    caller: Caller,
) -> Result<Json<EndedSessions>> {
    let Person { user, session, .. } = caller.person()?;
    let ended = app.store.delete_other_sessions(*user, *session).await?;
    Ok(Json(EndedSessions { ended }))
}
