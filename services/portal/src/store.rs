//! Every statement of this service.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::{Tenant, Tenants};
use sqlx::PgPool;
use types::UserId;

use crate::{
    domain::{IDEMPOTENCY_LIFE, SESSION_IDLE, SESSION_TOUCH, SessionId},
    error::{Error, Result},
};

/// A session that was found.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) user: UserId,
    pub(crate) epoch: i64,
    pub(crate) last_seen_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) second_factor_at: Option<Timestamp>,
}

/// A session as its user sees it.
#[derive(Clone, Debug)]
pub(crate) struct SessionUse {
    pub(crate) id: SessionId,
    pub(crate) created_at: Timestamp,
    pub(crate) last_seen_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) second_factor_at: Option<Timestamp>,
    pub(crate) address: IpAddr,
    pub(crate) user_agent: String,
}

/// A session to be.
pub(crate) struct NewSession<'a> {
    pub(crate) id: SessionId,
    pub(crate) token_hash: [u8; 32],
    pub(crate) user: UserId,
    pub(crate) epoch: i64,
    pub(crate) expires_at: Timestamp,
    pub(crate) second_factor_at: Option<Timestamp>,
    pub(crate) address: IpAddr,
    pub(crate) user_agent: &'a str,
}

/// A request that shall be carried out once.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// Whose key it is.
    pub(crate) tenant: Tenant,
    pub(crate) key: String,
    pub(crate) target: String,
    pub(crate) request_hash: [u8; 32],
}

/// What became of a claim.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// Nobody had it: carry the request out.
    New,
    /// It was answered before.
    Answered { status: i16, body: Vec<u8> },
    /// It was begun before, with no answer so far.
    Pending,
    /// The key stands for another request.
    Other,
}

/// The portal's tables.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: PgPool,
    tenants: Tenants,
}

impl Store {
    pub(crate) fn new(pool: PgPool, tenants: Tenants) -> Self {
        Self { pool, tenants }
    }

