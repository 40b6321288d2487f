//! Idempotency keys at the edge, on a whole stack with two gateways.

pub(crate) mod client;
mod forgotten;
mod hostile;
mod priced;
pub(crate) mod upstream;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use serde_json::json;
use testkit::{
    eventually,
    load::{Answer, Connection, Shot},
};
use tokio::net::TcpStream;

use self::{
    client::leave,
    upstream::{LARGE_BYTES, Upstream},
};
use crate::stack::{Customer, SETTLE_LIMIT, Stack, signal};

/// Credits a call.
pub(crate) const COST: i64 = 2;
/// All of the service here.
pub(crate) const LIVE: [&str; 4] = ["--environment", "production", "--scope", "once:call"];
const TEST: [&str; 4] = ["--environment", "test", "--scope", "once:call"];

/// A stack that sells `once`.
pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) upstream: Upstream,
    pub(crate) customer: Customer,
    pub(crate) key: String,
}

impl World {
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
        let stack = Stack::start_with(&arguments, variables).await;
        let upstream = Upstream::start().await;
        let cost = COST.to_string();
        let wish = [
            "--upstream",
            &upstream.url,
            "--cost",
            &cost,
            "--scope",
            "once:call",
        ];
        stack.cli(&[&["service", "set", "once"][..], &wish].concat());
        let customer = stack.customer("Once", 100_000);
        let (_, key) = stack.key(&customer, &LIVE);
        let world = Self {
            stack,
            upstream,
            customer,
            key,
        };
        for gateway in 0..2 {
            let sold = eventually(SETTLE_LIMIT, "the service is sold", async || {
                let answer = world.at(gateway, &world.key, &once("/fail")).await;
                match answer.status.as_u16() {
                    500 => Ok(()),
                    _ => Err(format!("{answer:?}")),
                }
            });
            sold.await.expect("sold");
        }
        world
    }

    pub(crate) async fn at(&self, gateway: usize, key: &str, shot: &Shot) -> Answer {
        self.stack.call_at(gateway, key, shot).await
    }

    /// What the customer has been charged, once everything is settled.
    pub(crate) fn used(&self) -> i64 {
        self.stack.audit();
        let wallet = ["wallet", "show", "--org", &self.customer.org];
        self.stack.cli(&wallet)["total_used"]
            .as_i64()
            .expect("a number")
    }

    /// Waits until a key is answered with something else than that it is in use.
    pub(crate) async fn settled(&self, gateway: usize, shot: &Shot) -> Answer {
        let settled = eventually(SETTLE_LIMIT, "the key is not in use", async || {
            let answer = self.at(gateway, &self.key, shot).await;
            match code(&answer).as_str() {
                "idempotency_key_in_use" => Err(format!("{answer:?}")),
                _ => Ok(answer),
            }
        });
        settled.await.expect("settled")
    }
}

