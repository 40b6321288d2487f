//! Calls whose cost is known only afterwards, when gateways die and clients go away in the middle.

use std::{collections::BTreeMap, time::Duration};

use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Outcome, Plan, Shot},
};

use super::{LIVE, Load, fund, summary};
use crate::stack::{SETTLE_LIMIT, Stack, signal};

/// Held for a call.
const MAX_COST: &str = "20";
/// Between two kills.
const KILL_PERIOD: Duration = Duration::from_millis(900);
/// Clients that go away.
const GONE: usize = 20;

/// A stream of a second and more, whose tokens come at its end.
pub(crate) fn stream() -> Shot {
    let body = r#"{"model": "m", "stream": true, "stream_options": {"include_usage": true},
        "delay_ms": 300, "messages": [{"role": "user", "content":
        "Paris lies on the Seine. Lyon lies on the Rhône. What lies on the Seine and why?"}]}"#;
    Shot::post("/api/v1/ai/chat/completions", body).with("te", "trailers")
}

/// A credit, and one for ten tokens; the delivered part of what this side breaks off.
pub(crate) fn price_tokens(stack: &Stack) {
    let route = [
        "route", "set", "ai", "--method", "POST", "--prefix", "/chat",
    ];
    let price = [
        "--scope",
        "ai:write",
        "--cost",
        "1",
        "--unit",
        "tokens=1/10,pointer=/usage/total_tokens,bytes=100",
        "--max-cost",
        MAX_COST,
        "--unreported",
        "estimate",
        "--on-server-abort",
        "answered",
    ];
    stack.cli(&[&route[..], &price].concat());
}

/// Begins a call, reads the first of its answer, and goes away.
async fn go_away(gateway: &str, key: &str, shot: &Shot) {
    let address = gateway.trim_start_matches("http://");
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connected");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a connection");
    let connection = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(shot.method.clone())
        .uri(&shot.path)
        .header("host", address)
        .header("x-api-key", key)
        .header("content-type", "application/json")
        .body(http_body_util::Full::new(shot.body.clone()))
        .expect("a request");
    let mut answer = sender.send_request(request).await.expect("an answer");
    answer.frame().await.expect("a frame").expect("of data");
    connection.abort();
}

/// Calls and credits by how they ended.
async fn endings(stack: &Stack) -> BTreeMap<String, (i64, i64, i64)> {
    let rows: Vec<(String, i64, i64, i64)> = sqlx::query_as(
        "select disposition, count(*), min(credits_used), max(credits_used)
           from usage_ingest.api_usage_logs
          where service_id = (select id from keys.services where name = 'ai') and code = ''
          group by disposition",
    )
    .fetch_all(stack.pool())
    .await
    .expect("rows");
    let by_name = |(name, calls, least, most)| (name, (calls, least, most));
    rows.into_iter().map(by_name).collect()
}

/// F3, F4: gateways die in the middle of streams, and clients go away in the middle of theirs.
#[tokio::test]
async fn f03_f04_an_interrupted_stream_is_charged_once_by_its_routes_policy() {
    interrupt(6).await;
}

#[tokio::test]
#[ignore = "minutes; run by make faults"]
async fn f03_f04_streams_that_are_interrupted_very_often_are_charged_once() {
    interrupt(300).await;
}

async fn interrupt(kills: usize) {
    let stack = Stack::start(&["--ephemeral", "--processes", "--gateways", "2"]).await;
    fund(&stack);
    price_tokens(&stack);
    let payer = stack.customer("Streams", 1_000_000);
    let (_, key) = stack.key(&payer, &LIVE);
    let gateways = stack.gateways();
    let load = Load::of(Plan {
        gateways: gateways.clone(),
        key: key.clone(),
        shots: vec![stream(), super::chat()],
        workers: 12,
        pause: Duration::from_millis(10),
    });
    load.more_answers(20).await;
    let shot = stream();
    let gone = (0..GONE).map(|_| go_away(&gateways[0], &key, &shot));
    futures_util::future::join_all(gone).await;
    for turn in 0..kills {
        tokio::time::sleep(KILL_PERIOD).await;
        let pids = stack.pids("gateway");
        if let Some(pid) = pids.get(turn % pids.len().max(1)) {
            signal(*pid, Signal::KILL);
        }
    }
    let outcome: Outcome = load.finish().await;
    // The last gateway that died has to come back and end what it had begun.
    let ended = eventually(SETTLE_LIMIT, "every call has ended", async || {
        match stack.audit_with(&[&outcome]) {
            report if report["open_calls"] == 0 => Ok(report),
            report => Err(report),
        }
    });
    let report = ended.await.expect("ended");
    let endings = endings(&stack).await;
    println!(
        "{kills} kills in mid-stream: {}; calls, least and most credits by ending {endings:?}; \
         report {report}",
        summary(&outcome)
    );
    let (_, least, most) = endings["completed"];
    assert!(
        (2..=20).contains(&least) && (least..=20).contains(&most),
        "{endings:?}"
    );
    let (calls, least, _) = endings["client_aborted"];
    assert!(calls >= i64::try_from(GONE).expect("few"), "{endings:?}");
    assert!(least > 0, "what was delivered is charged: {endings:?}");
    let (died, _, most) = endings.get("gateway_aborted").copied().unwrap_or_default();
    assert!(
        died > 0 && most > 0,
        "no gateway died in a stream: {endings:?}"
    );
    // A complete answer costs what its tokens cost, to the credit.
    let wrong = stack
        .count(
            "select count(*) from usage_ingest.api_usage_logs
              where disposition = 'completed' and status_code = 200
                and service_id = (select id from keys.services where name = 'ai')
                and credits_used
                    <> least(20, 1 + ceil((details->>'tokens')::numeric / 10))::bigint",
        )
        .await;
    assert_eq!(
        wrong, 0,
        "streams that cost something else than their tokens"
    );
    assert_eq!(
        report["open_calls"], 0,
        "each call that began has ended: {report:#}"
    );
}
