//! Invitations.

use proto::{
    convert::{page, parse_id},
    keys::v1 as pb,
};
use runtime::Actor;
use serde_json::json;
use tonic::Status;
use types::{OrgId, Role, UserId, parse_email};

use super::{Keys, page_of, scope, sign_in::oneself, wire};
use crate::{
    domain::{
        invitation::{self, Invitation, InvitationId},
        mail::{Letter, Reader},
        rights::{Action, OrgScope},
        throttle, token,
    },
    error::{Error, Result},
    store::Tx,
};

impl Keys {
    pub(super) async fn invite(
        &self,
        actor: Actor,
        request: pb::CreateInvitationRequest,
    ) -> std::result::Result<pb::CreateInvitationResponse, Status> {
        let org: OrgId = parse_id("org_id", &request.org_id)?;
        let email = parse_email("email", &request.email).map_err(Error::from)?;
        let role: Role = request.role.parse().map_err(Error::from)?;
        self.authority(actor, org)
            .await?
            .require(Action::Invite { role })?;
        let now = self.host.clock().now();
        let invitation = Invitation {
            id: self.host.ids().new_id(),
            org,
            email,
            role,
            invited_by: actor.to_string(),
            created_at: now,
            expires_at: invitation::end(now),
            accepted_by: None,
            is_revoked: false,
        };
        self.throttle(throttle::MAIL, &invitation.email).await?;
        let (text, hash) = self.new_token();
        let mut tx = self.store.begin(actor, now).await?;
        tx.lock_organisation(org).await?;
        if tx.is_member(org, &invitation.email).await? {
            return Err(Error::Conflict("the address is a member's already").into());
        }
        tx.end_expired_invitation(org, &invitation.email).await?;
        tx.insert_invitation(&invitation, &hash).await?;
        let details = json!({ "after": { "email": invitation.email, "role": role.as_str() } });
        self.send_invitation(
            actor,
            tx,
            &invitation,
            &text,
            ("invitation.created", details),
        )
        .await?;
        Ok(pb::CreateInvitationResponse {
            invitation: Some(wire::invitation(&invitation, now)),
        })
    }

