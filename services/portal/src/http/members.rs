//! Members: who belongs to an organisation, and as what.

use axum::{Json, extract::State};
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use types::{OrgId, UserId};
use utoipa::ToSchema;

use super::{
    App, Portal,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Page, Path, Query, cut, id},
    wire::moment,
};
use crate::error::{Error, Result};

/// A member.
#[derive(Serialize, ToSchema)]
pub(super) struct Member {
    user_id: String,
    email: String,
    /// `owner`, `admin`, `developer` or `billing`.
    role: String,
    #[schema(format = DateTime)]
    joined_at: String,
    /// Grows with every change of the role; the ETag.
    version: i64,
}

impl From<pb::Member> for Member {
    fn from(it: pb::Member) -> Self {
        Self {
            joined_at: moment(it.joined_at.as_ref()),
            user_id: it.user_id,
            email: it.email,
            role: it.role,
            version: it.version,
        }
    }
}

impl From<pb::Member> for Tagged<Member> {
    fn from(it: pb::Member) -> Self {
        Self {
            version: it.version,
            body: it.into(),
        }
    }
}

/// A page of members, by joining date.
#[derive(Serialize, ToSchema)]
pub(super) struct Members {
    members: Vec<Member>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Lists the members.
#[utoipa::path(get, path = "/v1/organisations/{org}/members", tag = "members", params(Page),
    responses((status = 200, body = Members, description = "One page")))]
pub(super) async fn list_members(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<Members>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::ListMembersRequest {
        org_id: org.to_string(),
    })?;
    let found = app.keys.clone().list_members(request).await?.into_inner();
    let (found, next_cursor) = cut(found.members, &page, |it| &it.user_id)?;
    Ok(Json(Members {
        members: found.into_iter().map(Into::into).collect(),
        next_cursor,
    }))
}

/// Reads a member.
#[utoipa::path(get, path = "/v1/organisations/{org}/members/{user}", tag = "members",
    responses((status = 200, body = Member, description = "The member",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn get_member(
    State(app): App,
    caller: Caller,
    Path((org, user)): Path<(String, String)>,
) -> Result<Tagged<Member>> {
    let (org, user): (OrgId, UserId) = (id("organisation", &org)?, id("member", &user)?);
    let request = caller.request(pb::ListMembersRequest {
        org_id: org.to_string(),
    })?;
    let found = app.keys.clone().list_members(request).await?.into_inner();
    let user = user.to_string();
    let found = found.members.into_iter().find(|it| it.user_id == user);
    Ok(found.ok_or(Error::NotFound("member"))?.into())
}

/// Who is to be a member, and as what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMember {
    #[schema(format = Email, max_length = 254)]
    pub(super) email: String,
    /// `owner`, `admin`, `developer` or `billing`.
    #[schema(pattern = "^(owner|admin|developer|billing)$")]
    pub(super) role: String,
}

/// The member.
#[derive(Serialize, ToSchema)]
pub(super) struct AddedMember {
    user_id: String,
}

/// Adds a member by e-mail address; for operators. Members invite instead.
#[utoipa::path(post, path = "/v1/organisations/{org}/members", tag = "members",
    request_body = NewMember,
    responses((status = 201, body = AddedMember, description = "Added")))]
pub(super) async fn add_member(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Body(it): Body<NewMember>,
) -> Result<(StatusCode, Json<AddedMember>)> {
    let org: OrgId = id("organisation", &org)?;
    visible(&app, &caller, org).await?;
    caller.operators_only()?;
    let request = caller.request(pb::AddMemberRequest {
        org_id: org.to_string(),
        email: it.email,
        role: it.role,
    })?;
    let added = app.keys.clone().add_member(request).await?.into_inner();
    let user_id = added.user_id;
    Ok((StatusCode::CREATED, Json(AddedMember { user_id })))
}

/// Refuses strangers as if there were no such organisation.
async fn visible(app: &Portal, caller: &Caller, org: OrgId) -> Result<()> {
    let request = caller.request(pb::GetOrganisationRequest {
        org_id: org.to_string(),
    })?;
    app.keys.clone().get_organisation(request).await?;
    Ok(())
}

