//! Organisations and members.

use proto::{
    convert::{page, parse_id},
    keys::v1 as pb,
};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{OrgId, Role, Slug, UserId, parse_email, parse_key_name};

use super::{Keys, operators_only, page_of, roles::authority, scope, wire};
use crate::{
    domain::{
        difference, expect_version,
        organisation::{owner_after, slug_candidate, slug_stem},
        rights::Action,
    },
    error::{Error, Result},
    store::Tx,
};

/// Slugs tried for a name that others have too.
const SLUGS_MAX: u32 = 1000;
/// Why a leaving member's test keys end.
const MEMBER_LEFT: &str = "member_left";

/// Creates the organisation under the slug that was asked for, or the first free one of its name.
pub(super) async fn insert(
    tx: &mut Tx,
    org: OrgId,
    name: &str,
    slug: Option<Slug>,
    owner: UserId,
) -> Result<Slug> {
    if let Some(slug) = slug {
        return match tx.insert_organisation(org, name, &slug, owner).await? {
            true => Ok(slug),
            false => Err(Error::Conflict("`slug` is taken: choose another")),
        };
    }
    let stem = slug_stem(name);
    let taken = tx.slugs_like(&stem).await?;
    for n in 1..=SLUGS_MAX {
        let slug = slug_candidate(&stem, n)?;
        if taken.iter().any(|taken| taken == slug.as_str()) {
            continue;
        }
        // Somebody may take it at this moment: then the next.
        if tx.insert_organisation(org, name, &slug, owner).await? {
            return Ok(slug);
        }
    }
    Err(Error::Conflict(
        "too many organisations have this name: set `slug`",
    ))
}

impl Keys {
    pub(super) async fn found(
        &self,
        actor: Actor,
        request: pb::CreateOrganisationRequest,
    ) -> std::result::Result<pb::CreateOrganisationResponse, Status> {
        let name = parse_key_name("name", &request.name).map_err(Error::from)?;
        let email = parse_email("owner_email", &request.owner_email).map_err(Error::from)?;
        let slug = match request.slug.as_str() {
            "" => None,
            text => Some(text.parse().map_err(Error::from)?),
        };
        let ids = self.host.ids();
        let org: OrgId = ids.new_id();
        // Its founder is no member of it yet.
        let mut tx = self.store.work(actor, self.host.clock().now()).await?;
        let owner = tx.user_of(&email, ids.new_id()).await?;
        if matches!(actor, Actor::User(user) if user != owner) {
            return Err(Error::OperatorsOnly {
                what: "create organisations for others",
            }
            .into());
        }
        let slug = insert(&mut tx, org, &name, slug, owner).await?;
        tx.insert_member(ids.new_id(), org, owner, Role::Owner)
            .await?;
        let details = json!({ "after": {
            "name": name, "slug": slug.as_str(), "owner": owner.to_string(),
        }});
        tx.audit(Some(org), "organisation.created", org, details);
        tx.commit().await?;
        Ok(pb::CreateOrganisationResponse {
            org_id: org.to_string(),
            user_id: owner.to_string(),
            slug: slug.to_string(),
        })
    }

    pub(super) async fn organisation(
        &self,
        actor: Actor,
        request: pb::GetOrganisationRequest,
    ) -> std::result::Result<pb::GetOrganisationResponse, Status> {
        let org = parse_id("org_id", &request.org_id)?;
        self.authority(actor, org)
            .await?
            .require(Action::ViewOrganisation)?;
        let organisation = self.store.organisation(scope(actor), org).await?;
        let organisation = Some(wire::organisation(&organisation));
        Ok(pb::GetOrganisationResponse { organisation })
    }

