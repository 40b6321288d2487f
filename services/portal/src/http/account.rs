//! Accounts: signing up, verifying, resetting a password, enrolling a second factor.

use axum::{Json, extract::State, response::Response};
use bytes::Bytes;
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    access::{Caller, as_operator},
    extract::{Body, Client},
    once::Redacted,
    wire::moment,
};
use crate::error::Result;

/// A new account.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SignUp {
    /// Where the link to verify is mailed to.
    email: String,
    #[schema(min_length = 10, max_length = 200)]
    password: String,
    /// Of the person.
    #[schema(min_length = 1, max_length = 80)]
    name: String,
    /// Of the first organisation.
    #[schema(min_length = 1, max_length = 80)]
    organisation_name: String,
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
    let request = as_operator(pb::SignUpRequest {
        email: it.email,
        password: it.password,
        name: it.name,
        organisation_name: it.organisation_name,
        address: client.peer.0.to_string(),
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
    Body(it): Body<MailedToken>,
) -> Result<StatusCode> {
    let request = as_operator(pb::VerifyEmailRequest { token: it.token })?;
    app.people.clone().verify_email(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whose password.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ForgottenPassword {
    /// The account's address.
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
    let request = as_operator(pb::RequestPasswordResetRequest {
        email: it.email,
        address: client.peer.0.to_string(),
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
    Body(it): Body<NewPassword>,
) -> Result<StatusCode> {
    let request = as_operator(pb::ResetPasswordRequest {
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
    #[schema(format = DateTime)]
    created_at: String,
}

/// Reads the caller's own account.
#[utoipa::path(get, path = "/v1/account", tag = "account",
    responses((status = 200, body = Account, description = "The account")))]
pub(super) async fn get_account(State(app): App, caller: Caller) -> Result<Json<Account>> {
    caller.person()?;
    let user = app.user(&caller).await?;
    Ok(Json(Account {
        user_id: user.user_id,
        email: user.email,
        name: user.name,
        email_verified: user.email_verified,
        second_factor: user.second_factor,
        recovery_codes: user.recovery_codes,
        created_at: moment(user.created_at.as_ref()),
    }))
}

/// For an authenticator; shown this once.
#[derive(Serialize, ToSchema)]
pub(super) struct TotpSecret {
    /// For a QR code. Absent in the answer to a repeated request.
    otpauth_url: Option<String>,
    /// The same secret in base32, for typing. Absent in the answer to a repeated request.
    secret: Option<String>,
}

/// Makes a secret for an authenticator. Nothing needs it before it is confirmed.
#[utoipa::path(post, path = "/v1/account/totp", tag = "account",
    responses((status = 200, body = TotpSecret, description = "The secret, this once")))]
pub(super) async fn start_totp(State(app): App, caller: Caller) -> Result<Response> {
    let request = caller.request(pb::StartTotpRequest {
        user_id: caller.person()?.user.to_string(),
    })?;
    let made = app.people.clone().start_totp(request).await?.into_inner();
    let whole = TotpSecret {
        otpauth_url: Some(made.otpauth_url),
        secret: Some(made.secret),
    };
    let kept = TotpSecret {
        otpauth_url: None,
        secret: None,
    };
    shown_once(StatusCode::OK, &whole, &kept)
}

/// A code.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TotpCode {
    /// Six digits.
    #[schema(min_length = 6, max_length = 6)]
    code: String,
}

/// Codes for the day the authenticator is lost; shown this once.
#[derive(Serialize, ToSchema)]
pub(super) struct RecoveryCodes {
    /// Each good once. Absent in the answer to a repeated request.
    recovery_codes: Option<Vec<String>>,
}

/// Confirms the secret with a first code: from here on signing in needs it.
#[utoipa::path(post, path = "/v1/account/totp/confirm", tag = "account", request_body = TotpCode,
    responses((status = 200, body = RecoveryCodes, description = "The second factor is on")))]
pub(super) async fn confirm_totp(
    State(app): App,
    caller: Caller,
    Body(it): Body<TotpCode>,
) -> Result<Response> {
    let request = caller.request(pb::ConfirmTotpRequest {
        user_id: caller.person()?.user.to_string(),
        code: it.code,
    })?;
    let made = app.people.clone().confirm_totp(request).await?.into_inner();
    let whole = RecoveryCodes {
        recovery_codes: Some(made.recovery_codes),
    };
    let kept = RecoveryCodes {
        recovery_codes: None,
    };
    shown_once(StatusCode::OK, &whole, &kept)
}

/// An answer with a secret, and what of it may be kept for repetitions.
pub(super) fn shown_once<T: Serialize>(
    status: StatusCode,
    whole: &T,
    kept: &T,
) -> Result<Response> {
    use axum::response::IntoResponse as _;

    let kept = serde_json::to_vec(kept).map_err(anyhow::Error::new);
    let kept = kept.map_err(crate::error::Error::Internal)?;
    let mut response = (status, Json(whole)).into_response();
    response
        .extensions_mut()
        .insert(Redacted(Bytes::from(kept)));
    Ok(response)
}