    /// Mails the link, notes it, commits.
    async fn send_invitation(
        &self,
        actor: Actor,
        mut tx: Tx,
        invitation: &Invitation,
        text: &str,
        (action, details): (&'static str, serde_json::Value),
    ) -> Result<()> {
        let name = tx.organisation_name(invitation.org).await?;
        let letter = Letter::Invitation {
            token: text,
            organisation: &name,
            role: invitation.role,
        };
        // Who has no account yet reads what the one who invites reads.
        let language = match self.store.reader_of(&invitation.email).await? {
            Some(known) => known.language,
            None => self.language_of(&mut tx, actor).await?,
        };
        let reader = Reader {
            address: invitation.email.clone(),
            language,
        };
        self.write_to(&mut tx, &[reader], &letter).await?;
        tx.audit(Some(invitation.org), action, invitation.id, details);
        tx.commit().await?;
        self.mail_nudge.notify_one();
        Ok(())
    }

    pub(super) async fn sent_invitations(
        &self,
        actor: Actor,
        request: pb::ListInvitationsRequest,
    ) -> std::result::Result<pb::ListInvitationsResponse, Status> {
        let org = parse_id("org_id", &request.org_id)?;
        self.authority(actor, org)
            .await?
            .require(Action::ViewMembers)?;
        let before = match request.page_token.as_str() {
            "" => None,
            token => Some(parse_id("page_token", token)?),
        };
        let size = page(request.page_size);
        let rows = self
            .store
            .invitations(scope(actor), org, before, size + 1)
            .await?;
        let (rows, next_page_token) = page_of(rows, size, |row| row.id.to_string());
        let now = self.host.clock().now();
        Ok(pb::ListInvitationsResponse {
            invitations: rows.iter().map(|row| wire::invitation(row, now)).collect(),
            next_page_token,
        })
    }

    /// An invitation somebody may see, of this organisation if one is named.
    async fn invitation_at(&self, actor: Actor, id: InvitationId, org: &str) -> Result<Invitation> {
        let invitation = self.store.invitation(scope(actor), id).await?;
        match org.is_empty() || invitation.org.to_string() == org {
            true => Ok(invitation),
            false => Err(Error::not_found("invitation", id)),
        }
    }

    /// A pending invitation that somebody may change, locked with its organisation.
    async fn lock_pending(
        &self,
        actor: Actor,
        id: InvitationId,
        org: &str,
    ) -> Result<(Tx, Invitation)> {
        let invitation = self.invitation_at(actor, id, org).await?;
        self.authority(actor, invitation.org)
            .await?
            .require(Action::Invite {
                role: invitation.role,
            })?;
        let mut tx = self.store.begin(actor, self.host.clock().now()).await?;
        tx.lock_organisation(invitation.org).await?;
        let locked = tx.lock_invitation(id, None).await?;
        let locked = locked.ok_or_else(|| Error::not_found("invitation", id))?;
        locked.check_pending()?;
        Ok((tx, locked))
    }

    pub(super) async fn invite_again(
        &self,
        actor: Actor,
        request: pb::ResendInvitationRequest,
    ) -> std::result::Result<pb::ResendInvitationResponse, Status> {
        let id = parse_id("invitation_id", &request.invitation_id)?;
        let known = self.invitation_at(actor, id, &request.org_id).await?;
        // Before a mail is counted: who may not invite must not use up the address's mails.
        let authority = self.authority(actor, known.org).await?;
        authority.require(Action::Invite { role: known.role })?;
        self.throttle(throttle::MAIL, &known.email).await?;
        let (mut tx, mut invitation) = self.lock_pending(actor, id, &request.org_id).await?;
        let (text, hash) = self.new_token();
        invitation.expires_at = invitation::end(tx.at());
        tx.renew_invitation(id, &hash, invitation.expires_at)
            .await?;
        let now = tx.at();
        self.send_invitation(
            actor,
            tx,
            &invitation,
            &text,
            ("invitation.resent", json!({})),
        )
        .await?;
        Ok(pb::ResendInvitationResponse {
            invitation: Some(wire::invitation(&invitation, now)),
        })
    }

    pub(super) async fn uninvite(
        &self,
        actor: Actor,
        request: pb::RevokeInvitationRequest,
    ) -> std::result::Result<pb::RevokeInvitationResponse, Status> {
        let id = parse_id("invitation_id", &request.invitation_id)?;
        let (mut tx, mut invitation) = self.lock_pending(actor, id, &request.org_id).await?;
        tx.end_invitation(id).await?;
        invitation.is_revoked = true;
        tx.audit(Some(invitation.org), "invitation.revoked", id, json!({}));
        let now = tx.at();
        tx.commit().await?;
        Ok(pb::RevokeInvitationResponse {
            invitation: Some(wire::invitation(&invitation, now)),
        })
    }

    /// The invitation of a token.
    async fn invited(&self, text: &str) -> Result<(Invitation, [u8; 32])> {
        let unknown = || Error::invalid("token", "is unknown: ask for another invitation");
        let hash = token::token_hash(text).ok_or_else(unknown)?;
        let invitation = self.store.invitation_of(&hash).await?;
        Ok((invitation.ok_or_else(unknown)?, hash))
    }

    pub(super) async fn shown_invitation(
        &self,
        request: pb::GetInvitationRequest,
    ) -> std::result::Result<pb::GetInvitationResponse, Status> {
        let (invitation, _) = self.invited(&request.token).await?;
        let organisation = self
            .store
            .organisation(OrgScope::Every, invitation.org)
            .await?;
        Ok(pb::GetInvitationResponse {
            invitation: Some(wire::invitation(&invitation, self.host.clock().now())),
            organisation_name: organisation.name,
        })
    }

    pub(super) async fn join(
        &self,
        actor: Actor,
        request: pb::AcceptInvitationRequest,
    ) -> std::result::Result<pb::AcceptInvitationResponse, Status> {
        let user: UserId = parse_id("user_id", &request.user_id)?;
        oneself(actor, user)?;
        let (found, hash) = self.invited(&request.token).await?;
        let email = self.store.user(user).await?.email;
        // Whoever has the token is no member yet.
        let mut tx = self.store.work(actor, self.host.clock().now()).await?;
        tx.lock_organisation(found.org).await?;
        // Sent again in between, the token is another.
        let invitation = tx.lock_invitation(found.id, Some(&hash)).await?;
        let invitation = invitation
            .ok_or_else(|| Error::invalid("token", "is unknown: ask for another invitation"))?;
        invitation.check_acceptance(&email, tx.at())?;
        let (org, role) = (invitation.org, invitation.role);
        tx.insert_member(self.host.ids().new_id(), org, user, role)
            .await?;
        tx.use_invitation(invitation.id, user).await?;
        // The link went to the address.
        tx.verify_user(user).await?;
        let details = json!({
            "invitation": invitation.id.to_string(),
            "after": { "role": role.as_str() },
        });
        tx.audit(Some(org), "member.added", user, details);
        tx.commit().await?;
        Ok(pb::AcceptInvitationResponse {
            org_id: org.to_string(),
            role: role.as_str().to_owned(),
        })
    }
}
