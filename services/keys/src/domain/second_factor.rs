//! The second factor: codes by RFC 6238, and how long one counts.

use jiff::{SignedDuration, Timestamp};
use totp_rs::{Builder, Totp};

use crate::error::{Error, Result};

/// Bytes of an authenticator's secret, as RFC 4226 recommends.
pub(crate) const SECRET_BYTES: usize = 20;
/// Shown by the authenticator.
const ISSUER: &str = "Tollgate";
/// A second factor counts so long for live keys and ownership.
const FRESH: SignedDuration = SignedDuration::from_mins(10);
/// Clocks of the portal and ours may differ by so much.
const SKEW: SignedDuration = SignedDuration::from_secs(60);

/// Was the second factor presented at most 10 minutes ago?
pub(crate) fn is_fresh(presented: Option<Timestamp>, now: Timestamp) -> bool {
    presented.is_some_and(|at| {
        let age = now.duration_since(at);
        age <= FRESH && age >= -SKEW
    })
}

fn totp(secret: &[u8], account: &str) -> Result<Totp> {
    let account = account.replace(':', "");
    let totp = Builder::new()
        .with_secret(secret.to_vec())
        .with_account_name(account)
        .with_issuer(Some(ISSUER));
    totp.build()
        .map_err(|error| Error::Internal(anyhow::anyhow!("totp: {error}")))
}

/// What an authenticator is told: the URL of the QR code, and the secret in base32.
pub(crate) fn enrolment(secret: &[u8], email: &str) -> Result<(String, String)> {
    let totp = totp(secret, email)?;
    let url = totp
        .to_url()
        .map_err(|error| Error::Internal(anyhow::anyhow!("totp: {error}")))?;
    Ok((url, totp.secret().to_base32()))
}

/// The step a code is for, unless it is wrong or the step was used: one step to either side is
/// accepted.
pub(crate) fn accepted_step(
    secret: &[u8],
    code: &str,
    last_step: i64,
    now: Timestamp,
) -> Result<Option<i64>> {
    let Ok(seconds) = u64::try_from(now.as_second()) else {
        return Ok(None);
    };
    let step = totp(secret, "tollgate")?.check(code, seconds);
    let step = step.and_then(|step| i64::try_from(step).ok());
    Ok(step.filter(|step| *step > last_step))
}

/// Six digits; anything else may be a recovery code.
pub(crate) fn is_totp_code(code: &str) -> bool {
    code.len() == 6 && code.bytes().all(|byte| byte.is_ascii_digit())
}
