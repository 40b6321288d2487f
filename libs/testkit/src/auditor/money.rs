//! The wallet's tables: conservation, reservations, leases, ledger.
#![expect(
    clippy::disallowed_methods,
    reason = "an oracle writes its own statements and is not compiled against the schema"
)]

use std::collections::{BTreeMap, HashMap};

use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::journal::Journals;
use super::quotas::Quotas;
use super::rows::{Inbox, Spend, Uses, number_of, read_inbox};
use super::unitemised::Unitemised;
use super::{Findings, Kind};

/// A journal that was heard of so recently has a living owner.
const ALIVE_SECONDS: f64 = 10.0;

/// Everything the schema says.
pub(super) struct Money {
    wallets: BTreeMap<Uuid, Wallet>,
    leases: HashMap<Uuid, Lease>,
    pub(super) quotas: Quotas,
    ledger: HashMap<Uuid, Ledger>,
    usage_of_leases: HashMap<Uuid, i128>,
    /// Journal, and how many seconds ago it was heard of; none once it is retired.
    journals: HashMap<Uuid, Option<f64>>,
    entries: usize,
    pub(super) inbox: Inbox,
}

/// A wallet of either kind.
struct Wallet {
    name: String,
    /// The organisation of a live one, the user of a test one.
    owner: Uuid,
    is_test: bool,
    epoch: i64,
    balance: i128,
    reserved: i128,
    purchased: i128,
    granted: i128,
    refunded: i128,
    expired: i128,
    used: i128,
}

pub(super) struct Lease {
    /// A wallet, or a bucket of permits.
    pub(super) owner: Uuid,
    pub(super) journal: Uuid,
    pub(super) epoch: i64,
    pub(super) granted: i128,
    pub(super) settled: i128,
    pub(super) known: i128,
    pub(super) state: String,
    /// Closed before its journal was retired: by its owner, who counted itself.
    pub(super) is_owners_count: bool,
    pub(super) late_spend: i128,
}

impl Lease {
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state.as_str(), "closed" | "written_off")
    }

    /// Its owner was given up with what a heartbeat had told last, and nothing came later.
    pub(super) fn is_told(&self) -> bool {
        self.state == "written_off" && self.settled == self.known
    }
}

/// Sums of a wallet's entries.
#[derive(Default)]
struct Ledger {
    balance: i128,
    lowest: i128,
    purchases: i128,
    grants: i128,
    refunds: i128,
    expiries: i128,
    usage: i128,
    /// The first entry whose `balance_after` is not the sum up to it.
    wrong_at: Option<i64>,
}

/// Reads all of it in one snapshot.
pub(super) async fn read(connection: &mut PgConnection) -> sqlx::Result<Money> {
    let mut snapshot = connection.begin_with(super::rows::SNAPSHOT).await?;
    let live = "select id, org_id as owner, false as is_test, 0::bigint as epoch, balance, \
                reserved, total_purchased, total_granted, total_refunded, total_expired, \
                total_used from wallet.wallets";
    let test = "select id, user_id as owner, true as is_test, epoch, balance, reserved, \
                0::bigint as total_purchased, total_granted, 0::bigint as total_refunded, \
                total_expired, total_used from wallet.test_wallets";
    let mut wallets = BTreeMap::new();
    for sql in [live, test] {
        for row in sqlx::query(sql).fetch_all(&mut *snapshot).await? {
            wallets.insert(row.try_get("id")?, wallet(&row)?);
        }
    }
    let mut leases = HashMap::new();
    let mut quotas = Quotas::default();
    let sql = "select l.id, coalesce(l.wallet_id, l.test_wallet_id, l.quota_bucket_id) as owner, \
               l.quota_bucket_id is not null as is_permits, l.journal_id, \
               l.epoch, l.granted, l.settled_cum, l.known_cum, l.state, \
               l.state = 'closed' and (j.retired_at is null or l.updated_at < j.retired_at) \
                   as is_owners_count, \
               coalesce(w.late_spend, 0) as late_spend \
               from wallet.leases l join wallet.journals j on j.id = l.journal_id \
               left join wallet.write_offs w on w.lease_id = l.id";
    let mut rows = sqlx::query(sql).fetch(&mut *snapshot);
    while let Some(row) = rows.try_next().await? {
        let of_its_kind = match row.try_get("is_permits")? {
            true => &mut quotas.leases,
            false => &mut leases,
        };
        of_its_kind.insert(row.try_get("id")?, lease(&row)?);
    }
    drop(rows);
    quotas.read(&mut snapshot).await?;
    let mut journals = HashMap::new();
    let sql = "select id, case when retired_at is null \
               then extract(epoch from now() - heartbeat_at)::float8 end as silent \
               from wallet.journals";
    for row in sqlx::query(sql).fetch_all(&mut *snapshot).await? {
        journals.insert(row.try_get("id")?, row.try_get("silent")?);
    }
    let inbox = read_inbox!(&mut snapshot, "wallet");
    let mut money = Money {
        wallets,
        leases,
        quotas,
        ledger: HashMap::new(),
        usage_of_leases: HashMap::new(),
        journals,
        entries: 0,
        inbox,
    };
    money.read_ledger(&mut snapshot).await?;
    snapshot.rollback().await?;
    Ok(money)
}

