//! The stream loses what it has acknowledged, is full, carries poison; consumers stand still.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use proto::events::v1::{Call, Disposition, Record, RecordKind, UsageBatch};
use rustix::process::Signal;
use testkit::eventually;
use types::CALL_COST_MAX;

use super::{Load, figures::Figures, fund, summary};
use crate::stack::{CONSUMERS, SETTLE_LIMIT, Stack, signal};

async fn messages(stack: &Stack) -> u64 {
    let stream = stack.usage().await;
    stream.get_info().await.expect("its state").state.messages
}

/// F7: what the stream has acknowledged is deleted before anybody has applied it, again and again.
#[tokio::test]
async fn f07_what_the_stream_forgets_is_shipped_again() {
    lose_the_stream(4).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f07_what_the_stream_forgets_a_hundred_times_is_shipped_again() {
    lose_the_stream(100).await;
}

async fn lose_the_stream(times: usize) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 8);
    let mut lost = 0;
    for turn in 0..times {
        lost += lose_unapplied(&stack, &load, 0, turn % 2 == 0).await;
        load.more_answers(100).await;
    }
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome]);
    let more = format!(
        "stream lost {times} times with {lost} messages that nobody had applied: {}",
        summary(&outcome),
    );
    Figures::say("F07", [0, times], &[&outcome], more, &stack, &report).await;
    assert!(lost >= 10 * u64::try_from(times).expect("small"));
    // While the wallet stands still nothing is lent.
    only(&outcome, &[200, 422, 503]);
}

/// Takes from the stream, while all consumers stand still, what it has acknowledged meanwhile, of
/// so many calls at least: all it has, or itself. Returns how many messages nobody had applied.
pub(super) async fn lose_unapplied(
    stack: &Stack,
    load: &Load,
    calls: usize,
    is_purged: bool,
) -> u64 {
    let before = messages(stack).await;
    let sleepers: Vec<i32> = CONSUMERS.iter().flat_map(|name| stack.pids(name)).collect();
    sleepers.iter().for_each(|pid| signal(*pid, Signal::STOP));
    load.more_answers(calls).await;
    let stored = eventually(
        SETTLE_LIMIT,
        "batches are acknowledged",
        async || match messages(stack).await {
            now if now >= before + 10 => Ok(now - before),
            now => Err(format!("{now} messages, {before} before")),
        },
    );
    let lost = stored.await.expect("stored");
    if is_purged {
        stack.usage().await.purge().await.expect("purged");
    } else {
        let context = stack.jetstream().await;
        context.delete_stream("USAGE").await.expect("deleted");
    }
    sleepers.iter().for_each(|pid| signal(*pid, Signal::CONT));
    lost
}

/// Every call was answered, with one of these.
pub(super) fn only(outcome: &testkit::load::Outcome, statuses: &[u16]) {
    let is_good = |status: &u16| statuses.contains(status);
    assert!(
        outcome.by_status.keys().all(is_good) && outcome.broken == 0 && outcome.unreachable == 0,
        "{}",
        summary(outcome)
    );
}

/// F10: a stream that is full pushes back into the journal and drops nothing.
#[tokio::test]
async fn f10_a_full_stream_pushes_back_into_the_journal() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 8);
    load.more_answers(200).await;
    let stream = stack.usage().await;
    let wide = stream.get_info().await.expect("its state").config.clone();
    let mut narrow = wide.clone();
    let full = messages(&stack).await + 20;
    narrow.max_messages = i64::try_from(full).expect("small");
    let context = stack.jetstream().await;
    context.update_stream(&narrow).await.expect("narrowed");
    let filled = eventually(
        SETTLE_LIMIT,
        "the stream is full",
        async || match messages(&stack).await {
            now if now >= full => Ok(()),
            now => Err(format!("{now} of {full}")),
        },
    );
    filled.await.expect("full");
    let first = stack
        .count("select count(*) from usage_ingest.api_usage_logs")
        .await;
    load.more_answers(2_000).await;
    assert_eq!(messages(&stack).await, full, "nothing was dropped for more");
    let behind = stack
        .count("select count(*) from usage_ingest.api_usage_logs")
        .await;
    assert!(
        behind - first < 2_000,
        "the journal held it: {first} rows, then {behind}"
    );
    let told = eventually(SETTLE_LIMIT, "an operator is told", async || {
        let metrics = stack.metrics("usage-ingest").await;
        match metrics["tollgate_usage_stream_fill_ratio"].as_f64() {
            Some(share) if share >= 0.99 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    told.await.expect("told");
    context.update_stream(&wide).await.expect("widened");
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome]);
    let more = format!("stream full at {full} messages: {}", summary(&outcome));
    Figures::say("F10", [0, 1], &[&outcome], more, &stack, &report).await;
    only(&outcome, &[200, 422]);
}

