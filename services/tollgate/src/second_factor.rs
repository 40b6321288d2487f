//! `tollgate user second-factor`: authenticators and recovery codes.

use clap::Subcommand;
use proto::keys::v1 as wire;
use serde_json::json;

use crate::connect::People;
use crate::failure::Result;
use crate::output::Output;

/// Acts on second factors.
#[derive(Subcommand)]
pub(crate) enum SecondFactor {
    /// Make a secret for an authenticator and print it, this once
    Start {
        /// `usr_…`
        user: String,
    },
    /// Confirm the secret with a first code, and print the recovery codes, this once
    #[command(after_help = "Example:\n  tollgate user second-factor confirm usr_… --code 123456")]
    Confirm {
        /// `usr_…`
        user: String,
        /// Six digits
        #[arg(long)]
        code: String,
    },
    /// Replace the recovery codes and print the new ones, this once
    Renew {
        /// `usr_…`
        user: String,
        /// Six digits
        #[arg(long)]
        code: String,
    },
    /// Take the second factor away, against a code
    Disable {
        /// `usr_…`
        user: String,
        /// Six digits or a recovery code
        #[arg(long)]
        code: String,
    },
    /// Take the second factor away from who has lost it; every session ends, a mail says so
    Reset {
        /// `usr_…`
        user: String,
    },
}

pub(crate) async fn run(command: SecondFactor, people: &mut People, output: &Output) -> Result {
    match command {
        SecondFactor::Start { user } => {
            let request = wire::StartTotpRequest { user_id: user };
            let made = people.start_totp(request).await?.into_inner();
            output.record(&json!({ "otpauth_url": made.otpauth_url, "secret": made.secret }));
        }
        SecondFactor::Confirm { user, code } => {
            let request = wire::ConfirmTotpRequest {
                user_id: user,
                code,
            };
            let made = people.confirm_totp(request).await?.into_inner();
            output.record(&json!({ "recovery_codes": made.recovery_codes }));
        }
        SecondFactor::Renew { user, code } => {
            let request = wire::RenewRecoveryCodesRequest {
                user_id: user,
                code,
            };
            let made = people.renew_recovery_codes(request).await?.into_inner();
            output.record(&json!({ "recovery_codes": made.recovery_codes }));
        }
        SecondFactor::Disable { user, code } => {
            let request = wire::DisableTotpRequest {
                user_id: user.clone(),
                code,
            };
            people.disable_totp(request).await?;
            output.record(&json!({ "user_id": user }));
        }
        SecondFactor::Reset { user } => {
            let request = wire::ResetSecondFactorRequest {
                user_id: user.clone(),
            };
            people.reset_second_factor(request).await?;
            output.record(&json!({ "user_id": user }));
        }
    }
    Ok(())
}
