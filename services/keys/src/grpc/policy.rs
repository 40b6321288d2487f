//! The rules of organisations.

use proto::{convert::parse_id, keys::v1 as pb};
use runtime::Actor;
use tonic::Status;
use types::OrgId;

use super::{Keys, scope, wire};
use crate::domain::{difference, expect_version, policy::PolicyWish, rights::Action};

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
        // The version first: whoever changes what is newer than it is refused and reads again.
        let version = self.store.organisation(scope(actor), org).await?.version;
        let policy = self.store.policy(scope(actor), org).await?;
        Ok(pb::GetPolicyResponse {
            policy: Some(wire::policy(&policy, version)),
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
            anomaly_action: request.anomaly_action,
            allowed_origins: request.allowed_origins.map(|list| list.origins),
        };
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        tx.lock_organisation(org).await?;
        let mut version = tx.organisation(org).await?.version;
        expect_version(request.expected_version, version)?;
        let old = tx.policy(org).await?;
        let new = wish.apply(&old)?;
        if new != old {
            version += 1;
            let details = difference(&old.facts(), &new.facts());
            tx.audit(Some(org), "organisation.policy_changed", org, details);
            let new_origins = new.allowed_origins != old.allowed_origins;
            tx.set_policy(org, &new, new_origins).await?;
            tx.commit().await?;
        }
        Ok(pb::SetPolicyResponse {
            policy: Some(wire::policy(&new, version)),
        })
    }
}
