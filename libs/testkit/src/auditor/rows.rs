//! The rows of `api_usage_logs`, the inboxes of all consumers, and what journals and clients say
//! against them.
#![expect(
    clippy::disallowed_methods,
    reason = "an oracle writes its own statements and is not compiled against the schema"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::discards::Discards;
use super::records::{CallOnDisk, Replay};
use super::unitemised::{Numbers, Unitemised};
use super::{Findings, Kind, Transcript};

pub(super) const SNAPSHOT: &str = "begin isolation level repeatable read, read only";

/// What a consumer has applied, and what it put aside.
pub(super) struct Inbox {
    pub(super) consumer: &'static str,
    /// Half-open ranges in order.
    pub(super) applied: BTreeMap<Uuid, Vec<(i64, i64)>>,
    /// What of them was declared lost or discarded.
    pub(super) gaps: Numbers,
    pub(super) dead_letters: i64,
    /// What an operator has decided that it never applies.
    pub(super) discards: Discards,
}

impl Inbox {
    /// Every number below it is applied.
    fn watermark(&self, journal: Uuid) -> u64 {
        match self.applied.get(&journal).map(Vec::as_slice) {
            Some([(0, high), ..]) => u64::try_from(*high).unwrap_or(0),
            _ => 0,
        }
    }

    /// What of a range is neither applied nor declared lost.
    fn missing(&self, journal: Uuid, range: &Range<u64>) -> u64 {
        let wide = |bound: i64| u64::try_from(bound).unwrap_or(0);
        let known = self.applied.get(&journal).into_iter().flatten();
        let covered = known.map(|(low, high)| {
            let (low, high) = (wide(*low).max(range.start), wide(*high).min(range.end));
            high.saturating_sub(low)
        });
        (range.end - range.start).saturating_sub(covered.sum())
    }

    /// The number after the last one that is applied.
    fn end(&self, journal: Uuid) -> u64 {
        let last = self.applied.get(&journal).and_then(|ranges| ranges.last());
        last.and_then(|(_, high)| u64::try_from(*high).ok())
            .unwrap_or(0)
    }
}

/// Reads the inbox of a schema in the snapshot at hand.
macro_rules! read_inbox {
    ($connection:expr, $schema:literal) => {
        $crate::auditor::rows::inbox(
            $connection,
            $schema,
            concat!(
                "select i.journal_id, lower(r) as low, upper(r) as high from ",
                $schema,
                ".inbox i, unnest(i.applied) r order by i.journal_id, lower(r)"
            ),
            concat!(
                "select journal_id, from_seq as low, below_seq as high from ",
                $schema,
                ".gaps order by journal_id, from_seq"
            ),
            concat!("select count(*) as letters from ", $schema, ".dead_letters"),
            concat!(
                "select journal_id, batch from ",
                $schema,
                ".discards where journal_id is not null"
            ),
        )
        .await?
    };
}
pub(super) use read_inbox;

pub(super) async fn inbox(
    connection: &mut PgConnection,
    consumer: &'static str,
    applied: &'static str,
    gaps: &'static str,
    letters: &'static str,
    discarded: &'static str,
) -> sqlx::Result<Inbox> {
    let applied = ranges(connection, applied).await?;
    let gaps = ranges(connection, gaps).await?;
    let dead_letters = sqlx::query(letters)
        .fetch_one(&mut *connection)
        .await?
        .try_get("letters")?;
    let mut discards = Discards::default();
    for row in sqlx::query(discarded).fetch_all(connection).await? {
        discards.add(row.try_get("journal_id")?, row.try_get("batch")?);
    }
    Ok(Inbox {
        consumer,
        applied,
        gaps,
        dead_letters,
        discards,
    })
}

async fn ranges(
    connection: &mut PgConnection,
    sql: &'static str,
) -> sqlx::Result<BTreeMap<Uuid, Vec<(i64, i64)>>> {
    let mut found: BTreeMap<Uuid, Vec<(i64, i64)>> = BTreeMap::new();
    for row in sqlx::query(sql).fetch_all(connection).await? {
        let range = (row.try_get("low")?, row.try_get("high")?);
        found
            .entry(row.try_get("journal_id")?)
            .or_default()
            .push(range);
    }
    Ok(found)
}

