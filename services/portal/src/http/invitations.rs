//! Invitations.

use axum::{Json, extract::State};
use http::StatusCode;
use proto::keys::v1 as pb;
use serde::{Deserialize, Serialize};
use types::OrgId;
use utoipa::ToSchema;

use super::{
    App,
    access::Caller,
    extract::{Body, Client, Page, Path, Query, id},
    members::NewMember,
    wire::moment,
};
use crate::{
    domain::{self, InvitationId},
    error::{Error, Result},
};

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

/// What a link is for: enough to decide whether to sign in.
#[derive(Serialize, ToSchema)]
pub(super) struct ShownInvitation {
    organisation_name: String,
    /// `owner`, `admin`, `developer` or `billing`.
    role: String,
}

/// Shows whoever holds the link what it is for. The token is in the body, since addresses are
/// logged on their way.
#[utoipa::path(post, path = "/v1/invitations/show", tag = "members",
    request_body = InvitationToken,
    responses((status = 200, body = ShownInvitation, description = "It is open")))]
pub(super) async fn show_invitation(
    State(app): App,
    client: Client,
    Body(it): Body<InvitationToken>,
) -> Result<Json<ShownInvitation>> {
    app.strangers(&client)?;
    let request = client.request(pb::GetInvitationRequest { token: it.token })?;
    let found = app.people.clone().get_invitation(request).await?;
    let found = found.into_inner();
    let invitation = present(found.invitation)?;
    if invitation.status != "open" {
        return Err(Error::InvitationEnded(invitation.status));
    }
    Ok(Json(ShownInvitation {
        organisation_name: found.organisation_name,
        role: invitation.role,
    }))
}

fn at(org: &str, invitation: &str) -> Result<(String, String)> {
    let org: OrgId = id("organisation", org)?;
    let invitation: InvitationId = id("invitation", invitation)?;
    Ok((org.to_string(), invitation.to_string()))
}

/// Mails a new link; the old one ends, and the 7 days begin again.
#[utoipa::path(post, path = "/v1/organisations/{org}/invitations/{invitation}/resend",
    tag = "members",
    responses((status = 200, body = Invitation, description = "The mail is on its way")))]
pub(super) async fn resend_invitation(
    State(app): App,
    caller: Caller,
    Path((org, invitation)): Path<(String, String)>,
) -> Result<Json<Invitation>> {
    let (org_id, invitation_id) = at(&org, &invitation)?;
    let request = caller.request(pb::ResendInvitationRequest {
        invitation_id,
        org_id,
    })?;
    let sent = app.people.clone().resend_invitation(request).await?;
    present(sent.into_inner().invitation).map(Json)
}

/// Ends an open invitation.
#[utoipa::path(post, path = "/v1/organisations/{org}/invitations/{invitation}/revoke",
    tag = "members", responses((status = 200, body = Invitation, description = "Its link is void")))]
pub(super) async fn revoke_invitation(
    State(app): App,
    caller: Caller,
    Path((org, invitation)): Path<(String, String)>,
) -> Result<Json<Invitation>> {
    let (org_id, invitation_id) = at(&org, &invitation)?;
    let request = caller.request(pb::RevokeInvitationRequest {
        invitation_id,
        org_id,
    })?;
    let ended = app.people.clone().revoke_invitation(request).await?;
    present(ended.into_inner().invitation).map(Json)
}
