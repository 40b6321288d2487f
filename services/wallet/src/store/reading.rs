//! Answers to questions. Nothing here locks.

use jiff::Timestamp;
use runtime::Tenant;
use types::{Credits, JournalId, LeaseId, OrgId};

use super::Store;
use crate::{
    domain::minus,
    error::{Error, Result},
};

/// The wallet of an organisation.
#[derive(Clone, Debug)]
pub(crate) struct WalletView {
    pub(crate) balance: Credits,
    pub(crate) reserved: Credits,
    pub(crate) total_purchased: Credits,
    pub(crate) total_granted: Credits,
    pub(crate) total_used: Credits,
    pub(crate) currency: String,
    /// Part of `reserved` whose holders are silent.
    pub(crate) pending: Credits,
}

impl WalletView {
    /// What an organisation has that was never given anything.
    pub(crate) fn empty() -> Self {
        Self {
            balance: Credits::ZERO,
            reserved: Credits::ZERO,
            total_purchased: Credits::ZERO,
            total_granted: Credits::ZERO,
            total_used: Credits::ZERO,
            currency: "EUR".to_owned(),
            pending: Credits::ZERO,
        }
    }

    /// Credits not lent to anybody.
    pub(crate) fn available(&self) -> Credits {
        minus(self.balance, self.reserved)
    }
}

/// One change of a balance.
#[derive(Clone, Debug)]
pub(crate) struct LedgerLine {
    pub(crate) id: i64,
    pub(crate) kind: String,
    pub(crate) credits: Credits,
    pub(crate) balance_after: Credits,
    pub(crate) reason: String,
    pub(crate) at: Timestamp,
}

/// How far a lease is settled.
#[derive(Clone, Debug)]
pub(crate) struct Settlement {
    pub(crate) settled_cum: Credits,
    pub(crate) state: String,
    pub(crate) journal: JournalId,
    /// The first entry that covers the total asked about.
    pub(crate) entry: Option<i64>,
}

impl Store {
    /// Reads the wallet of an organisation, if it has one.
    pub(crate) async fn wallet(&self, org: OrgId) -> Result<Option<WalletView>> {
        let mut tx = self.tenants.begin(Tenant::Org(org)).await?;
        let row = sqlx::query!(
            r#"
            select w.balance,
                   w.reserved,
                   w.total_purchased,
                   w.total_granted,
                   w.total_used,
                   w.currency,
                   (select coalesce(sum(l.granted - l.settled_cum), 0)::bigint
                      from wallet.leases l
                     where l.wallet_id = w.id
                       and l.state = 'orphaned') as "pending!"
              from wallet.wallets w
             where w.org_id = $1"#,
            org.uuid(),
        )
        .fetch_optional(&mut *tx)
        .await?;
        Ok(row.map(|row| WalletView {
            balance: Credits::new(row.balance),
            reserved: Credits::new(row.reserved),
            total_purchased: Credits::new(row.total_purchased),
            total_granted: Credits::new(row.total_granted),
            total_used: Credits::new(row.total_used),
            currency: row.currency,
            pending: Credits::new(row.pending),
        }))
    }

    /// Reads entries of an organisation's ledger older than `before`, newest first.
    pub(crate) async fn ledger(
        &self,
        org: OrgId,
        before: i64,
        limit: i64,
    ) -> Result<Vec<LedgerLine>> {
        let mut tx = self.tenants.begin(Tenant::Org(org)).await?;
        let rows = sqlx::query!(
            r#"
            select e.id,
                   e.kind,
                   e.credits,
                   e.balance_after,
                   e.reason,
                   e.at as "at: jiff_sqlx::Timestamp"
              from wallet.ledger_entries e
              join wallet.wallets w on w.id = e.wallet_id
             where w.org_id = $1
               and e.id < $2
             order by e.id desc
             limit $3"#,
            org.uuid(),
            before,
            limit,
        )
        .fetch_all(&mut *tx)
        .await?;
        let lines = rows.into_iter().map(|row| LedgerLine {
            id: row.id,
            kind: row.kind,
            credits: Credits::new(row.credits),
            balance_after: Credits::new(row.balance_after),
            reason: row.reason,
            at: row.at.to_jiff(),
        });
        Ok(lines.collect())
    }

    /// Reads how far a lease is settled, and which entry covered `cum`.
    pub(crate) async fn settlement(&self, lease: LeaseId, cum: Credits) -> Result<Settlement> {
        let mut tx = self.tenants.begin(Tenant::Every).await?;
        let row = sqlx::query!(
            r#"
            select l.settled_cum,
                   l.state,
                   l.journal_id,
                   (select e.id
                      from wallet.ledger_entries e
                     where e.lease_id = l.id
                       and e.cum_to >= $2
                     order by e.cum_to
                     limit 1) as entry
              from wallet.leases l
             where l.id = $1"#,
            lease.uuid(),
            cum.get(),
        )
        .fetch_optional(&mut *tx)
        .await?;
        let row = row.ok_or(Error::UnknownLease { lease })?;
        Ok(Settlement {
            settled_cum: Credits::new(row.settled_cum),
            state: row.state,
            journal: JournalId::new(row.journal_id),
            entry: row.entry,
        })
    }
}