    pub(crate) async fn insert_session(&self, new: &NewSession<'_>, now: Timestamp) -> Result<()> {
        let mut tx = self.tenants.begin(Tenant::User(new.user)).await?;
        sqlx::query!(
            "insert into portal.sessions
                (id, token_hash, user_id, session_epoch, created_at, last_seen_at, expires_at,
                 second_factor_at, address, user_agent)
             values ($1, $2, $3, $4, $5, $5, $6, $7, $8, $9)",
            new.id.uuid(),
            &new.token_hash[..],
            new.user.uuid(),
            new.epoch,
            now.to_sqlx(),
            new.expires_at.to_sqlx(),
            new.second_factor_at.map(|at| at.to_sqlx()),
            IpNet::from(new.address),
            new.user_agent,
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Finds a session by the hash of its token, whether it lives or not.
    pub(crate) async fn session(&self, token_hash: &[u8; 32]) -> Result<Option<Session>> {
        let row = sqlx::query!(
            "select id, user_id, session_epoch, last_seen_at, expires_at, second_factor_at
               from portal.sessions
              where token_hash = $1",
            &token_hash[..],
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Session {
            id: SessionId::new(row.id),
            user: UserId::new(row.user_id),
            epoch: row.session_epoch,
            last_seen_at: row.last_seen_at.to_jiff(),
            expires_at: row.expires_at.to_jiff(),
            second_factor_at: row.second_factor_at.map(|at| at.to_jiff()),
        }))
    }

    /// Notes a session's use, unless that was done a moment ago.
    pub(crate) async fn touch_session(&self, session: &Session, now: Timestamp) -> Result<()> {
        if now.duration_since(session.last_seen_at) < SESSION_TOUCH {
            return Ok(());
        }
        let mut tx = self.tenants.begin(Tenant::User(session.user)).await?;
        sqlx::query!(
            "update portal.sessions
                set last_seen_at = greatest(last_seen_at, $3)
              where id = $1 and user_id = $2",
            session.id.uuid(),
            session.user.uuid(),
            now.to_sqlx(),
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Notes that a second factor was presented, and the epoch that goes with it.
    pub(crate) async fn step_up(
        &self,
        user: UserId,
        session: SessionId,
        epoch: i64,
        at: Timestamp,
    ) -> Result<()> {
        let mut tx = self.tenants.begin(Tenant::User(user)).await?;
        sqlx::query!(
            "update portal.sessions
                set second_factor_at = $4, session_epoch = $3
              where id = $1 and user_id = $2",
            session.uuid(),
            user.uuid(),
            epoch,
            at.to_sqlx(),
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Sessions of a user that live, the last used first. Those of another epoch have ended.
    pub(crate) async fn sessions_of(
        &self,
        user: UserId,
        epoch: i64,
        now: Timestamp,
    ) -> Result<Vec<SessionUse>> {
        let mut tx = self.tenants.begin(Tenant::User(user)).await?;
        let rows = sqlx::query!(
            r#"
            select id, created_at, last_seen_at, expires_at, second_factor_at,
                   address as "address: IpNet", user_agent
              from portal.sessions
             where user_id = $1 and session_epoch = $2 and expires_at > $3 and last_seen_at > $4
             order by last_seen_at desc, id"#,
            user.uuid(),
            epoch,
            now.to_sqlx() as _,
            (now - SESSION_IDLE).to_sqlx() as _,
        )
        .fetch_all(&mut *tx)
        .await?;
        let sessions = rows.into_iter().map(|row| SessionUse {
            id: SessionId::new(row.id),
            created_at: row.created_at.to_jiff(),
            last_seen_at: row.last_seen_at.to_jiff(),
            expires_at: row.expires_at.to_jiff(),
            second_factor_at: row.second_factor_at.map(|at| at.to_jiff()),
            address: row.address.addr(),
            user_agent: row.user_agent,
        });
        Ok(sessions.collect())
    }

    /// Ends a session of a user; false when there is none.
    pub(crate) async fn delete_session(&self, user: UserId, session: SessionId) -> Result<bool> {
        let mut tx = self.tenants.begin(Tenant::User(user)).await?;
        let deleted = sqlx::query!(
            "delete from portal.sessions where id = $1 and user_id = $2",
            session.uuid(),
            user.uuid(),
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(deleted.rows_affected() == 1)
    }

    /// Ends every session of a user but this one; how many there were.
    pub(crate) async fn delete_other_sessions(&self, user: UserId, kept: SessionId) -> Result<u64> {
        let mut tx = self.tenants.begin(Tenant::User(user)).await?;
        let deleted = sqlx::query!(
            "delete from portal.sessions where user_id = $1 and id <> $2",
            user.uuid(),
            kept.uuid(),
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(deleted.rows_affected())
    }

    /// Claims a request for its key. Of several at once exactly one hears `New`.
    pub(crate) async fn claim(&self, claim: &Claim, now: Timestamp) -> Result<Claimed> {
        let mut tx = self.tenants.begin(claim.tenant).await?;
        let scope = claim.tenant.to_string();
        let old = (now - IDEMPOTENCY_LIFE).to_sqlx();
        sqlx::query!(
            "delete from portal.idempotency_keys
              where scope = $1 and key = $2 and created_at <= $3",
            scope,
            claim.key,
            old,
        )
        .execute(&mut *tx)
        .await?;
        let inserted = sqlx::query!(
            "insert into portal.idempotency_keys (scope, key, target, request_hash, created_at)
             values ($1, $2, $3, $4, $5)
             on conflict (scope, key) do nothing",
            scope,
            claim.key,
            claim.target,
            &claim.request_hash[..],
            now.to_sqlx(),
        )
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 1 {
            tx.commit().await?;
            return Ok(Claimed::New);
        }
        let row = sqlx::query!(
            "select request_hash, status, body
               from portal.idempotency_keys
              where scope = $1 and key = $2",
            scope,
            claim.key,
        )
        .fetch_optional(&mut *tx)
        .await?;
        Ok(match row {
            // Released in between: the first one was refused just now.
            None => Claimed::Pending,
            Some(row) if row.request_hash != claim.request_hash => Claimed::Other,
            Some(row) => match (row.status, row.body) {
                (Some(status), Some(body)) => Claimed::Answered { status, body },
                _ => Claimed::Pending,
            },
        })
    }

    /// Keeps the answer for repetitions.
    pub(crate) async fn answer(&self, claim: &Claim, status: i16, body: &[u8]) -> Result<()> {
        let mut tx = self.tenants.begin(claim.tenant).await?;
        sqlx::query!(
            "update portal.idempotency_keys
                set status = $3, body = $4
              where scope = $1 and key = $2 and status is null",
            claim.tenant.to_string(),
            claim.key,
            status,
            body,
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Lets go of a request that was refused: nothing happened.
    pub(crate) async fn release(&self, claim: &Claim) -> Result<()> {
        let mut tx = self.tenants.begin(claim.tenant).await?;
        sqlx::query!(
            "delete from portal.idempotency_keys
              where scope = $1 and key = $2 and status is null",
            claim.tenant.to_string(),
            claim.key,
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Removes what has ended.
    pub(crate) async fn forget(&self, now: Timestamp) -> Result<()> {
        sqlx::query!(
            "delete from portal.sessions where expires_at <= $1 or last_seen_at <= $2",
            now.to_sqlx(),
            (now - SESSION_IDLE).to_sqlx(),
        )
        .execute(&self.pool)
        .await?;
        sqlx::query!(
            "delete from portal.idempotency_keys where created_at <= $1",
            (now - IDEMPOTENCY_LIFE).to_sqlx(),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let is_transient = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            // Connection exceptions, rollbacks, lack of resources, operator's intervention.
            sqlx::Error::Database(database) => database
                .code()
                .is_some_and(|code| ["08", "40", "53", "57"].iter().any(|c| code.starts_with(c))),
            _ => false,
        };
        match is_transient {
            true => Self::Unavailable(error.into()),
            false => Self::Internal(error.into()),
        }
    }
}
