//! Everything arrives again: other messages, other cuts, any order.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Stream;
use prost::Message as _;
use proto::events::v1::UsageBatch;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Plan, Shot},
};

use super::{
    DISTANCE, LIVE, Load, chat,
    figures::{self, Figures},
    quiet::quiet,
    render,
};
use crate::stack::{CONSUMERS, SETTLE_LIMIT, Stack, signal};

/// Each event comes so many times more.
const TIMES: usize = 2;

/// F9: every event is published twice more, cut otherwise and in any order, while consumers die.
/// Wallets, quotas, ledger, rows, statistics and anomalies stay as they are, to the byte.
#[tokio::test]
async fn f09_everything_twice_more_and_shuffled_changes_nothing() {
    replay(300).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f09_a_long_stream_twice_more_and_shuffled_changes_nothing() {
    replay(20_000).await;
}

async fn replay(answers: usize) {
    let seed = figures::seed();
    let mut random = StdRng::seed_from_u64(seed);
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    let customer = stack.customer("Again", 10_000_000);
    let quotas = ["--daily-quota", "1000000", "--monthly-quota", "2000000"];
    let (_, key) = stack.key(&customer, &[&LIVE[..], &quotas].concat());
    let load = Load::of(Plan {
        gateways: stack.gateways(),
        key,
        shots: vec![
            Shot::get(DISTANCE).with("x-forwarded-for", "203.0.1.7"),
            render(),
            chat(),
            Shot::get("/api/v1/mileage/distance?from=nowhere&to=43.29,5.37"),
        ],
        workers: 6,
        pause: Duration::from_millis(5),
    });
    load.more_answers(answers).await;
    let outcome = load.finish().await;
    quiet(&stack, Instant::now()).await;
    nothing_is_lent(&stack).await;
    let first = stack.audit_with(&[&outcome]);
    let before = stack.digests().await;
    let counts = stack
        .count("select count(*) from wallet.ledger_entries")
        .await;

    let stream = stack.usage().await;
    let batches = batches(&stream).await;
    let mut again = Vec::new();
    for _ in 0..TIMES {
        for batch in &batches {
            again.extend(cut(batch, &mut random));
        }
    }
    again.shuffle(&mut random);
    let (parts, half) = (again.len(), again.len() / 2);
    publish(&stack, &again[..half]).await;
    for name in CONSUMERS {
        signal(stack.pids(name)[0], Signal::KILL);
    }
    publish(&stack, &again[half..]).await;
    read_to_the_end(&stream).await;
    let read_again = stack.replay_usage().await;
    assert_eq!(stack.digests().await, before, "seed {seed}");
    assert_eq!(
        counts,
        stack
            .count("select count(*) from wallet.ledger_entries")
            .await
    );
    let began = Instant::now();
    let report = stack.audit_with(&[&outcome]);
    assert_eq!(report["calls"], first["calls"]);
    let figures = Figures {
        kills: CONSUMERS.len(),
        faults: parts,
        quiet: began.elapsed(),
        seed: Some(seed),
        more: format!(
            "{} batches came as {parts} others, and {read_again} messages once more; {} digests \
             are equal",
            batches.len(),
            before.len()
        ),
        ..Figures::of("F09", &[&outcome])
    };
    figures.print(&stack, &report).await;
}

/// Gateways have ended and given back what they were lent: nothing moves by itself any more.
async fn nothing_is_lent(stack: &Stack) {
    for gateway in stack.pids("gateway") {
        signal(gateway, Signal::TERM);
    }
    let back = eventually(SETTLE_LIMIT, "what is lent goes back", async || {
        let lent = "select (select coalesce(sum(reserved), 0) from wallet.wallets)::int8
                         + (select coalesce(sum(reserved), 0) from wallet.quota_buckets)::int8";
        match stack.count(lent).await {
            0 => Ok(()),
            lent => Err(format!("{lent} are lent")),
        }
    });
    back.await.expect("back");
}

/// Everything that the stream holds.
async fn batches(stream: &Stream) -> Vec<UsageBatch> {
    let state = stream.get_info().await.expect("its state").state;
    let mut all = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.expect("a message");
        all.push(UsageBatch::decode(message.payload).expect("a batch"));
    }
    all
}

/// The same records in other messages: cut in two somewhere, or left whole.
fn cut(batch: &UsageBatch, random: &mut StdRng) -> Vec<UsageBatch> {
    let at = random.random_range(0..=batch.records.len());
    let (left, right) = batch.records.split_at(at);
    let part = |records: &[proto::events::v1::Record]| UsageBatch {
        journal_id: batch.journal_id.clone(),
        records: records.to_vec(),
        gaps: Vec::new(),
    };
    [left, right]
        .into_iter()
        .filter(|records| !records.is_empty())
        .map(part)
        .collect()
}

async fn publish(stack: &Stack, batches: &[UsageBatch]) {
    let context = stack.jetstream().await;
    for batch in batches {
        let journal = uuid::Uuid::from_slice(&batch.journal_id).expect("an id");
        let subject = format!("usage.v1.jrn_{}", journal.simple());
        let sent = context.publish(subject, batch.encode_to_vec().into()).await;
        sent.expect("published").await.expect("acknowledged");
    }
}

/// Every consumer has answered for every message.
async fn read_to_the_end(stream: &Stream) {
    let last = stream
        .get_info()
        .await
        .expect("its state")
        .state
        .last_sequence;
    for name in CONSUMERS {
        let read = eventually(SETTLE_LIMIT, "everything is read", async || {
            let info = stream
                .consumer_info(name)
                .await
                .map_err(|error| error.to_string())?;
            match info.ack_floor.stream_sequence >= last {
                true => Ok(()),
                false => Err(format!(
                    "{name}: {} of {last}",
                    info.ack_floor.stream_sequence
                )),
            }
        });
        read.await.expect("read");
    }
}
