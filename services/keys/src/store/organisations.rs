//! Users, organisations and members.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::Tenant;
use sqlx::PgConnection;
use types::{Id, OrgId, Role, Slug, UserId};
use uuid::Uuid;

use super::{Store, Tx, corrupt};
use crate::{
    domain::{organisation::Membership, rights::OrgScope},
    error::{Error, Result},
};

/// A stored organisation.
#[derive(Debug)]
pub(crate) struct Organisation {
    pub(crate) id: OrgId,
    pub(crate) name: String,
    pub(crate) slug: String,
    pub(crate) owner: UserId,
    pub(crate) created_at: Timestamp,
    pub(crate) version: i64,
}

/// A member, as lists show it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) user: UserId,
    pub(crate) email: String,
    pub(crate) role: Role,
    pub(crate) joined_at: Timestamp,
    pub(crate) version: i64,
}

/// An organisation as one of its members sees it.
#[derive(Debug)]
pub(crate) struct MemberOf {
    pub(crate) org: OrgId,
    pub(crate) name: String,
    pub(crate) slug: String,
    pub(crate) role: Role,
    pub(crate) joined_at: Timestamp,
}

struct OrganisationRow {
    id: Uuid,
    name: String,
    slug: String,
    owner_id: Uuid,
    created_at: jiff_sqlx::Timestamp,
    version: i64,
}

impl From<OrganisationRow> for Organisation {
    fn from(row: OrganisationRow) -> Self {
        Self {
            id: OrgId::new(row.id),
            name: row.name,
            slug: row.slug,
            owner: UserId::new(row.owner_id),
            created_at: row.created_at.to_jiff(),
            version: row.version,
        }
    }
}

pub(super) fn role(text: &str) -> Result<Role> {
    text.parse().map_err(|error| corrupt("role", error))
}

async fn role_of(connection: &mut PgConnection, org: OrgId, user: UserId) -> Result<Option<Role>> {
    let select = sqlx::query_scalar!(
        "select role from keys.organisation_members where org_id = $1 and user_id = $2",
        org.uuid(),
        user.uuid(),
    );
    let found = select.fetch_optional(connection).await?;
    found.map(|text| role(&text)).transpose()
}

impl Store {
    /// A user's role; `None` for strangers.
    pub(crate) async fn role(&self, org: OrgId, user: UserId) -> Result<Option<Role>> {
        role_of(
            &mut *self.tenants.begin(Tenant::User(user)).await?,
            org,
            user,
        )
        .await
    }

    /// One organisation.
    pub(crate) async fn organisation(&self, scope: OrgScope, org: OrgId) -> Result<Organisation> {
        let mut tx = self.seen(scope).await?;
        let select = sqlx::query_as!(
            OrganisationRow,
            r#"
            select o.id, o.name, o.slug, o.owner_id, o.created_at, o.version
              from keys.organisations o
             where o.id = $1
               and ($2::uuid is null or exists (
                   select 1 from keys.organisation_members m
                    where m.org_id = o.id and m.user_id = $2))"#,
            org.uuid(),
            scope.member(),
        );
        let found = select.fetch_optional(&mut *tx).await?;
        found
            .map(Organisation::from)
            .ok_or_else(|| Error::not_found("organisation", org))
    }

    /// Organisations created after `after`, oldest first.
    pub(crate) async fn organisations(
        &self,
        scope: OrgScope,
        after: Option<OrgId>,
        limit: i64,
    ) -> Result<Vec<Organisation>> {
        let mut tx = self.seen(scope).await?;
        let select = sqlx::query_as!(
            OrganisationRow,
            r#"
            select o.id, o.name, o.slug, o.owner_id, o.created_at, o.version
              from keys.organisations o
             where ($1::uuid is null or o.id > $1)
               and ($2::uuid is null or exists (
                   select 1 from keys.organisation_members m
                    where m.org_id = o.id and m.user_id = $2))
             order by o.id
             limit $3"#,
            after.map(OrgId::uuid),
            scope.member(),
            limit,
        );
        let rows = select.fetch_all(&mut *tx).await?;
        Ok(rows.into_iter().map(Organisation::from).collect())
    }

