//! What was found, by kind.

use serde::Serialize;

use super::days::Day;

/// Differences described in a report; the others are counted.
const DESCRIBED_MAX: usize = 50;

/// What a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A complete answer without its one record, row or debit.
    Lost,
    /// Something booked twice.
    Double,
    /// So many credits were spent that were not there.
    Overspent(i128),
    /// So many records are missing.
    Gap(u64),
    /// So many credits are reserved for nobody.
    Stranded(i128),
    /// So many batches were put aside.
    DeadLetters(u64),
    /// So many records wait for a consumer.
    Unapplied(u64),
    /// Credits for a call that no upstream has answered.
    Unserved,
    /// Anything else that does not add up.
    Sum,
}

/// Collects differences.
#[derive(Debug, Default)]
pub(super) struct Findings {
    report: Report,
}

/// The figures. Everything but the counts of what was looked at should be zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Everything that differs.
    pub differences: u64,
    /// Complete answers without exactly one record, row and debit.
    pub lost: u64,
    /// Calls with more than one row, records with more than one row.
    pub double: u64,
    /// Credits spent that were not there.
    pub overspent: u64,
    /// Records missing below a watermark or within a journal.
    pub gaps: u64,
    /// Credits reserved for owners that are gone.
    pub stranded: u64,
    /// Batches put aside.
    pub dead_letters: u64,
    /// Records that a consumer has not applied yet.
    pub unapplied: u64,
    /// Records that can never be read again, as their journals' owners have declared: explained,
    /// and no difference.
    pub recorded_gaps: u64,
    /// Credits of such records, debited by the total that a later record states, and what owners
    /// who were given up had told last: no row says for which call.
    pub unitemised: u64,
    /// Records that an operator has decided that a consumer never applies, of all consumers.
    pub discarded: u64,
    /// Credits of calls that are debited to nobody because of that: the provider bears them.
    pub unbilled: u64,
    /// Calls that were paid for though no upstream says that it answered them.
    pub unserved: u64,
    /// Calls an upstream has answered that left no record: their gateway died in between, and no
    /// client has the answer. No difference.
    pub answered_unrecorded: u64,
    /// Wallets looked at.
    pub wallets: usize,
    /// Test wallets looked at.
    pub test_wallets: usize,
    /// Leases looked at.
    pub leases: usize,
    /// Ledger entries looked at.
    pub ledger_entries: usize,
    /// Rows looked at.
    pub calls: u64,
    /// Credits they cost.
    pub credits: i64,
    /// Journals found on disk.
    pub journals: usize,
    /// Records found in them.
    pub records_on_disk: u64,
    /// Calls in them that were begun and have no record of their end: they go on, or the gateway
    /// has died and its journal is not recovered yet.
    pub open_calls: usize,
    /// Answers of clients that were compared.
    pub transcript: usize,
    /// Calls of upstreams that were compared.
    pub upstream: usize,
    /// Milliseconds until this look was over.
    pub waited_ms: u64,
    /// The first differences in words.
    pub first_differences: Vec<String>,
    /// Sums by organisation and day; a report of its own shows them.
    #[serde(skip)]
    pub days: Vec<Day>,
}

impl Findings {
    /// Notes a difference.
    pub(super) fn add(&mut self, kind: Kind, text: impl Into<String>) {
        let report = &mut self.report;
        report.differences += 1;
        let credits = |credits: i128| u64::try_from(credits.max(0)).unwrap_or(u64::MAX);
        match kind {
            Kind::Lost => report.lost += 1,
            Kind::Double => report.double += 1,
            Kind::Overspent(by) => report.overspent += credits(by),
            Kind::Gap(records) => report.gaps += records,
            Kind::Stranded(by) => report.stranded += credits(by),
            Kind::DeadLetters(batches) => report.dead_letters += batches,
            Kind::Unapplied(records) => report.unapplied += records,
            Kind::Unserved => report.unserved += 1,
            Kind::Sum => {}
        }
        if report.first_differences.len() < DESCRIBED_MAX {
            report.first_differences.push(text.into());
        }
    }

    /// Counts credits that were spent by calls that have no row, as stated elsewhere.
    pub(super) fn add_unitemised(&mut self, credits: i128) {
        let credits = u64::try_from(credits.max(0)).unwrap_or(u64::MAX);
        self.report.unitemised = self.report.unitemised.saturating_add(credits);
    }

    /// Counts credits of calls that an operator has kept from the wallet.
    pub(super) fn add_unbilled(&mut self, credits: i128) {
        let credits = u64::try_from(credits.max(0)).unwrap_or(u64::MAX);
        self.report.unbilled = self.report.unbilled.saturating_add(credits);
    }

    /// Notes two numbers that should be one.
    pub(super) fn same(&mut self, what: impl FnOnce() -> String, stored: i128, recomputed: i128) {
        if stored != recomputed {
            let text = format!("{}: stored {stored}, recomputed {recomputed}", what());
            self.add(Kind::Sum, text);
        }
    }

    pub(super) fn into_report(self) -> Report {
        self.report
    }
}
