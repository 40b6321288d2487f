//! Keys in the hands of somebody who means no good.

use bytes::Bytes;
use testkit::{
    eventually,
    load::{Answer, Shot},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{COST, LIVE, TEST, World, code, is_first, is_refused, is_replay, keyed, once};
use crate::stack::{SETTLE_LIMIT, signal};

#[tokio::test]
async fn keys_leak_nothing_and_cost_nobody_else_anything() {
    let world = World::start(&[("TOLLGATE_USAGE_INGEST_IDEMPOTENCY_KEYS_MAX", "40")]).await;
    keys_of_others_are_other_keys(&world).await;
    malformed_keys_are_refused(&world).await;
    a_body_is_read_within_its_limit_only(&world).await;
    an_answer_to_half_a_request_is_not_kept(&world).await;
    an_organisation_has_so_many_keys(&world).await;
    without_its_store_nothing_with_a_key_is_forwarded(&world).await;
    an_answer_is_not_lost_with_its_store(&world).await;
    world.stack.audit();
}

async fn keys_of_others_are_other_keys(world: &World) {
    let first = world.at(0, &world.key, &keyed("/a", "mine")).await;
    is_first(&first);
    let stranger = world.stack.customer("Stranger", 100);
    let (_, theirs) = world.stack.key(&stranger, &LIVE);
    let (_, test) = world.stack.key(&world.customer, &TEST);
    let mut seen = vec![first.body.clone()];
    for key in [&theirs, &test] {
        let answer = world.at(1, key, &keyed("/a", "mine")).await;
        is_first(&answer);
        assert!(!seen.contains(&answer.body), "an answer of somebody else");
        is_replay(&world.at(0, key, &keyed("/a", "mine")).await, &answer);
        seen.push(answer.body);
    }
    assert_eq!(world.upstream.asked("mine"), 3);
    // Who may not make the call does not get its answer.
    let (id, gone) = world.stack.key(&world.customer, &LIVE);
    is_replay(&world.at(0, &gone, &keyed("/a", "mine")).await, &first);
    world.stack.cli(&["key", "revoke", &id, "--reason", "test"]);
    let refused = world.at(0, &gone, &keyed("/a", "mine")).await;
    is_refused(&refused, 401, "key_revoked");
}

async fn malformed_keys_are_refused(world: &World) {
    let before = world.upstream.asked_in_all();
    let long = "k".repeat(256);
    let huge = "k".repeat(12_000);
    for key in [
        "",
        "a b",
        "\"",
        "\"\"",
        "\"a",
        "a,b",
        "a, a",
        "\"a\", \"a\"",
        "a;b",
        &long,
        &huge,
    ] {
        let answer = world.at(0, &world.key, &keyed("/a", key)).await;
        is_refused(&answer, 400, "bad_request");
        let detail = answer.json()["detail"].to_string();
        assert!(detail.contains("Idempotency-Key"), "{detail}");
    }
    for second in ["a", "b", "\"a\""] {
        let twice = keyed("/a", "a").with("Idempotency-Key", second);
        is_refused(&world.at(0, &world.key, &twice).await, 400, "bad_request");
    }
    assert_eq!(world.upstream.asked_in_all(), before);
    is_first(
        &world
            .at(0, &world.key, &keyed("/a", &"k".repeat(255)))
            .await,
    );
}

/// Sends bytes as they are, and reads until the connection ends.
async fn raw(world: &World, head: &str, body: &[u8]) -> String {
    let base = world.stack.gateways()[0].clone();
    let address = base.trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.expect("connected");
    let head = format!(
        "{head}\r\nhost: {address}\r\nx-api-key: {}\r\nconnection: close\r\n",
        world.key
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // It may have answered, and closed, before it has read everything.
    drop(stream.write_all(body).await);
    let mut got = Vec::new();
    drop(stream.read_to_end(&mut got).await);
    String::from_utf8_lossy(&got).into_owned()
}

async fn a_body_is_read_within_its_limit_only(world: &World) {
    let limited = [
        "--scope",
        "once:call",
        "--prefix",
        "/limited",
        "--body-bytes-max",
        "1000",
    ];
    world
        .stack
        .cli(&[&["route", "set", "once"][..], &limited].concat());
    let bomb = Shot {
        body: Bytes::from(vec![b'x'; 100_000]),
        ..once("/limited")
    };
    let known = eventually(SETTLE_LIMIT, "the route is known", async || {
        let answer = world.at(0, &world.key, &bomb).await;
        if answer.status == 413 {
            Ok(())
        } else {
            Err(answer.status)
        }
    });
    known.await.expect("known");
    let first = world.at(0, &world.key, &keyed("/limited", "bomb")).await;
    is_first(&first);
    let bomb = bomb.with("idempotency-key", "bomb");
    is_refused(&world.at(0, &world.key, &bomb).await, 413, "body_too_large");
    // The same without a length, in chunks.
    let head = "POST /api/v1/once/limited HTTP/1.1\r\ncontent-type: application/json\r\n\
                idempotency-key: bomb\r\ntransfer-encoding: chunked";
    let mut body = b"\r\n".to_vec();
    for _ in 0..100 {
        body.extend_from_slice(b"400\r\n");
        body.extend_from_slice(&[b'x'; 0x400]);
        body.extend_from_slice(b"\r\n");
    }
    let got = raw(world, head, &body).await;
    assert!(got.is_empty() || got.starts_with("HTTP/1.1 413"), "{got}");
    // The right body, in chunks, is the right body.
    let mut body = b"\r\n".to_vec();
    for byte in br#"{"what": "this"}"# {
        body.extend_from_slice(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    }
    body.extend_from_slice(b"0\r\n\r\n");
    let got = raw(world, head, &body).await;
    assert!(got.starts_with("HTTP/1.1 201"), "{got}");
    assert!(got.contains("idempotency-replayed: true"), "{got}");
    // A body that never ends is no request.
    let got = raw(world, head, b"\r\n1\r\n{\r\nmore").await;
    assert!(!got.contains("number"), "{got}");
    assert_eq!(world.upstream.asked("bomb"), 1);
}

/// The upstream answers before it has read the request: nobody can say what it answers.
async fn an_answer_to_half_a_request_is_not_kept(world: &World) {
    let upload = Shot {
        body: Bytes::from(vec![b'x'; 4 << 20]),
        ..keyed("/hasty", "hasty")
    };
    let mut answers: Vec<Answer> = Vec::new();
    for _ in 0..2 {
        answers.push(world.at(0, &world.key, &upload).await);
    }
    // Its answer is given once, however it was charged.
    let numbers: Vec<_> = answers.iter().filter(|it| it.cost() > 0).collect();
    assert!(numbers.len() <= 1, "{answers:?}");
}

async fn an_organisation_has_so_many_keys(world: &World) {
    let hoarder = world.stack.customer("Hoarder", 1000);
    let (_, key) = world.stack.key(&hoarder, &LIVE);
    let mut first = None;
    for number in 0..40 {
        let answer = world.at(0, &key, &keyed("/a", &format!("n{number}"))).await;
        is_first(&answer);
        first.get_or_insert(answer);
    }
    // They are counted when the service starts, and each minute.
    signal(
        world.stack.pids("usage-ingest")[0],
        rustix::process::Signal::KILL,
    );
    let attempts = std::cell::Cell::new(0);
    let full = eventually(SETTLE_LIMIT * 2, "no more keys", async || {
        // One that is there already is answered from what is kept.
        attempts.set(attempts.get() + 1);
        let more = format!("more{}", attempts.get());
        let answer = world.at(0, &key, &keyed("/a", &more)).await;
        match code(&answer).as_str() {
            "idempotency_keys_exhausted" => Ok(answer),
            _ => Err(format!("{answer:?}")),
        }
    });
    let full = full.await.expect("full");
    assert_eq!(
        (full.status.as_u16(), full.header("retry-after")),
        (429, "60")
    );
    is_replay(
        &world.at(1, &key, &keyed("/a", "n0")).await,
        &first.expect("one"),
    );
    let unkeyed = world.at(1, &key, &once("/a")).await;
    assert_eq!((unkeyed.status.as_u16(), unkeyed.cost()), (201, COST));
    // Others go on.
    is_first(&world.at(0, &world.key, &keyed("/a", "others")).await);
}

async fn without_its_store_nothing_with_a_key_is_forwarded(world: &World) {
    let before = world.used();
    let store = world.stack.pids("usage-ingest")[0];
    signal(store, rustix::process::Signal::STOP);
    let closed = world.at(0, &world.key, &keyed("/a", "closed")).await;
    let open = world.at(0, &world.key, &once("/a")).await;
    signal(store, rustix::process::Signal::CONT);
    is_refused(&closed, 503, "metering_unavailable");
    assert_eq!(closed.header("retry-after"), "1");
    assert_eq!((open.status.as_u16(), open.cost()), (201, COST), "{open:?}");
    assert_eq!(world.upstream.asked("closed"), 0);
    let first = eventually(SETTLE_LIMIT, "the key is free", async || {
        let answer = world.at(1, &world.key, &keyed("/a", "closed")).await;
        match answer.status.as_u16() {
            201 => Ok(answer),
            409 | 503 => Err(format!("{answer:?}")),
            _ => panic!("{answer:?}"),
        }
    });
    is_first(&first.await.expect("free"));
    assert_eq!(world.used() - before, 2 * COST);
}

/// The store goes away while the upstream works: the answer leaves all the same, and is charged
/// once; whether it could be kept, the next one hears.
async fn an_answer_is_not_lost_with_its_store(world: &World) {
    let before = world.used();
    world.upstream.shut(true);
    let store = world.stack.pids("usage-ingest")[0];
    let shot = keyed("/slow", "orphan");
    let call = world.at(0, &world.key, &shot);
    let outage = async {
        let arrived = eventually(SETTLE_LIMIT, "the upstream is asked", async || match world
            .upstream
            .asked("orphan")
        {
            0 => Err("not yet"),
            _ => Ok(()),
        });
        arrived.await.expect("asked");
        signal(store, rustix::process::Signal::STOP);
        world.upstream.shut(false);
    };
    let (answer, ()) = tokio::join!(call, outage);
    signal(store, rustix::process::Signal::CONT);
    is_first(&answer);
    let again = world.settled(1, &shot).await;
    match code(&again).as_str() {
        "idempotency_answer_not_kept" => {}
        _ => is_replay(&again, &answer),
    }
    assert_eq!(world.upstream.asked("orphan"), 1);
    assert_eq!(world.used() - before, COST);
}
