//! Rows as domain types, under lock.

use std::collections::BTreeSet;

use jiff_sqlx::Timestamp;
use types::{Credits, Id, JournalId, LeaseId};
use uuid::Uuid;

use crate::{
    domain::{Epoch, Lease, LeaseState, Level, Wallet, WalletId, permits},
    store::Connection,
};

/// The columns of a lease, the epoch its test wallet is in, and the end of its permits' period.
struct LeaseRow {
    id: Uuid,
    wallet_id: Option<Uuid>,
    test_wallet_id: Option<Uuid>,
    quota_bucket_id: Option<Uuid>,
    epoch: i64,
    wallet_epoch: Option<i64>,
    reset_at: Option<Timestamp>,
    period_end: Option<Timestamp>,
    journal_id: Uuid,
    granted: i64,
    returned_cum: i64,
    settled_cum: i64,
    known_cum: i64,
    final_cum: Option<i64>,
    state: String,
    created_at: Timestamp,
}

/// Reads which of the three columns is set.
pub(super) fn wallet_id(
    live: Option<Uuid>,
    test: Option<Uuid>,
    quota: Option<Uuid>,
) -> sqlx::Result<WalletId> {
    match (live, test, quota) {
        (Some(live), None, None) => Ok(WalletId::Live(Id::new(live))),
        (None, Some(test), None) => Ok(WalletId::Test(Id::new(test))),
        (None, None, Some(quota)) => Ok(WalletId::Quota(Id::new(quota))),
        _ => Err(sqlx::Error::Decode("a lease has exactly one owner".into())),
    }
}

/// The columns `wallet_id`, `test_wallet_id`, `quota_bucket_id` of what a wallet lends.
pub(super) fn owner(wallet: WalletId) -> [Option<Uuid>; 3] {
    match wallet {
        WalletId::Live(id) => [Some(id.uuid()), None, None],
        WalletId::Test(id) => [None, Some(id.uuid()), None],
        WalletId::Quota(id) => [None, None, Some(id.uuid())],
    }
}

fn state(text: &str) -> sqlx::Result<LeaseState> {
    match text {
        "active" => Ok(LeaseState::Active),
        "draining" => Ok(LeaseState::Draining),
        "closed" => Ok(LeaseState::Closed),
        "orphaned" => Ok(LeaseState::Orphaned),
        "written_off" => Ok(LeaseState::WrittenOff),
        other => Err(sqlx::Error::Decode(
            format!("`{other}` is no state of a lease").into(),
        )),
    }
}

fn epoch(number: Option<i64>, reset_at: Option<Timestamp>) -> Option<Epoch> {
    let (number, reset_at) = number.zip(reset_at)?;
    Some(Epoch {
        number,
        reset_at: reset_at.to_jiff(),
    })
}

impl LeaseRow {
    fn into_lease(self) -> sqlx::Result<Lease> {
        Ok(Lease {
            id: LeaseId::new(self.id),
            wallet: wallet_id(self.wallet_id, self.test_wallet_id, self.quota_bucket_id)?,
            epoch: self.epoch,
            wallet_epoch: epoch(self.wallet_epoch, self.reset_at),
            period_end: self.period_end.map(Timestamp::to_jiff),
            journal: JournalId::new(self.journal_id),
            granted: Credits::new(self.granted),
            returned_cum: Credits::new(self.returned_cum),
            settled_cum: Credits::new(self.settled_cum),
            known_cum: Credits::new(self.known_cum),
            final_cum: self.final_cum.map(Credits::new),
            state: state(&self.state)?,
            created_at: self.created_at.to_jiff(),
        })
    }
}

/// Reads whose the leases are that exist.
pub(super) async fn wallets_of(
    connection: &mut Connection,
    leases: &[Uuid],
) -> sqlx::Result<BTreeSet<WalletId>> {
    let rows = sqlx::query!(
        r#"
        select distinct wallet_id, test_wallet_id, quota_bucket_id
          from wallet.leases
         where id = any($1)"#,
        leases,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| wallet_id(row.wallet_id, row.test_wallet_id, row.quota_bucket_id))
        .collect()
}