fn wallet(row: &PgRow) -> sqlx::Result<Wallet> {
    let owner: Uuid = row.try_get("owner")?;
    let is_test = row.try_get("is_test")?;
    let (what, kind) = if is_test {
        ("test wallet of", "usr")
    } else {
        ("wallet of", "org")
    };
    Ok(Wallet {
        name: format!("{what} {kind}_{}", owner.simple()),
        owner,
        is_test,
        epoch: row.try_get("epoch")?,
        balance: number_of(row, "balance")?,
        reserved: number_of(row, "reserved")?,
        purchased: number_of(row, "total_purchased")?,
        granted: number_of(row, "total_granted")?,
        refunded: number_of(row, "total_refunded")?,
        expired: number_of(row, "total_expired")?,
        used: number_of(row, "total_used")?,
    })
}

fn lease(row: &PgRow) -> sqlx::Result<Lease> {
    Ok(Lease {
        owner: row.try_get("owner")?,
        journal: row.try_get("journal_id")?,
        epoch: row.try_get("epoch")?,
        granted: number_of(row, "granted")?,
        settled: number_of(row, "settled_cum")?,
        known: number_of(row, "known_cum")?,
        state: row.try_get("state")?,
        is_owners_count: row.try_get("is_owners_count")?,
        late_spend: number_of(row, "late_spend")?,
    })
}

impl Money {
    async fn read_ledger(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "select id, coalesce(wallet_id, test_wallet_id) as wallet, kind, credits, \
                   balance_after, lease_id from wallet.ledger_entries order by id";
        let mut rows = sqlx::query(sql).fetch(connection);
        while let Some(row) = rows.try_next().await? {
            self.entries += 1;
            let credits = number_of(&row, "credits")?;
            let kind: String = row.try_get("kind")?;
            let ledger = self.ledger.entry(row.try_get("wallet")?).or_default();
            ledger.balance += credits;
            ledger.lowest = ledger.lowest.min(ledger.balance);
            if ledger.balance != number_of(&row, "balance_after")? && ledger.wrong_at.is_none() {
                ledger.wrong_at = Some(row.try_get("id")?);
            }
            match kind.as_str() {
                "purchase" => ledger.purchases += credits,
                "grant" => ledger.grants += credits,
                "refund" => ledger.refunds -= credits,
                "expiry" => ledger.expiries -= credits,
                _ => ledger.usage -= credits,
            }
            if let (Some(lease), "usage") = (row.try_get::<Option<Uuid>, _>("lease_id")?, &*kind) {
                *self.usage_of_leases.entry(lease).or_default() -= credits;
            }
        }
        Ok(())
    }

    pub(super) fn wallets(&self) -> usize {
        self.wallets
            .values()
            .filter(|wallet| !wallet.is_test)
            .count()
    }

    pub(super) fn test_wallets(&self) -> usize {
        self.wallets.len() - self.wallets()
    }

    pub(super) fn leases(&self) -> usize {
        self.leases.len() + self.quotas.leases.len()
    }

    pub(super) fn ledger_entries(&self) -> usize {
        self.entries
    }

    /// I1, I2, I3, I4 within the schema.
    pub(super) fn check(&self, findings: &mut Findings) {
        self.quotas.check(findings);
        let mut reserved: HashMap<Uuid, i128> = HashMap::new();
        let mut used: HashMap<Uuid, i128> = HashMap::new();
        for (id, lease) in &self.leases {
            let Some(wallet) = self.wallets.get(&lease.owner) else {
                findings.add(Kind::Sum, format!("lease {id} has no wallet"));
                continue;
            };
            // The leases of an epoch that is over are not reserved: their rest has expired.
            if lease.is_open() && (!wallet.is_test || lease.epoch == wallet.epoch) {
                *reserved.entry(lease.owner).or_default() += lease.granted - lease.settled;
            }
            *used.entry(lease.owner).or_default() += lease.settled - lease.late_spend;
            let over = lease.settled.max(lease.known) - lease.granted;
            if over > 0 {
                let text = format!("lease {id} has spent {over} more than it was granted");
                findings.add(Kind::Overspent(over), text);
            }
            let booked = self.usage_of_leases.get(id).copied().unwrap_or(0);
            let stored = lease.settled - lease.late_spend;
            findings.same(|| format!("debits of lease {id}"), booked, stored);
        }
        for (id, wallet) in &self.wallets {
            let reserved = reserved.get(id).copied().unwrap_or(0);
            let used = used.get(id).copied().unwrap_or(0);
            wallet.check(self.ledger.get(id), reserved, used, findings);
        }
    }

