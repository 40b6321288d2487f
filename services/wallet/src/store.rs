//! Every statement of this service.
//!
//! Rows are locked in one order by everybody, so that nobody waits in a circle: journals by id,
//! then what is made (test wallets by user, buckets of permits by key), then live wallets by id,
//! then test wallets by id, then buckets by id, then leases by id, all of them by one statement. A
//! wallet's or bucket's row lock guards all its sums and those of its leases; a lease's own lock
//! guards the rest of the lease.
//!
//! What is asked or granted for a tenant runs in the tenants' role; lending, settling and what is
//! done by the clock are the service's own work.

mod background;
mod failover;
mod heartbeats;
mod lending;
mod lows;
mod owners;
mod quotas;
mod reading;
mod retiring;
mod rows;
mod wallets;
mod writing;

use std::collections::BTreeSet;

use runtime::Tenants;
use sqlx::PgPool;
use types::LeaseId;
use uuid::Uuid;

use crate::{
    domain::{Book, WalletId},
    error::Error,
};

pub(crate) use background::retired_leases;
pub(crate) use failover::{Standing, lock_book_and_take_over};
pub(crate) use heartbeats::Heartbeat;
pub(crate) use lending::{Borrower, Lent};
pub(crate) use lows::Low;
pub(crate) use quotas::QuotaUse;
pub(crate) use reading::{LedgerLine, WalletView};
/// A connection inside somebody's transaction.
pub(crate) use sqlx::PgConnection as Connection;
pub(crate) use wallets::Grant;
pub(crate) use writing::write;

/// The wallet's tables.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: PgPool,
    tenants: Tenants,
}

impl Store {
    pub(crate) fn new(pool: PgPool, tenants: Tenants) -> Self {
        Self { pool, tenants }
    }
}

/// Locks the leases that exist and before them their wallets, ready for settlement.
pub(crate) async fn lock_book(
    connection: &mut Connection,
    leases: &BTreeSet<LeaseId>,
) -> sqlx::Result<Book> {
    let ids: Vec<Uuid> = leases.iter().map(|lease| lease.uuid()).collect();
    // Whose a lease is never changes, so it can be read before anything is locked.
    let wallets: BTreeSet<WalletId> = rows::wallets_of(connection, &ids).await?;
    let wallets = rows::lock_wallets(connection, &wallets).await?;
    let leases = rows::lock_leases(connection, &ids).await?;
    Ok(Book::new(wallets, leases))
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let is_transient = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            // Connection exceptions, rollbacks (40001, 40P01), lack of resources, a lock that is
            // not to be had in time, operator's intervention such as a shutdown.
            sqlx::Error::Database(database) => database.code().is_some_and(|code| {
                let passing = ["08", "40", "53", "55P03", "57"];
                passing.iter().any(|class| code.starts_with(class))
            }),
            _ => false,
        };
        match is_transient {
            true => Self::Unavailable(error.into()),
            false => Self::Internal(error.into()),
        }
    }
}
