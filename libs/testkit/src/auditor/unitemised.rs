//! Credits that were debited though no row says for which call, and what states them: a record
//! behind those that are lost, by its total, or the last word of an owner.
//!
//! A record that is lost explains what one lease grew by in one place, and no more than is stated
//! there. So each place takes a lost number of its own.
#![expect(
    clippy::disallowed_methods,
    reason = "an oracle writes its own statements and is not compiled against the schema"
)]

use std::collections::{BTreeMap, HashMap};

use sqlx::Row;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::discards::Discards;
use super::money::Lease;
use super::rows::number_of;

/// Half-open ranges of numbers, in order, by journal.
pub(super) type Numbers = BTreeMap<Uuid, Vec<(i64, i64)>>;

/// Records that are lost for good, and how the totals of leases go on behind them.
#[derive(Debug, Default)]
pub(super) struct Unitemised {
    /// Declared lost; those that an operator has discarded are known.
    pub(super) lost: Numbers,
    /// Of leases whose journal has lost records.
    pub(super) totals: HashMap<Uuid, Totals>,
}

/// What the rows of a lease say of its total.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) steps: Vec<Step>,
    /// Number and total of the last row; none there are.
    pub(super) last: Option<(i64, i128)>,
}

/// A row whose total is more than that of the row before it and its own cost.
#[derive(Debug)]
pub(super) struct Step {
    /// Number of the row before it.
    pub(super) after: Option<i64>,
    pub(super) seq: i64,
    pub(super) credits: i128,
}

/// Credits of a lease that need a lost number in a range.
struct Claim {
    journal: Uuid,
    lease: Uuid,
    from: i64,
    below: i64,
    credits: i128,
}

impl Unitemised {
    /// Reads the totals in the snapshot at hand. What an operator has kept from being a row is one
    /// here: its letter says what it cost.
    pub(super) async fn read(
        connection: &mut PgConnection,
        lost: Numbers,
        discards: &Discards,
    ) -> sqlx::Result<Self> {
        let sql = "with calls as ( \
                       select lease_id, seq, lease_cum, credits_used \
                         from usage_ingest.api_usage_logs \
                        where journal_id = any($1) and lease_id is not null \
                        union all \
                       select * from unnest($2::uuid[], $3::int8[], $4::int8[], $5::int8[])), \
                   totals as ( \
                       select lease_id, seq, lease_cum, \
                              lag(seq) over by_seq as after, \
                              lead(seq) over by_seq is null as is_last, \
                              lease_cum - credits_used - coalesce(lag(lease_cum) over by_seq, 0) \
                                  as credits \
                         from calls \
                       window by_seq as (partition by lease_id order by seq)) \
                   select lease_id, seq, lease_cum, after, is_last, credits \
                     from totals where is_last or credits <> 0 order by lease_id, seq";
        let journals: Vec<Uuid> = lost.keys().copied().collect();
        let (mut leases, mut seqs) = (Vec::new(), Vec::new());
        let (mut cums, mut costs) = (Vec::new(), Vec::new());
        for ((journal, seq), record) in &discards.calls {
            let Some(lease) = record.lease().filter(|_| lost.contains_key(journal)) else {
                continue;
            };
            leases.push(lease);
            seqs.push(i64::try_from(*seq).unwrap_or(i64::MAX));
            cums.push(record.cum);
            costs.push(record.cost);
        }
        let mut totals: HashMap<Uuid, Totals> = HashMap::new();
        for row in sqlx::query(sql)
            .bind(journals)
            .bind(leases)
            .bind(seqs)
            .bind(cums)
            .bind(costs)
            .fetch_all(connection)
            .await?
        {
            let lease = totals.entry(row.try_get("lease_id")?).or_default();
            let seq = row.try_get("seq")?;
            if row.try_get("is_last")? {
                lease.last = Some((seq, number_of(&row, "lease_cum")?));
            }
            let credits = number_of(&row, "credits")?;
            if credits != 0 {
                let after = row.try_get("after")?;
                lease.steps.push(Step {
                    after,
                    seq,
                    credits,
                });
            }
        }
        Ok(Self { lost, totals })
    }