    pub(super) async fn change_organisation(
        &self,
        actor: Actor,
        request: pb::UpdateOrganisationRequest,
    ) -> std::result::Result<pb::UpdateOrganisationResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        self.authority(actor, org)
            .await?
            .require(Action::UpdateOrganisation)?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        tx.lock_organisation(org).await?;
        let old = tx.organisation(org).await?;
        expect_version(request.expected_version, old.version)?;
        let name = match &request.name {
            Some(name) => parse_key_name("name", name).map_err(Error::from)?,
            None => old.name.clone(),
        };
        let slug = match &request.slug {
            Some(slug) => slug.parse::<Slug>().map_err(Error::from)?.to_string(),
            None => old.slug.clone(),
        };
        let facts = |name: &str, slug: &str| json!({ "name": name, "slug": slug });
        let (before, after) = (facts(&old.name, &old.slug), facts(&name, &slug));
        if before == after {
            let organisation = Some(wire::organisation(&old));
            return Ok(pb::UpdateOrganisationResponse { organisation });
        }
        tx.save_organisation(org, &name, &slug).await?;
        let details = difference(&before, &after);
        tx.audit(Some(org), "organisation.updated", org, details);
        let new = tx.organisation(org).await?;
        tx.commit().await?;
        let organisation = Some(wire::organisation(&new));
        Ok(pb::UpdateOrganisationResponse { organisation })
    }

    pub(super) async fn organisations(
        &self,
        actor: Actor,
        request: pb::ListOrganisationsRequest,
    ) -> std::result::Result<pb::ListOrganisationsResponse, Status> {
        let after = match request.page_token.as_str() {
            "" => None,
            token => Some(parse_id("page_token", token)?),
        };
        let size = page(request.page_size);
        let rows = self
            .store
            .organisations(scope(actor), after, size + 1)
            .await?;
        let (rows, next_page_token) = page_of(rows, size, |row| row.id.to_string());
        let organisations = rows.iter().map(wire::organisation).collect();
        Ok(pb::ListOrganisationsResponse {
            organisations,
            next_page_token,
        })
    }

    pub(super) async fn admit(
        &self,
        actor: Actor,
        request: pb::AddMemberRequest,
    ) -> std::result::Result<pb::AddMemberResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        let email = parse_email("email", &request.email).map_err(Error::from)?;
        let role: Role = request.role.parse().map_err(Error::from)?;
        operators_only(actor, "add members without an invitation")?;
        let ids = self.host.ids();
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        tx.lock_organisation(org).await?;
        let user = tx.user_of(&email, ids.new_id()).await?;
        tx.insert_member(ids.new_id(), org, user, role).await?;
        let details = json!({ "after": { "role": role.as_str() } });
        tx.audit(Some(org), "member.added", user, details);
        tx.commit().await?;
        Ok(pb::AddMemberResponse {
            user_id: user.to_string(),
        })
    }

    pub(super) async fn members(
        &self,
        actor: Actor,
        request: pb::ListMembersRequest,
    ) -> std::result::Result<pb::ListMembersResponse, Status> {
        let org = parse_id("org_id", &request.org_id)?;
        self.authority(actor, org)
            .await?
            .require(Action::ViewMembers)?;
        let members = self.store.members(scope(actor), org).await?;
        Ok(pb::ListMembersResponse {
            members: members.iter().map(wire::member).collect(),
        })
    }

    pub(super) async fn dismiss(
        &self,
        actor: Actor,
        request: pb::RemoveMemberRequest,
    ) -> std::result::Result<pb::RemoveMemberResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        let user: UserId = parse_id("user_id", &request.user_id)?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        let owner = tx.lock_organisation(org).await?;
        let members = tx.memberships(org).await?;
        let authority = authority(actor, org, &members)?;
        let Some(leaving) = members.iter().find(|member| member.user == user) else {
            return Err(Error::not_found("member", user).into());
        };
        authority.require(match authority.is(user) {
            true => Action::Leave,
            false => Action::RemoveMember { role: leaving.role },
        })?;
        let next_owner = owner_after(&members, owner, user)?;
        if next_owner != owner {
            tx.set_owner(org, next_owner).await?;
        }
        // A test key spends its creator's test credits: it does not outlive the membership.
        let keys = tx.lock_test_keys(org, user).await?;
        for key in &keys {
            tx.revoke_key(*key, MEMBER_LEFT).await?;
            let details = json!({ "after": { "reason": MEMBER_LEFT } });
            tx.audit(Some(org), "key.revoked", key, details);
        }
        let to_review = tx.ask_for_reviews(org, user).await?;
        let details = json!({
            "before": { "role": leaving.role.as_str() },
            "live_keys_to_review": to_review,
        });
        tx.audit(Some(org), "member.removed", user, details);
        tx.announce_keys(&keys);
        // The last statement: who leaves sees nothing of the organisation after it.
        tx.delete_member(org, user).await?;
        tx.commit().await?;
        self.committed();
        let revoked_test_keys = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        Ok(pb::RemoveMemberResponse {
            revoked_test_keys,
            live_keys_to_review: u32::try_from(to_review).unwrap_or(u32::MAX),
        })
    }
}