/// Locks wallets: live ones, then test ones, then buckets of permits, each kind by id.
pub(super) async fn lock_wallets(
    connection: &mut Connection,
    wallets: &BTreeSet<WalletId>,
) -> sqlx::Result<Vec<Wallet>> {
    let mut live = Vec::new();
    let mut test = Vec::new();
    let mut quota = Vec::new();
    for wallet in wallets {
        match wallet {
            WalletId::Live(id) => live.push(id.uuid()),
            WalletId::Test(id) => test.push(id.uuid()),
            WalletId::Quota(id) => quota.push(id.uuid()),
        }
    }
    let mut locked = Vec::with_capacity(wallets.len());
    if !live.is_empty() {
        locked.extend(lock_live(connection, &live).await?);
    }
    if !test.is_empty() {
        locked.extend(lock_test(connection, &test).await?);
    }
    if !quota.is_empty() {
        locked.extend(lock_buckets(connection, &quota).await?);
    }
    Ok(locked)
}

async fn lock_live(connection: &mut Connection, ids: &[Uuid]) -> sqlx::Result<Vec<Wallet>> {
    let rows = sqlx::query!(
        r#"
        select id, balance, reserved, reference_balance, low_percent
          from wallet.wallets
         where id = any($1)
         order by id
           for update"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    let wallets = rows.into_iter().map(|row| Wallet {
        id: WalletId::Live(Id::new(row.id)),
        epoch: None,
        balance: Credits::new(row.balance),
        reserved: Credits::new(row.reserved),
        level: Some(Level {
            reference: Credits::new(row.reference_balance),
            // One of four, by a check of the table.
            percent: u8::try_from(row.low_percent).unwrap_or(0),
        }),
    });
    Ok(wallets.collect())
}

async fn lock_test(connection: &mut Connection, ids: &[Uuid]) -> sqlx::Result<Vec<Wallet>> {
    let rows = sqlx::query!(
        r#"
        select id, balance, reserved, epoch, reset_at as "reset_at: Timestamp"
          from wallet.test_wallets
         where id = any($1)
         order by id
           for update"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    let wallets = rows.into_iter().map(|row| Wallet {
        id: WalletId::Test(Id::new(row.id)),
        epoch: epoch(Some(row.epoch), Some(row.reset_at)),
        balance: Credits::new(row.balance),
        reserved: Credits::new(row.reserved),
        level: None,
    });
    Ok(wallets.collect())
}

async fn lock_buckets(connection: &mut Connection, ids: &[Uuid]) -> sqlx::Result<Vec<Wallet>> {
    let rows = sqlx::query!(
        r#"
        select id, quota, used, reserved
          from wallet.quota_buckets
         where id = any($1)
         order by id
           for update"#,
        ids,
    )
    .fetch_all(connection)
    .await?;
    let buckets = rows.into_iter().map(|row| {
        permits(
            Id::new(row.id),
            Credits::new(row.quota),
            Credits::new(row.used),
            Credits::new(row.reserved),
        )
    });
    Ok(buckets.collect())
}

/// Locks leases by id: all that a transaction changes at once, for two steps are in no order.
pub(super) async fn lock_leases(
    connection: &mut Connection,
    leases: &[Uuid],
) -> sqlx::Result<Vec<Lease>> {
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query_as!(
        LeaseRow,
        r#"
        select l.id,
               l.wallet_id,
               l.test_wallet_id,
               l.quota_bucket_id,
               l.epoch,
               t.epoch as "wallet_epoch?",
               t.reset_at as "reset_at?: Timestamp",
               q.period_end as "period_end?: Timestamp",
               l.journal_id,
               l.granted,
               l.returned_cum,
               l.settled_cum,
               l.known_cum,
               l.final_cum,
               l.state,
               l.created_at as "created_at: Timestamp"
          from wallet.leases l
          left join wallet.test_wallets t on t.id = l.test_wallet_id
          left join wallet.quota_buckets q on q.id = l.quota_bucket_id
         where l.id = any($1)
         order by l.id
           for update of l"#,
        leases,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(LeaseRow::into_lease).collect()
}
