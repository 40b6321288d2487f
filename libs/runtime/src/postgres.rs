//! Connections to PostgreSQL, in roles that own nothing.
//!
//! - Each service has two roles and a pool for each: one for its own work, one for its tenants.
//! - In the tenants' role a transaction says whose rows it is about. One that does not say it, or
//!   forgets a condition, sees nothing of others: row security decides, not the statement.
//! - A connection has its role from its first message on. Nothing it does later can leave it in
//!   the role of whoever logs in.

use std::{fmt, time::Duration};

use sqlx::{
    PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use types::{OrgId, UserId};

use crate::grpc::Actor;

/// Connections of a service for its own work, and for its tenants. Six services with tables in one
/// process stay below the 100 that a server has by default.
const CONNECTIONS_MAX: u32 = 10;
const TENANT_CONNECTIONS_MAX: u32 = 6;
/// A connection that is not to be had within this time is an error.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(5);

/// Whose rows a transaction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// Everybody's: an operator asks.
    Every,
    /// Those of a user, and of the organisations the user is a member of.
    User(UserId),
    /// Those of an organisation.
    Org(OrgId),
}

impl From<Actor> for Tenant {
    fn from(actor: Actor) -> Self {
        match actor {
            Actor::Operator => Self::Every,
            Actor::User(user) => Self::User(user),
        }
    }
}

impl From<UserId> for Tenant {
    fn from(user: UserId) -> Self {
        Self::User(user)
    }
}

/// As the policies read it.
impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("every"),
            Self::User(user) => write!(f, "user:{}", user.uuid()),
            Self::Org(org) => write!(f, "org:{}", org.uuid()),
        }
    }
}

/// The pool of the tenants' role. All it gives away is a transaction with a tenant.
#[derive(Clone, Debug)]
pub struct Tenants {
    pool: PgPool,
}

impl Tenants {
    /// Begins a transaction that sees, and can change, the rows of this tenant only.
    ///
    /// # Errors
    /// PostgreSQL cannot be reached.
    #[expect(
        clippy::disallowed_methods,
        reason = "libraries are built without a database, and this names no table"
    )]
    pub async fn begin(&self, tenant: Tenant) -> sqlx::Result<Transaction<'static, Postgres>> {
        let mut transaction = begin(&self.pool).await?;
        sqlx::query("select set_config('tollgate.scope', $1, true)")
            .bind(tenant.to_string())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }
}

/// Begins a transaction, to its end. `Pool::begin` that is given up half-way (a caller hangs up)
/// leaves its connection in a transaction that nobody ends: what is written there next by whomever
/// looks written, and is lost.
///
/// # Errors
/// PostgreSQL cannot be reached.
#[expect(
    clippy::disallowed_methods,
    reason = "a task of its own gets to its end, which is bounded; given up, it rolls back"
)]
pub async fn begin(pool: &PgPool) -> sqlx::Result<Transaction<'static, Postgres>> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move { pool.begin().await });
    begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

/// The two pools of a service. They connect when first used.
#[derive(Clone, Debug)]
pub(crate) struct Pools {
    pub(crate) own: PgPool,
    pub(crate) tenants: Tenants,
    /// Who logs in, in no role of a service.
    pub(crate) login: PgConnectOptions,
}

impl Pools {
    pub(crate) fn of(service: &str, login: &PgConnectOptions) -> Self {
        let schema = service.replace('-', "_");
        let pool = |role: String, name: String, connections: u32| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_LIMIT)
                .connect_lazy_with(
                    login
                        .clone()
                        .application_name(&name)
                        .options([("role", role)]),
                )
        };
        Self {
            own: pool(
                format!("tollgate_{schema}"),
                format!("tollgate {service}"),
                CONNECTIONS_MAX,
            ),
            tenants: Tenants {
                pool: pool(
                    format!("tollgate_{schema}_tenant"),
                    format!("tollgate {service} tenant"),
                    TENANT_CONNECTIONS_MAX,
                ),
            },
            login: login.clone(),
        }
    }

    pub(crate) async fn close(&self) {
        self.own.close().await;
        self.tenants.pool.close().await;
    }
}

/// One connection in no service's role, as whoever logs in. A server that is just starting is
/// waited for.
pub(crate) async fn login(options: &PgConnectOptions) -> sqlx::Result<sqlx::PgConnection> {
    let once = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_LIMIT)
        .connect_lazy_with(options.clone().application_name("tollgate"));
    Ok(once.acquire().await?.detach())
}
