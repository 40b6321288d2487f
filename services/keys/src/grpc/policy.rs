//! The rules of organisations.

use proto::{convert::parse_id, keys::v1 as pb};
use runtime::Actor;
use tonic::Status;
use types::OrgId;

use super::{Keys, wire};
use crate::domain::{difference, policy::PolicyWish, rights::Action};

impl Keys {
    pub(super) async fn policy(
        &self,
        actor: Actor,
        request: pb::GetPolicyRequest,
    ) -> Result<pb::GetPolicyResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        self.authority(actor, org)
            .await?
            .require(Action::ViewOrganisation)?;
        let policy = self.store.policy(org).await?;
        Ok(pb::GetPolicyResponse {
            policy: Some(wire::policy(&policy)),
        })
    }

    pub(super) async fn change_policy(
        &self,
        actor: Actor,
        request: pb::SetPolicyRequest,
    ) -> Result<pb::SetPolicyResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        self.authority(actor, org)
            .await?
            .require(Action::SetPolicy)?;
        let wish = PolicyWish {
            live_keys_need_second_factor: request.live_keys_need_second_factor,
            key_lifetime_seconds_max: request.key_lifetime_seconds_max,
            developers_may_create_live_keys: request.developers_may_create_live_keys,
            leak_action: request.leak_action,
        };
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        tx.lock_organisation(org).await?;
        let old = tx.policy(org).await?;
        let new = wish.apply(&old)?;
        if new != old {
            tx.set_policy(org, &new).await?;
            let details = difference(&old.facts(), &new.facts());
            tx.audit(Some(org), "organisation.policy_changed", org, &details)
                .await?;
            tx.commit().await?;
        }
        Ok(pb::SetPolicyResponse {
            policy: Some(wire::policy(&new)),
        })
    }
}
