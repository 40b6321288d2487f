//! The oracles of these tests object when a protection is missing: one that the product does
//! without, by its name, in the fault that it is there for; and one whose effect is missing in the
//! tables.

use std::{collections::BTreeSet, path::Path};

use rustix::process::Signal;
use sqlx::AssertSqlSafe;
use testkit::{
    eventually,
    load::{Answer, Connection, Outcome, Shot},
};

use super::{
    DISTANCE, LIVE, Load,
    credits::{given_up, outcome_of},
    failover::{
        self,
        keyed::{LONG, SLOW_COST, ask, forgotten, read},
    },
    fund,
    keys::{connect, copied_key, write_back},
    stream::lose_unapplied,
};
use crate::{
    crash::named_in,
    stack::{SETTLE_LIMIT, Stack, signal},
};

/// Protections that debug builds can be made to do without.
const MUTANTS: [&str; 5] = [
    UNCHECKED_FILL,
    TRIM_ON_ACKNOWLEDGEMENT,
    RELEASE_BY_TIMER,
    ADD_WITHOUT_INBOX,
    FORWARD_UNNOTED,
];
const UNCHECKED_FILL: &str = "gateway.fills_unchecked";
const TRIM_ON_ACKNOWLEDGEMENT: &str = "gateway.trims_on_acknowledgement";
const RELEASE_BY_TIMER: &str = "wallet.releases_by_timer";
const ADD_WITHOUT_INBOX: &str = "consumer.adds_without_inbox";
const FORWARD_UNNOTED: &str = "gateway.forwards_keys_unnoted";
/// The auditor objects to what does not go away within so many seconds.
const PATIENCE_SECONDS: &str = "10";
/// Keys that are tried.
const TRIES: usize = 10;

#[test]
fn every_mutant_of_the_code_is_tried_here() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = BTreeSet::new();
    for folder in ["libs", "services"] {
        named_in(&root.join(folder), concat!("mutant", "!(\""), &mut found);
    }
    let known: BTreeSet<String> = MUTANTS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(found, known);
}