    /// All members, by joining date.
    pub(crate) async fn members(&self, scope: OrgScope, org: OrgId) -> Result<Vec<Member>> {
        let mut tx = self.seen(scope).await?;
        let select = sqlx::query!(
            r#"
            select m.user_id, u.email as "email!", m.role, m.joined_at, m.version
              from keys.organisation_members m
              join keys.people_of($1) u on u.id = m.user_id
             where m.org_id = $1
               and ($2::uuid is null or exists (
                   select 1 from keys.organisation_members me
                    where me.org_id = m.org_id and me.user_id = $2))
             order by m.joined_at, m.id"#,
            org.uuid(),
            scope.member(),
        );
        let mut members = Vec::new();
        for row in select.fetch_all(&mut *tx).await? {
            members.push(Member {
                user: UserId::new(row.user_id),
                email: row.email,
                role: role(&row.role)?,
                joined_at: row.joined_at.to_jiff(),
                version: row.version,
            });
        }
        Ok(members)
    }
}

impl Store {
    /// The organisations of a user, by joining date.
    pub(crate) async fn organisations_of(&self, user: UserId) -> Result<Vec<MemberOf>> {
        let mut tx = self.tenants.begin(Tenant::User(user)).await?;
        let select = sqlx::query!(
            r#"
            select o.id, o.name, o.slug, m.role, m.joined_at
              from keys.organisation_members m
              join keys.organisations o on o.id = m.org_id
             where m.user_id = $1
             order by m.joined_at, m.id"#,
            user.uuid(),
        );
        let mut organisations = Vec::new();
        for row in select.fetch_all(&mut *tx).await? {
            organisations.push(MemberOf {
                org: OrgId::new(row.id),
                name: row.name,
                slug: row.slug,
                role: role(&row.role)?,
                joined_at: row.joined_at.to_jiff(),
            });
        }
        Ok(organisations)
    }
}

impl Tx {
    /// The user of an address; `new` becomes one if there is none.
    pub(crate) async fn user_of(&mut self, email: &str, new: UserId) -> Result<UserId> {
        // The update changes nothing: it makes `returning` answer for a row that exists.
        let upsert = sqlx::query_scalar!(
            r#"
            insert into keys.users (id, email, created_at, updated_at)
            values ($1, $2, $3, $3)
            on conflict (email) do update set email = excluded.email
            returning id"#,
            new.uuid(),
            email,
            self.at.to_sqlx(),
        );
        Ok(UserId::new(upsert.fetch_one(&mut *self.inner).await?))
    }

    /// Slugs that begin like this one.
    pub(crate) async fn slugs_like(&mut self, stem: &str) -> Result<Vec<String>> {
        let select = sqlx::query_scalar!(
            "select slug from keys.organisations where slug = $1 or slug like $1 || '-%'",
            stem,
        );
        Ok(select.fetch_all(&mut *self.inner).await?)
    }

    /// Creates an organisation; false when the slug is taken.
    pub(crate) async fn insert_organisation(
        &mut self,
        org: OrgId,
        name: &str,
        slug: &Slug,
        owner: UserId,
    ) -> Result<bool> {
        let insert = sqlx::query!(
            r#"
            insert into keys.organisations (id, name, slug, owner_id, created_at, updated_at)
            values ($1, $2, $3, $4, $5, $5)
            on conflict (slug) do nothing"#,
            org.uuid(),
            name,
            slug.as_str(),
            owner.uuid(),
            self.at.to_sqlx(),
        );
        Ok(insert.execute(&mut *self.inner).await?.rows_affected() == 1)
    }

