//! Live keys whose creator has left.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::{KeyId, OrgId, UserId};

use super::{Store, Tx};
use crate::{domain::rights::OrgScope, error::Result};

/// A key that waits for somebody to decide whether it goes on.
#[derive(Clone, Debug)]
pub(crate) struct Review {
    pub(crate) key: KeyId,
    pub(crate) left_at: Timestamp,
    /// Of who left.
    pub(crate) email: String,
}

impl Store {
    /// Reviews of keys that still work and were created before `before`, newest first.
    pub(crate) async fn reviews(
        &self,
        scope: OrgScope,
        org: OrgId,
        (before, limit): (Option<KeyId>, i64),
        now: Timestamp,
    ) -> Result<Vec<Review>> {
        let mut tx = self.seen(scope).await?;
        let select = sqlx::query!(
            r#"
            select r.key_id, r.left_at, u.email as "email!"
              from keys.key_reviews r
              join keys.api_keys k on k.id = r.key_id
              join keys.people_of($1) u on u.id = k.created_by
             where r.org_id = $1 and r.kept_at is null
               and k.revoked_at is null and (k.expires_at is null or k.expires_at > $5)
               and ($2::uuid is null or exists (
                   select 1 from keys.organisation_members m
                    where m.org_id = r.org_id and m.user_id = $2))
               and ($3::uuid is null or r.key_id < $3)
             order by r.key_id desc
             limit $4"#,
            org.uuid(),
            scope.member(),
            before.map(KeyId::uuid),
            limit,
            now.to_sqlx() as _,
        );
        let rows = select.fetch_all(&mut *tx).await?;
        let reviews = rows.into_iter().map(|row| Review {
            key: KeyId::new(row.key_id),
            left_at: row.left_at.to_jiff(),
            email: row.email,
        });
        Ok(reviews.collect())
    }
}

impl Tx {
    /// Asks to review the live keys of who leaves now; how many there are. The organisation is
    /// locked.
    pub(crate) async fn ask_for_reviews(&mut self, org: OrgId, leaving: UserId) -> Result<u64> {
        let insert = sqlx::query!(
            r#"
            insert into keys.key_reviews (key_id, org_id, left_at)
            select k.id, k.org_id, $3
              from keys.api_keys k
             where k.org_id = $1 and k.created_by = $2 and k.environment = 'production'
               and k.revoked_at is null and (k.expires_at is null or k.expires_at > $3)
             order by k.id
            on conflict (key_id) do update
               set left_at = excluded.left_at, kept_at = null, kept_by = null"#,
            org.uuid(),
            leaving.uuid(),
            self.at.to_sqlx() as _,
        );
        Ok(insert.execute(&mut *self.inner).await?.rows_affected())
    }

    /// Notes that a key goes on; false when nobody asks, or somebody has decided. The key is
    /// locked.
    pub(crate) async fn keep_key(&mut self, key: KeyId) -> Result<bool> {
        let update = sqlx::query!(
            r#"
            update keys.key_reviews
               set kept_at = $2, kept_by = $3
             where key_id = $1 and kept_at is null"#,
            key.uuid(),
            self.at.to_sqlx() as _,
            self.actor,
        );
        Ok(update.execute(&mut *self.inner).await?.rows_affected() == 1)
    }
}
