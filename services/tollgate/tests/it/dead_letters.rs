//! What consumers have put aside, and what an operator does about it with `tollgate letters`.

mod refusals;

use std::{collections::BTreeSet, time::Instant};

use async_nats::jetstream;
use prost::Message as _;
use proto::events::v1::{Record, UsageBatch};
use rustix::process::Signal;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use testkit::{
    auditor::journal::Journals,
    eventually,
    load::{Outcome, Shot},
};
use uuid::Uuid;

use crate::{
    crash::DISCARD,
    idempotency::{COST, World, code, keyed},
    stack::{CONSUMERS, Customer, DISTANCE, LIVE, SETTLE_LIMIT, Stack, signal},
};

async fn execute(stack: &Stack, sql: String) {
    let done = sqlx::query(AssertSqlSafe(sql)).execute(stack.pool()).await;
    done.unwrap();
}

async fn number(stack: &Stack, sql: &str) -> i64 {
    let found = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(stack.pool());
    found.await.unwrap()
}

fn letters(stack: &Stack) -> Vec<Value> {
    let listed = stack.cli(&["letters"]);
    listed["letters"].as_array().unwrap().clone()
}

fn id_of(letter: &Value) -> String {
    letter["id"].as_i64().unwrap().to_string()
}

/// Waits until letters satisfy a condition.
async fn letters_until(stack: &Stack, what: &str, is_so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let found = eventually(SETTLE_LIMIT, what, async || {
        let found = letters(stack);
        match is_so(&found) {
            true => Ok(found),
            false => Err(format!("{found:?}")),
        }
    });
    found.await.unwrap()
}

