//! Members and invitations.

use axum::{Json, extract::State};
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use types::{OrgId, UserId};
use utoipa::ToSchema;

use super::{
    App, Portal,
    access::Caller,
    extract::{Body, Page, Path, Query, cut, id},
    wire::moment,
};
use crate::{
    domain,
    error::{Error, Result},
};

/// A member.
#[derive(Serialize, ToSchema)]
pub(super) struct Member {
    user_id: String,
    email: String,
    /// `owner`, `admin`, `developer` or `billing`.
    role: String,
    #[schema(format = DateTime)]
    joined_at: String,
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
    let members = found.into_iter().map(|it| Member {
        joined_at: moment(it.joined_at.as_ref()),
        user_id: it.user_id,
        email: it.email,
        role: it.role,
    });
    Ok(Json(Members {
        members: members.collect(),
        next_cursor,
    }))
}

/// Who is to be a member, and as what.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMember {
    email: String,
    /// `owner`, `admin`, `developer` or `billing`.
    role: String,
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
    role: String,
}

/// Changes a member's role. It holds from the next request; the last owner stays.
#[utoipa::path(patch, path = "/v1/organisations/{org}/members/{user}", tag = "members",
    request_body = NewRole, responses((status = 204, description = "Changed")))]
pub(super) async fn update_member(
    State(app): App,
    caller: Caller,
    Path((org, user)): Path<(String, String)>,
    Body(it): Body<NewRole>,
) -> Result<StatusCode> {
    let (org, user): (OrgId, UserId) = (id("organisation", &org)?, id("member", &user)?);
    let request = caller.request(pb::UpdateMemberRoleRequest {
        org_id: org.to_string(),
        user_id: user.to_string(),
        role: it.role,
    })?;
    app.people.clone().update_member_role(request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What ended with a membership.
#[derive(Serialize, ToSchema)]
pub(super) struct RemovedMember {
    /// Test keys of the member, revoked with it.
    revoked_test_keys: u32,
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
    let request = caller.request(pb::RemoveMemberRequest {
        org_id: org.to_string(),
        user_id: user.to_string(),
    })?;
    let done = app.keys.clone().remove_member(request).await?.into_inner();
    let revoked_test_keys = done.revoked_test_keys;
    Ok(Json(RemovedMember { revoked_test_keys }))
}

/// An invitation, without its token.
#[derive(Serialize, ToSchema)]
pub(super) struct Invitation {
    invitation_id: String,
    org_id: String,
    email: String,
    /// `owner`, `admin`, `developer` or `billing`.
    role: String,
    /// `open`, `accepted`, `revoked` or `expired`.
    status: String,
    /// `operator` or `usr_…`
    invited_by: String,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    expires_at: String,
}

impl From<pb::Invitation> for Invitation {
    fn from(it: pb::Invitation) -> Self {
        Self {
            created_at: moment(it.created_at.as_ref()),
            expires_at: moment(it.expires_at.as_ref()),
            invitation_id: it.invitation_id,
            org_id: it.org_id,
            email: it.email,
            role: it.role,
            status: it.status,
            invited_by: it.invited_by,
        }
    }
}

fn present(invitation: Option<pb::Invitation>) -> Result<Invitation> {
    Ok(invitation.ok_or(Error::NotFound("invitation"))?.into())
}

/// A page of invitations, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Invitations {
    invitations: Vec<Invitation>,
    /// Absent on the last page.
    next_cursor: Option<String>,
}

/// Lists the invitations.
#[utoipa::path(get, path = "/v1/organisations/{org}/invitations", tag = "members",
    params(Page), responses((status = 200, body = Invitations, description = "One page")))]
pub(super) async fn list_invitations(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Query(page): Query<Page>,
) -> Result<Json<Invitations>> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::ListInvitationsRequest {
        org_id: org.to_string(),
        page_size: page.size()?,
        page_token: page.token()?,
    })?;
    let found = app.people.clone().list_invitations(request).await?;
    let found = found.into_inner();
    Ok(Json(Invitations {
        invitations: found.invitations.into_iter().map(Into::into).collect(),
        next_cursor: domain::cursor(&found.next_page_token),
    }))
}

/// Invites somebody by e-mail: 7 days, once.
#[utoipa::path(post, path = "/v1/organisations/{org}/invitations", tag = "members",
    request_body = NewMember,
    responses((status = 201, body = Invitation, description = "The mail is on its way")))]
pub(super) async fn create_invitation(
    State(app): App,
    caller: Caller,
    Path(org): Path<String>,
    Body(it): Body<NewMember>,
) -> Result<(StatusCode, Json<Invitation>)> {
    let org: OrgId = id("organisation", &org)?;
    let request = caller.request(pb::CreateInvitationRequest {
        org_id: org.to_string(),
        email: it.email,
        role: it.role,
    })?;
    let made = app.people.clone().create_invitation(request).await?;
    let made = present(made.into_inner().invitation)?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// A link's token.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct InvitationToken {
    /// As in the mail.
    #[schema(min_length = 1, max_length = 200)]
    token: String,
}

/// A place in an organisation.
#[derive(Serialize, ToSchema)]
pub(super) struct Membership {
    org_id: String,
    /// `owner`, `admin`, `developer` or `billing`.
    role: String,
}

/// Accepts an invitation for the caller, whose address must be the invited one.
#[utoipa::path(post, path = "/v1/invitations/accept", tag = "members",
    request_body = InvitationToken,
    responses((status = 200, body = Membership, description = "A member now")))]
pub(super) async fn accept_invitation(
    State(app): App,
    caller: Caller,
    Body(it): Body<InvitationToken>,
) -> Result<Json<Membership>> {
    let request = caller.request(pb::AcceptInvitationRequest {
        token: it.token,
        user_id: caller.person()?.user.to_string(),
    })?;
    let done = app.people.clone().accept_invitation(request).await?;
    let pb::AcceptInvitationResponse { org_id, role } = done.into_inner();
    Ok(Json(Membership { org_id, role }))
}
