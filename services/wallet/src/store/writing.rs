//! Writing decisions down: each kind of change in one statement, however many there are. Rows are
//! named by `any` too, which finds them by their index: the plan of a mere join that was made while
//! the table was small would go on reading all of it until there are new statistics.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use types::Credits;
use uuid::Uuid;

use crate::{
    domain::{Changes, Entry, Fallen, Lease, Movement, WalletId},
    store::{Connection, rows},
};

/// Writes what was decided about rows locked in this transaction.
pub(crate) async fn write(
    connection: &mut Connection,
    changes: &Changes,
    now: Timestamp,
) -> sqlx::Result<()> {
    let is_new = |lease: &&Lease| changes.opened.contains(&lease.id);
    let (new, known): (Vec<&Lease>, Vec<&Lease>) = changes.leases.values().partition(is_new);
    if !new.is_empty() {
        insert_leases(connection, &new, now).await?;
    }
    if !known.is_empty() {
        update_leases(connection, &known, now).await?;
    }
    if !changes.entries.is_empty() {
        insert_entries(connection, &changes.entries, now).await?;
    }
    let mut live = Moves::default();
    let mut levels = Levels::default();
    let mut test = Moves::default();
    let mut quota = Moves::default();
    for (wallet, movement) in &changes.movements {
        match wallet {
            WalletId::Live(id) => {
                live.push(id.uuid(), movement);
                levels.push(changes, *wallet);
            }
            WalletId::Test(id) => test.push(id.uuid(), movement),
            WalletId::Quota(id) => quota.push(id.uuid(), movement),
        }
    }
    if !live.ids.is_empty() {
        move_wallets(connection, &live, &levels, now).await?;
    }
    if !test.ids.is_empty() {
        move_test_wallets(connection, &test, now).await?;
    }
    if !quota.ids.is_empty() {
        move_buckets(connection, &quota, now).await?;
    }
    if !changes.fallen.is_empty() {
        insert_lows(connection, &changes.fallen, now).await?;
    }
    if !changes.write_offs.is_empty() {
        insert_write_offs(connection, changes, now).await?;
    }
    if !changes.late_spends.is_empty() {
        add_late_spends(connection, changes).await?;
    }
    Ok(())
}