async fn call(stack: &Stack, key: &str, times: usize) -> Outcome {
    let mut outcome = Outcome::default();
    for _ in 0..times {
        let answer = stack.call(key, &Shot::get(DISTANCE)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        outcome.done.push(testkit::load::Done {
            request_id: answer.header("x-request-id").to_owned(),
            status: 200,
            cost: answer.header("tollgate-cost").parse().unwrap(),
            at: Instant::now(),
        });
    }
    outcome
}

fn org(customer: &Customer) -> Uuid {
    customer.org.parse::<types::OrgId>().unwrap().uuid()
}

/// PostgreSQL takes no row of this customer any more.
fn refuse_rows_of(customer: &Customer) -> String {
    format!(
        "alter table usage_ingest.api_usage_logs
           add constraint no_room check (org_id <> '{}') not valid",
        org(customer)
    )
}

/// Nobody's records but those of this consumer are discarded.
async fn only_discards_of(stack: &Stack, name: &str) {
    for other in CONSUMERS.iter().filter(|other| **other != name) {
        let schema = other.replace('-', "_");
        let noted = format!(
            "select (select count(*) from {schema}.gaps) + (select count(*) from {schema}.discards)"
        );
        assert_eq!(number(stack, &noted).await, 0, "{other}");
    }
}

/// F11: PostgreSQL refuses the rows of one customer. Once it does not, a retry brings them; what
/// it never takes, an operator discards, and nobody counts it as lost.
#[tokio::test]
async fn a_letter_is_applied_when_its_cause_is_gone_and_discarded_when_that_never_comes() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "1"]).await;
    let (good, bad) = (stack.customer("Good", 100), stack.customer("Bad", 100));
    let (_, good_key) = stack.key(&good, &LIVE);
    let (_, bad_key) = stack.key(&bad, &LIVE);
    let refuse = refuse_rows_of(&bad);
    let accept = "alter table usage_ingest.api_usage_logs drop constraint no_room".to_owned();
    execute(&stack, refuse.clone()).await;
    let mut seen = call(&stack, &good_key, 1).await;
    seen.done.extend(call(&stack, &bad_key, 2).await.done);
    seen.done.extend(call(&stack, &good_key, 1).await.done);
    let found = letters_until(&stack, "the rows are put aside", |it| !it.is_empty()).await;
    let letter = &found[0];
    assert_eq!(letter["consumer"], "usage-ingest");
    assert!(letter["journal_id"].as_str().unwrap().starts_with("jrn_"));
    assert!(
        letter["reason"].as_str().unwrap().contains("no_room"),
        "{letter}"
    );
    names_the_record(&stack, letter);
    let (code, tried, errors) = stack.try_cli(&["letters", "retry", "--all"]);
    assert_eq!(code, Some(1), "{tried} {errors}");

    execute(&stack, accept.clone()).await;
    stack.cli(&["letters", "retry", "--all"]);
    letters_until(&stack, "nothing is left", <[Value]>::is_empty).await;
    let report = stack.audit_with(&[&seen]);
    assert_eq!(
        (&report["calls"], &report["discarded"]),
        (&4.into(), &0.into()),
        "{report}"
    );

    execute(&stack, refuse).await;
    seen.done.extend(call(&stack, &bad_key, 2).await.done);
    seen.done.extend(call(&stack, &good_key, 1).await.done);
    // Those that are shipped again take more records with them, so there may be some of a kind.
    let applied = "select count(*) from usage_ingest.api_usage_logs";
    let ended = eventually(SETTLE_LIMIT, "all is decided", async || {
        for letter in letters(&stack) {
            let discard = ["letters", "discard", "usage-ingest", &id_of(&letter)];
            let why = ["--reason", "no room for them", "--by", "ada"];
            let done = stack.try_cli(&[&discard[..], &why].concat());
            println!("{}: {done:?}", letter["id"]);
        }
        let gone = "select count(*) from usage_ingest.gaps where cause = 'discarded'";
        match (number(&stack, applied).await, number(&stack, gone).await) {
            (5, 1..) if letters(&stack).is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    ended.await.unwrap();
    let report = stack.audit_with(&[&seen]);
    println!("two rows discarded: {report}");
    assert_eq!(report["recorded_gaps"], 2, "{report}");
    assert_eq!(
        (&report["discarded"], &report["unbilled"]),
        (&2.into(), &0.into()),
        "{report}"
    );
    let wallet = stack.cli(&["wallet", "show", "--org", &bad.org]);
    assert_eq!(
        wallet["total_used"], 4,
        "the customer pays for his calls: {wallet}"
    );
    only_discards_of(&stack, "usage-ingest").await;
    noted_without_people(&stack).await;
}

/// F11: without its row nobody but the discard can tell that a call with an idempotency key was
/// charged, when its gateway did not come to say so.
#[tokio::test]
#[ignore = "most of a minute; run by make faults"]
async fn a_call_whose_row_is_discarded_keeps_its_idempotency_key() {
    let world = World::start(&[]).await;
    let stack = &world.stack;
    execute(stack, refuse_rows_of(&world.customer)).await;
    let asked = keyed("/a?b=1", "once");
    let first = world.at(0, &world.key, &asked).await;
    assert_eq!(first.status, 201, "{first:?}");
    letters_until(stack, "the row is put aside", |it| !it.is_empty()).await;
    let unsaid = "update usage_ingest.idempotency_keys set state = 'open'";
    execute(stack, unsaid.to_owned()).await;
    let again = world.at(1, &world.key, &asked).await;
    assert_eq!(code(&again), "idempotency_key_in_use");
    for letter in letters(stack) {
        let discard = ["letters", "discard", "usage-ingest", &id_of(&letter)];
        stack.try_cli(&[&discard[..], &["--reason", "no room", "--by", "ada"]].concat());
    }
    let told = eventually(SETTLE_LIMIT, "the key is not open", async || {
        let again = world.at(1, &world.key, &asked).await;
        match code(&again).as_str() {
            "idempotency_answer_not_kept" => Ok(()),
            _ => Err(format!("{again:?}")),
        }
    });
    told.await.unwrap();
    let paid = "select total_used from wallet.wallets where total_used > 0";
    assert_eq!(number(stack, paid).await, COST, "charged once");
}

/// `show` tells which records break the rule, and which would be applied.
fn names_the_record(stack: &Stack, letter: &Value) {
    let shown = stack.cli(&["letters", "show", "usage-ingest", &id_of(letter)]);
    let records = shown["records"].as_array().unwrap();
    let breaks: Vec<&Value> = records
        .iter()
        .filter(|it| it["verdict"] == "breaks a rule")
        .collect();
    assert!(!breaks.is_empty(), "{shown}");
    for record in &breaks {
        assert_eq!(
            (&record["kind"], &record["cost"]),
            (&"CALL".into(), &1.into())
        );
        assert!(
            record["lease_id"].as_str().unwrap().starts_with("lse_"),
            "{record}"
        );
        assert!(
            record["reason"].as_str().unwrap().contains("no_room"),
            "{record}"
        );
    }
    let others = records.iter().filter(|it| it["verdict"] != "breaks a rule");
    let known = BTreeSet::from(["sound", "applied"]);
    for record in others {
        assert!(
            known.contains(record["verdict"].as_str().unwrap()),
            "{record}"
        );
    }
}

/// Who, why and when; and nothing about clients.
async fn noted_without_people(stack: &Stack) {
    let noted: Vec<(String, String, Vec<u8>)> =
        sqlx::query_as("select why, discarded_by, batch from usage_ingest.discards")
            .fetch_all(stack.pool())
            .await
            .unwrap();
    assert!(!noted.is_empty());
    for (why, by, batch) in noted {
        assert_eq!((why.as_str(), by.as_str()), ("no room for them", "ada"));
        for record in UsageBatch::decode(batch.as_slice()).unwrap().records {
            let call = record.call.unwrap_or_default();
            assert!(call.ip.is_empty() && call.user_agent.is_empty(), "{call:?}");
            assert!(
                call.country.is_empty() && call.endpoint.is_empty(),
                "{call:?}"
            );
            assert!(call.traceparent.is_empty(), "{call:?}");
        }
    }
}

/// F11: the wallet has lost what it had lent. The records of the lease break its rule, the final
/// count too; discarded, the lease is closed, the rest goes back, and the provider bears the calls.
/// Its process is killed before the decision is committed, and after it.
#[tokio::test]
async fn spend_of_a_lost_lease_is_discarded_once_and_the_provider_bears_it() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "1"]).await;
    let acme = stack.customer("Acme", 1_000);
    let (_, key) = stack.key(&acme, &LIVE);
    let mut seen = call(&stack, &key, 1).await;
    stack.audit_with(&[&seen]);
    let bus = stack.pids("nats")[0];
    signal(bus, Signal::STOP);
    seen.done.extend(call(&stack, &key, 5).await.done);
    let dying = stack.pids("gateway")[0];
    signal(dying, Signal::STOP);
    let root = stack.info()["journals"][0].as_str().unwrap().to_owned();
    let journal = Journals::read(&[root.into()]).unwrap().all.remove(0).dir;
    shrink_lease(&stack, &acme).await;
    signal(dying, Signal::KILL);
    signal(bus, Signal::CONT);

    let retired = "select count(*) from wallet.journals where retired_at is not null";
    let found = letters_until(&stack, "the wallet refuses", |it| !it.is_empty()).await;
    let found_id = id_of(&found[0]);
    assert!(
        found.iter().all(|it| it["consumer"] == "wallet"),
        "{found:?}"
    );
    let at_rest = eventually(
        SETTLE_LIMIT,
        "the journal is retired",
        async || match number(&stack, retired).await {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        },
    );
    at_rest.await.unwrap();
    let (code, tried, _) = stack.try_cli(&["letters", "retry", "wallet", &found_id]);
    assert_eq!(code, Some(1), "{tried}");
    die_while_discarding(&stack, &found_id).await;
    let ended = eventually(SETTLE_LIMIT, "the journal comes to its end", async || {
        for letter in letters(&stack) {
            discard(&stack, &id_of(&letter));
        }
        match journal.exists() || !letters(&stack).is_empty() {
            false => Ok(()),
            true => Err(format!("{journal:?} {:?}", letters(&stack))),
        }
    });
    ended.await.unwrap();
    let report = stack.audit_with(&[&seen]);
    println!("five calls discarded by the wallet: {report}");
    assert_eq!(
        (&report["unbilled"], &report["calls"]),
        (&5.into(), &6.into()),
        "{report}"
    );
    let wallet = stack.cli(&["wallet", "show", "--org", &acme.org]);
    let figures = ["balance", "reserved", "total_used"].map(|name| wallet[name].as_i64().unwrap());
    assert_eq!(figures, [999, 0, 1], "{wallet}");
    only_discards_of(&stack, "wallet").await;
    // Money goes on: nothing is stuck behind it.
    seen.done.extend(call(&stack, &key, 1).await.done);
    stack.audit_with(&[&seen]);
}