/// The detector keeps nothing that could be added up, but it applies the same records.
pub(super) async fn inbox_of_detector(connection: &mut PgConnection) -> sqlx::Result<Inbox> {
    let mut snapshot = connection.begin_with(SNAPSHOT).await?;
    let inbox = read_inbox!(&mut snapshot, "anomaly_detector");
    snapshot.rollback().await?;
    Ok(inbox)
}

/// What the calls of a lease cost.
#[derive(Debug, Default)]
pub(super) struct Spend {
    pub(super) credits: i128,
    pub(super) calls: i64,
    pub(super) organisations: Vec<Uuid>,
    pub(super) users: Vec<Uuid>,
    pub(super) is_test: Vec<bool>,
}

/// Calls that used a permit of a lease, one each.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pub(super) calls: i64,
    pub(super) organisations: Vec<Uuid>,
}

/// A day or an hour of an organisation: organisation, period, environment, service.
pub(super) type Period = (Uuid, String, String, String);

/// Sums of calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) calls: i128,
    pub(super) credits: i128,
    pub(super) successes: i128,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.credits += other.credits;
        self.successes += other.successes;
    }
}

impl std::ops::SubAssign for Sums {
    fn sub_assign(&mut self, other: Self) {
        self.calls -= other.calls;
        self.credits -= other.credits;
        self.successes -= other.successes;
    }
}

/// Everything the rows say.
pub(super) struct Rows {
    /// Journal, number, request and cost of every row.
    by_record: HashMap<(Uuid, i64), (Uuid, i64)>,
    pub(super) by_request: HashMap<Uuid, u32>,
    twice: Vec<String>,
    unleased: Vec<String>,
    pub(super) spend: HashMap<Uuid, Spend>,
    pub(super) uses: HashMap<Uuid, Uses>,
    pub(super) hours: BTreeMap<Period, Sums>,
    pub(super) unitemised: Unitemised,
    pub(super) inbox: Inbox,
}

/// Reads all of it in one snapshot.
pub(super) async fn read(connection: &mut PgConnection) -> sqlx::Result<Rows> {
    let mut snapshot = connection.begin_with(SNAPSHOT).await?;
    let inbox = read_inbox!(&mut snapshot, "usage_ingest");
    let lost = "select journal_id, from_seq as low, below_seq as high from usage_ingest.gaps \
                where cause <> 'discarded' order by journal_id, from_seq";
    let lost = ranges(&mut snapshot, lost).await?;
    let unitemised = Unitemised::read(&mut snapshot, lost, &inbox.discards).await?;
    let mut rows = Rows {
        by_record: HashMap::new(),
        by_request: HashMap::new(),
        twice: Vec::new(),
        unleased: Vec::new(),
        spend: HashMap::new(),
        uses: HashMap::new(),
        hours: BTreeMap::new(),
        unitemised,
        inbox,
    };
    let sql = "select journal_id, seq, request_id, credits_used, lease_id, day, \
               (timestamp at time zone 'UTC')::date = day as is_right_day \
               from usage_ingest.api_usage_logs";
    let mut calls = sqlx::query(sql).fetch(&mut *snapshot);
    while let Some(row) = calls.try_next().await? {
        rows.add(&row)?;
    }
    drop(calls);
    rows.read_spend(&mut snapshot).await?;
    rows.read_uses(&mut snapshot).await?;
    rows.read_hours(&mut snapshot).await?;
    snapshot.rollback().await?;
    rows.add_discards();
    Ok(rows)
}

impl Rows {
    fn add(&mut self, row: &PgRow) -> sqlx::Result<()> {
        let (journal, seq): (Uuid, i64) = (row.try_get("journal_id")?, row.try_get("seq")?);
        let (request, cost): (Uuid, i64) =
            (row.try_get("request_id")?, row.try_get("credits_used")?);
        let name = || format!("req_{} (jrn_{}/{seq})", request.simple(), journal.simple());
        if self
            .by_record
            .insert((journal, seq), (request, cost))
            .is_some()
        {
            self.twice
                .push(format!("{}: two rows of one record", name()));
        }
        let rows = self.by_request.entry(request).or_default();
        *rows += 1;
        if *rows == 2 {
            self.twice.push(format!("{}: two rows of one call", name()));
        }
        let lease: Option<Uuid> = row.try_get("lease_id")?;
        if lease.is_none() && cost != 0 {
            self.unleased
                .push(format!("{}: costs {cost} without a lease", name()));
        }
        if !row.try_get::<bool, _>("is_right_day")? {
            self.unleased
                .push(format!("{}: stored under another day", name()));
        }
        Ok(())
    }

