//! Lending: the asks of one gateway in one transaction, each kind of row in one statement.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use runtime::{Clock, Ids};
use types::{Credits, JournalId, LeaseId};
use uuid::Uuid;

use super::{
    Connection, Store,
    owners::{self, Source, Sources},
    quotas, rows, write,
};
use crate::{
    domain::{Ask, Book, Decision, Lease, Round, Test, WalletId, Wish, alive_since},
    error::{Error, Result},
};

/// Holders asked to give back in one round, those with most first; the next round asks again.
const HOLDERS_MAX: i64 = 64;

/// So long a lock is waited for at most by a request with several asks, and by one with a single
/// ask: it waits for nobody's sake but its own, but its gateway keeps few requests under way.
const JOINT_LOCK_MAX: Duration = Duration::from_secs(1);
const LONE_LOCK_MAX: Duration = Duration::from_secs(3);

/// Who borrows.
#[derive(Clone, Debug)]
pub(crate) struct Borrower {
    pub(crate) journal: JournalId,
    /// Name of the gateway.
    pub(crate) gateway: String,
    /// How long it waits for an answer.
    pub(crate) patience: Duration,
}

/// What became of a request for credits.
#[derive(Debug)]
pub(crate) enum Lent {
    /// Lent, now or before by the same nonce.
    Lease {
        /// As it is now.
        lease: Box<Lease>,
        /// Left in the wallet.
        available: Credits,
    },
    /// Less than the minimum is left.
    Short {
        /// Left in the wallet.
        available: Credits,
        /// Who may have something to give back.
        holders: Vec<(JournalId, LeaseId)>,
    },
    /// Nothing is lent that might be lent already.
    Frozen,
    /// The nonce stands for credits of another account.
    NonceReused,
}

/// What was decided on an ask, and how its wallet stood then.
struct Decided {
    decision: Decision,
    lease: Option<Lease>,
    available: Credits,
}

impl Store {
    /// Lends credits once per nonce, ask by ask: the answers are in the order of the asks. Keeps I2
    /// by the locks of the wallets, and the fence of a retired journal by the journal's.
    pub(crate) async fn acquire(
        &self,
        borrower: &Borrower,
        asks: &[Ask],
        ids: &Ids,
        clock: &Clock,
    ) -> Result<Vec<Lent>> {
        let now = clock.now();
        let mut tx = runtime::begin(&self.pool).await?;
        let live_gateways = register(&mut tx, borrower, asks.len(), now).await?;
        let accounts: Vec<_> = asks.iter().map(|ask| (ask.account, now)).collect();
        let new_id = || ids.new_id::<Test>().uuid();
        let sources = owners::find(&mut tx, &accounts, new_id, now).await?;
        let (mut book, ended) = sources.lock(&mut tx, BTreeSet::new(), now).await?;
        // A statement of its own, so that it sees what was committed before the locks were ours.
        let round = round(&mut tx, borrower, asks, &sources, &book, live_gateways).await?;
        if round.is_retired {
            let journal = borrower.journal;
            return Err(Error::JournalRetired { journal });
        }
        let leases = round.replayed.values().chain(round.open.values());
        ended.lock_with(&mut tx, &mut book, leases.copied()).await?;
        // What is lent is lent now, however long the locks were waited for: a thaw came before it.
        let now = clock.now();
        let new_lease = || ids.new_id();
        let wishes = asks.iter().map(|ask| ask.wish).zip(&sources.found);
        let decided = decide_all(round, &mut book, borrower.journal, wishes, new_lease, now);
        write(&mut tx, &book.into_changes(), now).await?;
        insert_acquisitions(&mut tx, borrower, asks, &decided, now).await?;
        let lent = answers(&mut tx, borrower, &sources, decided).await?;
        tx.commit().await?;
        runtime::crash_point!("wallet.acquire_committed");
        Ok(lent)
    }
}

/// Makes the journal known and holds off its retirement, but neither heartbeats nor other
/// acquisitions. How many gateways live.
///
/// From here on no lock is waited for longer than half of what the borrower waits: what nobody
/// waits for any more must not hold anything, and one account that somebody has locked must not
/// hold those that travel with it. And each statement is planned for the tables as they are: a plan
/// from before the first rush would read all of a table for each ask.
async fn register(
    connection: &mut Connection,
    borrower: &Borrower,
    asks: usize,
    now: Timestamp,
) -> sqlx::Result<u32> {
    let most = match asks {
        1 => LONE_LOCK_MAX,
        _ => JOINT_LOCK_MAX,
    };
    let half = borrower.patience.checked_div(2).unwrap_or_default();
    let patience = most.min(half).as_millis().max(1);
    let patience = format!("{patience}ms");
    for _ in 0..2 {
        let known = sqlx::query!(
            r#"
            select id,
                   set_config('lock_timeout', $2, true) as patience,
                   set_config('plan_cache_mode', 'force_custom_plan', true) as plans
              from wallet.journals
             where id = $1
               for key share"#,
            borrower.journal.uuid(),
            patience,
        );
        if known.fetch_optional(&mut *connection).await?.is_some() {
            break;
        }
        sqlx::query!(
            r#"
            insert into wallet.journals (id, gateway, heartbeat_at)
            values ($1, $2, $3)
            on conflict (id) do nothing"#,
            borrower.journal.uuid(),
            borrower.gateway,
            now.to_sqlx() as _,
        )
        .execute(&mut *connection)
        .await?;
    }
    live_gateways(connection, now).await
}

