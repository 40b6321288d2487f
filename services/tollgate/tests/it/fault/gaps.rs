//! Records that nobody can read any more: noted for good, and paid for all the same.

use std::path::Path;

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
/// never come, note it and go on, and the totals of later records pay for what is lost. An operator
/// has kept another call of it from being a row.
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
    one_row_is_discarded(&stack, &late, &late_key).await;
    let bus = stack.pids("nats")[0];
    stack.audit();
    signal(bus, Signal::STOP);
    call(&stack, &early_key, 9).await;
    // Its last calls will be lost, so what its gateway has told of them is what counts.
    known(&stack, &early, 10).await;
    call(&stack, &late_key, 9).await;
    let (dying, root, journal) = stopped(&stack);
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
    assert_eq!(report["recorded_gaps"], 6 + 1, "{report}");
    assert_eq!(report["discarded"], 1, "{report}");
    assert_eq!(report["unitemised"], 6, "{report}");
    has_left(&stack, &early, 990);
    has_left(&stack, &late, 989);
    let rows = stack
        .count("select count(*) from usage_ingest.api_usage_logs")
        .await;
    assert_eq!(rows, 20 - 6);
    for name in CONSUMERS {
        the_consumer_noted_it(&stack, name).await;
    }
    no_more_than_was_told_is_owed(&stack, &early).await;
    senseless_gaps_are_put_aside(&stack).await;
}

/// Records are lost on disk while they are in the stream, and the wallet has yet to settle them:
/// its successor must not end the lease by what it can read.
#[tokio::test]
async fn what_is_lost_on_disk_and_on_its_way_is_settled_before_its_lease_ends() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "1"]).await;
    let (early, late) = (
        stack.customer("Early", 1_000),
        stack.customer("Late", 1_000),
    );
    let [(_, early_key), (_, late_key)] = [&early, &late].map(|it| stack.key(it, &LIVE));
    call(&stack, &early_key, 1).await;
    call(&stack, &late_key, 1).await;
    stack.audit();
    // The wallet lends and settles nothing.
    let mut unsettled = stack.pool().begin().await.expect("a transaction");
    let lock = sqlx::query("lock table wallet.inbox in share row exclusive mode");
    lock.execute(&mut *unsettled).await.expect("locked");
    call(&stack, &early_key, 9).await;
    call(&stack, &late_key, 1).await;
    let shipped = eventually(SETTLE_LIMIT, "all is shipped", async || {
        let sql = "select count(*) from usage_ingest.api_usage_logs";
        match stack.count(sql).await {
            12 => Ok(()),
            rows => Err(format!("{rows} rows")),
        }
    });
    shipped.await.expect("shipped");
    let (dying, _, journal) = stopped(&stack);
    damage(&journal, &calls_of(&journal, &early)[7..]);
    signal(dying, Signal::KILL);
    gap_is_shipped(&stack, &journal).await;
    unsettled.rollback().await.expect("unlocked");
    let report = stack.audit();
    assert_eq!(report["recorded_gaps"], 0, "{report}");
    has_left(&stack, &early, 990);
    has_left(&stack, &late, 998);
}

/// Waits until the stream has a message that tells of a gap in this journal. What its successor
/// knew when it wrote that is in the same message, or in the next one.
async fn gap_is_shipped(stack: &Stack, journal: &Journal) {
    let usage = stack.usage().await;
    let subject = format!("usage.v1.jrn_{}", journal.id.simple());
    let told = eventually(SETTLE_LIMIT, "the gap is told", async || {
        let last = usage.get_last_raw_message_by_subject(&subject).await;
        let last = last.expect("a message");
        let batch = UsageBatch::decode(last.payload).expect("a batch");
        match batch.gaps.is_empty() {
            true => Err(format!("{} has none", last.sequence)),
            false => Ok(()),
        }
    });
    told.await.expect("told");
}

/// Nothing of it is reserved.
fn has_left(stack: &Stack, customer: &Customer, balance: i64) {
    let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
    let left = (&wallet["balance"], &wallet["reserved"]);
    assert_eq!(left, (&balance.into(), &0.into()), "{wallet}");
}

