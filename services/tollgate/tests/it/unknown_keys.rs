//! Keys that nobody issued: what they may cost, whom they may hurt, and who is told.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use prost::Message as _;
use proto::events::v1::UnknownKeysSighted;
use serde_json::Value;
use testkit::{
    eventually,
    load::{Connection, Plan, Shot},
};
use types::{Environment, KEY_RANDOM_BYTES, NewKey, Pepper, PresentedKey};

use crate::{
    fault::{DISTANCE, LIVE, Load, summary},
    stack::{Customer, Stack},
};

/// Unknown keys that one address may have looked up in a minute.
const UNKNOWN_MAX: u64 = 20;
/// Random keys of the attack.
const KEYS: u32 = 10_000;
/// Malformed ones among them.
const MALFORMED: u32 = 1_000;
/// Calls of the attack at once: so many look-ups may be under way when the limit is passed.
const WORKERS: u32 = 8;
/// Whoever attacks.
const ATTACKER: &str = "198.51.100.7";
/// A minute, for the gateway and for messages.
const MINUTE: Duration = Duration::from_secs(60);
/// A new key works on all gateways within this.
const NEW_KEY_LIMIT: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(20);

fn from(address: &str) -> Shot {
    Shot::get(DISTANCE).with("x-forwarded-for", address)
}

/// A key that has the right form and that nobody issued.
fn random_key() -> NewKey {
    let mut random = [0; KEY_RANDOM_BYTES];
    for part in random.chunks_mut(4) {
        let bytes = RandomState::new().hash_one(0).to_be_bytes();
        part.copy_from_slice(&bytes[..part.len()]);
    }
    NewKey::from_random(Environment::Production, &random)
}

/// All samples of the first gateway.
async fn samples(stack: &Stack) -> Value {
    let ops = stack.info()["ops"]["gateway"].as_str().unwrap().to_owned();
    let mut connection = Connection::to(&ops);
    let answer = connection.call("", &Shot::get("/metrics.json")).await;
    answer.expect("metrics").json()
}

/// A counter of the first gateway by one of its labels.
async fn counted(stack: &Stack, name: &str, label: &str) -> BTreeMap<String, u64> {
    let samples = samples(stack).await;
    let prefix = format!("{name}{{{label}=\"");
    let found = samples.as_object().unwrap().iter().filter_map(|it| {
        let of = it.0.strip_prefix(&prefix)?.strip_suffix("\"}")?;
        let count = format!("{:.0}", it.1.as_f64()?).parse().ok()?;
        Some((of.to_owned(), count))
    });
    found.collect()
}

async fn lookups(stack: &Stack, result: &str) -> u64 {
    let all = counted(stack, "tollgate_key_lookups_total", "result").await;
    all.get(result).copied().unwrap_or(0)
}

fn pepper(stack: &Stack) -> Pepper {
    let info = stack.info();
    let file = info["peppers"]["current"].as_str().unwrap();
    let text = std::fs::read_to_string(file).expect("a pepper");
    Pepper::new(text.trim_end()).expect("a pepper")
}

async fn nats(stack: &Stack) -> async_nats::Client {
    let url = stack.info()["nats_url"].as_str().unwrap().to_owned();
    async_nats::connect(url).await.expect("NATS")
}

#[tokio::test]
async fn unknown_keys_cost_little_and_hurt_nobody_else() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let customer = stack.customer("Strangers", 100_000);
    attack(&stack, &customer).await;
    a_new_key_works_at_once_after_its_own_refusal(&stack, &customer).await;
    redis_cannot_mint_keys(&stack, &customer).await;
    staleness_is_reported(&stack).await;
    assert_eq!(stack.audit()["differences"], 0);
}

