//! The stream loses what it has acknowledged, is full, carries poison; consumers stand still.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{self, stream::Stream};
use prost::Message as _;
use proto::events::v1::{Record, RecordKind, UsageBatch};
use rustix::process::Signal;
use testkit::eventually;

use super::{Load, figures::Figures, fund, summary};
use crate::stack::{CONSUMERS, SETTLE_LIMIT, Stack, signal};

async fn jetstream(stack: &Stack) -> jetstream::Context {
    let url = stack.info()["nats_url"].as_str().expect("a URL").to_owned();
    jetstream::new(async_nats::connect(url).await.expect("NATS"))
}

async fn usage(stack: &Stack) -> Stream {
    jetstream(stack)
        .await
        .get_stream("USAGE")
        .await
        .expect("the stream")
}

async fn messages(stack: &Stack) -> u64 {
    let stream = usage(stack).await;
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
        let before = messages(&stack).await;
        let sleepers: Vec<i32> = CONSUMERS.iter().flat_map(|name| stack.pids(name)).collect();
        sleepers.iter().for_each(|pid| signal(*pid, Signal::STOP));
        let stored = eventually(
            SETTLE_LIMIT,
            "batches are acknowledged",
            async || match messages(&stack).await {
                now if now >= before + 10 => Ok(now - before),
                now => Err(format!("{now} messages, {before} before")),
            },
        );
        lost += stored.await.expect("stored");
        if turn % 2 == 0 {
            usage(&stack).await.purge().await.expect("purged");
        } else {
            let context = jetstream(&stack).await;
            context.delete_stream("USAGE").await.expect("deleted");
        }
        sleepers.iter().for_each(|pid| signal(*pid, Signal::CONT));
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

/// Every call was answered, with one of these.
fn only(outcome: &testkit::load::Outcome, statuses: &[u16]) {
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
    let stream = usage(&stack).await;
    let wide = stream.get_info().await.expect("its state").config.clone();
    let mut narrow = wide.clone();
    let full = messages(&stack).await + 20;
    narrow.max_messages = i64::try_from(full).expect("small");
    let context = jetstream(&stack).await;
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

/// Batches that break a rule each, with the journal whose subject they come on.
fn poisons(lease: uuid::Uuid, owner: uuid::Uuid, far: u64) -> [(uuid::Uuid, Vec<u8>); 5] {
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
    [
        (stranger, b"no batch at all".to_vec()),
        (stranger, batch(stranger, unknown)),
        // Another journal's lease, more than was lent, another journal's subject.
        (stranger, batch(stranger, spend(lease, 1, 5))),
        (owner, batch(owner, spend(lease, far, i64::MAX))),
        (stranger, batch(owner, spend(lease, far + 1, 1))),
    ]
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
    let poisons = poisons(lease, owner, u64::try_from(far).expect("positive"));
    let context = jetstream(&stack).await;
    for (journal, payload) in &poisons {
        let subject = format!("usage.v1.jrn_{}", journal.simple());
        let taken = context
            .publish(subject, payload.clone().into())
            .await
            .expect("published");
        taken.await.expect("acknowledged");
    }
    let aside = eventually(SETTLE_LIMIT, "poison is put aside", async || {
        match stack
            .count("select count(*) from wallet.dead_letters")
            .await
        {
            5 => Ok(()),
            found => Err(format!("{found} dead letters")),
        }
    });
    aside.await.expect("put aside");
    load.more_answers(200).await;
    forget_poison(&stack, owner, far).await;
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

/// An operator has looked at it: each has its reason. What others have noted of records that tell
/// them nothing goes too.
async fn forget_poison(stack: &Stack, owner: uuid::Uuid, far: i64) {
    let reasons: Vec<String> =
        sqlx::query_scalar("select reason from wallet.dead_letters order by id")
            .fetch_all(stack.pool())
            .await
            .expect("reasons");
    println!("poison: {reasons:#?}");
    assert!(reasons.iter().all(|reason| !reason.is_empty()));
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
