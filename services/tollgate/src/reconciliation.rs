//! The reconciliation report: what `tollgate audit` found, by organisation and day, kept in files.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use serde_json::json;
use testkit::auditor::{Day, Report};

use crate::output::Output;
use crate::private;

/// Writes `audit-<time>.json` and `audit-<time>.txt`. Both are whole when they have their names.
pub(crate) fn write(
    folder: &Path,
    report: &Report,
    at: Timestamp,
    output: &Output,
) -> anyhow::Result<()> {
    let made = std::fs::create_dir_all(folder);
    made.with_context(|| format!("cannot make {}", folder.display()))?;
    let stem = format!("audit-{}", at.strftime("%Y-%m-%dT%H-%M-%SZ"));
    let all = json!({ "at": at.to_string(), "figures": report, "days": report.days });
    let json = serde_json::to_string_pretty(&all)?;
    let file = folder.join(format!("{stem}.json"));
    private::replace(&file, json.as_bytes())?;
    let path = folder.join(format!("{stem}.txt"));
    private::replace(&path, text(report, at).as_bytes())?;
    output.note(&format!("written: {}", path.display()));
    Ok(())
}

/// For people.
fn text(report: &Report, at: Timestamp) -> String {
    let verdict = match report.differences {
        0 => "everything adds up".to_owned(),
        1 => "ONE THING DIFFERS".to_owned(),
        differences => format!("{differences} THINGS DIFFER"),
    };
    let mut text = format!(
        "Reconciliation of {at}: {verdict}\n\n\
         calls {}, credits {}, wallets {}, leases {}, ledger entries {}\n\
         lost {}, double {}, overspent {}, gaps {}, stranded {}, dead letters {}, unapplied {}, \
         unserved {}, discarded {}, unbilled {}\n",
        report.calls,
        report.credits,
        report.wallets,
        report.leases,
        report.ledger_entries,
        report.lost,
        report.double,
        report.overspent,
        report.gaps,
        report.stranded,
        report.dead_letters,
        report.unapplied,
        report.unserved,
        report.discarded,
        report.unbilled,
    );
    let mut org = "";
    for day in &report.days {
        if day.org_id != org {
            org = &day.org_id;
            let heads = ["rows", "statistics", "booked", "later"];
            let [rows, statistics, booked, later] = heads;
            line(
                &mut text,
                &format!(
                    "\n{org}\n  {:<10} {:<10} {rows:>22} {statistics:>22} {booked:>12} {later:>8}",
                    "day", "",
                ),
            );
        }
        line(&mut text, &of_day(day));
    }
    for difference in &report.first_differences {
        line(&mut text, &format!("\n! {difference}"));
    }
    text
}

fn of_day(day: &Day) -> String {
    let sums = |totals: testkit::auditor::Totals| {
        let (calls, credits) = (totals.calls, totals.credits);
        format!("{calls} calls, {credits}")
    };
    let credits = |credits: Option<i64>| credits.map_or("-".to_owned(), |it| it.to_string());
    format!(
        "{} {:<10} {:<10} {:>22} {:>22} {:>12} {:>8}",
        if day.is_equal() { ' ' } else { '!' },
        day.date,
        day.environment,
        sums(day.rows),
        sums(day.statistics),
        credits(day.booked),
        credits(day.booked_later),
    )
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("memory takes everything");
}
