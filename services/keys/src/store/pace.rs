//! How many keys an organisation makes.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::OrgId;

use super::Tx;
use crate::error::Result;

impl Tx {
    /// When the n-th newest key of an organisation was made; `None`: it never made so many. The
    /// organisation is locked.
    pub(crate) async fn key_created(&mut self, org: OrgId, nth: i64) -> Result<Option<Timestamp>> {
        let select = sqlx::query_scalar!(
            r#"
            select created_at
              from keys.api_keys
             where org_id = $1
             order by id desc
            offset $2
             limit 1"#,
            org.uuid(),
            nth.saturating_sub(1),
        );
        let found = select.fetch_optional(&mut *self.inner).await?;
        Ok(found.map(jiff_sqlx::Timestamp::to_jiff))
    }

    /// Notes that the organisation makes too many keys; false when that was noted since. The
    /// organisation is locked.
    pub(crate) async fn first_refusal(&mut self, org: OrgId, since: Timestamp) -> Result<bool> {
        let update = sqlx::query!(
            r#"
            update keys.organisations
               set creation_refused_at = $2
             where id = $1 and (creation_refused_at is null or creation_refused_at <= $3)"#,
            org.uuid(),
            self.at.to_sqlx() as _,
            since.to_sqlx() as _,
        );
        Ok(update.execute(&mut *self.inner).await?.rows_affected() == 1)
    }
}