fn discard(stack: &Stack, id: &str) -> (Option<i32>, Value, String) {
    let discard = ["letters", "discard", "wallet", id];
    let done = stack.try_cli(&[&discard[..], &["--reason", "lost", "--by", "ada"]].concat());
    println!("discard {id}: {done:?}");
    done
}

/// As an older database had it: what is settled was lent, and no more.
async fn shrink_lease(stack: &Stack, customer: &Customer) {
    let shrink = format!(
        "with lease as (
             select l.id, l.wallet_id, l.granted - l.settled_cum as rest
               from wallet.leases l join wallet.wallets w on w.id = l.wallet_id
              where w.org_id = '{}' and l.state <> 'closed'),
         back as (
             update wallet.wallets w set reserved = w.reserved - lease.rest
               from lease where w.id = lease.wallet_id)
         update wallet.leases l set granted = l.settled_cum, known_cum = 0
           from lease where l.id = lease.id",
        org(customer)
    );
    execute(stack, shrink).await;
}

/// Killed before the commit, the letter is there; after it, a repetition is told the same.
async fn die_while_discarding(stack: &Stack, id: &str) {
    for (point, is_noted) in DISCARD.into_iter().zip([0, 1]) {
        let spec = format!("{point}:1");
        let living = eventually(SETTLE_LIMIT, "it lives", async || {
            let pid = stack.pids("wallet")[0];
            stack.is_child(pid).then_some(pid).ok_or("not yet")
        });
        let living = living.await.unwrap();
        // The next life takes it.
        stack.arm("wallet", std::slice::from_ref(&spec));
        signal(living, Signal::KILL);
        let dead = eventually(SETTLE_LIMIT, "it dies there", async || {
            discard(stack, id);
            match stack
                .deaths()
                .0
                .contains(&("wallet".to_owned(), spec.clone()))
            {
                true => Ok(()),
                false => Err(format!("{:?}", stack.deaths())),
            }
        });
        dead.await.unwrap();
        let noted = "select count(*) from wallet.discards";
        assert_eq!(number(stack, noted).await, is_noted, "{point}");
    }
    let again = eventually(SETTLE_LIMIT, "the next life answers", async || {
        let (code, answer, errors) = discard(stack, id);
        (code == Some(0)).then_some(answer).ok_or(errors)
    });
    let first = again.await.unwrap();
    assert_eq!(discard(stack, id).1, first, "twice is once");
    let noted = "select count(*) from wallet.discards";
    assert_eq!(number(stack, noted).await, 1);
}

