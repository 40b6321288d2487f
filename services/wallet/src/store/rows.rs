//! Rows as domain types, under lock.

use std::collections::BTreeSet;

use jiff_sqlx::Timestamp;
use types::{Credits, Id, JournalId, LeaseId};
use uuid::Uuid;

use crate::{
    domain::{Epoch, Lease, LeaseState, Wallet, WalletId},
    store::Connection,
};

/// The columns of a lease, and the epoch its test wallet is in.
struct LeaseRow {
    id: Uuid,
    wallet_id: Option<Uuid>,
    test_wallet_id: Option<Uuid>,
    epoch: i64,
    wallet_epoch: Option<i64>,
    reset_at: Option<Timestamp>,
    journal_id: Uuid,
    granted: i64,
    returned_cum: i64,
    settled_cum: i64,
    known_cum: i64,
    final_cum: Option<i64>,
    state: String,
    created_at: Timestamp,
}

/// Reads which of the two columns is set.
pub(super) fn wallet_id(live: Option<Uuid>, test: Option<Uuid>) -> sqlx::Result<WalletId> {
    match (live, test) {
        (Some(live), None) => Ok(WalletId::Live(Id::new(live))),
        (None, Some(test)) => Ok(WalletId::Test(Id::new(test))),
        _ => Err(sqlx::Error::Decode("a lease has exactly one wallet".into())),
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
            wallet: wallet_id(self.wallet_id, self.test_wallet_id)?,
            epoch: self.epoch,
            wallet_epoch: epoch(self.wallet_epoch, self.reset_at),
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
        select distinct wallet_id, test_wallet_id
          from wallet.leases
         where id = any($1)"#,
        leases,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| wallet_id(row.wallet_id, row.test_wallet_id))
        .collect()
}

/// Locks wallets, live ones first, each kind by id.
pub(super) async fn lock_wallets(
    connection: &mut Connection,
    wallets: &BTreeSet<WalletId>,
) -> sqlx::Result<Vec<Wallet>> {
    let mut live = Vec::new();
    let mut test = Vec::new();
    for wallet in wallets {
        match wallet {
            WalletId::Live(id) => live.push(id.uuid()),
            WalletId::Test(id) => test.push(id.uuid()),
        }
    }
    let mut locked = Vec::with_capacity(wallets.len());
    if !live.is_empty() {
        let rows = sqlx::query!(
            r#"
            select id, balance, reserved
              from wallet.wallets
             where id = any($1)
             order by id
               for update"#,
            &live,
        )
        .fetch_all(&mut *connection)
        .await?;
        locked.extend(rows.into_iter().map(|row| Wallet {
            id: WalletId::Live(Id::new(row.id)),
            epoch: None,
            balance: Credits::new(row.balance),
            reserved: Credits::new(row.reserved),
        }));
    }
    if !test.is_empty() {
        let rows = sqlx::query!(
            r#"
            select id, balance, reserved, epoch, reset_at as "reset_at: Timestamp"
              from wallet.test_wallets
             where id = any($1)
             order by id
               for update"#,
            &test,
        )
        .fetch_all(&mut *connection)
        .await?;
        locked.extend(rows.into_iter().map(|row| Wallet {
            id: WalletId::Test(Id::new(row.id)),
            epoch: epoch(Some(row.epoch), Some(row.reset_at)),
            balance: Credits::new(row.balance),
            reserved: Credits::new(row.reserved),
        }));
    }
    Ok(locked)
}

/// Locks leases by id.
pub(super) async fn lock_leases(
    connection: &mut Connection,
    leases: &[Uuid],
) -> sqlx::Result<Vec<Lease>> {
    let rows = sqlx::query_as!(
        LeaseRow,
        r#"
        select l.id,
               l.wallet_id,
               l.test_wallet_id,
               l.epoch,
               t.epoch as "wallet_epoch?",
               t.reset_at as "reset_at?: Timestamp",
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
         where l.id = any($1)
         order by l.id
           for update of l"#,
        leases,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(LeaseRow::into_lease).collect()
}