/// A batch of one record without a call: nothing for rows or statistics.
fn batch(journal: uuid::Uuid, record: Record) -> Vec<u8> {
    let batch = UsageBatch {
        journal_id: journal.as_bytes().to_vec(),
        records: vec![record],
        gaps: Vec::new(),
    };
    batch.encode_to_vec()
}

/// A batch that breaks a rule: the journal whose subject it comes on, and who refuses it.
struct Poison {
    journal: uuid::Uuid,
    payload: Vec<u8>,
    refused_by: &'static [&'static str],
}

impl Poison {
    /// One that nobody can apply.
    fn of_all(journal: uuid::Uuid, payload: Vec<u8>) -> Self {
        let refused_by = &CONSUMERS;
        Self {
            journal,
            payload,
            refused_by,
        }
    }

    /// One that breaks a rule of the wallet, and tells the others nothing.
    fn of_wallet(journal: uuid::Uuid, payload: Vec<u8>) -> Self {
        let refused_by = &["wallet"];
        Self {
            journal,
            payload,
            refused_by,
        }
    }
}

/// A call as a gateway may write it, of an organisation that there is not. It costs nothing.
fn stray_call(org: uuid::Uuid) -> Record {
    Record {
        kind: RecordKind::Call.into(),
        at_unix_micros: STRAY_AT,
        call: Some(Call {
            request_id: uuid::Uuid::now_v7().as_bytes().to_vec(),
            org_id: org.as_bytes().to_vec(),
            api_key_id: uuid::Uuid::now_v7().as_bytes().to_vec(),
            service_id: uuid::Uuid::now_v7().as_bytes().to_vec(),
            service: "pdf".to_owned(),
            status: 200,
            disposition: Disposition::Completed.into(),
            ..Call::default()
        }),
        ..Record::default()
    }
}

/// The time of stray calls, on a day on which nobody else calls: 2026-01-31T12:00:00Z.
const STRAY_AT: i64 = 1_769_860_800_000_000;

fn poisons(lease: uuid::Uuid, owner: uuid::Uuid, far: u64) -> Vec<Poison> {
    let stranger = uuid::Uuid::now_v7();
    let spend = |lease: uuid::Uuid, seq: u64, cum: i64| Record {
        seq,
        kind: RecordKind::Close.into(),
        at_unix_micros: 1,
        lease_id: lease.as_bytes().to_vec(),
        cum,
        ..Record::default()
    };
    let unknown = spend(uuid::Uuid::now_v7(), 0, 5);
    let mut poisons = vec![
        Poison::of_all(stranger, b"no batch at all".to_vec()),
        Poison::of_wallet(stranger, batch(stranger, unknown)),
        // Another journal's lease, more than was lent, another journal's subject.
        Poison::of_wallet(stranger, batch(stranger, spend(lease, 1, 5))),
        Poison::of_wallet(owner, batch(owner, spend(lease, far, i64::MAX))),
        Poison::of_all(stranger, batch(owner, spend(lease, far + 1, 1))),
    ];
    poisons.extend(forged().map(|record| {
        let journal = uuid::Uuid::now_v7();
        Poison::of_all(journal, batch(journal, record))
    }));
    poisons
}

