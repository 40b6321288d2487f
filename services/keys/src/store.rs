//! Every statement of the service.
//!
//! Transactions lock in one order: organisation, member, key, audit log, change log. The change
//! log comes last because its lock is one for all.

mod anomalies;
mod audit;
mod catalogue;
mod gateways;
mod invitations;
mod keys;
mod leaks;
mod mail;
mod organisations;
mod outbox;
mod pace;
mod people;
mod peppers;
mod policy;
mod reviews;

use std::net::IpAddr;

use anyhow::anyhow;
use ipnet::IpNet;
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::{Tenant, Tenants};
use serde_json::Value;
use sqlx::{PgPool, Postgres, Transaction};
use types::{KeyId, OrgId};

pub(crate) use self::{
    anomalies::{Heard, Known},
    audit::{AuditEntry, AuditFilter},
    gateways::Report,
    keys::{KeyFilter, KeyUse, NewKeyRow},
    mail::Waiting,
    organisations::{Member, MemberOf, Organisation},
    outbox::{Created, Pending},
    people::{Purpose, User},
    peppers::Instance,
};
use crate::{
    domain::{audit_chain, rights::OrgScope},
    error::{Error, Result},
};

/// Writers of the change log take turns under this number, until they commit.
const CHANGE_LOG_LOCK: i64 = 0x6b65_7973_0001;

/// The tables of schema `keys`.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: PgPool,
    tenants: Tenants,
}

/// A transaction on behalf of somebody, at one moment. Dropped without `commit`, it undoes all.
#[derive(Debug)]
pub(crate) struct Tx {
    inner: Transaction<'static, Postgres>,
    actor: String,
    /// Where whoever acts is.
    address: Option<IpAddr>,
    at: Timestamp,
}

impl Store {
    pub(crate) const fn new(pool: PgPool, tenants: Tenants) -> Self {
        Self { pool, tenants }
    }

    /// Begins a transaction of somebody, who sees and changes what is theirs; `actor` and `at`
    /// stand in what it writes.
    pub(crate) async fn begin(
        &self,
        actor: impl ToString + Into<Tenant>,
        at: Timestamp,
    ) -> Result<Tx> {
        let by = actor.to_string();
        Ok(Tx::new(self.tenants.begin(actor.into()).await?, by, at))
    }

    /// Begins a transaction of the service itself: by nobody yet, about everybody, or one that
    /// makes what its actor sees only afterwards.
    pub(crate) async fn work(&self, actor: impl ToString, at: Timestamp) -> Result<Tx> {
        Ok(Tx::new(
            runtime::begin(&self.pool).await?,
            actor.to_string(),
            at,
        ))
    }

    /// A transaction that sees what a scope lets it.
    async fn seen(&self, scope: OrgScope) -> Result<Transaction<'static, Postgres>> {
        let tenant = match scope {
            OrgScope::Every => Tenant::Every,
            OrgScope::MemberOf(user) => Tenant::User(user),
        };
        Ok(self.tenants.begin(tenant).await?)
    }

    /// The change log's position: everything up to it is visible.
    pub(crate) async fn position(&self) -> Result<i64> {
        let position =
            sqlx::query_scalar!(r#"select coalesce(max(id), 0) as "position!" from keys.changes"#);
        Ok(position.fetch_one(&self.pool).await?)
    }
}

impl Tx {
    fn new(inner: Transaction<'static, Postgres>, actor: String, at: Timestamp) -> Self {
        Self {
            inner,
            actor,
            address: runtime::client_address(),
            at,
        }
    }

    /// The moment of everything that is written here.
    pub(crate) const fn at(&self) -> Timestamp {
        self.at
    }

    /// From here on somebody else acts: who is known only once a link is found.
    pub(crate) fn act_as(&mut self, actor: impl ToString) {
        self.actor = actor.to_string();
    }

    /// Makes everything durable at once.
    pub(crate) async fn commit(self) -> Result<()> {
        Ok(self.inner.commit().await?)
    }

