//! What people change of their accounts, and what operators do for who has lost the second factor.

use proto::{convert::parse_id, keys::v1 as pb};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::parse_key_name;

use super::{Keys, operators_only, sign_in::oneself, wire};
use crate::{
    domain::{
        difference,
        mail::{Language, Letter},
    },
    error::Error,
};

impl Keys {
    pub(super) async fn change_user(
        &self,
        actor: Actor,
        request: pb::UpdateUserRequest,
    ) -> Result<pb::UpdateUserResponse, Status> {
        let id = parse_id("user_id", &request.user_id)?;
        oneself(actor, id)?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let old = tx.lock_user(id).await?;
        let name = match &request.name {
            Some(name) => parse_key_name("name", name).map_err(Error::from)?,
            None => old.name.clone(),
        };
        let language = match &request.language {
            Some(text) => Language::parse(text)?,
            None => old.language,
        };
        let facts =
            |name: &str, language: Language| json!({ "name": name, "language": language.as_str() });
        let (before, after) = (facts(&old.name, old.language), facts(&name, language));
        if before == after {
            let user = Some(wire::user(&old));
            return Ok(pb::UpdateUserResponse { user });
        }
        tx.save_user(id, &name, language).await?;
        let details = difference(&before, &after);
        tx.audit(None, "user.updated", id, details);
        let new = tx.lock_user(id).await?;
        tx.commit().await?;
        let user = Some(wire::user(&new));
        Ok(pb::UpdateUserResponse { user })
    }

    pub(super) async fn reset_factor(
        &self,
        actor: Actor,
        request: pb::ResetSecondFactorRequest,
    ) -> Result<pb::ResetSecondFactorResponse, Status> {
        operators_only(actor, "reset second factors")?;
        let id = parse_id("user_id", &request.user_id)?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let user = tx.lock_user(id).await?;
        if !user.totp_confirmed {
            return Err(Error::Conflict("the user has no second factor").into());
        }
        tx.end_totp(id).await?;
        // Whoever holds a session may be who the user lost the second factor to.
        let session_epoch = tx.end_sessions(id).await?;
        let reader = tx.reader(id).await?;
        self.write_to(&mut tx, &[reader], &Letter::SecondFactorRemoved)
            .await?;
        tx.audit(None, "user.second_factor_reset", id, json!({}));
        tx.commit().await?;
        self.mail_nudge.notify_one();
        Ok(pb::ResetSecondFactorResponse { session_epoch })
    }
}
