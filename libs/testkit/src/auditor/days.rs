//! I7, as somebody reads it: per organisation and day the sums of rows, statistics and ledger.
#![expect(
    clippy::disallowed_methods,
    reason = "an oracle writes its own statements and is not compiled against the schema"
)]

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::rows::{Rows, SNAPSHOT, Sums};
use super::statistics::Statistics;

/// Calls and credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Calls.
    pub calls: i64,
    /// What they cost.
    pub credits: i64,
}

impl From<Sums> for Totals {
    fn from(sums: Sums) -> Self {
        Self {
            calls: narrow(sums.calls),
            credits: narrow(sums.credits),
        }
    }
}

fn narrow(sum: i128) -> i64 {
    i64::try_from(sum).unwrap_or(i64::MAX)
}

/// One day of one organisation, in UTC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Day {
    /// `org_…`
    pub org_id: String,
    /// `YYYY-MM-DD`
    pub date: String,
    /// `production` or `test`.
    pub environment: String,
    /// By the rows.
    pub rows: Totals,
    /// By the daily statistics.
    pub statistics: Totals,
    /// Production: credits that the ledger booked on that day. A call just before midnight is
    /// booked just after it, so it is the balance at the end that must be nothing.
    pub booked: Option<i64>,
    /// Production: credits of calls up to this day that were booked on a later one.
    pub booked_later: Option<i64>,
}

impl Day {
    /// Rows and statistics say the same.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.rows == self.statistics
    }
}

/// What the ledger booked for usage, by organisation and day.
pub(super) async fn booked(
    connection: &mut PgConnection,
) -> sqlx::Result<BTreeMap<(Uuid, String), i64>> {
    let mut snapshot = connection.begin_with(SNAPSHOT).await?;
    let sql = "select w.org_id, to_char(l.at at time zone 'UTC', 'YYYY-MM-DD') as date, \
               sum(-l.credits)::int8 as credits \
               from wallet.ledger_entries l join wallet.wallets w on w.id = l.wallet_id \
               where l.kind = 'usage' group by 1, 2";
    let rows = sqlx::query(sql).fetch_all(&mut *snapshot).await?;
    snapshot.rollback().await?;
    let entry = |row: &sqlx::postgres::PgRow| {
        let key = (row.try_get("org_id")?, row.try_get("date")?);
        Ok((key, row.try_get("credits")?))
    };
    rows.iter().map(entry).collect()
}

/// All days, by organisation.
pub(super) fn days(
    rows: &Rows,
    statistics: &Statistics,
    booked: &BTreeMap<(Uuid, String), i64>,
) -> Vec<Day> {
    let mut all: BTreeMap<(Uuid, String, String), (Sums, Sums)> = BTreeMap::new();
    for ((org, hour, environment, _), sums) in &rows.hours {
        let date = hour.get(..10).unwrap_or_default().to_owned();
        all.entry((*org, environment.clone(), date)).or_default().0 += *sums;
    }
    for ((org, date, environment), sums) in statistics.days() {
        let key = (*org, environment.clone(), date.clone());
        all.entry(key).or_default().1 += sums;
    }
    for (org, date) in booked.keys() {
        let key = (*org, "production".to_owned(), date.clone());
        all.entry(key).or_default();
    }
    let mut later: BTreeMap<Uuid, i64> = BTreeMap::new();
    let mut day = |org: Uuid, environment: String, date: String, by: (Sums, Sums)| {
        let is_live = environment == "production";
        let by_ledger = is_live.then(|| booked.get(&(org, date.clone())).copied().unwrap_or(0));
        let rows = Totals::from(by.0);
        let booked_later = by_ledger.map(|credits| {
            let open = later.entry(org).or_default();
            *open = open.saturating_add(rows.credits).saturating_sub(credits);
            *open
        });
        Day {
            org_id: format!("org_{}", org.simple()),
            date,
            environment,
            rows,
            statistics: by.1.into(),
            booked: by_ledger,
            booked_later,
        }
    };
    all.into_iter()
        .map(|((org, environment, date), by)| day(org, environment, date, by))
        .collect()
}
