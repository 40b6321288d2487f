//! The auditor: recomputes every wallet, lease, row and statistic from what is stored, and names
//! what differs.
//!
//! - It shares no code with what it judges: own SQL, own reader of journals, own sums.
//! - It only reads: one repeatable-read snapshot a schema, journals without their lock.
//! - Sums are `i128`: nothing it adds can wrap.
//! - While consumers catch up there are differences; it looks again until they are gone or the
//!   time is over, and then says what was left.

mod days;
mod discards;
mod findings;
pub mod journal;
mod money;
mod quotas;
pub mod records;
mod rows;
mod statistics;
mod transcript;
mod unitemised;
mod upstream;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::time::{Instant, sleep};

pub use self::days::{Day, Totals};
pub use self::findings::Report;
use self::findings::{Findings, Kind};
use self::journal::Journals;
pub use self::transcript::{Transcript, read_transcript};
pub use self::upstream::{UpstreamCall, read_upstream};

/// Between two looks.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(100);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(2);

/// What is read.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The database with all schemas.
    pub postgres_url: String,
    /// Root directories of journals. Without any, nothing is said about what is on disk.
    pub journals: Vec<PathBuf>,
    /// What clients saw; empty outside of tests.
    pub transcript: Vec<Transcript>,
    /// What upstreams answered; empty where they write nothing down.
    pub upstream: Vec<UpstreamCall>,
}

/// Looks until nothing differs, at most for `wait`, and reports the last look.
///
/// # Errors
/// A source cannot be read.
pub async fn audit(sources: &Sources, wait: Duration) -> anyhow::Result<Report> {
    let begin = Instant::now();
    let mut interval = LOOK_INTERVAL_MIN;
    loop {
        let mut report = look(sources).await?;
        report.waited_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        if report.differences == 0 || begin.elapsed() + interval > wait {
            return Ok(report);
        }
        sleep(interval).await;
        interval = (interval * 2).min(LOOK_INTERVAL_MAX);
    }
}

/// One look at everything.
async fn look(sources: &Sources) -> anyhow::Result<Report> {
    // The error of a malformed URL could quote the password: it is not shown.
    let options: PgConnectOptions = sources
        .postgres_url
        .parse()
        .map_err(|_quotes_it| anyhow::anyhow!("the URL of PostgreSQL is malformed"))?;
    // Row security would hide rows without a word, and a sum over a part proves nothing: an error
    // says so instead, unless the login stands above it.
    let options = options
        .application_name("tollgate audit")
        .options([("row_security", "off")]);
    let mut connection = PgConnection::connect_with(&options)
        .await
        .context("PostgreSQL does not answer")?;
    let mut findings = Findings::default();
    // Journals first: what they hold is applied by the time the tables are read, or counts as
    // not applied yet.
    let journals = Journals::read(&sources.journals)?;
    let replay = records::replay(&journals, &mut findings);
    let money = money::read(&mut connection)
        .await
        .context("schema wallet")?;
    let rows = rows::read(&mut connection)
        .await
        .context("schema usage_ingest")?;
    let statistics = statistics::read(&mut connection)
        .await
        .context("schema stats_aggregator")?;
    let detector = rows::inbox_of_detector(&mut connection)
        .await
        .context("schema anomaly_detector")?;
    let booked = days::booked(&mut connection)
        .await
        .context("the ledger by day")?;
    let paid = match sources.upstream.as_slice() {
        [] => Vec::new(),
        _ => upstream::paid(&mut connection)
            .await
            .context("paid calls")?,
    };
    connection.close().await?;

    money.check(&mut findings);
    money.check_spend(&rows.spend, &rows.unitemised, &mut findings);
    money.check_uses(&rows.uses, &rows.unitemised, &mut findings);
    if !sources.journals.is_empty() {
        money.check_owners(&journals, &mut findings);
    }
    rows.check(&mut findings);
    statistics.check(&rows, &mut findings);
    let inboxes = [&money.inbox, &rows.inbox, &statistics.inbox, &detector];
    rows::check_inboxes(&inboxes, &mut findings);
    rows.check_journals(&replay, &inboxes, &mut findings);
    rows.check_transcript(&sources.transcript, &mut findings);

    let clients = &sources.transcript;
    let unrecorded = upstream::check(&sources.upstream, &paid, &rows, clients, &mut findings);

    let mut report = findings.into_report();
    report.upstream = sources.upstream.len();
    report.answered_unrecorded = unrecorded;
    report.days = days::days(&rows, &statistics, &booked);
    report.wallets = money.wallets();
    report.test_wallets = money.test_wallets();
    report.leases = money.leases();
    report.ledger_entries = money.ledger_entries();
    report.recorded_gaps = rows.recorded_gaps();
    report.discarded = inboxes.iter().map(|it| it.discards.records).sum();
    report.calls = rows.calls();
    report.credits = rows.credits();
    report.journals = journals.count();
    report.records_on_disk = replay.records;
    report.open_calls = replay.open_calls;
    report.transcript = sources.transcript.len();
    Ok(report)
}