/// A number that no journal comes to.
const FAR: u64 = 1 << 40;

/// F11: what a journal has not come to is no gap of it, and what nobody can read says no number.
#[tokio::test]
async fn what_no_journal_has_written_is_taken_away_and_nothing_counts_as_applied() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let acme = stack.customer("Acme", 100);
    let (_, key) = stack.key(&acme, &LIVE);
    let mut seen = call(&stack, &key, 1).await;
    stack.audit_with(&[&seen]);
    let journal: Uuid = sqlx::query_scalar("select id from wallet.journals limit 1")
        .fetch_one(stack.pool())
        .await
        .unwrap();
    // Nobody knows the kind, and the journal is far from the number.
    let far = Record {
        seq: FAR,
        kind: 7,
        at_unix_micros: 1,
        ..Record::default()
    };
    let forged = UsageBatch {
        journal_id: journal.as_bytes().to_vec(),
        records: vec![far],
        gaps: Vec::new(),
    };
    let url = stack.info()["nats_url"].as_str().unwrap().to_owned();
    let context = jetstream::new(async_nats::connect(url).await.unwrap());
    let subject = format!("usage.v1.jrn_{}", journal.simple());
    for (subject, payload) in [
        (subject.clone(), forged.encode_to_vec()),
        (subject, b"no batch".to_vec()),
        ("anomaly.v1.flagged.x".to_owned(), b"no event".to_vec()),
    ] {
        let taken = context.publish(subject, payload.into()).await;
        taken.unwrap().await.unwrap();
    }
    // Four can do nothing with either, and keys follows the event.
    let found = letters_until(&stack, "all is put aside", |it| it.len() == 9).await;
    let reason = ["--reason", "nobody's", "--by", "ada"];
    let forged: Vec<&Value> = found.iter().filter(|it| it["from"] == FAR).collect();
    assert_eq!(forged.len(), 4, "{found:?}");
    for letter in forged {
        let consumer = letter["consumer"].as_str().unwrap();
        let base = ["letters", "discard", consumer, &id_of(letter)];
        let (code, _, errors) = stack.try_cli(&[&base[..], &reason].concat());
        assert_eq!(code, Some(1), "{errors}");
        assert!(errors.contains("as forged"), "{errors}");
        stack.cli(&[&base[..], &reason, &["--forged"]].concat());
    }
    let (code, _, errors) = stack.try_cli(&["letters", "discard", "nobody", "1", "--reason", "x"]);
    assert_eq!(code, Some(64), "{errors}");
    for letter in letters(&stack) {
        let consumer = letter["consumer"].as_str().unwrap();
        let shown = stack.cli(&["letters", "show", consumer, &id_of(&letter)]);
        assert_eq!(shown["records"], serde_json::json!([]), "{shown}");
        let base = ["letters", "discard", consumer, &id_of(&letter)];
        let done = stack.cli(&[&base[..], &reason].concat());
        assert_eq!(done["letters"][0]["discarded"], 0, "{done}");
    }
    assert_eq!(letters(&stack), Vec::<Value>::new());
    let gaps = "select count(*) from wallet.gaps";
    assert_eq!(number(&stack, gaps).await, 0);
    seen.done.extend(call(&stack, &key, 1).await.done);
    stack.audit_with(&[&seen]);
}
