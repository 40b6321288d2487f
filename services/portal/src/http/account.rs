//! Accounts: signing up, verifying, passwords, name and language.

use axum::{Json, extract::State, response::Response};
use bytes::Bytes;
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    extract::{Body, Client},
    once::Redacted,
    sessions,
    wire::moment,
};
use crate::error::{Error, Result};

/// A new account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignUp {
    /// Where the link to verify is mailed to.
    #[schema(format = Email, max_length = 254)]
    email: String,
    #[schema(min_length = 10, max_length = 200)]
    password: String,
    /// Of the person.
    #[schema(min_length = 1, max_length = 80)]
    name: String,
    /// Of the first organisation.
    #[schema(min_length = 1, max_length = 80)]
    organisation_name: String,
    /// Of pages and mails: `en` (default) or `fr`.
    #[schema(pattern = "^(en|fr)$")]
    language: Option<String>,
}

/// Creates an account with an organisation, and mails a link to verify the address. The answer is
/// the same for an address that is known.
#[utoipa::path(post, path = "/v1/signup", tag = "account", request_body = SignUp,
    responses((status = 202, description = "A mail is on its way")))]
pub(super) async fn sign_up(
    State(app): App,
    client: Client,
    Body(it): Body<SignUp>,
) -> Result<StatusCode> {
    let request = client.request(pb::SignUpRequest {
        email: it.email,
        password: it.password,
        name: it.name,
        organisation_name: it.organisation_name,
        address: client.address.to_string(),
        language: it.language.unwrap_or_default(),
    })?;
    app.people.clone().sign_up(request).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A link's token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MailedToken {
    /// As in the mail.
    #[schema(min_length = 1, max_length = 200)]
    token: String,
}

/// Uses the link of the mail: the address belongs to the account.
#[utoipa::path(post, path = "/v1/verify-email", tag = "account", request_body = MailedToken,
    responses((status = 204, description = "Verified")))]
pub(super) async fn verify_email(
    State(app): App,
    client: Client,
    Body(it): Body<MailedToken>,
) -> Result<StatusCode> {
    let request = client.request(pb::VerifyEmailRequest { token: it.token })?;
    app.people.clone().verify_email(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ForgottenPassword {
    /// The account's address.
    #[schema(format = Email, max_length = 254)]
    email: String,
}

/// Mails a link to choose a new password. The answer is the same for every address.
#[utoipa::path(post, path = "/v1/password-reset", tag = "account",
    request_body = ForgottenPassword,
    responses((status = 202, description = "A mail is on its way if there is such an account")))]
pub(super) async fn request_password_reset(
    State(app): App,
    client: Client,
    Body(it): Body<ForgottenPassword>,
) -> Result<StatusCode> {
    let request = client.request(pb::RequestPasswordResetRequest {
        email: it.email,
        address: client.address.to_string(),
    })?;
    app.people.clone().request_password_reset(request).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A new password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPassword {
    /// As in the mail; good for one hour, once.
    #[schema(min_length = 1, max_length = 200)]
    token: String,
    #[schema(min_length = 10, max_length = 200)]
    new_password: String,
}

/// Uses the link: sets the password and ends every session.
#[utoipa::path(post, path = "/v1/password-reset/confirm", tag = "account",
    request_body = NewPassword, responses((status = 204, description = "Set")))]
pub(super) async fn reset_password(
    State(app): App,
    client: Client,
    Body(it): Body<NewPassword>,
) -> Result<StatusCode> {
    let request = client.request(pb::ResetPasswordRequest {
        token: it.token,
        new_password: it.new_password,
    })?;
    app.people.clone().reset_password(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Somebody's own account.
#[derive(Serialize, ToSchema)]
pub(super) struct Account {
    user_id: String,
    email: String,
    name: String,
    email_verified: bool,
    /// Whether signing in needs a second factor.
    second_factor: bool,
    /// Recovery codes that are not used yet.
    recovery_codes: u32,
    /// Of pages and mails: `en` or `fr`.
    language: String,
    #[schema(format = DateTime)]
    created_at: String,
}

impl From<pb::User> for Account {
    fn from(it: pb::User) -> Self {
        Self {
            created_at: moment(it.created_at.as_ref()),
            user_id: it.user_id,
            email: it.email,
            name: it.name,
            email_verified: it.email_verified,
            second_factor: it.second_factor,
            recovery_codes: it.recovery_codes,
            language: it.language,
        }
    }
}

/// Reads the caller's own account.
#[utoipa::path(get, path = "/v1/account", tag = "account",
    responses((status = 200, body = Account, description = "The account")))]