async fn insert_leases(
    connection: &mut Connection,
    leases: &[&Lease],
    now: Timestamp,
) -> sqlx::Result<()> {
    let (mut live, mut test, mut quota) = (Vec::new(), Vec::new(), Vec::new());
    for lease in leases {
        let [of_live, of_test, of_quota] = rows::owner(lease.wallet);
        live.push(of_live);
        test.push(of_test);
        quota.push(of_quota);
    }
    let ids: Vec<Uuid> = leases.iter().map(|lease| lease.id.uuid()).collect();
    let epochs: Vec<i64> = leases.iter().map(|lease| lease.epoch).collect();
    let journals: Vec<Uuid> = leases.iter().map(|lease| lease.journal.uuid()).collect();
    let granted: Vec<i64> = leases.iter().map(|lease| lease.granted.get()).collect();
    let states: Vec<&str> = leases.iter().map(|lease| lease.state.as_str()).collect();
    let created: Vec<jiff_sqlx::Timestamp> = leases
        .iter()
        .map(|lease| lease.created_at.to_sqlx())
        .collect();
    sqlx::query!(
        r#"
        insert into wallet.leases
               (id, wallet_id, test_wallet_id, quota_bucket_id, epoch, journal_id, granted, state,
                created_at, updated_at)
        select u.id, u.wallet_id, u.test_wallet_id, u.quota_bucket_id, u.epoch, u.journal_id,
               u.granted, u.state, u.created_at, $10
          from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::uuid[],
                      $7::bigint[], $8::text[], $9::timestamptz[])
            as u (id, wallet_id, test_wallet_id, quota_bucket_id, epoch, journal_id, granted,
                  state, created_at)"#,
        &ids,
        &live as &[Option<Uuid>],
        &test as &[Option<Uuid>],
        &quota as &[Option<Uuid>],
        &epochs,
        &journals,
        &granted,
        &states as &[&str],
        &created as &[jiff_sqlx::Timestamp],
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps I3 (a lease spends no more than it was granted) by a check of the table.
async fn update_leases(
    connection: &mut Connection,
    leases: &[&Lease],
    now: Timestamp,
) -> sqlx::Result<()> {
    let credits = |column: fn(&Lease) -> Credits| -> Vec<i64> {
        leases.iter().map(|lease| column(lease).get()).collect()
    };
    let ids: Vec<Uuid> = leases.iter().map(|lease| lease.id.uuid()).collect();
    let finals: Vec<Option<i64>> = leases
        .iter()
        .map(|lease| lease.final_cum.map(Credits::get))
        .collect();
    let states: Vec<&str> = leases.iter().map(|lease| lease.state.as_str()).collect();
    sqlx::query!(
        r#"
        update wallet.leases l
           set granted = u.granted,
               returned_cum = u.returned_cum,
               settled_cum = u.settled_cum,
               known_cum = u.known_cum,
               final_cum = u.final_cum,
               state = u.state,
               orphaned_at = case when u.state = 'orphaned' then l.orphaned_at end,
               updated_at = $8
          from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[],
                      $6::bigint[], $7::text[])
            as u (id, granted, returned_cum, settled_cum, known_cum, final_cum, state)
         where l.id = u.id
           and l.id = any($1)"#,
        &ids,
        &credits(|lease| lease.granted),
        &credits(|lease| lease.returned_cum),
        &credits(|lease| lease.settled_cum),
        &credits(|lease| lease.known_cum),
        &finals as &[Option<i64>],
        &states as &[&str],
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps I1's other half: no balance changes without an entry, in the order of its balances.
async fn insert_entries(
    connection: &mut Connection,
    entries: &[Entry],
    now: Timestamp,
) -> sqlx::Result<()> {
    let mut live: Vec<Option<Uuid>> = Vec::with_capacity(entries.len());
    let mut test: Vec<Option<Uuid>> = Vec::with_capacity(entries.len());
    for entry in entries {
        let [live_id, test_id, _] = rows::owner(entry.wallet);
        live.push(live_id);
        test.push(test_id);
    }
    let epochs: Vec<i64> = entries.iter().map(|entry| entry.epoch).collect();
    let kinds: Vec<&str> = entries.iter().map(|entry| entry.kind.as_str()).collect();
    let credits: Vec<i64> = entries.iter().map(|entry| entry.credits.get()).collect();
    let after: Vec<i64> = entries
        .iter()
        .map(|entry| entry.balance_after.get())
        .collect();
    let leases: Vec<Option<Uuid>> = entries
        .iter()
        .map(|entry| entry.lease.map(|lease| lease.uuid()))
        .collect();
    let cums: Vec<Option<i64>> = entries
        .iter()
        .map(|entry| entry.cum_to.map(Credits::get))
        .collect();
    let reasons: Vec<&str> = entries.iter().map(|entry| entry.reason.as_str()).collect();
    let actors: Vec<&str> = entries.iter().map(|entry| entry.actor.as_str()).collect();
    let keys: Vec<Option<&str>> = entries
        .iter()
        .map(|entry| entry.idempotency_key.as_deref())
        .collect();
    sqlx::query!(
        r#"
        insert into wallet.ledger_entries
               (wallet_id, test_wallet_id, epoch, kind, credits, balance_after, lease_id, cum_to,
                reason, actor, idempotency_key, at)
        select u.wallet_id, u.test_wallet_id, u.epoch, u.kind, u.credits, u.balance_after,
               u.lease_id, u.cum_to, u.reason, u.actor, u.idempotency_key, $12
          from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::bigint[],
                      $6::bigint[], $7::uuid[], $8::bigint[], $9::text[], $10::text[],
                      $11::text[])
               with ordinality
            as u (wallet_id, test_wallet_id, epoch, kind, credits, balance_after, lease_id,
                  cum_to, reason, actor, idempotency_key, position)
         order by u.position"#,
        &live as &[Option<Uuid>],
        &test as &[Option<Uuid>],
        &epochs,
        &kinds as &[&str],
        &credits,
        &after,
        &leases as &[Option<Uuid>],
        &cums as &[Option<i64>],
        &reasons as &[&str],
        &actors as &[&str],
        &keys as &[Option<&str>],
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Movements as columns.
#[derive(Default)]
struct Moves {
    ids: Vec<Uuid>,
    granted: Vec<i64>,
    used: Vec<i64>,
    expired: Vec<i64>,
    reserved: Vec<i64>,
}

impl Moves {
    fn push(&mut self, id: Uuid, movement: &Movement) {
        self.ids.push(id);
        self.granted.push(movement.granted.get());
        self.used.push(movement.used.get());
        self.expired.push(movement.expired.get());
        self.reserved.push(movement.reserved.get());
    }
}

/// What there is to watch a wallet by, as columns; nothing where it is as it was.
#[derive(Default)]
struct Levels {
    references: Vec<Option<i64>>,
    percents: Vec<Option<i16>>,
    refilled: Vec<bool>,
}

impl Levels {
    fn push(&mut self, changes: &Changes, wallet: WalletId) {
        let level = changes.levels.get(&wallet);
        self.references
            .push(level.map(|level| level.reference.get()));
        self.percents
            .push(level.map(|level| i16::from(level.percent)));
        self.refilled.push(changes.refilled.contains(&wallet));
    }
}

/// Keeps I1 (the sums make the balance) and I2 (what is lent is there) by checks of the table.
async fn move_wallets(
    connection: &mut Connection,
    moves: &Moves,
    levels: &Levels,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update wallet.wallets w
           set balance = w.balance + u.granted - u.used - u.expired,
               reserved = w.reserved + u.reserved,
               total_granted = w.total_granted + u.granted,
               total_used = w.total_used + u.used,
               total_expired = w.total_expired + u.expired,
               reference_balance = coalesce(u.reference, w.reference_balance),
               reference_at = case when u.is_refilled then $9 else w.reference_at end,
               low_percent = coalesce(u.low_percent, w.low_percent),
               updated_at = $9
          from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[],
                      $6::bigint[], $7::smallint[], $8::bool[])
            as u (id, granted, used, expired, reserved, reference, low_percent, is_refilled)
         where w.id = u.id
           and w.id = any($1)"#,
        &moves.ids,
        &moves.granted,
        &moves.used,
        &moves.expired,
        &moves.reserved,
        &levels.references as &[Option<i64>],
        &levels.percents as &[Option<i16>],
        &levels.refilled,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// As [`move_wallets`], for test wallets.
async fn move_test_wallets(
    connection: &mut Connection,
    moves: &Moves,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update wallet.test_wallets w
           set balance = w.balance + u.granted - u.used - u.expired,
               reserved = w.reserved + u.reserved,
               total_granted = w.total_granted + u.granted,
               total_used = w.total_used + u.used,
               total_expired = w.total_expired + u.expired,
               updated_at = $6
          from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
            as u (id, granted, used, expired, reserved)
         where w.id = u.id
           and w.id = any($1)"#,
        &moves.ids,
        &moves.granted,
        &moves.used,
        &moves.expired,
        &moves.reserved,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps the promise of a quota (used and lent are never more than it had) by a check of the table.
async fn move_buckets(
    connection: &mut Connection,
    moves: &Moves,
    now: Timestamp,
) -> sqlx::Result<()> {
    sqlx::query!(
        r#"
        update wallet.quota_buckets b
           set used = b.used + u.used,
               reserved = b.reserved + u.reserved,
               updated_at = $4
          from unnest($1::uuid[], $2::bigint[], $3::bigint[]) as u (id, used, reserved)
         where b.id = u.id
           and b.id = any($1)"#,
        &moves.ids,
        &moves.used,
        &moves.reserved,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Announces with the change itself that wallets run dry; a relay publishes it. The wallets are
/// locked, and say when credits came in.
async fn insert_lows(
    connection: &mut Connection,
    fallen: &[Fallen],
    now: Timestamp,
) -> sqlx::Result<()> {
    let column = |column: fn(&Fallen) -> i64| -> Vec<i64> { fallen.iter().map(column).collect() };
    let wallets: Vec<Uuid> = fallen.iter().map(|fallen| fallen.wallet.uuid()).collect();
    let percents: Vec<i16> = fallen
        .iter()
        .map(|fallen| i16::from(fallen.percent))
        .collect();
    sqlx::query!(
        r#"
        insert into wallet.lows (wallet_id, reference_at, percent, reference, balance, at)
        select w.id, w.reference_at, u.percent, u.reference, u.balance, $5
          from unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::bigint[])
            as u (wallet_id, percent, reference, balance)
          join wallet.wallets w on w.id = u.wallet_id
            on conflict (wallet_id, reference_at, percent) do nothing"#,
        &wallets,
        &percents,
        &column(|fallen| fallen.reference.get()),
        &column(|fallen| fallen.balance.get()),
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_write_offs(
    connection: &mut Connection,
    changes: &Changes,
    now: Timestamp,
) -> sqlx::Result<()> {
    let leases: Vec<Uuid> = changes
        .write_offs
        .keys()
        .map(|lease| lease.uuid())
        .collect();
    let released: Vec<i64> = changes
        .write_offs
        .values()
        .map(|credits| credits.get())
        .collect();
    sqlx::query!(
        r#"
        insert into wallet.write_offs (lease_id, released, at)
        select u.lease_id, u.released, $3
          from unnest($1::uuid[], $2::bigint[]) as u (lease_id, released)"#,
        &leases,
        &released,
        now.to_sqlx() as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn add_late_spends(connection: &mut Connection, changes: &Changes) -> sqlx::Result<()> {
    let leases: Vec<Uuid> = changes
        .late_spends
        .keys()
        .map(|lease| lease.uuid())
        .collect();
    let credits: Vec<i64> = changes
        .late_spends
        .values()
        .map(|credits| credits.get())
        .collect();
    sqlx::query!(
        r#"
        update wallet.write_offs w
           set late_spend = w.late_spend + u.credits
          from unnest($1::uuid[], $2::bigint[]) as u (lease_id, credits)
         where w.lease_id = u.lease_id"#,
        &leases,
        &credits,
    )
    .execute(connection)
    .await?;
    Ok(())
}