    async fn read_spend(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "select lease_id, sum(credits_used)::text as credits, count(*) as calls, \
                   array_agg(distinct org_id) as organisations, \
                   array_remove(array_agg(distinct user_id), null) as users, \
                   array_agg(distinct environment = 'test') as is_test \
                   from usage_ingest.api_usage_logs where lease_id is not null group by lease_id";
        let mut leases = sqlx::query(sql).fetch(connection);
        while let Some(row) = leases.try_next().await? {
            let spend = Spend {
                credits: sum(&row, "credits")?,
                calls: row.try_get("calls")?,
                organisations: row.try_get("organisations")?,
                users: row.try_get("users")?,
                is_test: row.try_get("is_test")?,
            };
            self.spend.insert(row.try_get("lease_id")?, spend);
        }
        Ok(())
    }

    async fn read_uses(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "select p.lease_id, count(*) as calls, \
                   array_agg(distinct l.org_id) as organisations \
                   from usage_ingest.api_usage_logs l, unnest(l.permit_lease_ids) p (lease_id) \
                   group by p.lease_id";
        for row in sqlx::query(sql).fetch_all(connection).await? {
            let uses = Uses {
                calls: row.try_get("calls")?,
                organisations: row.try_get("organisations")?,
            };
            self.uses.insert(row.try_get("lease_id")?, uses);
        }
        Ok(())
    }

    async fn read_hours(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        // Calls of services that do not exist are counted together, under a name none can have.
        let sql = "select org_id, environment, \
                   to_char(timestamp at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24') as hour, \
                   case when service_id is null then '(unknown)' else service end as service, \
                   count(*) as calls, sum(credits_used)::text as credits, \
                   count(*) filter (where status_code = 101 \
                                       or status_code between 200 and 399) as successes \
                   from usage_ingest.api_usage_logs group by 1, 2, 3, 4";
        let mut hours = sqlx::query(sql).fetch(connection);
        while let Some(row) = hours.try_next().await? {
            let period = (
                row.try_get("org_id")?,
                row.try_get("hour")?,
                row.try_get("environment")?,
                row.try_get("service")?,
            );
            let sums = Sums {
                calls: row.try_get::<i64, _>("calls")?.into(),
                credits: sum(&row, "credits")?,
                successes: row.try_get::<i64, _>("successes")?.into(),
            };
            self.hours.insert(period, sums);
        }
        Ok(())
    }

    pub(super) fn calls(&self) -> u64 {
        u64::try_from(self.by_record.len()).unwrap_or(u64::MAX)
    }

    /// Rows of a call.
    pub(super) fn of_request(&self, request: Uuid) -> u32 {
        self.by_request.get(&request).copied().unwrap_or(0)
    }

    pub(super) fn credits(&self) -> i64 {
        let sum: i128 = self
            .by_record
            .values()
            .map(|(_, cost)| i128::from(*cost))
            .sum();
        i64::try_from(sum).unwrap_or(i64::MAX)
    }

    /// Records that will never be rows.
    pub(super) fn recorded_gaps(&self) -> u64 {
        let all = self.inbox.gaps.values().flatten();
        let records = all.map(|(low, high)| u64::try_from(high - low).unwrap_or(0));
        records.sum()
    }

    /// I6 within the schema.
    pub(super) fn check(&self, findings: &mut Findings) {
        for text in &self.twice {
            findings.add(Kind::Double, text);
        }
        for text in &self.unleased {
            findings.add(Kind::Sum, text);
        }
    }

