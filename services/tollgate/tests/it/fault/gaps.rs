//! Records that nobody can read any more: noted for good, and paid for all the same.

use std::path::Path;

use async_nats::jetstream;
use prost::Message as _;
use proto::events::v1::{Gap, Record, UsageBatch};
use rustix::process::Signal;
use testkit::{
    auditor::journal::{Journal, Journals},
    eventually,
    load::Shot,
};

use super::{DISTANCE, LIVE};
use crate::stack::{CONSUMERS, Customer, SETTLE_LIMIT, Stack, signal};

/// A journal is damaged in the middle before any of it was shipped: consumers are told what will
/// never come, note it and go on, and the totals of later records pay for what is lost.
#[tokio::test]
async fn what_a_damaged_journal_has_lost_is_noted_and_holds_up_nobody() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "1"]).await;
    let (early, late) = (
        stack.customer("Early", 1_000),
        stack.customer("Late", 1_000),
    );
    let quota = ["--daily-quota", "500"];
    let (_, early_key) = stack.key(&early, &[&LIVE[..], &quota].concat());
    let (_, late_key) = stack.key(&late, &LIVE);
    call(&stack, &early_key, 1).await;
    call(&stack, &late_key, 1).await;
    let bus = stack.pids("nats")[0];
    stack.audit();
    signal(bus, Signal::STOP);
    call(&stack, &early_key, 9).await;
    // Its last calls will be lost, so what its gateway has told of them is what counts.
    known(&stack, &early, 10).await;
    call(&stack, &late_key, 9).await;
    let dying = stack.pids("gateway")[0];
    signal(dying, Signal::STOP);

    let root = stack.info()["journals"][0]
        .as_str()
        .expect("a path")
        .to_owned();
    let journal = only_journal(&root);
    let calls_of = |customer: &Customer| calls_of(&journal, customer);
    let lost = [&calls_of(&early)[7..], &calls_of(&late)[3..6]].concat();
    assert_eq!(
        lost.len(),
        6,
        "three at the end of a lease, three in the middle of another"
    );
    damage(&journal, &lost);
    let (code, seen, _) = stack.try_cli(&["journal", "inspect", &root]);
    assert_eq!(code, Some(1), "a gap is worth an exit code");
    assert_eq!(
        seen["journals"][0]["gaps"].as_array().map(Vec::len),
        Some(2),
        "{seen}"
    );

    signal(dying, Signal::KILL);
    signal(bus, Signal::CONT);
    let gone = eventually(
        SETTLE_LIMIT,
        "the damaged journal is gone",
        async || match journal.dir.exists() {
            false => Ok(()),
            true => Err(format!("{} is there", journal.dir.display())),
        },
    );
    gone.await.expect("removed");
    let report = stack.audit();
    println!("two gaps of 3 records each: {report}");
    assert_eq!(report["recorded_gaps"], 6, "{report}");
    assert_eq!(report["unitemised"], 6, "{report}");
    for customer in [&early, &late] {
        let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
        assert_eq!(
            (&wallet["balance"], &wallet["reserved"]),
            (&990.into(), &0.into()),
            "{wallet}"
        );
    }
    let rows = stack
        .count("select count(*) from usage_ingest.api_usage_logs")
        .await;
    assert_eq!(rows, 20 - 6);
    for name in CONSUMERS {
        the_consumer_noted_it(&stack, name).await;
    }
    senseless_gaps_are_put_aside(&stack).await;
}

