//! Wallets by their owner: creation, grants, epochs.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::Tenant;
use types::{Credits, Id, OrgId, UserId};
use uuid::Uuid;

use super::{Connection, Store, rows, write};
use crate::{
    domain::{Book, Epoch, Wallet, WalletId},
    error::{Error, Result},
};

/// A grant of credits by an operator.
pub(crate) struct Grant<'a> {
    pub(crate) org: OrgId,
    pub(crate) credits: Credits,
    pub(crate) reason: &'a str,
    pub(crate) actor: &'a str,
    /// The same key grants once.
    pub(crate) key: &'a str,
}

impl Store {
    /// Gives credits, once per key, and returns the balance. `new_wallet` is used when the
    /// organisation has none yet.
    pub(crate) async fn grant(
        &self,
        grant: &Grant<'_>,
        new_wallet: Uuid,
        now: Timestamp,
    ) -> Result<Credits> {
        let mut tx = self.tenants.begin(Tenant::Org(grant.org)).await?;
        sqlx::query!(
            r#"
            insert into wallet.wallets (id, org_id, created_at, updated_at)
            values ($1, $2, $3, $3)
            on conflict (org_id) do nothing"#,
            new_wallet,
            grant.org.uuid(),
            now.to_sqlx() as _,
        )
        .execute(&mut *tx)
        .await?;
        let id = live_wallet(&mut tx, grant.org)
            .await?
            .ok_or(sqlx::Error::RowNotFound)?;
        let mut book = Book::new(
            rows::lock_wallets(&mut tx, &BTreeSet::from([id])).await?,
            [],
        );
        if let Some(done) = granted(&mut tx, grant).await? {
            // The same grant again: the caller did not hear that it was done.
            return match done == grant.credits {
                true => Ok(book.wallet(id).balance),
                false => Err(Error::GrantDiffers),
            };
        }
        book.grant(id, grant.credits, grant.reason, grant.actor, grant.key);
        let balance = book.wallet(id).balance;
        write(&mut tx, &book.into_changes(), now).await?;
        tx.commit().await?;
        Ok(balance)
    }

    /// Reads a user's test wallet, after making it or its new epoch when that is due.
    pub(crate) async fn test_wallet(
        &self,
        user: UserId,
        new_wallet: Uuid,
        now: Timestamp,
    ) -> Result<Wallet> {
        let mut tx = self.tenants.begin(Tenant::User(user)).await?;
        let mut book = Book::default();
        let id = hold_test_wallet(&mut tx, &mut book, user, new_wallet, now).await?;
        let wallet = book.wallet(id).clone();
        write(&mut tx, &book.into_changes(), now).await?;
        tx.commit().await?;
        Ok(wallet)
    }
}

/// The wallet of an organisation that has one.
pub(super) async fn live_wallet(
    connection: &mut Connection,
    org: OrgId,
) -> sqlx::Result<Option<WalletId>> {
    let id = sqlx::query_scalar!(
        "select id from wallet.wallets where org_id = $1",
        org.uuid()
    );
    let id = id.fetch_optional(connection).await?;
    Ok(id.map(|id| WalletId::Live(Id::new(id))))
}

/// Credits a key has granted already, of a locked wallet.
async fn granted(connection: &mut Connection, grant: &Grant<'_>) -> sqlx::Result<Option<Credits>> {
    let credits = sqlx::query_scalar!(
        r#"
        select e.credits
          from wallet.ledger_entries e
          join wallet.wallets w on w.id = e.wallet_id
         where w.org_id = $1
           and e.kind = 'grant'
           and e.idempotency_key = $2"#,
        grant.org.uuid(),
        grant.key,
    )
    .fetch_optional(connection)
    .await?;
    Ok(credits.map(Credits::new))
}

/// Locks a user's test wallet into the book: made when missing, and in the epoch of `now`. What
/// that changed has to be written with the rest of the book.
pub(super) async fn hold_test_wallet(
    connection: &mut Connection,
    book: &mut Book,
    user: UserId,
    new_wallet: Uuid,
    now: Timestamp,
) -> sqlx::Result<WalletId> {
    let mut made = false;
    let id = match test_wallet(connection, user).await? {
        Some(id) => id,
        None => {
            made = insert_test_wallet(connection, user, new_wallet, now).await?;
            test_wallet(connection, user)
                .await?
                .ok_or(sqlx::Error::RowNotFound)?
        }
    };
    let wallet = rows::lock_wallets(connection, &BTreeSet::from([id])).await?;
    wallet.into_iter().for_each(|wallet| book.hold(wallet));
    if made {
        book.begin_epochs(id);
    } else if let Some(next) = book.roll_over(id, now) {
        begin_epoch(connection, id, next, now).await?;
    }
    Ok(id)
}

async fn test_wallet(connection: &mut Connection, user: UserId) -> sqlx::Result<Option<WalletId>> {
    let id = sqlx::query_scalar!(
        "select id from wallet.test_wallets where user_id = $1",
        user.uuid()
    );
    let id = id.fetch_optional(connection).await?;
    Ok(id.map(|id| WalletId::Test(Id::new(id))))
}

/// False when somebody else was faster.
async fn insert_test_wallet(
    connection: &mut Connection,
    user: UserId,
    new_wallet: Uuid,
    now: Timestamp,
) -> sqlx::Result<bool> {
    let epoch = Epoch::first(now);
    let done = sqlx::query!(
        r#"
        insert into wallet.test_wallets (id, user_id, epoch, reset_at, created_at, updated_at)
        values ($1, $2, $3, $4, $5, $5)
        on conflict (user_id) do nothing"#,
        new_wallet,
        user.uuid(),
        epoch.number,
        epoch.reset_at.to_sqlx() as _,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Keeps I2: a lease of an ended epoch drains, and no longer counts as reserved.
async fn begin_epoch(
    connection: &mut Connection,
    id: WalletId,
    epoch: Epoch,
    now: Timestamp,
) -> sqlx::Result<()> {
    let WalletId::Test(id) = id else {
        return Ok(());
    };
    sqlx::query!(
        r#"
        update wallet.test_wallets
           set epoch = $2, reset_at = $3
         where id = $1"#,
        id.uuid(),
        epoch.number,
        epoch.reset_at.to_sqlx() as _,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        r#"
        with ended as (
            select id
              from wallet.leases
             where test_wallet_id = $1
               and epoch < $2
               and state = 'active'
             order by id
               for update)
        update wallet.leases l
           set state = 'draining', updated_at = $3
          from ended
         where l.id = ended.id"#,
        id.uuid(),
        epoch.number,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}
