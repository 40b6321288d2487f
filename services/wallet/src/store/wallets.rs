//! Wallets by their owner: creation, grants, epochs.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::Tenant;
use types::{Credits, Id, OrgId, UserId};
use uuid::Uuid;

use super::{Connection, Store, owners, rows, write};
use crate::{
    domain::{Account, Book, Wallet, WalletId},
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
        let account = (Account::User(user), now);
        let sources = owners::find(&mut tx, &[account], || new_wallet, now).await?;
        let (mut book, ended) = sources.lock(&mut tx, BTreeSet::new(), now).await?;
        ended
            .lock_with(&mut tx, &mut book, std::iter::empty())
            .await?;
        let found = sources.found.first().copied().flatten();
        let source = found.ok_or(sqlx::Error::RowNotFound)?;
        let wallet = book.wallet(source.wallet).clone();
        write(&mut tx, &book.into_changes(), now).await?;
        tx.commit().await?;
        Ok(wallet)
    }
}

/// The wallet of an organisation that has one.
async fn live_wallet(connection: &mut Connection, org: OrgId) -> sqlx::Result<Option<WalletId>> {
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
