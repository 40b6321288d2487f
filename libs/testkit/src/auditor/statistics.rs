//! The totals, against the rows.
#![expect(
    clippy::disallowed_methods,
    reason = "an oracle writes its own statements and is not compiled against the schema"
)]

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::rows::{Inbox, Period, Rows, SNAPSHOT, Sums, read_inbox};
use super::{Findings, Kind};

/// Organisation, day, environment.
type Day = (Uuid, String, String);

/// Calls by service, as `services_breakdown` holds them.
type Services = BTreeMap<String, i128>;

/// Everything the schema says.
pub(super) struct Statistics {
    days: BTreeMap<Day, (Sums, Services)>,
    hours: BTreeMap<Period, Sums>,
    pub(super) inbox: Inbox,
}

/// Reads all of it in one snapshot.
pub(super) async fn read(connection: &mut PgConnection) -> sqlx::Result<Statistics> {
    let mut snapshot = connection.begin_with(SNAPSHOT).await?;
    let mut statistics = Statistics {
        days: BTreeMap::new(),
        hours: BTreeMap::new(),
        inbox: read_inbox!(&mut snapshot, "stats_aggregator"),
    };
    let sql = "select org_id, to_char(date, 'YYYY-MM-DD') as period, environment, \
               total_requests, total_credits, successful_requests, \
               services_breakdown::text as services from stats_aggregator.daily_stats";
    for row in sqlx::query(sql).fetch_all(&mut *snapshot).await? {
        let day = (
            row.try_get("org_id")?,
            row.try_get("period")?,
            row.try_get("environment")?,
        );
        let services: BTreeMap<String, i64> =
            serde_json::from_str(&row.try_get::<String, _>("services")?)
                .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let services = services
            .into_iter()
            .map(|(name, calls)| (name, calls.into()))
            .collect();
        statistics.days.insert(day, (sums(&row)?, services));
    }
    let sql = "select org_id, environment, service, \
               to_char(hour at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24') as period, \
               total_requests, total_credits, successful_requests \
               from stats_aggregator.hourly_stats";
    for row in sqlx::query(sql).fetch_all(&mut *snapshot).await? {
        let hour = (
            row.try_get("org_id")?,
            row.try_get("period")?,
            row.try_get("environment")?,
            row.try_get("service")?,
        );
        statistics.hours.insert(hour, sums(&row)?);
    }
    snapshot.rollback().await?;
    Ok(statistics)
}

fn sums(row: &PgRow) -> sqlx::Result<Sums> {
    Ok(Sums {
        calls: row.try_get::<i64, _>("total_requests")?.into(),
        credits: row.try_get::<i64, _>("total_credits")?.into(),
        successes: row.try_get::<i64, _>("successful_requests")?.into(),
    })
}

impl Statistics {
    /// Sums of each day.
    pub(super) fn days(&self) -> impl Iterator<Item = (&Day, Sums)> {
        self.days.iter().map(|(day, (sums, _))| (day, *sums))
    }

    /// I7: totals are the sums of rows, for days and for hours.
    pub(super) fn check(&self, rows: &Rows, findings: &mut Findings) {
        let mut days: BTreeMap<Day, (Sums, Services)> = BTreeMap::new();
        // What an operator has kept from the totals is in none of them.
        let mut hours = rows.hours.clone();
        for (period, sums) in self.inbox.discards.hours() {
            *hours.entry(period).or_default() -= sums;
        }
        hours.retain(|_, sums| *sums != Sums::default());
        for ((org, hour, environment, service), sums) in &hours {
            let date = hour.get(..10).unwrap_or_default().to_owned();
            let (day, services) = days.entry((*org, date, environment.clone())).or_default();
            *day += *sums;
            *services.entry(service.clone()).or_default() += sums.calls;
        }
        let none = (Sums::default(), Services::new());
        for key in union(&self.days, &days) {
            let stored = self.days.get(key).unwrap_or(&none);
            let recomputed = days.get(key).unwrap_or(&none);
            let (org, date, environment) = key;
            let name = format!("org_{} on {date} ({environment})", org.simple());
            compare("day", &name, stored.0, recomputed.0, findings);
            if stored.1 != recomputed.1 {
                findings.add(Kind::Sum, format!("day of {name}: calls by service differ"));
            }
        }
        for key in union(&self.hours, &hours) {
            let stored = self.hours.get(key).copied().unwrap_or_default();
            let recomputed = hours.get(key).copied().unwrap_or_default();
            let (org, hour, environment, service) = key;
            let name = format!("org_{} at {hour} ({environment}, {service})", org.simple());
            compare("hour", &name, stored, recomputed, findings);
        }
    }
}

fn union<'a, K: Ord, A, B>(left: &'a BTreeMap<K, A>, right: &'a BTreeMap<K, B>) -> BTreeSet<&'a K> {
    left.keys().chain(right.keys()).collect()
}

fn compare(what: &str, name: &str, stored: Sums, recomputed: Sums, findings: &mut Findings) {
    if stored == recomputed {
        return;
    }
    let show = |sums: Sums| {
        let Sums {
            calls,
            credits,
            successes,
        } = sums;
        format!("{calls} calls, {credits} credits, {successes} successes")
    };
    let (stored, recomputed) = (show(stored), show(recomputed));
    findings.add(
        Kind::Sum,
        format!("{what} of {name}: stored {stored}; rows: {recomputed}"),
    );
}
