//! Invitations.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::{OrgId, UserId};
use uuid::Uuid;

use super::{Store, Tx, organisations::role};
use crate::{
    domain::{
        invitation::{Invitation, InvitationId},
        rights::OrgScope,
    },
    error::{Error, Result},
};

struct InvitationRow {
    id: Uuid,
    org_id: Uuid,
    email: String,
    role: String,
    invited_by: String,
    created_at: jiff_sqlx::Timestamp,
    expires_at: jiff_sqlx::Timestamp,
    accepted_by: Option<Uuid>,
    revoked_at: Option<jiff_sqlx::Timestamp>,
}

impl TryFrom<InvitationRow> for Invitation {
    type Error = Error;

    fn try_from(row: InvitationRow) -> Result<Self> {
        Ok(Self {
            id: InvitationId::new(row.id),
            org: OrgId::new(row.org_id),
            email: row.email,
            role: role(&row.role)?,
            invited_by: row.invited_by,
            created_at: row.created_at.to_jiff(),
            expires_at: row.expires_at.to_jiff(),
            accepted_by: row.accepted_by.map(UserId::new),
            is_revoked: row.revoked_at.is_some(),
        })
    }
}

impl Store {
    /// One invitation.
    pub(crate) async fn invitation(
        &self,
        scope: OrgScope,
        invitation: InvitationId,
    ) -> Result<Invitation> {
        let mut tx = self.seen(scope).await?;
        let select = sqlx::query_as!(
            InvitationRow,
            r#"
            select i.id, i.org_id, i.email, i.role, i.invited_by, i.created_at, i.expires_at,
                   i.accepted_by, i.revoked_at
              from keys.invitations i
             where i.id = $1
               and ($2::uuid is null or exists (
                   select 1 from keys.organisation_members m
                    where m.org_id = i.org_id and m.user_id = $2))"#,
            invitation.uuid(),
            scope.member(),
        );
        let row = select.fetch_optional(&mut *tx).await?;
        row.ok_or_else(|| Error::not_found("invitation", invitation))?
            .try_into()
    }

    /// Invitations of an organisation created before `before`, newest first.
    pub(crate) async fn invitations(
        &self,
        scope: OrgScope,
        org: OrgId,
        before: Option<InvitationId>,
        limit: i64,
    ) -> Result<Vec<Invitation>> {
        let mut tx = self.seen(scope).await?;
        let select = sqlx::query_as!(
            InvitationRow,
            r#"
            select i.id, i.org_id, i.email, i.role, i.invited_by, i.created_at, i.expires_at,
                   i.accepted_by, i.revoked_at
              from keys.invitations i
             where i.org_id = $1
               and ($2::uuid is null or exists (
                   select 1 from keys.organisation_members m
                    where m.org_id = i.org_id and m.user_id = $2))
               and ($3::uuid is null or i.id < $3)
             order by i.id desc
             limit $4"#,
            org.uuid(),
            scope.member(),
            before.map(InvitationId::uuid),
            limit,
        );
        let rows = select.fetch_all(&mut *tx).await?;
        rows.into_iter().map(Invitation::try_from).collect()
    }

    /// The invitation of a token. Whoever has it was sent it: there is no other scope.
    pub(crate) async fn invitation_of(&self, token_hash: &[u8; 32]) -> Result<Option<Invitation>> {
        let select = sqlx::query_as!(
            InvitationRow,
            r#"
            select i.id, i.org_id, i.email, i.role, i.invited_by, i.created_at, i.expires_at,
                   i.accepted_by, i.revoked_at
              from keys.invitations i
             where i.token_hash = $1"#,
            &token_hash[..],
        );
        let row = select.fetch_optional(&self.pool).await?;
        row.map(Invitation::try_from).transpose()
    }
}

impl Tx {
    /// Locks an invitation until the transaction ends, and reads it; `None` when it has another
    /// token by now. The organisation is locked.
    pub(crate) async fn lock_invitation(
        &mut self,
        invitation: InvitationId,
        token_hash: Option<&[u8; 32]>,
    ) -> Result<Option<Invitation>> {
        let select = sqlx::query_as!(
            InvitationRow,
            r#"
            select id, org_id, email, role, invited_by, created_at, expires_at, accepted_by,
                   revoked_at
              from keys.invitations
             where id = $1 and ($2::bytea is null or token_hash = $2)
               for no key update"#,
            invitation.uuid(),
            token_hash.map(|hash| &hash[..]),
        );
        let row = select.fetch_optional(&mut *self.inner).await?;
        row.map(Invitation::try_from).transpose()
    }

    /// Stores an invitation.
    pub(crate) async fn insert_invitation(
        &mut self,
        invitation: &Invitation,
        token_hash: &[u8; 32],
    ) -> Result<()> {
        let insert = sqlx::query!(
            r#"
            insert into keys.invitations
                (id, org_id, email, role, token_hash, invited_by, created_at, expires_at)
            values ($1, $2, $3, $4, $5, $6, $7, $8)"#,
            invitation.id.uuid(),
            invitation.org.uuid(),
            invitation.email,
            invitation.role.as_str(),
            &token_hash[..],
            invitation.invited_by,
            invitation.created_at.to_sqlx(),
            invitation.expires_at.to_sqlx(),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Ends the invitation of an address that has expired, so that it can be invited again.
    pub(crate) async fn end_expired_invitation(&mut self, org: OrgId, email: &str) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.invitations
               set revoked_at = $3
             where org_id = $1 and email = $2
               and accepted_at is null and revoked_at is null and expires_at <= $3"#,
            org.uuid(),
            email,
            self.at.to_sqlx() as _,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Gives an invitation another token and end. It is locked and pending.
    pub(crate) async fn renew_invitation(
        &mut self,
        invitation: InvitationId,
        token_hash: &[u8; 32],
        expires_at: Timestamp,
    ) -> Result<()> {
        let update = sqlx::query!(
            "update keys.invitations set token_hash = $2, expires_at = $3 where id = $1",
            invitation.uuid(),
            &token_hash[..],
            expires_at.to_sqlx(),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Ends an invitation. It is locked and pending.
    pub(crate) async fn end_invitation(&mut self, invitation: InvitationId) -> Result<()> {
        let update = sqlx::query!(
            "update keys.invitations set revoked_at = $2 where id = $1",
            invitation.uuid(),
            self.at.to_sqlx() as _,
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Uses an invitation up. It is locked and pending.
    pub(crate) async fn use_invitation(
        &mut self,
        invitation: InvitationId,
        user: UserId,
    ) -> Result<()> {
        let update = sqlx::query!(
            "update keys.invitations set accepted_at = $2, accepted_by = $3 where id = $1",
            invitation.uuid(),
            self.at.to_sqlx() as _,
            user.uuid(),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }
}