    /// Records of a journal that are lost for good.
    pub(super) fn lost_of(&self, journal: Uuid) -> i128 {
        let lost = self.lost.get(&journal).into_iter().flatten();
        lost.map(|(low, high)| i128::from(high - low)).sum()
    }

    /// Credits of each lease that its rows leave open and that are stated all the same. `cost`: of
    /// its rows. `unread`: what the wallet has not read.
    pub(super) fn stated(
        &self,
        leases: &HashMap<Uuid, Lease>,
        cost: impl Fn(Uuid) -> i128,
        unread: &Numbers,
    ) -> HashMap<Uuid, i128> {
        let mut stated: HashMap<Uuid, i128> = HashMap::new();
        let mut claims = Vec::new();
        for (id, lease) in leases {
            if self.lost.contains_key(&lease.journal) {
                claims.extend(self.claims(*id, lease, unread));
                let cum = self.last(*id).map_or(0, |(_, cum)| cum);
                if lease.is_told() {
                    stated.insert(*id, (lease.settled - cum).max(0));
                }
            } else if lease.is_told() {
                stated.insert(*id, (lease.settled - cost(*id)).max(0));
            }
        }
        // Who has to have one first takes the first there is: so as many get one as can.
        claims.sort_by_key(|claim| (claim.below, claim.from, claim.lease));
        let mut free = self.lost.clone();
        for claim in claims {
            let free = free.entry(claim.journal).or_default();
            if take(free, claim.from, claim.below) {
                *stated.entry(claim.lease).or_default() += claim.credits;
            }
        }
        stated
    }

    fn last(&self, lease: Uuid) -> Option<(i64, i128)> {
        self.totals.get(&lease).and_then(|totals| totals.last)
    }

    /// Where a lease has grown by more than its rows.
    fn claims(&self, id: Uuid, lease: &Lease, unread: &Numbers) -> Vec<Claim> {
        let claim = |after: Option<i64>, below, credits| Claim {
            journal: lease.journal,
            lease: id,
            from: after.map_or(0, |seq| seq + 1),
            below,
            credits,
        };
        let steps = self.totals.get(&id).into_iter();
        let steps = steps.flat_map(|totals| &totals.steps);
        let mut claims: Vec<Claim> = steps
            .map(|step| claim(step.after, step.seq, step.credits))
            .collect();
        let (seq, cum) = match self.last(id) {
            Some((seq, cum)) => (Some(seq), cum),
            None => (None, 0),
        };
        // Behind the last row a total is stated by the owner who closed the lease itself, or by a
        // record that the wallet has read before it was lost. Whoever closes it for an owner who
        // is dead can count no more than the journal has, and what a heartbeat had told.
        let is_known = lease.is_owners_count || self.has_read(lease.journal, seq, unread);
        let most = match is_known {
            true => lease.settled,
            false => lease.settled.min(lease.known),
        };
        if cum < most && !lease.is_told() {
            claims.push(claim(seq, i64::MAX, most - cum));
        }
        claims.retain(|claim| 0 < claim.credits);
        claims
    }

    /// Has the wallet read one of the numbers behind a row that are lost to the rows?
    fn has_read(&self, journal: Uuid, after: Option<i64>, unread: &Numbers) -> bool {
        let mut rest = self.lost.get(&journal).cloned().unwrap_or_default();
        let first = after.map_or(0, |seq| seq + 1);
        let unread = unread.get(&journal).into_iter().flatten();
        for (low, high) in unread.copied().chain([(0, first)]) {
            let parts = rest
                .into_iter()
                .flat_map(|(from, below)| [(from, below.min(low)), (from.max(high), below)]);
            rest = parts.filter(|(from, below)| from < below).collect();
        }
        !rest.is_empty()
    }
}

/// Takes the first number of a range that is free, if there is one.
fn take(free: &mut Vec<(i64, i64)>, from: i64, below: i64) -> bool {
    let meets = |(low, high): &(i64, i64)| (*low).max(from) < (*high).min(below);
    let Some(place) = free.iter().position(meets) else {
        return false;
    };
    let (low, high) = free.remove(place);
    let number = low.max(from);
    let rest = [(low, number), (number + 1, high)];
    let rest = rest.into_iter().filter(|(low, high)| low < high);
    free.splice(place..place, rest);
    true
}
