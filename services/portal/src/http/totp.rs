//! The second factor: enrolling, recovery codes, taking it away.

use axum::{extract::State, response::Response};
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{App, access::Caller, account::shown_once, extract::Body};
use crate::error::Result;

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
    #[schema(pattern = "^[0-9]{6}$")]
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
    shown_codes(made.recovery_codes)
}

fn shown_codes(codes: Vec<String>) -> Result<Response> {
    let whole = RecoveryCodes {
        recovery_codes: Some(codes),
    };
    let kept = RecoveryCodes {
        recovery_codes: None,
    };
    shown_once(StatusCode::OK, &whole, &kept)
}

/// A code.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AnyCode {
    /// Six digits, or a recovery code.
    #[schema(min_length = 1, max_length = 64)]
    code: String,
}

/// Takes the second factor and its recovery codes away.
#[utoipa::path(post, path = "/v1/account/totp/disable", tag = "account", request_body = AnyCode,
    responses((status = 204, description = "The second factor is off")))]
pub(super) async fn disable_totp(
    State(app): App,
    caller: Caller,
    Body(it): Body<AnyCode>,
) -> Result<StatusCode> {
    let request = caller.request(pb::DisableTotpRequest {
        user_id: caller.person()?.user.to_string(),
        code: it.code,
    })?;
    app.people.clone().disable_totp(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Replaces the recovery codes, against a code of the authenticator; the old ones are void.
#[utoipa::path(post, path = "/v1/account/recovery-codes", tag = "account", request_body = TotpCode,
    responses((status = 200, body = RecoveryCodes, description = "New codes, this once")))]
pub(super) async fn renew_recovery_codes(
    State(app): App,
    caller: Caller,
    Body(it): Body<TotpCode>,
) -> Result<Response> {
    let request = caller.request(pb::RenewRecoveryCodesRequest {
        user_id: caller.person()?.user.to_string(),
        code: it.code,
    })?;
    let made = app.people.clone().renew_recovery_codes(request).await?;
    shown_codes(made.into_inner().recovery_codes)
}