/// PostgreSQL takes no row of a customer for a while, and an operator decides that it never will.
async fn one_row_is_discarded(stack: &Stack, customer: &Customer, key: &str) {
    stack.audit();
    let org: types::OrgId = customer.org.parse().expect("an id");
    let refuse = format!(
        "alter table usage_ingest.api_usage_logs
           add constraint no_room check (org_id <> '{}') not valid",
        org.uuid()
    );
    execute(stack, refuse).await;
    call(stack, key, 1).await;
    let done = eventually(SETTLE_LIMIT, "the row is discarded", async || {
        let listed = stack.cli(&["letters"]);
        for letter in listed["letters"].as_array().expect("a list") {
            let id = letter["id"].to_string();
            let discard = ["letters", "discard", "usage-ingest", &id];
            stack.try_cli(&[&discard[..], &["--reason", "no room", "--by", "ada"]].concat());
        }
        match stack.count("select count(*) from usage_ingest.gaps").await {
            0 => Err(listed),
            _ => Ok(()),
        }
    });
    done.await.expect("discarded");
    let accept = "alter table usage_ingest.api_usage_logs drop constraint no_room";
    execute(stack, accept.to_owned()).await;
}

async fn execute(stack: &Stack, sql: String) {
    let done = sqlx::query(sqlx::AssertSqlSafe(sql)).execute(stack.pool());
    done.await.expect("done");
}

/// Records are lost at the end of the customer's lease. A credit more than its owner had told is
/// not excused by them, however well it is booked.
async fn no_more_than_was_told_is_owed(stack: &Stack, customer: &Customer) {
    let org: types::OrgId = customer.org.parse().expect("an id");
    let charge = format!(
        "with lease as (
             update wallet.leases l
                set settled_cum = settled_cum + 1, final_cum = final_cum + 1,
                    granted = granted + 1
               from wallet.wallets w
              where w.id = l.wallet_id and w.org_id = '{}'
             returning l.id, l.wallet_id, l.settled_cum),
         wallet as (
             update wallet.wallets w set balance = balance - 1, total_used = total_used + 1
               from lease where w.id = lease.wallet_id
             returning w.id, w.balance)
         insert into wallet.ledger_entries
                (wallet_id, kind, credits, balance_after, lease_id, cum_to, at)
         select w.id, 'usage', -1, w.balance, l.id, l.settled_cum, now()
           from lease l join wallet w on w.id = l.wallet_id",
        org.uuid()
    );
    execute(stack, charge).await;
    let (code, report, _) = stack.try_cli(&["audit", "--wait", "0"]);
    assert_eq!(
        (code, &report["differences"]),
        (Some(1), &1.into()),
        "{report}"
    );
    let said = report["first_differences"][0].as_str().expect("words");
    assert!(
        said.contains("settled 11, its 7 calls cost 7, and 3 are stated"),
        "{said}"
    );
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

/// Stops the gateway. Its process, the directory of its journals, and the one that is there.
fn stopped(stack: &Stack) -> (i32, String, Journal) {
    let dying = stack.pids("gateway")[0];
    signal(dying, Signal::STOP);
    let root = stack.info()["journals"][0]
        .as_str()
        .expect("a path")
        .to_owned();
    let mut found = Journals::read(&[root.clone().into()]).expect("readable");
    assert_eq!(found.count(), 1);
    (dying, root, found.all.remove(0))
}

/// Numbers of a customer's calls that were paid, with their payloads.
pub(crate) fn calls_of(journal: &Journal, customer: &Customer) -> Vec<(u64, Vec<u8>)> {
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
pub(crate) fn damage(journal: &Journal, records: &[(u64, Vec<u8>)]) {
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
    let all: i32 = if name == "usage-ingest" { 6 + 1 } else { 6 };
    assert_eq!(noted, i64::from(all), "{name}");
    let metrics = stack.metrics(name).await;
    let counted = format!("tollgate_usage_gap_records_total{{consumer=\"{name}\"}}");
    assert_eq!(metrics[&counted], f64::from(all), "{counted}");
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
    let context = stack.jetstream().await;
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