/// Records that some consumer has no room for, or none understands.
fn forged() -> impl Iterator<Item = Record> {
    let org = uuid::Uuid::now_v7();
    let priced = |cost: i64| Record {
        lease_id: uuid::Uuid::now_v7().as_bytes().to_vec(),
        cost,
        cum: i64::MAX,
        ..stray_call(org)
    };
    let called = |change: fn(&mut Call)| {
        let mut record = stray_call(org);
        change(record.call.as_mut().expect("a call"));
        record
    };
    let of_the_future = Record {
        kind: 7,
        ..stray_call(org)
    };
    [
        of_the_future,
        // Two of these are more than a sum can hold, and one is more than a row can.
        priced(i64::MAX),
        priced(i64::MAX),
        priced(CALL_COST_MAX + 1),
        priced(-1),
        // Part of a primary key, which has no room for it.
        called(|call| call.service = noise(8_000)),
        called(|call| call.service = "\0".to_owned()),
        called(|call| call.endpoint = "/".repeat(5_000)),
        called(|call| call.traceparent = "\0".to_owned()),
        called(|call| call.status = u32::MAX),
        called(|call| call.disposition = 77),
        called(|call| call.response_bytes = u64::MAX),
    ]
    .into_iter()
}

/// Text that cannot be made short.
fn noise(bytes: usize) -> String {
    let mut state = 7_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'a' + u8::try_from((state >> 33) % 26).expect("small"))
    };
    (0..bytes).map(|_| next()).collect()
}

async fn publish(stack: &Stack, poisons: &[Poison]) {
    let context = stack.jetstream().await;
    for poison in poisons {
        let subject = format!("usage.v1.jrn_{}", poison.journal.simple());
        let sent = context.publish(subject, poison.payload.clone().into());
        let taken = sent.await.expect("published");
        taken.await.expect("acknowledged");
    }
}

/// F11: what breaks a rule is put aside with its reason, moves no credit and holds up nobody else.
#[tokio::test]
async fn f11_poison_is_put_aside_and_moves_nothing() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 8);
    load.more_answers(200).await;
    let (lease, owner): (uuid::Uuid, uuid::Uuid) = sqlx::query_as(
        "select id, journal_id from wallet.leases
          where wallet_id is not null and state = 'active' order by granted desc limit 1",
    )
    .fetch_one(stack.pool())
    .await
    .expect("a lease");
    // Far beyond what the journal will write: its own numbers are not touched.
    let far: i64 = 1 << 40;
    let mut poisons = poisons(lease, owner, u64::try_from(far).expect("positive"));
    let crowded = crowd(&stack).await;
    let journal = uuid::Uuid::now_v7();
    poisons.push(Poison {
        journal,
        payload: batch(journal, stray_call(crowded)),
        refused_by: &["stats-aggregator"],
    });
    // Honest calls before and behind come in the same transactions. Without the wallet's consumer
    // nothing would be lent, so that one goes on.
    let readers = CONSUMERS.iter().filter(|name| **name != "wallet");
    let readers: Vec<i32> = readers.flat_map(|name| stack.pids(name)).collect();
    readers.iter().for_each(|pid| signal(*pid, Signal::STOP));
    load.more_answers(100).await;
    publish(&stack, &poisons).await;
    load.more_answers(100).await;
    readers.iter().for_each(|pid| signal(*pid, Signal::CONT));
    for name in CONSUMERS {
        put_aside(&stack, name, &poisons).await;
    }
    load.more_answers(200).await;
    forget_poison(&stack, owner, far, crowded).await;
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome]);
    let more = format!("poison of {} kinds: {}", poisons.len(), summary(&outcome));
    Figures::say(
        "F11",
        [0, poisons.len()],
        &[&outcome],
        more,
        &stack,
        &report,
    )
    .await;
    only(&outcome, &[200, 422]);
}

/// An organisation whose day has so many calls in the statistics that there is no room for another:
/// what no check of ours can know beforehand.
async fn crowd(stack: &Stack) -> uuid::Uuid {
    let org = uuid::Uuid::now_v7();
    sqlx::query(
        "insert into stats_aggregator.daily_stats
                (org_id, date, environment, total_requests, total_credits, successful_requests,
                 created_at, updated_at)
         values ($1, '2026-01-31', 'production', 9223372036854775807, 0, 0, now(), now())",
    )
    .bind(org)
    .execute(stack.pool())
    .await
    .expect("crowded");
    org
}