/// S2: very many keys from one address, beside calls that are worth something.
async fn attack(stack: &Stack, customer: &Customer) {
    let nats = nats(stack).await;
    let mut sightings = nats.subscribe("anomaly.v1.sighted.*").await.expect("heard");
    nats.flush().await.expect("subscribed");
    let (_, warm) = stack.key(customer, &LIVE);
    let (_, cold) = stack.key(customer, &LIVE);
    assert_eq!(stack.call(&warm, &from(ATTACKER)).await.status, 200);
    let load = Load::of(Plan {
        gateways: stack.gateways(),
        key: stack.demo("live_key"),
        shots: vec![Shot::get(DISTANCE)],
        workers: 4,
        pause: Duration::from_millis(5),
    });
    let before = lookups(stack, "nobody").await;
    let began = Instant::now();
    let answers = spray(stack).await;
    let after_attack = lookups(stack, "nobody").await;
    let minutes = began.elapsed().as_secs() / MINUTE.as_secs() + 1;

    // Beside it, and after it: a key in memory is served from the very address, one that is not
    // from any other.
    assert_eq!(stack.call(&warm, &from(ATTACKER)).await.status, 200);
    let refused = stack.call(&cold, &from(ATTACKER)).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["code"]),
        (429, &"rate_limited".into()),
        "{refused:?}"
    );
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(stack.call(&cold, &from("198.51.100.8")).await.status, 200);
    let outcome = load.finish().await;
    println!(
        "{KEYS} random and {MALFORMED} malformed keys within {:?}: {answers:?}; {} look-ups of \
         nobody; beside them {}, P99 {} µs",
        began.elapsed(),
        after_attack - before,
        summary(&outcome),
        outcome.quantile(99),
    );
    let most = minutes * (UNKNOWN_MAX + u64::from(WORKERS));
    let made = after_attack - before;
    assert!((UNKNOWN_MAX..=most).contains(&made), "{made} look-ups");
    assert_eq!(
        answers.keys().copied().collect::<Vec<_>>(),
        [401, 429],
        "{answers:?}"
    );
    assert!(
        answers[&429] > u64::from(KEYS + MALFORMED) - 200,
        "{answers:?}"
    );
    assert_eq!(
        outcome.by_status.keys().copied().collect::<Vec<_>>(),
        [200],
        "good calls beside it"
    );
    assert_eq!(outcome.broken, 0);
    is_reported(&mut sightings, minutes).await;
}

/// Whoever listens on the bus hears of the attacker, and not too often.
async fn is_reported(sightings: &mut async_nats::Subscriber, minutes: u64) {
    let sighted = tokio::time::timeout(SOON, sightings.next()).await;
    let message = sighted.expect("within time").expect("a message");
    let sighted = UnknownKeysSighted::decode(message.payload).expect("a sighting");
    let subject = format!("anomaly.v1.sighted.{}", sighted.journal_id);
    assert_eq!(message.subject.as_str(), subject);
    assert!(sighted.journal_id.starts_with("jrn_"), "{sighted:?}");
    assert_eq!(sighted.address, ATTACKER);
    assert!(sighted.attempts > UNKNOWN_MAX, "{sighted:?}");
    let age = jiff::Timestamp::now().as_microsecond() - sighted.minute_unix_micros;
    assert!((0..120_000_000).contains(&age), "{sighted:?}");
    let mut more = 0;
    while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, sightings.next()).await {
        more += 1;
    }
    assert!(more <= minutes, "{more} more messages");
}

/// Random keys, and some that cannot be keys. Answers by status; each 429 says for how long.
async fn spray(stack: &Stack) -> BTreeMap<u16, u64> {
    let base = stack.gateways()[0].clone();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let base = base.clone();
        workers.spawn(async move {
            let (mut connection, shot) = (Connection::to(&base), from(ATTACKER));
            let mut seen: BTreeMap<u16, u64> = BTreeMap::new();
            for n in (worker..KEYS + MALFORMED).step_by(usize::try_from(WORKERS).unwrap()) {
                let key = random_key();
                let is_malformed = n % (KEYS / MALFORMED + 1) == 0;
                let text = key.reveal();
                let text = if is_malformed { &text[..40] } else { text };
                let answer = connection.call(text, &shot).await.expect("an answer");
                let status = answer.status.as_u16();
                let waits = !answer.header("retry-after").is_empty();
                assert_eq!(waits, status == 429, "{answer:?}");
                *seen.entry(status).or_default() += 1;
            }
            seen
        });
    }
    let mut all: BTreeMap<u16, u64> = BTreeMap::new();
    while let Some(seen) = workers.join_next().await {
        for (status, count) in seen.expect("a worker") {
            *all.entry(status).or_default() += count;
        }
    }
    all
}

/// R44: a call is refused, and remembered, before the key is there; then the key is made. Nobody
/// knows a key's text before, so this one is made by hand, as `keys` makes one: the row and its
/// announcement in one transaction, and then a hint.
async fn a_new_key_works_at_once_after_its_own_refusal(stack: &Stack, customer: &Customer) {
    let home = from("203.0.113.9");
    let nats = nats(stack).await;
    let pepper = pepper(stack);
    let (like, _) = stack.key(customer, &LIVE);
    let like: uuid::Uuid = like.strip_prefix("key_").unwrap().parse().unwrap();
    for _ in 0..3 {
        let key = random_key();
        let (before, negative) = (lookups(stack, "nobody").await, negatives(stack).await);
        for _ in 0..3 {
            assert_eq!(stack.call(key.reveal(), &home).await.status, 401);
        }
        assert_eq!(lookups(stack, "nobody").await, before + 1);
        assert_eq!(negatives(stack).await, negative + 2, "these asked nobody");
        let id = uuid::Uuid::now_v7();
        let hash = key.presented().hash(&pepper);
        let make = sqlx::query(MAKE)
            .bind(like)
            .bind(id)
            .bind(&hash.bytes()[..]);
        make.execute(stack.pool()).await.expect("made");
        let began = Instant::now();
        let hint = nats.publish(format!("keys.v1.changed.key_{}", id.simple()), "".into());
        hint.await.expect("published");
        let works = eventually(SOON, "the new key works", async || {
            match stack.call(key.reveal(), &home).await.status.as_u16() {
                200 => Ok(began.elapsed()),
                status => Err(format!("{status}")),
            }
        });
        let took = works.await.expect("it works");
        println!("a key works {took:?} after it was made, and was refused just before");
        assert!(took <= NEW_KEY_LIMIT, "{took:?}");
    }
}