    /// Adds a member.
    pub(crate) async fn insert_member(
        &mut self,
        membership: Id<Membership>,
        org: OrgId,
        user: UserId,
        role: Role,
    ) -> Result<()> {
        let insert = sqlx::query!(
            r#"
            insert into keys.organisation_members (id, org_id, user_id, role, joined_at)
            values ($1, $2, $3, $4, $5)"#,
            membership.uuid(),
            org.uuid(),
            user.uuid(),
            role.as_str(),
            self.at.to_sqlx(),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Locks an organisation against other changes of its members; its owner.
    pub(crate) async fn lock_organisation(&mut self, org: OrgId) -> Result<UserId> {
        let select = sqlx::query_scalar!(
            "select owner_id from keys.organisations where id = $1 for no key update",
            org.uuid(),
        );
        let owner = select.fetch_optional(&mut *self.inner).await?;
        owner
            .map(UserId::new)
            .ok_or_else(|| Error::not_found("organisation", org))
    }

    /// A user's role; `None` for strangers.
    pub(crate) async fn role(&mut self, org: OrgId, user: UserId) -> Result<Option<Role>> {
        role_of(&mut self.inner, org, user).await
    }

    /// The organisation as it is now. It is locked.
    pub(crate) async fn organisation(&mut self, org: OrgId) -> Result<Organisation> {
        let select = sqlx::query_as!(
            OrganisationRow,
            r#"
            select o.id, o.name, o.slug, o.owner_id, o.created_at, o.version
              from keys.organisations o
             where o.id = $1"#,
            org.uuid(),
        );
        Ok(select.fetch_one(&mut *self.inner).await?.into())
    }

    /// Changes name and slug. The organisation is locked.
    pub(crate) async fn save_organisation(
        &mut self,
        org: OrgId,
        name: &str,
        slug: &str,
    ) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.organisations
               set name = $2, slug = $3, updated_at = $4, version = version + 1
             where id = $1"#,
            org.uuid(),
            name,
            slug,
            self.at.to_sqlx(),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// One member as lists show it. The organisation is locked.
    pub(crate) async fn member(&mut self, org: OrgId, user: UserId) -> Result<Member> {
        let select = sqlx::query!(
            r#"
            select u.email as "email!", m.role, m.joined_at, m.version
              from keys.organisation_members m
              join keys.people_of($1) u on u.id = m.user_id
             where m.org_id = $1 and m.user_id = $2"#,
            org.uuid(),
            user.uuid(),
        );
        let row = select.fetch_optional(&mut *self.inner).await?;
        let row = row.ok_or_else(|| Error::not_found("member", user))?;
        Ok(Member {
            user,
            email: row.email,
            role: role(&row.role)?,
            joined_at: row.joined_at.to_jiff(),
            version: row.version,
        })
    }

    /// Everybody's role, by joining date, and nobody makes keys meanwhile. The organisation is
    /// locked.
    pub(crate) async fn memberships(&mut self, org: OrgId) -> Result<Vec<Membership>> {
        let select = sqlx::query!(
            r#"
            select user_id, role
              from keys.organisation_members
             where org_id = $1
             order by joined_at, id
               for no key update"#,
            org.uuid(),
        );
        let mut memberships = Vec::new();
        for row in select.fetch_all(&mut *self.inner).await? {
            memberships.push(Membership {
                user: UserId::new(row.user_id),
                role: role(&row.role)?,
            });
        }
        Ok(memberships)
    }

    /// Keeps a membership from ending before this transaction has; false for strangers.
    pub(crate) async fn hold_membership(&mut self, org: OrgId, user: UserId) -> Result<bool> {
        let select = sqlx::query_scalar!(
            r#"
            select id
              from keys.organisation_members
             where org_id = $1 and user_id = $2
               for share"#,
            org.uuid(),
            user.uuid(),
        );
        Ok(select.fetch_optional(&mut *self.inner).await?.is_some())
    }

    /// Changes a member's role. The organisation is locked.
    pub(crate) async fn set_role(&mut self, org: OrgId, user: UserId, role: Role) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.organisation_members
               set role = $3, version = version + 1
             where org_id = $1 and user_id = $2"#,
            org.uuid(),
            user.uuid(),
            role.as_str(),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Is the address a member's?
    pub(crate) async fn is_member(&mut self, org: OrgId, email: &str) -> Result<bool> {
        let select = sqlx::query_scalar!(
            r#"
            select exists (
                select 1
                  from keys.organisation_members m
                  join keys.people_of($1) u on u.id = m.user_id
                 where m.org_id = $1 and u.email = $2) as "is_member!""#,
            org.uuid(),
            email,
        );
        Ok(select.fetch_one(&mut *self.inner).await?)
    }

    /// The name of an organisation. It is locked.
    pub(crate) async fn organisation_name(&mut self, org: OrgId) -> Result<String> {
        let select = sqlx::query_scalar!(
            "select name from keys.organisations where id = $1",
            org.uuid(),
        );
        Ok(select.fetch_one(&mut *self.inner).await?)
    }

    /// Ends a membership, and with it what the member may write: the logs are written before.
    pub(crate) async fn delete_member(&mut self, org: OrgId, user: UserId) -> Result<()> {
        self.write_logs().await?;
        let delete = sqlx::query!(
            "delete from keys.organisation_members where org_id = $1 and user_id = $2",
            org.uuid(),
            user.uuid(),
        );
        delete.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Names another owner. The organisation is locked.
    pub(crate) async fn set_owner(&mut self, org: OrgId, owner: UserId) -> Result<()> {
        let update = sqlx::query!(
            r#"
            update keys.organisations
               set owner_id = $2, updated_at = $3, version = version + 1
             where id = $1"#,
            org.uuid(),
            owner.uuid(),
            self.at.to_sqlx(),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }
}