/// A stack without this protection; it says so.
async fn mutated(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Stack {
    let arguments = [&["--ephemeral"], arguments].concat();
    let variables = [variables, &[("TOLLGATE_MUTANT", name)]].concat();
    let stack = Stack::start_with(&arguments, &variables).await;
    let info = stack.info();
    let ops = info["ops"]["gateway"].as_str().expect("an address");
    let version = Connection::to(ops).call("", &Shot::get("/version")).await;
    assert_eq!(version.expect("a version").json()["mutant"], name);
    stack
}

/// The auditor finds what this figure counts, and goes on finding it.
fn objects_for_good(stack: &Stack, outcome: &Outcome, figure: &str) {
    let path = stack.write_transcript(&[outcome]);
    let audit = ["audit", "--wait", PATIENCE_SECONDS, "--transcript", &path];
    let (code, report, errors) = stack.try_cli(&audit);
    println!("{figure}: {report:#}");
    assert_eq!(code, Some(1), "nobody objects: {report:#} {errors}");
    assert_ne!(report[figure], 0, "{figure}: {report:#}");
}

/// F7 finds out who trims the journal when the stream has acknowledged.
#[tokio::test]
#[ignore = "a minute; run by make faults"]
async fn a_journal_that_is_trimmed_on_acknowledgement_loses_calls() {
    // A segment holds few of the calls that are lost.
    let small = [("TOLLGATE_GATEWAY_JOURNAL_SEGMENT_BYTES", "65536")];
    let stack = mutated(TRIM_ON_ACKNOWLEDGEMENT, &["--processes"], &small).await;
    fund(&stack);
    let load = Load::start(&stack, &stack.demo("live_key"), 8);
    load.more_answers(100).await;
    lose_unapplied(&stack, &load, 900, true).await;
    load.more_answers(100).await;
    let outcome = load.finish().await;
    objects_for_good(&stack, &outcome, "lost");
}

/// F17 finds out who releases leases by a timer, and charges what comes late all the same.
#[tokio::test]
#[ignore = "a minute; run by make faults"]
async fn a_lease_that_a_timer_releases_is_spent_twice() {
    let variables = [
        ("TOLLGATE_WALLET_ORPHAN_SECONDS", "2"),
        ("TOLLGATE_WALLET_WRITE_OFF_HOURS", "0"),
    ];
    let arguments = ["--processes", "--gateways", "2"];
    let stack = mutated(RELEASE_BY_TIMER, &arguments, &variables).await;
    let customer = stack.customer("Sleeper", 100);
    let (_, key) = stack.key(&customer, &LIVE);
    let shot = Shot::get(DISTANCE);
    let mut answers: Vec<Answer> = Vec::new();
    for gateway in [0, 1] {
        answers.push(stack.call_at(gateway, &key, &shot).await);
    }
    let sleeper = stack.pids("gateway")[0];
    signal(sleeper, Signal::STOP);
    given_up(&stack, "written_off").await;
    while answers.last().is_some_and(|answer| answer.status == 200) {
        answers.push(stack.call_at(1, &key, &shot).await);
    }
    signal(sleeper, Signal::CONT);
    for _ in 0..5 {
        answers.push(stack.call_at(0, &key, &shot).await);
    }
    let spent: i64 = answers.iter().map(Answer::cost).sum();
    assert!(spent > 100, "{spent}: what was lent was lent again");
    objects_for_good(&stack, &outcome_of(&answers), "differences");
}

/// F9 finds out who adds without having looked what is applied.
#[tokio::test]
#[ignore = "a minute; run by make faults"]
async fn a_consumer_that_adds_without_its_inbox_counts_twice() {
    let stack = mutated(ADD_WITHOUT_INBOX, &[], &[]).await;
    let key = stack.demo("live_key");
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(stack.call(&key, &Shot::get(DISTANCE)).await);
    }
    let days = "select coalesce(sum(total_requests), 0)::int8 from stats_aggregator.daily_stats";
    let counted = eventually(SETTLE_LIMIT, "the calls are counted", async || match stack
        .count(days)
        .await
    {
        20.. => Ok(()),
        few => Err(format!("{few} of 20")),
    });
    counted.await.expect("counted");
    stack.replay_usage().await;
    assert!(stack.count(days).await > 20, "some are counted twice");
    objects_for_good(&stack, &outcome_of(&answers), "differences");
}

/// F15 finds out who forwards a call whose key no record names yet: its retry is charged too.
#[tokio::test]
#[ignore = "a minute; run by make faults"]
async fn a_call_whose_key_is_not_noted_is_made_twice() {
    let world = failover::keyed::start(&[("TOLLGATE_MUTANT", FORWARD_UNNOTED)]).await;
    let used = world.used();
    let mut long = forgotten(&world).await;
    let again = ask(&world, 1, LONG);
    let opened = async {
        let asked = eventually(SETTLE_LIMIT, "it is made again", async || {
            match world.upstream.asked(LONG) {
                1 => Err("once"),
                _ => Ok(()),
            }
        });
        asked.await.expect("made again");
        world.upstream.shut(false);
    };
    let (again, ()) = tokio::join!(again, opened);
    let again = again.expect("an answer");
    assert_eq!((again.status.as_u16(), again.cost()), (201, SLOW_COST));
    read(&mut long).await;
    assert_eq!(world.used(), used + 2 * SLOW_COST, "two charges of one key");
}