/// A key like another one.
const MAKE: &str = "
    with made as (
        insert into keys.api_keys
        select (jsonb_populate_record(k, jsonb_build_object(
                   'id', $2::uuid, 'limits_key_id', $2::uuid, 'key_hash', $3::bytea,
                   'report_hash', sha256($3)))).*
          from keys.api_keys k
         where k.id = $1
        returning id, key_hash, version)
    insert into keys.changes (key_hash, key_id, version, at)
    select key_hash, id, version, now() from made";

async fn negatives(stack: &Stack) -> u64 {
    let all = counted(stack, "tollgate_key_verifications_total", "source").await;
    all["negative"]
}

async fn refusal(stack: &Stack, key: &str) -> (u16, String) {
    let answer = stack.call(key, &Shot::get(DISTANCE)).await;
    let code = answer.json()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (answer.status.as_u16(), code)
}

/// Revokes a key. Then the gateway has applied all changes up to this one, and has removed the
/// copies of what has changed.
fn revoke(stack: &Stack, id: &str) {
    let revoked = stack.cli(&["key", "revoke", id, "--reason", "test"]);
    assert_eq!(
        revoked["pending_gateways"],
        serde_json::json!([]),
        "{revoked}"
    );
}

/// S16: a stranger with write access to Redis puts a mighty key's copy under a weak one's name, and
/// one from before a key was revoked back under its own.
async fn redis_cannot_mint_keys(stack: &Stack, customer: &Customer) {
    let url = stack.info()["redis_url"].as_str().unwrap().to_owned();
    let client = redis::Client::open(url).expect("a URL");
    let redis = client.get_multiplexed_async_connection().await;
    let mut redis = redis.expect("Redis");
    let pepper = pepper(stack);
    let name = |key: &str| {
        let presented = PresentedKey::parse(key).expect("a key");
        format!("apikey:{}", hex::encode(presented.hash(&pepper).bytes()))
    };
    let (mighty_id, mighty) = stack.key(customer, &LIVE);
    let other = ["--environment", "production", "--scope", "pdf:read"];
    let (_, weak) = stack.key(customer, &other);
    let (done_with, _) = stack.key(customer, &other);
    revoke(stack, &done_with);

    assert_eq!(stack.call(&mighty, &Shot::get(DISTANCE)).await.status, 200);
    let mut get = redis::cmd("GET");
    let copy = get.arg(name(&mighty)).query_async(&mut redis).await;
    let copy: Vec<u8> = copy.expect("a copy");
    let put = async |redis: &mut redis::aio::MultiplexedConnection, key: &str| {
        let mut set = redis::cmd("SET");
        let written = set.arg(name(key)).arg(&copy).exec_async(redis).await;
        written.expect("written");
    };
    for (key, refused) in [
        (&weak, (403, "insufficient_scope")),
        (&mighty, (401, "key_revoked")),
    ] {
        if *key == mighty {
            revoke(stack, &mighty_id);
        }
        put(&mut redis, key).await;
        let found = lookups(stack, "found").await;
        let (status, code) = refusal(stack, key).await;
        assert_eq!((status, code.as_str()), refused);
        assert_eq!(lookups(stack, "found").await, found + 1, "`keys` was asked");
    }
}

/// R46: what is known of changes is as old as its last news, at the moment somebody asks.
async fn staleness_is_reported(stack: &Stack) {
    let age = async || samples(stack).await["tollgate_key_staleness_seconds"].as_f64();
    let fresh = age().await.expect("a gauge");
    assert!((0.0..5.0).contains(&fresh), "{fresh} s");
    let grows = eventually(SOON, "the gauge is read, not noted", async || {
        let (one, two) = (age().await, age().await);
        if two > one {
            Ok(())
        } else {
            Err(format!("{one:?} {two:?}"))
        }
    });
    grows.await.expect("it ages");
}
