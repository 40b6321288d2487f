//! `tollgate letters`: what consumers have put aside, and what is done about it.

use clap::{Args, Subcommand};
use proto::letters::v1 as wire;
use runtime::Variables;
use serde_json::{Value, json};

use crate::connect::{Letters as Client, System, time};
use crate::failure::{Failure, Result};
use crate::output::Output;

const EXAMPLE: &str = "\
A batch that breaks a rule of a consumer is put aside whole, with its reason, and its journal waits.
Once the cause is gone (a newer version runs, a lease is restored), `retry` applies it. What can
never be applied, `discard` gives up: only the records that break a rule, only for that consumer,
and only when nothing before them is missing. The rest of the batch is applied.

Examples:
  tollgate letters
  tollgate letters show wallet 7
  tollgate letters retry wallet 7
  tollgate letters retry --all
  tollgate letters discard wallet 7 --reason 'lease lost with the backup of May 3rd'";

/// Letters of one answer.
const PAGE: u32 = 1_000;

/// Looks at dead letters and ends them; alone: lists all.
#[derive(Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Letters {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Show what is in a letter, and what its consumer would do with each record now
    Show {
        /// `wallet`, `usage-ingest`, …
        consumer: String,
        /// As in the list
        id: i64,
    },
    /// Apply letters whose cause is gone
    Retry {
        /// `wallet`, `usage-ingest`, …; of all without it
        #[arg(required_unless_present = "all")]
        consumer: Option<String>,
        /// As in the list
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<i64>,
        /// All letters there are
        #[arg(long)]
        all: bool,
    },
    /// Decide that what breaks a rule in letters is never applied; noted for good
    Discard {
        /// `wallet`, `usage-ingest`, …
        consumer: String,
        /// As in the list; in the order of their records
        #[arg(required = true)]
        ids: Vec<i64>,
        /// Why, 1–500 characters
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Who decides; USER if absent
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        /// Its journal has never written it: take it away, and count nothing as applied
        #[arg(long)]
        forged: bool,
    },
}

pub(crate) async fn run(args: Letters, system: &System, output: &Output) -> Result {
    match args.action {
        None => list(system, output).await,
        Some(Action::Show { consumer, id }) => show(system, consumer, id, output).await,
        Some(Action::Retry {
            consumer,
            ids,
            all: false,
        }) => {
            let consumer = consumer.unwrap_or_default();
            let letters = ids.into_iter().map(|id| (consumer.clone(), id)).collect();
            retry(system, letters, output).await
        }
        Some(Action::Retry { consumer, .. }) => {
            let mut letters = Vec::new();
            for name in System::services() {
                if consumer.as_ref().is_some_and(|only| only != name) {
                    continue;
                }
                let found = letters_of(system, name).await?;
                letters.extend(found.iter().map(|letter| (name.to_owned(), letter.id)));
            }
            retry(system, letters, output).await
        }
        Some(Action::Discard {
            consumer,
            ids,
            reason,
            by,
            forged,
        }) => {
            let decision = wire::DiscardLetterRequest {
                consumer,
                id: 0,
                why: reason,
                by: by.map_or_else(user, Ok)?,
                is_forged: forged,
            };
            discard(system, &decision, ids, output).await
        }
    }
}

fn user() -> Result<String> {
    let user = Variables::from_process().optional("USER", "who decides");
    user.ok_or_else(|| Failure::usage("USER is not set: say --by who decides"))
}