pub(super) async fn get_account(State(app): App, caller: Caller) -> Result<Json<Account>> {
    caller.person()?;
    Ok(Json(app.user(&caller).await?.into()))
}

/// What shall change; the rest stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AccountChange {
    #[schema(min_length = 1, max_length = 80)]
    name: Option<String>,
    /// Of pages and mails: `en` or `fr`.
    #[schema(pattern = "^(en|fr)$")]
    language: Option<String>,
}

/// Changes the caller's name or language.
#[utoipa::path(patch, path = "/v1/account", tag = "account", request_body = AccountChange,
    responses((status = 200, body = Account, description = "As it is now")))]
pub(super) async fn update_account(
    State(app): App,
    caller: Caller,
    Body(it): Body<AccountChange>,
) -> Result<Json<Account>> {
    let request = caller.request(pb::UpdateUserRequest {
        user_id: caller.person()?.user.to_string(),
        name: it.name,
        language: it.language,
    })?;
    let done = app.people.clone().update_user(request).await?;
    let user = done.into_inner().user;
    Ok(Json(user.ok_or(Error::NotFound("user"))?.into()))
}

/// Mails the caller a new link to verify the address; the old one ends.
#[utoipa::path(post, path = "/v1/account/verification", tag = "account",
    responses((status = 202, description = "A mail is on its way, unless it is verified already")))]
pub(super) async fn resend_verification(State(app): App, caller: Caller) -> Result<StatusCode> {
    let request = caller.request(pb::ResendVerificationRequest {
        user_id: caller.person()?.user.to_string(),
    })?;
    app.people.clone().resend_verification(request).await?;
    Ok(StatusCode::ACCEPTED)
}

/// The present password, and the next.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordChange {
    old_password: String,
    #[schema(min_length = 10, max_length = 200)]
    new_password: String,
}

/// A session in place of the one that asked.
#[derive(Serialize, ToSchema)]
pub(super) struct NextSession {
    /// Shown this once. Good for 30 days, and 12 hours without use.
    token: String,
    #[schema(format = DateTime)]
    expires_at: String,
}

/// Sets a new password against the present one. Every session ends, and the caller gets a new one.
// A PUT: what is repeated is refused, since the old password is another by then. Nothing of it is
// kept, so no hash of a password lies where answers do.
#[utoipa::path(put, path = "/v1/account/password", tag = "account",
    request_body = PasswordChange,
    responses((status = 200, body = NextSession, description = "Changed")))]
pub(super) async fn change_password(
    State(app): App,
    caller: Caller,
    client: Client,
    Body(it): Body<PasswordChange>,
) -> Result<Json<NextSession>> {
    let person = caller.person()?;
    let request = caller.request(pb::ChangePasswordRequest {
        user_id: person.user.to_string(),
        old_password: it.old_password,
        new_password: it.new_password,
    })?;
    let done = app.people.clone().change_password(request).await?;
    let epoch = done.into_inner().session_epoch;
    let (token, expires_at) =
        sessions::begin(&app, &client, person.user, epoch, person.second_factor_at).await?;
    Ok(Json(NextSession {
        token,
        expires_at: expires_at.to_string(),
    }))
}

/// An answer with a secret, and what of it may be kept for repetitions.
pub(super) fn shown_once<T: Serialize>(
    status: StatusCode,
    whole: &T,
    kept: &T,
) -> Result<Response> {
    use axum::response::IntoResponse as _;

    let kept = serde_json::to_vec(kept).map_err(anyhow::Error::new);
    let kept = kept.map_err(Error::Internal)?;
    let mut response = (status, Json(whole)).into_response();
    response
        .extensions_mut()
        .insert(Redacted(Bytes::from(kept)));
    Ok(response)
}
