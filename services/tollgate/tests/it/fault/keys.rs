//! Keys while the cache is away, empty, or full of ghosts, and where nobody hears of changes.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use testkit::{
    eventually,
    load::{self, Connection, Outcome, Shot},
    proxy::Proxy,
};

use super::{DISTANCE, LIVE, Load, figures::Figures, summary};
use crate::{
    apart::Apart,
    stack::{Customer, SETTLE_LIMIT, Stack, signal},
};

/// Calls with a revoked key after each fault.
const TRIES: usize = 40;
/// New keys after each fault.
const FRESH: usize = 5;
/// A key is verified within this, and more: the call that it is for is answered.
const VERIFIED_MICROS: u64 = 50_000;
/// A gateway that hears of no changes believes what it knew for so long at most.
const CUT_OFF: Duration = Duration::from_secs(10);
/// Calls with a revoked key, one after another, when that is over.
const LATE_TRIES: usize = 100;
/// Between two of those before.
const PAUSE: Duration = Duration::from_millis(10);

/// F20: Redis is killed, emptied, paused, and filled with what it held before the revocation.
#[tokio::test]
async fn f20_a_revoked_key_stays_revoked_whatever_redis_says() {
    lose_redis(1).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f20_verification_stays_fast_whatever_redis_does() {
    let [hot, cold] = lose_redis(10).await;
    assert!(hot < VERIFIED_MICROS, "known keys: {hot} µs");
    assert!(cold < VERIFIED_MICROS, "keys that nobody knew: {cold} µs");
}

/// Returns within how many microseconds 95 of 100 calls were answered: with a key in memory, and
/// with one that the gateway had not seen.
async fn lose_redis(rounds: usize) -> [u64; 2] {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    let load = Load::start(&stack, &stack.demo("live_key"), 4);
    let customer = stack.customer("Ghost", 1_000_000);
    let (mut accepted, mut calls, mut first_calls) = (0, 0, Outcome::default());
    let faults = [Fault::Kill, Fault::Flush, Fault::Pause, Fault::OldDump];
    for fault in faults.into_iter().cycle().take(rounds * faults.len()) {
        let mut redis = connect(&stack).await;
        let (id, key, old) = copied_key(&stack, &customer, &mut redis).await;
        for gateway in 0..2 {
            let answer = stack.call_at(gateway, &key, &Shot::get(DISTANCE)).await;
            assert_eq!(answer.status, 200, "{fault:?}: before, {answer:?}");
        }
        let fresh: Vec<String> = (0..FRESH).map(|_| stack.key(&customer, &LIVE).1).collect();
        let paused = stack.pids("redis")[0];
        if matches!(fault, Fault::Pause) {
            signal(paused, Signal::STOP);
        }
        let revoked = stack.cli(&["key", "revoke", &id, "--reason", "leaked"]);
        assert_eq!(revoked["pending_gateways"], json!([]), "{revoked}");
        match fault {
            Fault::Kill => signal(stack.pids("redis")[0], Signal::KILL),
            Fault::Flush => redis::cmd("FLUSHALL")
                .exec_async(&mut redis)
                .await
                .expect("flushed"),
            Fault::Pause => {}
            Fault::OldDump => restore(&stack, &mut redis, &old).await,
        }
        let (yes, all) = try_revoked(&stack, &key).await;
        accepted += yes;
        calls += all;
        // Keys that no gateway has seen work all the same.
        call_first(&stack, &fresh, &mut first_calls).await;
        signal(paused, Signal::CONT);
    }
    let outcome = load.finish().await;
    let report = stack.audit_with(&[&outcome, &first_calls]);
    let [hot, cold] = [&outcome, &first_calls].map(|it| it.quantile(95));
    let more = format!(
        "revoked keys: {calls} calls, {accepted} accepted; beside them {}, 95 of 100 within {hot} \
         µs, and {} first calls of new keys within {cold} µs",
        summary(&outcome),
        first_calls.done.len(),
    );
    let (kills, all) = (3 * rounds, 4 * rounds);
    Figures::say(
        "F20",
        [kills, all],
        &[&outcome, &first_calls],
        more,
        &stack,
        &report,
    )
    .await;
    assert_eq!(accepted, 0, "accepted after the revocation");
    assert_eq!(outcome.by_status.get(&401), None, "a good key was refused");
    [hot, cold]
}

/// One call with each key at each gateway.
async fn call_first(stack: &Stack, keys: &[String], outcome: &mut Outcome) {
    for base in stack.gateways() {
        let mut connection = Connection::to(&base);
        for key in keys {
            connection.connect().await.expect("connected");
            let began = Instant::now();
            let answer = connection.call(key, &Shot::get(DISTANCE)).await;
            load::note(outcome, began, answer);
        }
    }
    let served = outcome.by_status.get(&200).copied().unwrap_or(0);
    assert_eq!(served, outcome.sent, "new keys work: {}", summary(outcome));
}

/// The answer to a revocation names every gateway that may still act on what it knew, also one that
/// has been silent for a while; and none that has left in order or was started again.
#[tokio::test]
async fn a_revocation_names_who_may_still_believe_the_key() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    let customer = stack.customer("Named", 100);
    let revoke = || {
        let (id, _) = stack.key(&customer, &LIVE);
        let revoked = stack.cli(&["key", "revoke", &id, "--reason", "leaked"]);
        let names = revoked["pending_gateways"].clone();
        (names, revoked["confirmed_gateways"].clone())
    };
    let silent = stack.pids("gateway")[1];
    signal(silent, Signal::STOP);
    let for_long = eventually(
        SETTLE_LIMIT,
        "the gateway was silent for long",
        async || {
            let long = "select count(*) from keys.gateways
                     where gateway = 'gateway-2' and seen_at < now() - interval '7 seconds'";
            match stack.count(long).await {
                1 => Ok(()),
                _ => Err("it was seen a moment ago"),
            }
        },
    );
    for_long.await.expect("silent");
    // Longer than it counts as live for shares of rates, and than it trusts its memory.
    let (names, confirmed) = revoke();
    assert_eq!((names, confirmed), (json!(["gateway-2"]), json!(1)));
    signal(silent, Signal::CONT);

    // Its life ends in order, the other's is killed: both have another one.
    let lives = "select count(*) from keys.gateways where seen_at > now() - interval '20 seconds'";
    for (gateway, how) in [(1, Signal::TERM), (0, Signal::KILL)] {
        let ended = stack.pids("gateway")[gateway];
        signal(ended, how);
        let again = eventually(
            SETTLE_LIMIT,
            "the gateway has another life",
            async || match (stack.pids("gateway").get(gateway), stack.count(lives).await) {
                (Some(pid), 2) if *pid != ended => Ok(()),
                other => Err(format!("{other:?}")),
            },
        );
        again.await.expect("started again");
        let (names, confirmed) = revoke();
        assert_eq!((names, confirmed), (json!([]), json!(2)), "{how:?}");
    }
}

