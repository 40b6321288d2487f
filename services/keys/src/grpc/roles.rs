//! Roles of members.

use jiff::Timestamp;
use proto::{convert::parse_id, keys::v1 as pb};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{OrgId, Role, UserId};

use super::{Keys, wire};
use crate::{
    domain::{
        expect_version,
        organisation::{Membership, owner_after},
        rights::{Action, Authority},
        second_factor,
    },
    error::{Error, Result},
};

fn find(members: &[Membership], user: UserId) -> Result<Membership> {
    let member = members.iter().find(|member| member.user == user);
    member
        .copied()
        .ok_or_else(|| Error::not_found("member", user))
}

/// What somebody is among the members, read under the lock of the organisation: at this moment
/// nobody changes it.
pub(super) fn authority(actor: Actor, org: OrgId, members: &[Membership]) -> Result<Authority> {
    match actor {
        Actor::Operator => Ok(Authority::Operator),
        Actor::User(user) => match members.iter().find(|member| member.user == user) {
            Some(Membership { role, .. }) => Ok(Authority::Member { user, role: *role }),
            None => Err(Error::not_found("organisation", org)),
        },
    }
}

impl Keys {
    pub(super) async fn change_role(
        &self,
        actor: Actor,
        request: pb::UpdateMemberRoleRequest,
    ) -> std::result::Result<pb::UpdateMemberRoleResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        let user: UserId = parse_id("user_id", &request.user_id)?;
        let to: Role = request.role.parse().map_err(Error::from)?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let owner = tx.lock_organisation(org).await?;
        let members = tx.memberships(org).await?;
        let authority = authority(actor, org, &members)?;
        let from = find(&members, user)?.role;
        authority.require(Action::ChangeRole { from, to })?;
        let now = tx.member(org, user).await?;
        expect_version(request.expected_version, now.version)?;
        if from == to {
            return Ok(pb::UpdateMemberRoleResponse {
                member: Some(wire::member(&now)),
            });
        }
        if to != Role::Owner {
            let next_owner = owner_after(&members, owner, user)?;
            if next_owner != owner {
                tx.set_owner(org, next_owner).await?;
            }
        }
        tx.set_role(org, user, to).await?;
        let details = json!({
            "before": { "role": from.as_str() },
            "after": { "role": to.as_str() },
        });
        tx.audit(Some(org), "member.role_changed", user, details);
        let now = tx.member(org, user).await?;
        tx.commit().await?;
        Ok(pb::UpdateMemberRoleResponse {
            member: Some(wire::member(&now)),
        })
    }

    pub(super) async fn hand_over(
        &self,
        actor: Actor,
        second_factor: Option<Timestamp>,
        request: pb::TransferOwnershipRequest,
    ) -> std::result::Result<pb::TransferOwnershipResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        let user: UserId = parse_id("user_id", &request.user_id)?;
        let now = self.host.clock().now();
        let mut tx = self.store.begin(actor, now).await?;
        let owner = tx.lock_organisation(org).await?;
        let members = tx.memberships(org).await?;
        authority(actor, org, &members)?.require(Action::TransferOwnership)?;
        if actor != Actor::Operator && !second_factor::is_fresh(second_factor, now) {
            return Err(Error::SecondFactorNeeded.into());
        }
        // An owner hands over his own place; operators that of the first owner.
        let from = match actor {
            Actor::User(asking) => asking,
            Actor::Operator => owner,
        };
        find(&members, user)?;
        if user == from {
            return Err(Error::Conflict("the member is the owner already").into());
        }
        tx.set_role(org, user, Role::Owner).await?;
        tx.set_role(org, from, Role::Admin).await?;
        tx.set_owner(org, user).await?;
        let details = json!({
            "before": { "owner": from.to_string() },
            "after": { "owner": user.to_string() },
        });
        tx.audit(Some(org), "organisation.transferred", org, details);
        tx.commit().await?;
        Ok(pb::TransferOwnershipResponse {
            previous_owner_id: from.to_string(),
        })
    }
}
