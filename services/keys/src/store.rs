//! Every statement of the service.
//!
//! Transactions lock in one order: organisation, member, key, logs. The logs come last, with the
//! commit, because their lock is one for all.

mod anomalies;
mod audit;
mod catalogue;
mod gateways;
mod invitations;
mod keys;
mod leaks;
mod logs;
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
use jiff::Timestamp;
use runtime::{Tenant, Tenants};
use sqlx::{PgPool, Postgres, Transaction};

use self::logs::Said;
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
    domain::rights::OrgScope,
    error::{Error, Result},
};

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
    said: Said,
    /// Where in the change log its last announcement is; 0: it has made none.
    position: i64,
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
            said: Said::default(),
            position: 0,
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

    /// Writes what was collected for the logs and makes everything durable at once. The position a
    /// gateway must have applied to know all that was announced; 0 when nothing was.
    pub(crate) async fn commit(mut self) -> Result<i64> {
        self.write_logs().await?;
        self.inner.commit().await?;
        Ok(self.position)
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