/// A new role.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRole {
    /// `owner`, `admin`, `developer` or `billing`.
    #[schema(pattern = "^(owner|admin|developer|billing)$")]
    role: String,
}

/// Changes a member's role. It holds from the next request; the last owner stays. With `If-Match`
/// only the version that the caller has seen.
#[utoipa::path(patch, path = "/v1/organisations/{org}/members/{user}", tag = "members",
    request_body = NewRole,
    params(("if-match" = Option<String>, Header, description = "The ETag of a member")),
    responses((status = 200, body = Member, description = "As it is now",
        headers(("etag" = String, description = "Its version")))))]
pub(super) async fn update_member(
    State(app): App,
    caller: Caller,
    Path((org, user)): Path<(String, String)>,
    IfMatch(seen): IfMatch,
    Body(it): Body<NewRole>,
) -> Result<Tagged<Member>> {
    let (org, user): (OrgId, UserId) = (id("organisation", &org)?, id("member", &user)?);
    let request = caller.request(pb::UpdateMemberRoleRequest {
        org_id: org.to_string(),
        user_id: user.to_string(),
        role: it.role,
        expected_version: seen,
    })?;
    let done = app.people.clone().update_member_role(request).await?;
    let member = done.into_inner().member;
    Ok(member.ok_or(Error::NotFound("member"))?.into())
}

/// What became of a member's keys.
#[derive(Serialize, ToSchema)]
pub(super) struct RemovedMember {
    /// Test keys of the member, revoked with it.
    revoked_test_keys: u32,
    /// Live keys of the member that go on: see `GET …/key-reviews`.
    live_keys_to_review: u32,
}

async fn remove(app: &Portal, caller: &Caller, org: OrgId, user: UserId) -> Result<RemovedMember> {
    let request = caller.request(pb::RemoveMemberRequest {
        org_id: org.to_string(),
        user_id: user.to_string(),
    })?;
    let done = app.keys.clone().remove_member(request).await?.into_inner();
    Ok(RemovedMember {
        revoked_test_keys: done.revoked_test_keys,
        live_keys_to_review: done.live_keys_to_review,
    })
}

/// Removes a member, or leaves. The last owner stays.
#[utoipa::path(delete, path = "/v1/organisations/{org}/members/{user}", tag = "members",
    responses((status = 200, body = RemovedMember, description = "Removed")))]
pub(super) async fn remove_member(
    State(app): App,
    caller: Caller,
    Path((org, user)): Path<(String, String)>,
) -> Result<Json<RemovedMember>> {
    let (org, user): (OrgId, UserId) = (id("organisation", &org)?, id("member", &user)?);
    remove(&app, &caller, org, user).await.map(Json)
}

/// Leaves the organisation. The last owner stays.
#[utoipa::path(post, path = "/v1/organisations/{org}/leave", tag = "members",
    responses((status = 200, body = RemovedMember, description = "A member no more")))]
pub(super) async fn leave(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
) -> Result<Json<RemovedMember>> {
    let org: OrgId = id("organisation", &org)?;
    visible(&app, &caller, org).await?;
    let user = caller.person()?.user;
    remove(&app, &caller, org, user).await.map(Json)
}

/// Who shall own the organisation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NextOwner {
    /// `usr_…`, a member.
    #[schema(pattern = "^usr_[0-9a-f]{32}$")]
    user_id: String,
}

/// Who owned it.
#[derive(Serialize, ToSchema)]
pub(super) struct Transferred {
    /// `usr_…`; an admin now.
    previous_owner_id: String,
}

/// Makes another member the owner; who was it becomes an admin. For owners, who have presented a
/// second factor within 10 minutes.
#[utoipa::path(post, path = "/v1/organisations/{org}/transfer", tag = "members",
    request_body = NextOwner,
    responses((status = 200, body = Transferred, description = "Transferred")))]
pub(super) async fn transfer(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Body(it): Body<NextOwner>,
) -> Result<Json<Transferred>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::TransferOwnershipRequest {
        org_id: org.to_string(),
        user_id: it.user_id,
    })?;
    let done = app.people.clone().transfer_ownership(request).await?;
    let previous_owner_id = done.into_inner().previous_owner_id;
    Ok(Json(Transferred { previous_owner_id }))
}