/// S1: a gateway that does not reach `keys` accepts a revoked key for ten seconds at most, though
/// its copy is back in Redis, which it does reach. Then it accepts none, until it hears of changes.
#[tokio::test]
async fn a_gateway_that_is_cut_off_soon_believes_neither_itself_nor_redis() {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "1"]).await;
    let customer = stack.customer("Apart", 1_000_000);
    let info = stack.info();
    let keys = info["grpc"]["keys"].as_str().expect("a URL");
    let keys = keys.trim_start_matches("http://").parse();
    let way = Proxy::start(keys.expect("an address"))
        .await
        .expect("a proxy");
    let apart = Apart::start(&stack, &format!("http://127.0.0.1:{}", way.port())).await;
    let mut redis = connect(&stack).await;
    let (id, revoked, old) = copied_key(&stack, &customer, &mut redis).await;
    let (_, other) = stack.key(&customer, &LIVE);
    let call = async |key: &str| {
        let (mut connection, shot) = (Connection::to(&apart.base), Shot::get(DISTANCE));
        let answer = connection.call(key, &shot).await;
        answer.expect("an answer").status.as_u16()
    };
    assert_eq!((call(&revoked).await, call(&other).await), (200, 200));

    way.disconnect();
    let said = stack.cli(&["key", "revoke", &id, "--reason", "leaked"]);
    let since = Instant::now();
    assert_eq!(said["pending_gateways"], json!(["apart"]), "{said}");
    write_back(&mut redis, &old).await;
    let (mut accepted, mut pace) = (0, tokio::time::interval(PAUSE));
    while since.elapsed() < CUT_OFF {
        accepted += usize::from(call(&revoked).await == 200);
        pace.tick().await;
    }
    for _ in 0..LATE_TRIES {
        assert_eq!(
            call(&revoked).await,
            503,
            "{accepted} before, which is allowed"
        );
    }
    assert_eq!(call(&other).await, 503, "nor does it know more of this one");

    way.resume();
    let again = eventually(SETTLE_LIMIT, "it hears of changes", async || {
        match (call(&revoked).await, call(&other).await) {
            (401, 200) => Ok(()),
            (200, _) => panic!("a revoked key was accepted"),
            other => Err(format!("{other:?}")),
        }
    });
    again
        .await
        .expect("it serves again, and not the revoked key");
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Flush,
    Pause,
    OldDump,
}