async fn call(stack: &Stack, key: &str, times: usize) {
    for _ in 0..times {
        let answer = stack.call(key, &Shot::get(DISTANCE)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Waits until a customer's gateway has told so much spend.
async fn known(stack: &Stack, customer: &Customer, credits: i64) {
    let org: uuid::Uuid = customer.org.parse::<types::OrgId>().expect("an id").uuid();
    let told = eventually(SETTLE_LIMIT, "a heartbeat tells the spend", async || {
        let known: i64 = sqlx::query_scalar(
            "select coalesce(sum(l.known_cum), 0)::int8 from wallet.leases l
               join wallet.wallets w on w.id = l.wallet_id where w.org_id = $1",
        )
        .bind(org)
        .fetch_one(stack.pool())
        .await
        .expect("a sum");
        match known >= credits {
            true => Ok(()),
            false => Err(format!("{known} of {credits}")),
        }
    });
    told.await.expect("told");
}

fn only_journal(root: &str) -> Journal {
    let mut found = Journals::read(&[root.into()]).expect("readable");
    assert_eq!(found.count(), 1);
    found.all.remove(0)
}

/// Numbers of a customer's calls that were paid, with their payloads.
fn calls_of(journal: &Journal, customer: &Customer) -> Vec<(u64, Vec<u8>)> {
    let org: types::OrgId = customer.org.parse().expect("an id");
    let is_of = |payload: &[u8]| {
        let record = Record::decode(payload).expect("a record");
        let call = record.call.unwrap_or_default();
        record.cost > 0 && call.org_id == org.bytes()
    };
    let calls = journal.records.iter().filter(|(_, payload)| is_of(payload));
    calls.cloned().collect()
}

/// Flips a byte in each of these records.
fn damage(journal: &Journal, records: &[(u64, Vec<u8>)]) {
    for segment in &journal.segments {
        let path = journal.dir.join(&segment.name);
        let mut bytes = std::fs::read(&path).expect("readable");
        for (_, payload) in records {
            let at = bytes
                .windows(payload.len())
                .position(|part| part == payload);
            if let Some(at) = at {
                bytes[at + payload.len() / 2] ^= 1;
            }
        }
        overwrite(&path, &bytes);
    }
}

/// In place: the stopped owner has the file mapped.
fn overwrite(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options()
        .write(true)
        .open(path)
        .expect("writable");
    file.write_all_at(bytes, 0).expect("written");
}

/// In its own schema, as a metric, and as an error in its log.
async fn the_consumer_noted_it(stack: &Stack, name: &str) {
    let schema = name.replace('-', "_");
    let sql = format!("select sum(below_seq - from_seq)::int8 from {schema}.gaps");
    let noted: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .fetch_one(stack.pool())
        .await
        .expect("a sum");
    assert_eq!(noted, 6, "{name}");
    let metrics = stack.metrics(name).await;
    let counted = format!("tollgate_usage_gap_records_total{{consumer=\"{name}\"}}");
    assert_eq!(metrics[&counted], 6.0, "{counted}");
    let log = stack.data().join("log").join(format!("{name}.log"));
    let log = std::fs::read_to_string(log).expect("a log");
    assert_eq!(
        log.matches("lost for good and were noted as a gap").count(),
        2,
        "{name}"
    );
}

/// A gap is believed, so one that makes no sense goes to the dead letters of everybody.
async fn senseless_gaps_are_put_aside(stack: &Stack) {
    let stranger = uuid::Uuid::now_v7();
    let gap = Gap {
        from: 7,
        below: 3,
        ..Gap::default()
    };
    let batch = UsageBatch {
        journal_id: stranger.as_bytes().to_vec(),
        records: Vec::new(),
        gaps: vec![gap],
    };
    let url = stack.info()["nats_url"].as_str().expect("a URL").to_owned();
    let context = jetstream::new(async_nats::connect(url).await.expect("NATS"));
    let subject = format!("usage.v1.jrn_{}", stranger.simple());
    let taken = context.publish(subject, batch.encode_to_vec().into()).await;
    taken.expect("published").await.expect("acknowledged");
    let aside = eventually(SETTLE_LIMIT, "it is put aside", async || {
        let sql = "select (select count(*) from wallet.dead_letters)
                        + (select count(*) from usage_ingest.dead_letters)
                        + (select count(*) from stats_aggregator.dead_letters)
                        + (select count(*) from anomaly_detector.dead_letters)";
        match stack.count(sql).await {
            4 => Ok(()),
            letters => Err(format!("{letters} letters")),
        }
    });
    aside.await.expect("put aside");
}