    /// I5: what is settled is what the rows of a lease cost, and belongs to who called.
    pub(super) fn check_spend(
        &self,
        spend: &HashMap<Uuid, Spend>,
        unitemised: &Unitemised,
        findings: &mut Findings,
    ) {
        let discarded = self.inbox.discards.by_lease();
        // Calls that an operator has kept from the wallet, as far as no later total has debited
        // them.
        let is_borne = |id: &Uuid, missing: i128| {
            let most = discarded.get(id).copied().unwrap_or(0);
            (0..=most).contains(&missing)
        };
        let cost_of = |id| spend.get(&id).map_or(0, |it| it.credits);
        let stated = unitemised.stated(&self.leases, cost_of, &self.inbox.gaps);
        for (id, lease) in &self.leases {
            let (cost, calls) = spend.get(id).map_or((0, 0), |it| (it.credits, it.calls));
            let over = lease.settled - cost;
            let stated = stated.get(id).copied().unwrap_or(0);
            if is_borne(id, stated - over) {
                findings.add_unitemised(stated);
                findings.add_unbilled(stated - over);
                continue;
            }
            let text = format!(
                "lease {id} of jrn_{}: settled {}, its {calls} calls cost {cost}, and {stated} \
                 are stated beside them",
                lease.journal.simple(),
                lease.settled,
            );
            findings.add(if over > 0 { Kind::Double } else { Kind::Sum }, text);
        }
        for (id, spend) in spend {
            let Some(lease) = self.leases.get(id) else {
                if is_borne(id, spend.credits) {
                    findings.add_unbilled(spend.credits);
                    continue;
                }
                findings.add(
                    Kind::Sum,
                    format!("{} calls of an unknown lease {id}", spend.calls),
                );
                continue;
            };
            let Some(wallet) = self.wallets.get(&lease.owner) else {
                continue;
            };
            let owners = if wallet.is_test {
                &spend.users
            } else {
                &spend.organisations
            };
            let is_right = spend.is_test == [wallet.is_test] && *owners == [wallet.owner];
            if !is_right {
                let text = format!("lease {id} of the {} paid calls of others", wallet.name);
                findings.add(Kind::Sum, text);
            }
        }
    }

    /// What is settled of a lease of permits is how many calls used one.
    pub(super) fn check_uses(
        &self,
        uses: &HashMap<Uuid, Uses>,
        unitemised: &Unitemised,
        findings: &mut Findings,
    ) {
        let discards = &self.inbox.discards;
        self.quotas.check_uses(uses, unitemised, discards, findings);
    }

    /// Credits and permits are reserved only for owners that live or whose journal can be read.
    pub(super) fn check_owners(&self, journals: &Journals, findings: &mut Findings) {
        let leases = self.leases.iter().chain(&self.quotas.leases);
        for (id, lease) in leases.filter(|(_, lease)| lease.is_open()) {
            let silent = self.journals.get(&lease.journal).copied().flatten();
            let is_alive = silent.is_some_and(|seconds| seconds < ALIVE_SECONDS);
            let rest = lease.granted - lease.settled;
            if rest > 0 && !is_alive && !journals.has(lease.journal) {
                let text = format!(
                    "lease {id}: {rest} credits or permits are reserved for jrn_{}, which is gone",
                    lease.journal.simple()
                );
                findings.add(Kind::Stranded(rest), text);
            }
        }
    }
}

impl Wallet {
    fn check(&self, ledger: Option<&Ledger>, reserved: i128, used: i128, found: &mut Findings) {
        let none = Ledger::default();
        let ledger = ledger.unwrap_or(&none);
        let name = |what: &'static str| move || format!("{what} of the {}", self.name);
        let sum = self.purchased + self.granted - self.refunded - self.expired - self.used;
        found.same(name("balance, by its totals,"), self.balance, sum);
        found.same(
            name("balance, by the ledger,"),
            self.balance,
            ledger.balance,
        );
        found.same(name("reserved credits"), self.reserved, reserved);
        found.same(name("used credits, by leases,"), self.used, used);
        found.same(
            name("used credits, by the ledger,"),
            self.used,
            ledger.usage,
        );
        found.same(name("purchased credits"), self.purchased, ledger.purchases);
        found.same(name("granted credits"), self.granted, ledger.grants);
        found.same(name("refunded credits"), self.refunded, ledger.refunds);
        found.same(name("expired credits"), self.expired, ledger.expiries);
        let below = -ledger
            .lowest
            .min(self.balance)
            .min(self.balance - self.reserved);
        if below > 0 {
            let text = format!("the {} was {below} below zero", self.name);
            found.add(Kind::Overspent(below), text);
        }
        if let Some(id) = ledger.wrong_at {
            let text = format!(
                "ledger entry {id}: not the balance of the {} then",
                self.name
            );
            found.add(Kind::Sum, text);
        }
    }
}
