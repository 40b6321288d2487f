//! Authenticators and recovery codes.

use proto::{
    convert::{parse_id, timestamp},
    keys::v1 as pb,
};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::UserId;

use super::{Keys, operators_only, sign_in::oneself};
use crate::{
    domain::{mail::Letter, second_factor, throttle, token},
    error::{Error, Result},
    store::{Tx, User},
};

const WRONG: Error = Error::Unauthenticated("the code is wrong or was used");

/// What was presented.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Factor {
    Totp,
    RecoveryCode,
}

/// Uses a code of the user up. The user is locked.
async fn use_code(tx: &mut Tx, user: &User, code: &str) -> Result<Factor> {
    let code = code.trim();
    if second_factor::is_totp_code(code) {
        let Some(secret) = &user.totp_secret else {
            return Err(WRONG);
        };
        let step = second_factor::accepted_step(secret, code, user.totp_last_step, tx.at())?;
        let step = step.ok_or(WRONG)?;
        tx.use_totp_step(user.id, step).await?;
        return Ok(Factor::Totp);
    }
    let hash = token::recovery_code_hash(code).ok_or(WRONG)?;
    match tx.use_recovery_code(user.id, &hash).await? {
        true => Ok(Factor::RecoveryCode),
        false => Err(WRONG),
    }
}

fn required(user: &User) -> Result<()> {
    match user.totp_confirmed {
        true => Ok(()),
        false => Err(Error::Conflict("the user has no second factor")),
    }
}

impl Keys {
    /// Begins a transaction in which a user, locked, presents a code. Tries are counted outside of
    /// it: a refusal does not undo them.
    async fn presenting(&self, actor: Actor, id: UserId) -> Result<(Tx, User)> {
        oneself(actor, id)?;
        self.throttle(throttle::SECOND_FACTOR, &id.to_string())
            .await?;
        let mut tx = self.store.begin(id, self.host.clock().now()).await?;
        let user = tx.lock_user(id).await?;
        Ok((tx, user))
    }

    async fn accepted(&self, id: UserId) -> Result<()> {
        self.store
            .forgive(throttle::SECOND_FACTOR, &id.to_string())
            .await
    }

    /// New recovery codes; what is stored are their hashes.
    async fn issue_codes(&self, tx: &mut Tx, id: UserId) -> Result<Vec<String>> {
        let codes: Vec<String> = (0..token::CODES)
            .map(|_| token::recovery_code(&self.host.random()))
            .collect();
        let hashes: Vec<[u8; 32]> = codes
            .iter()
            .filter_map(|code| token::recovery_code_hash(code))
            .collect();
        assert_eq!(hashes.len(), token::CODES, "our codes have hashes");
        tx.set_recovery_codes(id, &hashes).await?;
        Ok(codes)
    }

    pub(super) async fn second_factor(
        &self,
        actor: Actor,
        request: pb::VerifySecondFactorRequest,
    ) -> std::result::Result<pb::VerifySecondFactorResponse, Status> {
        operators_only(actor, "present second factors for people")?;
        let id = parse_id("user_id", &request.user_id)?;
        let (mut tx, user) = self.presenting(actor, id).await?;
        required(&user)?;
        let factor = use_code(&mut tx, &user, &request.code).await?;
        let recovery_code = factor == Factor::RecoveryCode;
        let details = json!({ "recovery_code": recovery_code });
        tx.audit(None, "user.second_factor_accepted", id, details);
        let at = tx.at();
        tx.commit().await?;
        self.accepted(id).await?;
        let left = user.recovery_codes - i64::from(recovery_code);
        Ok(pb::VerifySecondFactorResponse {
            session_epoch: user.session_epoch,
            at: Some(timestamp(at)),
            recovery_code,
            recovery_codes: u32::try_from(left).unwrap_or_default(),
        })
    }

    pub(super) async fn enrol(
        &self,
        actor: Actor,
        request: pb::StartTotpRequest,
    ) -> std::result::Result<pb::StartTotpResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        oneself(actor, id)?;
        let secret: [u8; second_factor::SECRET_BYTES] = self.host.random();
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let user = tx.lock_user(id).await?;
        if user.totp_confirmed {
            return Err(Error::Conflict("there is a second factor: disable it first").into());
        }
        tx.begin_totp(id, &secret).await?;
        tx.commit().await?;
        let (otpauth_url, secret) = second_factor::enrolment(&secret, &user.email)?;
        Ok(pb::StartTotpResponse {
            otpauth_url,
            secret,
        })
    }

    pub(super) async fn confirm_totp_of(
        &self,
        actor: Actor,
        request: pb::ConfirmTotpRequest,
    ) -> std::result::Result<pb::ConfirmTotpResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        let (mut tx, user) = self.presenting(actor, id).await?;
        if user.totp_confirmed {
            return Err(Error::Conflict("the second factor is confirmed").into());
        }
        if user.totp_secret.is_none() {
            return Err(Error::Conflict("there is no secret to confirm: start first").into());
        }
        match use_code(&mut tx, &user, &request.code).await? {
            Factor::Totp => {}
            Factor::RecoveryCode => return Err(WRONG.into()),
        }
        let recovery_codes = self.issue_codes(&mut tx, id).await?;
        tx.audit(None, "user.second_factor_enabled", id, json!({}));
        tx.commit().await?;
        self.accepted(id).await?;
        Ok(pb::ConfirmTotpResponse { recovery_codes })
    }

    pub(super) async fn disable_totp_of(
        &self,
        actor: Actor,
        request: pb::DisableTotpRequest,
    ) -> std::result::Result<pb::DisableTotpResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        let (mut tx, user) = self.presenting(actor, id).await?;
        required(&user)?;
        use_code(&mut tx, &user, &request.code).await?;
        tx.end_totp(id).await?;
        self.write_to(&mut tx, &[user.reader()], &Letter::SecondFactorRemoved)
            .await?;
        tx.audit(None, "user.second_factor_disabled", id, json!({}));
        tx.commit().await?;
        self.mail_nudge.notify_one();
        self.accepted(id).await?;
        Ok(pb::DisableTotpResponse {})
    }

    pub(super) async fn renew_codes(
        &self,
        actor: Actor,
        request: pb::RenewRecoveryCodesRequest,
    ) -> std::result::Result<pb::RenewRecoveryCodesResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        let (mut tx, user) = self.presenting(actor, id).await?;
        required(&user)?;
        match use_code(&mut tx, &user, &request.code).await? {
            Factor::Totp => {}
            Factor::RecoveryCode => return Err(WRONG.into()),
        }
        let recovery_codes = self.issue_codes(&mut tx, id).await?;
        tx.audit(None, "user.recovery_codes_renewed", id, json!({}));
        tx.commit().await?;
        self.accepted(id).await?;
        Ok(pb::RenewRecoveryCodesResponse { recovery_codes })
    }
}
