//! Reports of leaked keys.

use jiff_sqlx::ToSqlx;
use types::KeyId;

use super::Tx;
use crate::{domain::key::ApiKey, error::Result};

impl Tx {
    /// What was done when the key was reported from this place; `None`: it was not. The
    /// organisation is locked.
    pub(crate) async fn leak_action(&mut self, key: KeyId, url: &str) -> Result<Option<String>> {
        let select = sqlx::query_scalar!(
            "select action from keys.leak_reports where key_id = $1 and url = $2",
            key.uuid(),
            url,
        );
        Ok(select.fetch_optional(&mut *self.inner).await?)
    }

    /// Notes a report and what was done. The organisation is locked.
    pub(crate) async fn note_leak(
        &mut self,
        key: &ApiKey,
        url: &str,
        source: &str,
        action: &str,
    ) -> Result<()> {
        let insert = sqlx::query!(
            r#"
            insert into keys.leak_reports (key_id, url, org_id, source, action, reported_at)
            values ($1, $2, $3, $4, $5, $6)"#,
            key.id.uuid(),
            url,
            key.org.uuid(),
            source,
            action,
            self.at.to_sqlx(),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }
}