/// F20 finds out who takes a copy without looking for a newer version.
#[tokio::test]
async fn a_fill_without_a_look_at_the_version_revives_a_revoked_key() {
    let stack = mutated(UNCHECKED_FILL, &[], &[]).await;
    let customer = stack.customer("Ghost", 1_000);
    let mut redis = connect(&stack).await;
    // Gateway and keys both remove copies when they hear of a change. Where one does so late, there
    // is another key.
    let mut revived = false;
    for _ in 0..TRIES {
        let (id, key, copied) = copied_key(&stack, &customer, &mut redis).await;
        announced(&stack).await;
        stack.cli(&["key", "revoke", &id, "--reason", "leaked"]);
        announced(&stack).await;
        write_back(&mut redis, &copied).await;
        let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
        revived |= answer.status == 200;
        println!("{id}: {}", answer.status);
        if revived {
            break;
        }
    }
    assert!(revived, "nobody believed an old copy");
}

/// All changes of keys were told.
async fn announced(stack: &Stack) {
    let told = eventually(SETTLE_LIMIT, "changes of keys are told", async || {
        let waiting = "select count(*) from keys.changes where published_at is null";
        match stack.count(waiting).await {
            0 => Ok(()),
            waiting => Err(format!("{waiting} changes wait")),
        }
    });
    told.await.expect("told");
}

#[tokio::test]
async fn without_their_effects_the_oracles_object() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let load = Load::start(&stack, &stack.demo("live_key"), 2);
    for _ in 0..20 {
        stack
            .call(&stack.demo("live_key"), &Shot::get(DISTANCE))
            .await;
    }
    let outcome = load.finish().await;
    stack.audit_with(&[&outcome]);
    a_row_that_was_never_written(&stack, &outcome).await;
    a_consumer_that_remembers_nothing(&stack).await;
    a_grant_that_was_forgotten(&stack).await;
}

async fn execute(stack: &Stack, sql: &str) {
    let done = sqlx::query(AssertSqlSafe(sql.to_owned()))
        .execute(stack.pool())
        .await
        .expect("executed");
    assert!(done.rows_affected() > 0, "{sql} changes something");
}

fn objects(stack: &Stack, figure: &str) {
    let path = stack.transcript().to_string_lossy().into_owned();
    let (code, report, errors) = stack.try_cli(&["audit", "--wait", "0", "--transcript", &path]);
    assert_eq!(code, Some(1), "nobody objects: {report:#} {errors}");
    assert_ne!(report[figure], 0, "{figure}: {report:#}");
}

/// A consumer that acknowledges before it commits loses what the client saw.
async fn a_row_that_was_never_written(stack: &Stack, outcome: &Outcome) {
    let last = outcome
        .done
        .iter()
        .rfind(|done| done.status == 200)
        .expect("a call");
    let id: uuid::Uuid = last
        .request_id
        .trim_start_matches("req_")
        .parse()
        .expect("an id");
    let with = |verb: &str| format!("{verb} usage_ingest.api_usage_logs where request_id = '{id}'");
    execute(stack, &with("create table kept as select * from")).await;
    execute(stack, &with("delete from")).await;
    objects(stack, "lost");
    execute(
        stack,
        "insert into usage_ingest.api_usage_logs select * from kept",
    )
    .await;
    stack.audit();
}

/// Without its inbox a consumer applies a repeated message once more.
async fn a_consumer_that_remembers_nothing(stack: &Stack) {
    let before = stack.digests().await;
    execute(stack, "update stats_aggregator.inbox set applied = '{}'").await;
    stack.replay_usage().await;
    let after = stack.digests().await;
    for name in ["days", "hours"] {
        assert_ne!(before[name], after[name], "{name} are counted twice");
    }
    for name in ["wallets", "rows", "anomalies"] {
        assert_eq!(before[name], after[name], "{name} have an inbox");
    }
    objects(stack, "differences");
}

/// A reservation without an owner does not come back by itself.
async fn a_grant_that_was_forgotten(stack: &Stack) {
    execute(
        stack,
        "update wallet.wallets set reserved = reserved + 5 where reserved > 0",
    )
    .await;
    objects(stack, "differences");
}
