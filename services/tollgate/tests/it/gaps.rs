//! Gaps and what consumers have put aside: a letter may be the last that has a record.

use async_nats::jetstream;
use prost::Message as _;
use proto::events::v1::{Gap, GapCause, Record, UsageBatch};
use serde_json::Value;
use testkit::eventually;
use uuid::Uuid;

use crate::stack::{CONSUMERS, SETTLE_LIMIT, Stack};

/// Says as the owner of a journal what it has.
async fn ship(stack: &Stack, journal: Uuid, batch: UsageBatch) {
    let url = stack.info()["nats_url"].as_str().unwrap().to_owned();
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let batch = UsageBatch {
        journal_id: journal.as_bytes().to_vec(),
        ..batch
    };
    let subject = format!("usage.v1.jrn_{}", journal.simple());
    let taken = context.publish(subject, batch.encode_to_vec().into());
    taken.await.unwrap().await.unwrap();
}

/// Records 1 and 2, of a kind that nobody knows.
fn records() -> UsageBatch {
    let record = |seq| Record {
        seq,
        kind: 7,
        at_unix_micros: 1,
        ..Record::default()
    };
    UsageBatch {
        records: vec![record(1), record(2)],
        ..UsageBatch::default()
    }
}

/// Those, one before them, and one behind.
fn gap() -> UsageBatch {
    UsageBatch {
        gaps: vec![Gap {
            from: 0,
            below: 4,
            cause: GapCause::Damaged.into(),
        }],
        ..UsageBatch::default()
    }
}

/// The letters of a consumer about a journal.
fn letters(stack: &Stack, consumer: &str, journal: Uuid) -> Vec<Value> {
    let listed = stack.cli(&["letters"]);
    let mut found = listed["letters"].as_array().unwrap().clone();
    let name = format!("jrn_{}", journal.simple());
    found.retain(|it| it["consumer"] == consumer && it["journal_id"] == name.as_str());
    found
}

/// Waits until each of some consumers has put something of a journal aside.
async fn put_aside(stack: &Stack, journal: Uuid) {
    let found = eventually(SETTLE_LIMIT, "the records are put aside", async || {
        let has = |it: &&&str| !letters(stack, it, journal).is_empty();
        match CONSUMERS.iter().filter(has).count() {
            4 => Ok(()),
            fewer => Err(fewer),
        }
    });
    found.await.unwrap();
}

/// Waits until the inbox of a consumer has applied this of a journal.
async fn applied(stack: &Stack, schema: &str, journal: Uuid, wanted: &str) {
    let sql = format!("select applied::text from {schema}.inbox where journal_id = $1");
    let found = eventually(SETTLE_LIMIT, "the inbox", async || {
        let found = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.clone()))
            .bind(journal)
            .fetch_optional(stack.pool());
        let found: Option<String> = found.await.unwrap();
        match found.as_deref() == Some(wanted) {
            true => Ok(()),
            false => Err(format!("{schema}: {found:?}, not {wanted}")),
        }
    });
    found.await.unwrap();
}

/// F11: a journal loses what a consumer has put aside. The letter has it still, so the gap leaves
/// it out, until an operator has decided; and what came behind its gap is not swept away.
#[tokio::test]
async fn a_gap_leaves_out_what_a_letter_has() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let (early, late) = (Uuid::now_v7(), Uuid::now_v7());
    ship(&stack, early, records()).await;
    put_aside(&stack, early).await;
    ship(&stack, early, gap()).await;
    for consumer in CONSUMERS {
        let schema = consumer.replace('-', "_");
        applied(&stack, &schema, early, "{[0,1),[3,4)}").await;
    }
    let letter = letters(&stack, "usage-ingest", early).remove(0);
    let id = letter["id"].as_i64().unwrap().to_string();
    let discard = ["letters", "discard", "usage-ingest", &id];
    let why = ["--reason", "nobody knows it", "--by", "ada"];
    stack.cli(&[&discard[..], &why].concat());
    applied(&stack, "usage_ingest", early, "{[0,4)}").await;

    ship(&stack, late, gap()).await;
    applied(&stack, "wallet", late, "{[0,4)}").await;
    ship(&stack, late, records()).await;
    put_aside(&stack, late).await;
    // What sweeps this one has seen the other.
    let known = "update wallet.inbox set applied = '{[0,4)}' where journal_id = $1";
    let done = sqlx::query(known).bind(early).execute(stack.pool()).await;
    done.unwrap();
    let swept = eventually(SETTLE_LIMIT, "a letter is swept", async || {
        match letters(&stack, "wallet", early).is_empty() {
            true => Ok(()),
            false => Err("not yet"),
        }
    });
    swept.await.unwrap();
    let spared = letters(&stack, "wallet", late);
    assert_eq!(spared.len(), 1, "the last that has its records is gone");
}