/// What there is to know of the asks, once their wallets are locked.
async fn round(
    connection: &mut Connection,
    borrower: &Borrower,
    asks: &[Ask],
    sources: &Sources,
    book: &Book,
    live_gateways: u32,
) -> sqlx::Result<Round> {
    let nonces: Vec<Vec<u8>> = asks.iter().map(|ask| ask.wish.nonce.to_vec()).collect();
    let wallets: Vec<Option<WalletId>> = sources
        .found
        .iter()
        .map(|source| source.map(|source| source.wallet))
        .collect();
    let ids = wallets.iter().map(|wallet| {
        let wallet = (*wallet)?;
        rows::owner(wallet).into_iter().flatten().next()
    });
    let epoch_of = |wallet| book.wallet(wallet).epoch.map_or(0, |epoch| epoch.number);
    let epochs = wallets.iter().map(|wallet| wallet.map_or(0, epoch_of));
    let rows = sqlx::query!(
        r#"
        with present as materialized (
            select j.retired_at is not null as is_retired,
                   f.timeline <> left(pg_walfile_name(pg_current_wal_lsn()), 8)
                   or f.system_identifier
                      <> (select c.system_identifier from pg_control_system() c)
                   or (f.failed_over_at is not null and f.thawed_at is null) as is_frozen
              from wallet.journals j, wallet.freeze f
             where j.id = $1
             limit 1)
        select p.is_retired as "is_retired!",
               p.is_frozen as "is_frozen!",
               (select a.lease_id
                  from wallet.acquisitions a
                 where a.journal_id = $1
                   and a.nonce = u.nonce) as replayed,
               (select l.id
                  from wallet.leases l
                 where l.journal_id = $1
                   and coalesce(l.wallet_id, l.test_wallet_id, l.quota_bucket_id) = u.wallet_id
                   and l.epoch = u.epoch
                   and l.state in ('active', 'orphaned')) as open
          from present p
         cross join unnest($2::bytea[], $3::uuid[], $4::bigint[])
                    with ordinality as u (nonce, wallet_id, epoch, position)
         order by u.position"#,
        borrower.journal.uuid(),
        &nonces,
        &ids.collect::<Vec<_>>() as &[Option<Uuid>],
        &epochs.collect::<Vec<_>>(),
    )
    .fetch_all(&mut *connection)
    .await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let mut round = Round {
        is_retired: first.is_retired,
        is_frozen: first.is_frozen,
        live_gateways,
        replayed: BTreeMap::new(),
        open: BTreeMap::new(),
    };
    for ((ask, wallet), row) in asks.iter().zip(wallets).zip(rows) {
        let replayed = row.replayed.map(LeaseId::new);
        round
            .replayed
            .extend(replayed.map(|lease| (ask.wish.nonce, lease)));
        let open = wallet.zip(row.open.map(LeaseId::new));
        round.open.extend(open);
    }
    Ok(round)
}

/// Decides on the asks in their order.
fn decide_all<'a>(
    mut round: Round,
    book: &mut Book,
    journal: JournalId,
    wishes: impl Iterator<Item = (Wish, &'a Option<Source>)>,
    new_lease: impl Fn() -> LeaseId,
    now: Timestamp,
) -> Vec<Decided> {
    let mut decided = Vec::new();
    for (wish, source) in wishes {
        let wallet = source.map(|source| source.wallet);
        let period_end = source.and_then(|source| source.period_end);
        let new = |wallet: &_| Lease::new(new_lease(), wallet, period_end, journal, now);
        let decision = round.answer(book, wish, wallet, new);
        let lease = match decision {
            Decision::Replay(lease) | Decision::Lend(Some(lease), _) => book.lease(lease).cloned(),
            _ => None,
        };
        let available = wallet.map_or(Credits::ZERO, |wallet| book.wallet(wallet).available());
        decided.push(Decided {
            decision,
            lease,
            available,
        });
    }
    decided
}

