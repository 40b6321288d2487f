//! Gaps and what consumers have put aside: a letter may be the last that has a record.

use async_nats::jetstream;
use prost::Message as _;
use proto::{
    events::v1::{Gap, GapCause, Record, RecordKind, UsageBatch},
    wallet::v1::Account,
};
use serde_json::Value;
use testkit::eventually;
use uuid::Uuid;

use crate::stack::{CONSUMERS, Customer, SETTLE_LIMIT, Stack};

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

/// Waits until a consumer has been handed all that is in the stream.
async fn handed(stack: &Stack, consumer: &str) {
    let url = stack.info()["nats_url"].as_str().unwrap().to_owned();
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let stream = context.get_stream("USAGE").await.unwrap();
    let found = eventually(SETTLE_LIMIT, "it is handed everything", async || {
        let last = stream.get_info().await.unwrap().state.last_sequence;
        let known = stream.consumer_info(consumer).await.unwrap();
        match known.delivered.stream_sequence == last {
            true => Ok(()),
            false => Err(known.delivered.stream_sequence),
        }
    });
    found.await.unwrap();
}

fn of(record: Record) -> UsageBatch {
    UsageBatch {
        records: vec![record],
        ..UsageBatch::default()
    }
}

/// The first record of a journal: a lease of 10 credits.
fn grant(lease: Uuid, customer: &Customer) -> Record {
    let account = Account {
        org_id: customer.org.clone(),
        ..Account::default()
    };
    Record {
        seq: 0,
        kind: RecordKind::Grant.into(),
        at_unix_micros: 1,
        lease_id: lease.as_bytes().to_vec(),
        granted: 10,
        account: Some(account),
        ..Record::default()
    }
}

/// The second: 3 of them were spent.
fn close(lease: Uuid) -> Record {
    Record {
        seq: 1,
        kind: RecordKind::Close.into(),
        at_unix_micros: 1,
        lease_id: lease.as_bytes().to_vec(),
        cum: 3,
        ..Record::default()
    }
}

/// Record 0, of a kind that nobody knows, and a gap behind it.
fn unknown_and_gap() -> UsageBatch {
    let unknown = Record {
        kind: 7,
        at_unix_micros: 1,
        ..Record::default()
    };
    let gap = Gap {
        from: 1,
        below: 3,
        cause: GapCause::Damaged.into(),
    };
    UsageBatch {
        gaps: vec![gap],
        ..of(unknown)
    }
}

/// F11, F15: a final count waits for its lease, which a failover has forgotten. Its journal is
/// damaged meanwhile, and its owner declares all of it lost; what is on its way still counts. A
/// letter's gap waits for it too.
#[tokio::test]
async fn a_gap_waits_for_what_is_older_and_may_have_its_records() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let customer = stack.customer("Awaited", 100);
    let (journal, other, lease) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let noticed = "update wallet.freeze set failed_over_at = now(), thawed_at = null";
    sqlx::query(noticed).execute(stack.pool()).await.unwrap();
    ship(&stack, journal, of(close(lease))).await;
    ship(&stack, journal, gap()).await;
    ship(&stack, other, unknown_and_gap()).await;
    put_aside(&stack, other).await;
    handed(&stack, "wallet").await;
    let id = letters(&stack, "wallet", other).remove(0)["id"].to_string();
    let discard = ["letters", "discard", "wallet", &id];
    let discard = [&discard[..], &["--reason", "unknown", "--by", "ada"]].concat();
    let (code, said, errors) = stack.try_cli(&discard);
    assert_eq!(code, Some(1), "{said} {errors}");
    assert!(
        errors.contains("something older is still on its way"),
        "{errors}"
    );

    ship(&stack, journal, of(grant(lease, &customer))).await;
    applied(&stack, "wallet", journal, "{[0,4)}").await;
    let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
    assert_eq!(wallet["total_used"], 3, "the final count came: {wallet}");
    let lost = "select string_agg(from_seq || '-' || below_seq, ' ') from wallet.gaps
                 where journal_id = $1";
    let lost: String = sqlx::query_scalar(lost)
        .bind(journal)
        .fetch_one(stack.pool())
        .await
        .unwrap();
    assert_eq!(lost, "2-4");
    let done = eventually(
        SETTLE_LIMIT,
        "the letter's gap passes",
        async || match stack.try_cli(&discard) {
            (Some(0), done, _) => Ok(done),
            (_, _, errors) => Err(errors),
        },
    );
    assert_eq!(done.await.unwrap()["letters"][0]["discarded"], 1);
    applied(&stack, "wallet", other, "{[0,3)}").await;
}
