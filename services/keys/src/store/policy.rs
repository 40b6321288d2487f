//! The rules of organisations.

use jiff_sqlx::ToSqlx;
use sqlx::PgConnection;
use types::OrgId;

use super::{Store, Tx};
use crate::{
    domain::{
        policy::{self, AnomalyAction, LeakAction, Policy},
        rights::OrgScope,
    },
    error::{Error, Result},
};

async fn read(connection: &mut PgConnection, org: OrgId) -> Result<Policy> {
    let select = sqlx::query!(
        r#"
        select live_keys_need_second_factor, key_lifetime_seconds_max,
               developers_may_create_live_keys, leak_action, anomaly_action, allowed_origins
          from keys.organisations
         where id = $1"#,
        org.uuid(),
    );
    let row = select.fetch_optional(connection).await?;
    let row = row.ok_or_else(|| Error::not_found("organisation", org))?;
    Ok(Policy {
        live_keys_need_second_factor: row.live_keys_need_second_factor,
        key_lifetime_seconds_max: row.key_lifetime_seconds_max,
        developers_may_create_live_keys: row.developers_may_create_live_keys,
        leak_action: LeakAction::parse(&row.leak_action)?,
        anomaly_action: AnomalyAction::parse(&row.anomaly_action)?,
        allowed_origins: policy::origins(&row.allowed_origins)?,
    })
}

impl Store {
    /// The rules of an organisation.
    pub(crate) async fn policy(&self, scope: OrgScope, org: OrgId) -> Result<Policy> {
        read(&mut *self.seen(scope).await?, org).await
    }
}

impl Tx {
    /// The rules of an organisation. It is locked.
    pub(crate) async fn policy(&mut self, org: OrgId) -> Result<Policy> {
        read(&mut self.inner, org).await
    }

    /// Sets the rules of an organisation. It is locked. If its origins change, gateways are told:
    /// it notes where in the change log.
    pub(crate) async fn set_policy(
        &mut self,
        org: OrgId,
        policy: &Policy,
        new_origins: bool,
    ) -> Result<()> {
        if new_origins {
            self.announce_change();
            self.write_logs().await?;
        }
        let update = sqlx::query!(
            r#"
            update keys.organisations
               set live_keys_need_second_factor = $2, key_lifetime_seconds_max = $3,
                   developers_may_create_live_keys = $4, leak_action = $5,
                   anomaly_action = $6, updated_at = $7, allowed_origins = $8,
                   origins_change = coalesce($9, origins_change), version = version + 1
             where id = $1"#,
            org.uuid(),
            policy.live_keys_need_second_factor,
            policy.key_lifetime_seconds_max,
            policy.developers_may_create_live_keys,
            policy.leak_action.as_str(),
            policy.anomaly_action.as_str(),
            self.at.to_sqlx(),
            &policy.origin_texts(),
            new_origins.then_some(self.position),
        );
        update.execute(&mut *self.inner).await?;
        Ok(())
    }
}