async fn insert_acquisitions(
    connection: &mut Connection,
    borrower: &Borrower,
    asks: &[Ask],
    decided: &[Decided],
    now: Timestamp,
) -> sqlx::Result<()> {
    let (mut nonces, mut leases, mut credits) = (Vec::new(), Vec::new(), Vec::new());
    for (ask, decided) in asks.iter().zip(decided) {
        if let Decision::Lend(Some(lease), lent) = decided.decision {
            nonces.push(ask.wish.nonce.to_vec());
            leases.push(lease.uuid());
            credits.push(lent.get());
        }
    }
    if nonces.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        insert into wallet.acquisitions (journal_id, nonce, lease_id, credits, at)
        select $1, u.nonce, u.lease_id, u.credits, $5
          from unnest($2::bytea[], $3::uuid[], $4::bigint[]) as u (nonce, lease_id, credits)"#,
        borrower.journal.uuid(),
        &nonces,
        &leases,
        &credits,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Says what was decided, and who may help where there is too little.
async fn answers(
    connection: &mut Connection,
    borrower: &Borrower,
    sources: &Sources,
    decided: Vec<Decided>,
) -> sqlx::Result<Vec<Lent>> {
    let is_short = |decided: &Decided| matches!(decided.decision, Decision::Short);
    let short = decided.iter().zip(&sources.found);
    let short: BTreeSet<WalletId> = short
        .filter(|(decided, _)| is_short(decided))
        .filter_map(|(_, source)| source.map(|source| source.wallet))
        .collect();
    let holders = holders(connection, borrower.journal, &short).await?;
    let mut lent = Vec::with_capacity(decided.len());
    for (decided, source) in decided.into_iter().zip(&sources.found) {
        let Decided {
            decision,
            lease,
            available,
        } = decided;
        let wallet = source.map(|source| source.wallet);
        lent.push(match (decision, lease) {
            (Decision::Replay(_), Some(lease)) => {
                replay(connection, lease, wallet, available).await?
            }
            (Decision::Lend(..), Some(lease)) => Lent::Lease {
                lease: Box::new(lease),
                available,
            },
            (Decision::Frozen, _) => Lent::Frozen,
            (Decision::Short, _) => {
                let own = wallet.and_then(|wallet| holders.get(&wallet));
                let holders = own.cloned().unwrap_or_default();
                Lent::Short { available, holders }
            }
            (Decision::Retired | Decision::Replay(_) | Decision::Lend(..), _) => {
                return Err(sqlx::Error::RowNotFound);
            }
        });
    }
    Ok(lent)
}

/// Says again what a nonce was answered with.
async fn replay(
    connection: &mut Connection,
    lease: Lease,
    wallet: Option<WalletId>,
    available: Credits,
) -> sqlx::Result<Lent> {
    let is_own = match wallet {
        // A reply that was lost before midnight is repeated after it: permits of the day before.
        Some(own) => lease.wallet == own || quotas::is_same(connection, lease.wallet, own).await?,
        None => false,
    };
    Ok(match is_own {
        true => Lent::Lease {
            lease: Box::new(lease),
            available,
        },
        false => Lent::NonceReused,
    })
}

/// Other journals that may hold unspent credits of the wallets, or permits.
async fn holders(
    connection: &mut Connection,
    journal: JournalId,
    wallets: &BTreeSet<WalletId>,
) -> sqlx::Result<BTreeMap<WalletId, Vec<(JournalId, LeaseId)>>> {
    let mut found: BTreeMap<WalletId, Vec<(JournalId, LeaseId)>> = BTreeMap::new();
    if wallets.is_empty() {
        return Ok(found);
    }
    let (mut live, mut test, mut quota) = (Vec::new(), Vec::new(), Vec::new());
    for wallet in wallets {
        let [of_live, of_test, of_quota] = rows::owner(*wallet);
        live.push(of_live);
        test.push(of_test);
        quota.push(of_quota);
    }
    let rows = sqlx::query!(
        r#"
        select h.wallet_id, h.test_wallet_id, h.quota_bucket_id, h.journal_id, h.id
          from unnest($1::uuid[], $2::uuid[], $3::uuid[])
            as u (wallet_id, test_wallet_id, quota_bucket_id)
         cross join lateral (
            select l.wallet_id, l.test_wallet_id, l.quota_bucket_id, l.journal_id, l.id
              from wallet.leases l
             where (l.wallet_id = u.wallet_id
                    or l.test_wallet_id = u.test_wallet_id
                    or l.quota_bucket_id = u.quota_bucket_id)
               and l.journal_id <> $4
               and l.state = 'active'
               and l.granted > l.settled_cum
             order by l.granted - l.settled_cum desc
             limit $5) h"#,
        &live as &[Option<Uuid>],
        &test as &[Option<Uuid>],
        &quota as &[Option<Uuid>],
        journal.uuid(),
        HOLDERS_MAX,
    )
    .fetch_all(connection)
    .await?;
    for row in rows {
        let wallet = rows::wallet_id(row.wallet_id, row.test_wallet_id, row.quota_bucket_id)?;
        let holder = (JournalId::new(row.journal_id), LeaseId::new(row.id));
        found.entry(wallet).or_default().push(holder);
    }
    Ok(found)
}

/// Journals heard of in the last seconds.
pub(super) async fn live_gateways(
    connection: &mut Connection,
    now: Timestamp,
) -> sqlx::Result<u32> {
    let since = alive_since(now);
    let live = sqlx::query_scalar!(
        r#"
        select count(*) as "live!"
          from wallet.journals
         where heartbeat_at >= $1
           and retired_at is null"#,
        since.to_sqlx() as _,
    )
    .fetch_one(connection)
    .await?;
    Ok(u32::try_from(live).unwrap_or(u32::MAX))
}