    /// Notes who did what. An entry that names an organisation is shown to its members.
    pub(crate) async fn audit(
        &mut self,
        org: Option<OrgId>,
        action: &str,
        target: impl ToString,
        details: &Value,
    ) -> Result<()> {
        let head = self.hold_audit_head().await?;
        let id = head.id + 1;
        let (actor, target) = (self.actor.clone(), target.to_string());
        let row = audit_chain::Row {
            id,
            org: org.map(OrgId::uuid),
            actor: &actor,
            action,
            target: &target,
            details,
            at: self.at,
            address: self.address,
        };
        let hash = row.hash(&head.hash);
        let insert = sqlx::query!(
            r#"
            with entry as (
                insert into keys.audit_log
                    (id, org_id, actor, action, target, details, at, prev_hash, hash, address)
                values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10))
            update keys.audit_head set id = $1, entries = entries + 1, hash = $9"#,
            id,
            row.org,
            actor,
            action,
            target,
            details,
            self.at.to_sqlx(),
            &head.hash[..],
            &hash[..],
            self.address.map(IpNet::from),
        );
        insert.execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Announces that keys have changed, under each hash a gateway may hold them by. Returns the
    /// position a gateway must have applied to know.
    pub(crate) async fn announce_keys(&mut self, keys: &[KeyId]) -> Result<i64> {
        self.lock_change_log().await?;
        let ids: Vec<_> = keys.iter().map(|key| key.uuid()).collect();
        let insert = sqlx::query_scalar!(
            r#"
            insert into keys.changes (key_hash, key_id, version, at)
            select held.hash, k.id, k.version, $2
              from keys.api_keys k
             cross join lateral unnest(array[k.key_hash, k.previous_key_hash]) held (hash)
             where k.id = any($1) and held.hash is not null
             order by k.id
            returning id"#,
            &ids,
            self.at.to_sqlx() as _,
        );
        let positions = insert.fetch_all(&mut *self.inner).await?;
        Ok(positions.into_iter().max().unwrap_or_default())
    }

    /// Announces that a service, route or scope has changed.
    pub(crate) async fn announce_catalogue(&mut self) -> Result<()> {
        self.announce_change().await?;
        Ok(())
    }

    /// Announces a change of no key. Returns its position.
    pub(crate) async fn announce_change(&mut self) -> Result<i64> {
        self.lock_change_log().await?;
        let insert = sqlx::query_scalar!(
            "insert into keys.changes (at) values ($1) returning id",
            self.at.to_sqlx() as _,
        );
        Ok(insert.fetch_one(&mut *self.inner).await?)
    }

    /// From here to the commit nobody else takes an id of the change log, so that ids become
    /// visible in their order.
    async fn lock_change_log(&mut self) -> Result<()> {
        let lock = sqlx::query!("select pg_advisory_xact_lock($1)", CHANGE_LOG_LOCK);
        lock.execute(&mut *self.inner).await?;
        Ok(())
    }
}

/// A stored value that breaks the rules it was stored by.
fn corrupt(what: &str, problem: impl std::fmt::Display) -> Error {
    Error::Internal(anyhow!("stored {what}: {problem}"))
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let database = error.as_database_error();
        match database.and_then(sqlx::error::DatabaseError::constraint) {
            Some("organisation_has_owner") => return Self::LastOwner,
            Some("organisations_slug_key") => {
                return Self::Conflict("`slug` is taken: choose another");
            }
            Some("organisation_members_org_user_key") => {
                return Self::Conflict("the user is a member already");
            }
            Some("services_name_key" | "routes_place_key" | "users_email_key") => {
                return Self::Conflict("somebody else created it at the same moment: try again");
            }
            Some("invitations_open_key") => {
                return Self::Conflict("the address is invited already: send it again");
            }
            Some("api_keys_rotated_from_key") => {
                return Self::Conflict("the key was rotated already");
            }
            Some("api_keys_key_hash_key") => {
                return Self::Conflict("a key of this hash exists already: try again");
            }
            _ => {}
        }
        let lost = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed => true,
            // Connection, transaction rollback, resources, operator intervention.
            sqlx::Error::Database(inner) => inner.code().is_some_and(|code| {
                ["08", "40", "53", "57"]
                    .iter()
                    .any(|class| code.starts_with(class))
            }),
            _ => false,
        };
        match lost {
            true => Self::Unavailable(error.into()),
            false => Self::Internal(error.into()),
        }
    }
}