/// Exactly what a consumer has to refuse is put aside, each with its reason.
async fn put_aside(stack: &Stack, name: &str, poisons: &[Poison]) {
    let refused = poisons.iter().filter(|it| it.refused_by.contains(&name));
    let mut wanted: Vec<&[u8]> = refused.map(|poison| poison.payload.as_slice()).collect();
    wanted.sort_unstable();
    let letters = format!(
        "select payload, reason from {}.dead_letters order by id",
        name.replace('-', "_")
    );
    let aside = eventually(SETTLE_LIMIT, "poison is put aside", async || {
        let letters: Vec<(Vec<u8>, String)> = sqlx::query_as(sqlx::AssertSqlSafe(letters.as_str()))
            .fetch_all(stack.pool())
            .await
            .expect("letters");
        match letters.len() {
            found if found >= wanted.len() => Ok(letters),
            found => Err(format!("{name}: {found} of {} letters", wanted.len())),
        }
    });
    let letters = aside.await.expect("put aside");
    let reasons: Vec<&str> = letters.iter().map(|(_, reason)| reason.as_str()).collect();
    println!("{name}: {reasons:#?}");
    assert!(reasons.iter().all(|reason| !reason.is_empty()));
    let mut found: Vec<&[u8]> = letters.iter().map(|(it, _)| it.as_slice()).collect();
    found.sort_unstable();
    assert!(found == wanted, "{name} put others aside: {reasons:#?}");
}

/// An operator has looked at it. What others have noted of records that tell them nothing goes too,
/// and what they have made of the call of nobody.
async fn forget_poison(stack: &Stack, owner: uuid::Uuid, far: i64, nobody: uuid::Uuid) {
    for name in CONSUMERS {
        let schema = name.replace('-', "_");
        let forget = format!(
            "with letters as (delete from {schema}.dead_letters)
             update {schema}.inbox
                set applied = applied - int8multirange(int8range($2, null))
              where journal_id = $1"
        );
        sqlx::query(sqlx::AssertSqlSafe(forget))
            .bind(owner)
            .bind(far)
            .execute(stack.pool())
            .await
            .expect("forgotten");
        let strangers = format!(
            "delete from {schema}.inbox where applied && '{{[0,3)}}' and
            journal_id not in (select id from wallet.journals)"
        );
        sqlx::query(sqlx::AssertSqlSafe(strangers))
            .execute(stack.pool())
            .await
            .expect("forgotten");
    }
    for table in [
        "usage_ingest.api_usage_logs",
        "stats_aggregator.daily_stats",
        "anomaly_detector.loads",
    ] {
        let forget = format!("delete from {table} where org_id = $1");
        let forget = sqlx::query(sqlx::AssertSqlSafe(forget)).bind(nobody);
        forget.execute(stack.pool()).await.expect("forgotten");
    }
}

/// F12: each consumer stands still for a while, all of them at the end; none is stuck afterwards.
#[tokio::test]
async fn f12_consumers_that_stood_still_catch_up() {
    stand_still(Duration::from_secs(3)).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f12_consumers_that_stood_still_for_long_catch_up() {
    stand_still(Duration::from_secs(30)).await;
}

async fn stand_still(pause: Duration) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 8);
    load.more_answers(100).await;
    let stops = Arc::new(AtomicUsize::new(0));
    for name in CONSUMERS {
        for pid in stack.pids(name) {
            signal(pid, Signal::STOP);
            tokio::time::sleep(pause).await;
            signal(pid, Signal::CONT);
            stops.fetch_add(1, Ordering::Relaxed);
        }
        load.more_answers(50).await;
    }
    let all: Vec<i32> = CONSUMERS.iter().flat_map(|name| stack.pids(name)).collect();
    all.iter().for_each(|pid| signal(*pid, Signal::STOP));
    tokio::time::sleep(pause).await;
    all.iter().for_each(|pid| signal(*pid, Signal::CONT));
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome]);
    let more = format!(
        "consumers stood still for {pause:?} {} times, then all at once: {}",
        stops.load(Ordering::Relaxed),
        summary(&outcome),
    );
    Figures::say(
        "F12",
        [0, stops.load(Ordering::Relaxed) + 4],
        &[&outcome],
        more,
        &stack,
        &report,
    )
    .await;
    only(&outcome, &[200, 422, 503]);
}