/// All letters of a service, the oldest first.
async fn letters_of(system: &System, service: &str) -> Result<Vec<wire::Letter>> {
    let mut client = system.letters(service)?;
    let mut all: Vec<wire::Letter> = Vec::new();
    loop {
        let request = wire::ListLettersRequest {
            consumer: service.to_owned(),
            after: all.last().map_or(0, |letter| letter.id),
            page_size: PAGE,
        };
        let page = client.list_letters(request).await?.into_inner().letters;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

async fn list(system: &System, output: &Output) -> Result {
    let mut rows = Vec::new();
    for service in System::services() {
        let found = letters_of(system, service).await?;
        rows.extend(found.iter().map(|letter| describe(service, letter)));
    }
    let columns = [
        ("consumer", "CONSUMER"),
        ("id", "ID"),
        ("journal_id", "JOURNAL"),
        ("from", "FROM"),
        ("below", "BELOW"),
        ("first_at", "FIRST"),
        ("last_at", "LAST"),
        ("times", "TIMES"),
        ("bytes", "BYTES"),
        ("reason", "REASON"),
    ];
    output.list("letters", &columns, rows);
    Ok(())
}

fn describe(consumer: &str, letter: &wire::Letter) -> Value {
    let has_extent = !letter.journal_id.is_empty();
    json!({
        "consumer": consumer,
        "id": letter.id,
        "subject": letter.subject,
        "journal_id": has_extent.then_some(&letter.journal_id),
        "from": has_extent.then_some(letter.from),
        "below": has_extent.then_some(letter.below),
        "reason": letter.reason,
        "first_at": time(letter.first_at.as_ref()),
        "last_at": time(letter.last_at.as_ref()),
        "times": letter.times,
        "bytes": letter.bytes,
    })
}

async fn show(system: &System, consumer: String, id: i64, output: &Output) -> Result {
    let request = wire::GetLetterRequest {
        consumer: consumer.clone(),
        id,
    };
    let mut client: Client = system.letters(&consumer)?;
    let found = client.get_letter(request).await?.into_inner();
    let letter = found.letter.unwrap_or_default();
    let mut described = describe(&consumer, &letter);
    if !found.unreadable.is_empty() {
        described["unreadable"] = json!(found.unreadable);
    }
    let rows: Vec<Value> = found.records.iter().map(record).collect();
    if output.is_json() {
        described["records"] = json!(rows);
        output.json(&described);
        return Ok(());
    }
    output.record(&described);
    let columns = [
        ("seq", "SEQ"),
        ("kind", "KIND"),
        ("lease_id", "LEASE"),
        ("cost", "COST"),
        ("cum", "CUM"),
        ("verdict", "VERDICT"),
        ("reason", "REASON"),
    ];
    output.list("records", &columns, rows);
    Ok(())
}

fn record(it: &wire::RecordVerdict) -> Value {
    let verdict = match it.verdict() {
        wire::Verdict::Applied => "applied",
        wire::Verdict::Sound => "sound",
        wire::Verdict::Breaks => "breaks a rule",
        wire::Verdict::Waits => "waits",
        wire::Verdict::Unknown | wire::Verdict::Unspecified => "unknown",
    };
    json!({
        "seq": it.seq,
        "kind": it.kind,
        "lease_id": it.lease_id,
        "cost": it.cost,
        "cum": it.cum,
        "verdict": verdict,
        "reason": it.reason,
    })
}

/// Tries each; one that still breaks a rule holds up no other.
async fn retry(system: &System, letters: Vec<(String, i64)>, output: &Output) -> Result {
    let (mut rows, mut is_done) = (Vec::new(), true);
    for (consumer, id) in letters {
        let request = wire::RetryLetterRequest {
            consumer: consumer.clone(),
            id,
        };
        let tried = system.letters(&consumer)?.retry_letter(request).await;
        let (outcome, applied) = match tried {
            Ok(answer) => match answer.into_inner() {
                wire::RetryLetterResponse { is_gone: false, .. } => {
                    ("published again".to_owned(), Value::Null)
                }
                answer => ("applied".to_owned(), json!(answer.applied)),
            },
            // A later letter may need what this one brings, and the other way round.
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                is_done = false;
                (status.message().to_owned(), Value::Null)
            }
            // Its journal has shipped it again meanwhile.
            Err(status) if status.code() == tonic::Code::NotFound => {
                ("not there (any more)".to_owned(), Value::Null)
            }
            Err(status) => return Err(status.into()),
        };
        rows.push(json!({
            "consumer": consumer, "id": id, "records": applied, "outcome": outcome,
        }));
    }
    list_outcomes(output, rows);
    if is_done { Ok(()) } else { Err(Failure::Found) }
}

async fn discard(
    system: &System,
    decision: &wire::DiscardLetterRequest,
    ids: Vec<i64>,
    output: &Output,
) -> Result {
    let mut client = system.letters(&decision.consumer)?;
    let mut rows = Vec::new();
    for id in ids {
        let request = wire::DiscardLetterRequest {
            id,
            ..decision.clone()
        };
        let done = client.discard_letter(request).await?.into_inner();
        rows.push(json!({
            "consumer": decision.consumer,
            "id": id,
            "discarded": done.discarded,
            "applied": done.applied,
            "at": time(done.at.as_ref()),
        }));
    }
    let columns = [
        ("consumer", "CONSUMER"),
        ("id", "ID"),
        ("discarded", "DISCARDED"),
        ("applied", "APPLIED"),
        ("at", "WHEN"),
    ];
    output.list("letters", &columns, rows);
    Ok(())
}

fn list_outcomes(output: &Output, rows: Vec<Value>) {
    let columns = [
        ("consumer", "CONSUMER"),
        ("id", "ID"),
        ("records", "RECORDS"),
        ("outcome", "OUTCOME"),
    ];
    output.list("letters", &columns, rows);
}