    /// I6 against the journals: every CALL on disk has its row, once it is applied.
    pub(super) fn check_journals(
        &self,
        replay: &Replay,
        inboxes: &[&Inbox],
        findings: &mut Findings,
    ) {
        for call in &replay.calls {
            if call.seq < self.inbox.watermark(call.journal) {
                self.check_call(call, findings);
            }
        }
        for (journal, gap) in &replay.gaps {
            let missing = self.inbox.missing(*journal, gap);
            if missing > 0 {
                let text = format!(
                    "jrn_{}: {missing} of the records {} to {} can't be read, and that is not \
                     recorded",
                    journal.simple(),
                    gap.start,
                    gap.end - 1
                );
                findings.add(Kind::Gap(missing), text);
            }
        }
        for (journal, end) in &replay.ends {
            for inbox in inboxes {
                let behind = end.saturating_sub(inbox.watermark(*journal));
                if behind > 0 {
                    let text = format!(
                        "jrn_{}: {} has {behind} records before it",
                        journal.simple(),
                        inbox.consumer
                    );
                    findings.add(Kind::Unapplied(behind), text);
                }
            }
        }
    }

    fn check_call(&self, call: &CallOnDisk, findings: &mut Findings) {
        let name = || format!("jrn_{}/{}", call.journal.simple(), call.seq);
        let seq = i64::try_from(call.seq).unwrap_or(i64::MAX);
        match self.by_record.get(&(call.journal, seq)) {
            None if self
                .inbox
                .discards
                .calls
                .contains_key(&(call.journal, call.seq)) => {}
            None => findings.add(Kind::Gap(1), format!("{}: applied, but no row", name())),
            Some((request, cost)) if Some(*request) != call.request || *cost != call.cost => {
                findings.add(
                    Kind::Sum,
                    format!("{}: the row says something else", name()),
                );
            }
            Some(_) => {}
        }
    }

    /// I5 against the clients: every complete answer has one row, at the price it was told.
    pub(super) fn check_transcript(&self, transcript: &[Transcript], findings: &mut Findings) {
        let costs: HashMap<Uuid, i64> = match transcript {
            [] => return,
            _ => self.inbox.discards.costs().collect(),
        };
        let costs: HashMap<Uuid, i64> = self.by_record.values().copied().chain(costs).collect();
        for answer in transcript.iter().filter(|answer| answer.is_served()) {
            let Some(request) = answer.request() else {
                let text = format!("`{}` is no request id", answer.request_id);
                findings.add(Kind::Lost, text);
                continue;
            };
            match costs.get(&request) {
                None => {
                    let text = format!("{}: answered in full, but no row", answer.request_id);
                    findings.add(Kind::Lost, text);
                }
                Some(cost) if answer.cost.is_some_and(|told| told != *cost) => {
                    let text = format!("{}: the row costs {cost}", answer.request_id);
                    findings.add(Kind::Sum, text);
                }
                Some(_) => {}
            }
        }
    }
}

/// A whole number, wide enough for any sum.
pub(super) fn number_of(row: &PgRow, column: &str) -> sqlx::Result<i128> {
    row.try_get::<i64, _>(column).map(i128::from)
}

fn sum(row: &PgRow, column: &str) -> sqlx::Result<i128> {
    let text: String = row.try_get(column)?;
    text.parse()
        .map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

/// All consumers have applied the same records, without holes, and put nothing aside.
pub(super) fn check_inboxes(inboxes: &[&Inbox], findings: &mut Findings) {
    let journals: BTreeSet<Uuid> = inboxes
        .iter()
        .flat_map(|inbox| inbox.applied.keys().copied())
        .collect();
    for journal in journals {
        let end = inboxes
            .iter()
            .map(|inbox| inbox.end(journal))
            .max()
            .unwrap_or(0);
        for inbox in inboxes {
            let behind = end.saturating_sub(inbox.watermark(journal));
            if behind > 0 {
                let text = format!(
                    "jrn_{}: {} has applied all below {} only, others up to {end}",
                    journal.simple(),
                    inbox.consumer,
                    inbox.watermark(journal),
                );
                findings.add(Kind::Unapplied(behind), text);
            }
        }
    }
    for inbox in inboxes.iter().filter(|inbox| inbox.dead_letters > 0) {
        let letters = u64::try_from(inbox.dead_letters).unwrap_or(0);
        let text = format!("{} has put {letters} batches aside", inbox.consumer);
        findings.add(Kind::DeadLetters(letters), text);
    }
}
