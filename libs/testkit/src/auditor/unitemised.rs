//! Credits that were debited though no row says for which call, and what states them: a record
//! behind those that are lost, by its total, or the last word of an owner who was given up.
#![expect(
    clippy::disallowed_methods,
    reason = "an oracle writes its own statements and is not compiled against the schema"
)]

use std::collections::{BTreeMap, HashMap};

use sqlx::Row;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::money::Lease;
use super::rows::number_of;

/// Records that are lost for good, and how the totals of leases go on behind them.
#[derive(Debug, Default)]
pub(super) struct Unitemised {
    /// Declared lost, by journal: half-open ranges in order.
    pub(super) gaps: BTreeMap<Uuid, Vec<(i64, i64)>>,
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

impl Unitemised {
    /// Reads the totals in the snapshot at hand.
    pub(super) async fn read(
        connection: &mut PgConnection,
        gaps: BTreeMap<Uuid, Vec<(i64, i64)>>,
    ) -> sqlx::Result<Self> {
        let sql = "with totals as ( \
                       select lease_id, seq, lease_cum, \
                              lag(seq) over by_seq as after, \
                              lead(seq) over by_seq is null as is_last, \
                              lease_cum - credits_used - coalesce(lag(lease_cum) over by_seq, 0) \
                                  as credits \
                         from usage_ingest.api_usage_logs \
                        where journal_id = any($1) and lease_id is not null \
                       window by_seq as (partition by lease_id order by seq)) \
                   select lease_id, seq, lease_cum, after, is_last, credits \
                     from totals where is_last or credits <> 0 order by lease_id, seq";
        let journals: Vec<Uuid> = gaps.keys().copied().collect();
        let mut totals: HashMap<Uuid, Totals> = HashMap::new();
        for row in sqlx::query(sql)
            .bind(journals)
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
        Ok(Self { gaps, totals })
    }

    /// Records of a journal that are lost for good.
    pub(super) fn lost_of(&self, journal: Uuid) -> i128 {
        let gaps = self.gaps.get(&journal).into_iter().flatten();
        gaps.map(|(low, high)| i128::from(high - low)).sum()
    }

    /// Is one of the numbers between two rows, or behind the last, lost for good?
    fn is_lost(&self, journal: Uuid, after: Option<i64>, below: Option<i64>) -> bool {
        let first = after.map_or(0, |seq| seq + 1);
        let mut gaps = self.gaps.get(&journal).into_iter().flatten();
        gaps.any(|(low, high)| first < *high && below.is_none_or(|below| *low < below))
    }

    /// Credits of a lease that its rows leave open and that are stated all the same.
    pub(super) fn stated(&self, id: Uuid, lease: &Lease, cost: i128) -> i128 {
        // Its owner was given up with what a heartbeat had told last, and nothing came later.
        let is_told = lease.state == "written_off" && lease.settled == lease.known;
        if !self.gaps.contains_key(&lease.journal) {
            return if is_told { lease.settled - cost } else { 0 };
        }
        let none = Totals::default();
        let totals = self.totals.get(&id).unwrap_or(&none);
        let steps = totals.steps.iter();
        let behind_losses: i128 = steps
            .filter(|step| self.is_lost(lease.journal, step.after, Some(step.seq)))
            .map(|step| step.credits)
            .sum();
        let (seq, cum) = totals.last.map_or((None, 0), |(seq, cum)| (Some(seq), cum));
        let at_the_end = match is_told || self.is_lost(lease.journal, seq, None) {
            true => lease.settled - cum,
            false => 0,
        };
        behind_losses + at_the_end
    }
}