/// A POST without a key.
pub(crate) fn once(path: &str) -> Shot {
    Shot::post(&format!("/api/v1/once{path}"), r#"{"what": "this"}"#)
}

/// A POST with one.
pub(crate) fn keyed(path: &str, key: &str) -> Shot {
    once(path).with("idempotency-key", key)
}

pub(crate) fn code(answer: &Answer) -> String {
    answer.json()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[track_caller]
fn is_first(answer: &Answer) {
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.cost(), COST, "{answer:?}");
    assert_eq!(answer.header("idempotency-replayed"), "", "{answer:?}");
}

/// The same to the byte, at no cost, and said to be so.
#[track_caller]
pub(crate) fn is_replay(answer: &Answer, of: &Answer) {
    assert_eq!(
        (answer.status, &answer.body),
        (of.status, &of.body),
        "{answer:?}"
    );
    for name in ["content-type", "x-serial"] {
        assert_eq!(answer.header(name), of.header(name), "{name}: {answer:?}");
    }
    assert_eq!(answer.header("tollgate-cost"), "0");
    assert_eq!(answer.header("idempotency-replayed"), "true");
    assert_eq!(
        answer.header("tollgate-original-request-id"),
        of.header("x-request-id")
    );
    assert_ne!(answer.header("x-request-id"), of.header("x-request-id"));
    assert_eq!(answer.header("set-cookie"), "", "that is of the moment");
}

#[track_caller]
pub(crate) fn is_refused(answer: &Answer, status: u16, with: &str) {
    let found = (answer.status.as_u16(), code(answer));
    assert_eq!(found, (status, with.to_owned()), "{answer:?}");
}

#[tokio::test]
async fn a_key_is_charged_once_and_its_answer_is_given_again() {
    let world = World::start(&[]).await;
    a_replay_is_the_same_answer_at_no_cost(&world).await;
    another_request_is_refused(&world).await;
    one_of_fifty_is_forwarded(&world).await;
    what_was_not_charged_is_tried_again(&world).await;
    what_is_too_large_is_charged_and_not_kept(&world).await;
    who_leaves_finds_the_answer(&world).await;
    replays_use_no_permit(&world).await;
    keys_are_had_over_http_2(&world).await;
    expired_keys_are_erased(&world).await;
    world.stack.audit();
}

async fn a_replay_is_the_same_answer_at_no_cost(world: &World) {
    let before = world.used();
    let first = world.at(0, &world.key, &keyed("/a?b=1", "\"same\"")).await;
    is_first(&first);
    assert_eq!(
        world.upstream.asked("\"same\""),
        1,
        "it is forwarded as it came"
    );
    for gateway in [0, 1, 1] {
        let again = world
            .at(gateway, &world.key, &keyed("/a?b=1", "\"same\""))
            .await;
        is_replay(&again, &first);
    }
    // The same key, written otherwise, and another API key of the organisation.
    let (_, other) = world.stack.key(&world.customer, &LIVE);
    let again = world.at(1, &other, &keyed("/a?b=1", "same")).await;
    is_replay(&again, &first);
    assert_eq!(world.used() - before, COST);
    assert_eq!(
        world.upstream.asked("\"same\"") + world.upstream.asked("same"),
        1
    );

    let story = world.stack.cli(&["why", again.header("x-request-id")]);
    assert_eq!(story["decision"], "replayed", "{story:#}");
    assert_eq!(
        story["replay_of"],
        first.header("x-request-id"),
        "{story:#}"
    );
    assert_eq!(story["cost"], 0, "{story:#}");
    let story = world.stack.cli(&["why", first.header("x-request-id")]);
    assert_eq!(
        (&story["decision"], &story["cost"]),
        (&json!("forwarded"), &json!(COST))
    );

    // Nothing to send, and nothing to say.
    let nothing = Shot {
        body: Bytes::new(),
        ..keyed("/empty", "empty")
    };
    let first = world.at(0, &world.key, &nothing).await;
    assert_eq!(
        (first.status.as_u16(), first.cost()),
        (204, COST),
        "{first:?}"
    );
    is_replay(&world.at(1, &world.key, &nothing).await, &first);

    // In pieces whose number nobody announced.
    let first = world.at(0, &world.key, &keyed("/trickle", "pieces")).await;
    is_first(&first);
    is_replay(
        &world.at(1, &world.key, &keyed("/trickle", "pieces")).await,
        &first,
    );
}

async fn another_request_is_refused(world: &World) {
    let first = world.at(0, &world.key, &keyed("/a?b=1", "one")).await;
    is_first(&first);
    let same = keyed("/a?b=1", "one");
    let others = [
        keyed("/a?b=2", "one"),
        keyed("/b?b=1", "one"),
        Shot {
            method: Method::PATCH,
            ..same.clone()
        },
        Shot {
            body: Bytes::from(r#"{"what": "that"}"#),
            ..same.clone()
        },
        Shot {
            body: Bytes::new(),
            ..same.clone()
        },
        same.clone().with("content-type", "text/plain"),
    ];
    for other in &others {
        let answer = world.at(1, &world.key, other).await;
        is_refused(&answer, 422, "idempotency_key_reused");
    }
    is_replay(&world.at(1, &world.key, &same).await, &first);
    assert_eq!(world.upstream.asked("one"), 1);

    // For these methods the header means nothing to us.
    for _ in 0..2 {
        let get = Shot {
            method: Method::GET,
            body: Bytes::new(),
            ..keyed("/a", "get")
        };
        assert_eq!(world.at(0, &world.key, &get).await.cost(), COST);
    }
    assert_eq!(world.upstream.asked("get"), 2);
}

async fn one_of_fifty_is_forwarded(world: &World) {
    let before = world.used();
    world.upstream.shut(true);
    let bases = world.stack.gateways();
    let calls = (0..50).map(|number: usize| {
        let base = &bases[number % 2];
        async move {
            let mut connection = Connection::to(base);
            let called = connection.call(&world.key, &keyed("/slow", "fifty")).await;
            called.expect("an answer")
        }
    });
    let release = async {
        // The one that is forwarded is answered only when all others were.
        let refused = eventually(SETTLE_LIMIT, "all others are answered", async || {
            let found = world
                .stack
                .count(
                    "select count(*) from usage_ingest.api_usage_logs
                      where code = 'idempotency_key_in_use'",
                )
                .await;
            if found == 49 { Ok(()) } else { Err(found) }
        });
        refused.await.expect("refused");
        world.upstream.shut(false);
    };
    let (answers, ()) = tokio::join!(join_all(calls), release);
    let (first, others): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|answer| answer.status.is_success());
    assert_eq!((first.len(), others.len()), (1, 49));
    is_first(&first[0]);
    for other in &others {
        is_refused(other, 409, "idempotency_key_in_use");
        assert_eq!(other.header("retry-after"), "1");
    }
    // All at once again.
    let calls = (0..50).map(|number: usize| {
        let base = &bases[number % 2];
        async move {
            let mut connection = Connection::to(base);
            let called = connection.call(&world.key, &keyed("/slow", "fifty")).await;
            called.expect("an answer")
        }
    });
    for again in join_all(calls).await {
        is_replay(&again, &first[0]);
    }
    assert_eq!(world.upstream.asked("fifty"), 1);
    assert_eq!(world.used() - before, COST);
}

async fn what_was_not_charged_is_tried_again(world: &World) {
    // The upstream's own failure.
    for attempt in 1..=2 {
        let failed = world.at(0, &world.key, &keyed("/fail", "failing")).await;
        assert_eq!(
            (failed.status.as_u16(), failed.cost()),
            (500, 0),
            "{failed:?}"
        );
        assert_eq!(world.upstream.asked("failing"), attempt);
    }
    // Refused for want of credits, of a right, of a service: the key is free at once.
    let poor = world.stack.customer("Poor", 0);
    let (_, key) = world.stack.key(&poor, &LIVE);
    let refused = world.at(0, &key, &keyed("/a", "poor")).await;
    is_refused(&refused, 402, "credits_exhausted");
    let grant = ["wallet", "grant", "--org", &poor.org, "--credits", "9"];
    world
        .stack
        .cli(&[&grant[..], &["--reason", "test"]].concat());
    let paid = eventually(SETTLE_LIMIT, "the credits are there", async || {
        let answer = world.at(1, &key, &keyed("/a", "poor")).await;
        match answer.status.as_u16() {
            201 => Ok(answer),
            402 => Err(format!("{answer:?}")),
            _ => panic!("{answer:?}"),
        }
    });
    is_first(&paid.await.expect("paid"));
    let scope = ["--environment", "production", "--scope", "pdf:write"];
    let (_, other) = world.stack.key(&poor, &scope);
    let refused = world.at(0, &other, &keyed("/a", "poor")).await;
    is_refused(&refused, 403, "insufficient_scope");
}

async fn what_is_too_large_is_charged_and_not_kept(world: &World) {
    let before = world.used();
    let first = world.at(0, &world.key, &keyed("/large", "large")).await;
    assert_eq!((first.status.as_u16(), first.cost()), (201, COST));
    assert_eq!(first.body.len(), LARGE_BYTES, "whole all the same");
    for gateway in 0..2 {
        let again = world
            .at(gateway, &world.key, &keyed("/large", "large"))
            .await;
        is_refused(&again, 409, "idempotency_answer_not_kept");
    }
    assert_eq!(world.upstream.asked("large"), 1);
    assert_eq!(world.used() - before, COST);
}

async fn who_leaves_finds_the_answer(world: &World) {
    let before = world.used();
    for (path, key) in [("/slow", "left"), ("/trickle", "left in the middle")] {
        let key = key.replace(' ', "-");
        world.upstream.shut(true);
        leave(world, path, &key).await;
        let shot = keyed(path, &key);
        is_refused(
            &world.at(1, &world.key, &shot).await,
            409,
            "idempotency_key_in_use",
        );
        world.upstream.shut(false);
        let again = world.settled(1, &shot).await;
        assert_eq!(again.header("idempotency-replayed"), "true", "{again:?}");
        assert_eq!((again.status.as_u16(), again.cost()), (201, 0));
        if path == "/trickle" {
            assert!(again.body.ends_with(b"the rest\n"), "{again:?}");
        }
        assert_eq!(world.upstream.asked(&key), 1);
    }
    assert_eq!(world.used() - before, 2 * COST);
}

async fn replays_use_no_permit(world: &World) {
    let (_, key) = world.stack.key(
        &world.customer,
        &[&LIVE[..], &["--daily-quota", "1"]].concat(),
    );
    let first = world.at(0, &key, &keyed("/a", "quota")).await;
    is_first(&first);
    for gateway in [0, 1] {
        is_replay(
            &world.at(gateway, &key, &keyed("/a", "quota")).await,
            &first,
        );
    }
    let other = world.at(0, &key, &keyed("/a", "another")).await;
    is_refused(&other, 429, "daily_quota_exceeded");
}

async fn keys_are_had_over_http_2(world: &World) {
    let base = world.stack.gateways()[1].clone();
    let address = base.trim_start_matches("http://");
    let stream = TcpStream::connect(address).await.expect("connected");
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, hyper_util::rt::TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    let _connection = tokio::spawn(connection);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let request = http::Request::post(format!("{base}/api/v1/once/h2"))
            .header("x-api-key", &world.key)
            .header("idempotency-key", "h2")
            .body(http_body_util::Full::new(Bytes::from("2")))
            .expect("a request");
        let (head, body) = sender
            .send_request(request)
            .await
            .expect("sent")
            .into_parts();
        let body = http_body_util::BodyExt::collect(body).await.expect("read");
        seen.push(Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        });
    }
    is_first(&seen[0]);
    is_replay(&seen[1], &seen[0]);
}

/// A day later: what was kept is gone, and the key stands for a new call.
async fn expired_keys_are_erased(world: &World) {
    let first = world.at(0, &world.key, &keyed("/a", "old")).await;
    is_first(&first);
    let age = "update usage_ingest.idempotency_keys set expires_at = now()";
    sqlx::query(age)
        .execute(world.stack.pool())
        .await
        .expect("aged");
    let second = world.at(0, &world.key, &keyed("/a", "old")).await;
    is_first(&second);
    assert_ne!(first.body, second.body);
    // Its row makes sure that it has its key, and is there before that is a day old.
    world.used();
    sqlx::query(age)
        .execute(world.stack.pool())
        .await
        .expect("aged");
    // It looks when it starts, and each minute.
    signal(
        world.stack.pids("usage-ingest")[0],
        rustix::process::Signal::KILL,
    );
    let erased = eventually(
        Duration::from_secs(90),
        "expired keys are erased",
        async || {
            let left = world
                .stack
                .count("select count(*) from usage_ingest.idempotency_keys")
                .await;
            if left == 0 { Ok(()) } else { Err(left) }
        },
    );
    erased.await.expect("erased");
}