pub(super) async fn connect(stack: &Stack) -> redis::aio::MultiplexedConnection {
    let url = stack.info()["redis_url"]
        .as_str()
        .expect("a URL")
        .to_owned();
    let client = redis::Client::open(url).expect("a URL");
    let connected = eventually(SETTLE_LIMIT, "Redis answers", async || {
        client.get_multiplexed_async_connection().await
    });
    connected.await.expect("connected")
}

/// What Redis holds of a key.
pub(super) struct Copied {
    name: String,
    value: Vec<u8>,
}

/// A key with the copy of it that a gateway has left. None leaves one for a moment after Redis has
/// failed it, nor before it answers: then it is another key.
pub(super) async fn copied_key(
    stack: &Stack,
    customer: &Customer,
    redis: &mut redis::aio::MultiplexedConnection,
) -> (String, String, Copied) {
    let copied = eventually(SETTLE_LIMIT, "a copy is left", || {
        let mut redis = redis.clone();
        async move {
            let (id, key) = stack.key(customer, &LIVE);
            let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let named = "select 'apikey:' || encode(key_hash, 'hex') from keys.api_keys
                          where id = $1::text::uuid";
            let name: String = sqlx::query_scalar(named)
                .bind(id.trim_start_matches("key_"))
                .fetch_one(stack.pool())
                .await
                .expect("a key");
            let value: Option<Vec<u8>> = redis::cmd("GET")
                .arg(&name)
                .query_async(&mut redis)
                .await
                .expect("a value");
            match value {
                None => Err("none"),
                Some(value) => Ok((id, key, Copied { name, value })),
            }
        }
    });
    copied.await.expect("left")
}

/// Writes back what Redis held before, and lets gateways that remember nothing start on it.
async fn restore(stack: &Stack, redis: &mut redis::aio::MultiplexedConnection, old: &Copied) {
    for pid in stack.pids("gateway") {
        signal(pid, Signal::KILL);
    }
    write_back(redis, old).await;
}

/// Writes back what Redis held before.
pub(super) async fn write_back(
    redis: &mut redis::aio::MultiplexedConnection,
    Copied { name, value }: &Copied,
) {
    let mut set = redis::cmd("SET");
    let set = set.arg(name).arg(value).exec_async(redis).await;
    set.expect("written back");
}

/// Calls each gateway, from its first answer on. Returns how many were accepted, and how many
/// there were.
async fn try_revoked(stack: &Stack, key: &str) -> (usize, usize) {
    let mut accepted = 0;
    for base in stack.gateways() {
        let mut connection = Connection::to(&base);
        for _ in 0..TRIES {
            let answered = eventually(SETTLE_LIMIT, "the gateway answers", || {
                let mut fresh = Connection::to(&base);
                std::mem::swap(&mut fresh, &mut connection);
                async move { fresh.call(key, &Shot::get(DISTANCE)).await }
            });
            let answer = answered.await.expect("an answer");
            accepted += usize::from(answer.status == 200);
        }
    }
    (accepted, TRIES * stack.gateways().len())
}
