//! An upstream whose connections die at any moment of a call.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use testkit::{
    eventually,
    load::{self, Outcome, Plan, Shot},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::stack::{SETTLE_LIMIT, Stack};

/// Calls after which there has been enough.
const CALLS: u64 = 3_000;
const WORKERS: usize = 24;
const COST: i64 = 2;

/// How often each request was seen, by method and id.
type Seen = Arc<Mutex<BTreeMap<(String, String), u64>>>;

/// Reads requests and answers them, until it is the turn of one of the ways to die.
async fn answer(mut stream: TcpStream, seen: Seen, turn: Arc<std::sync::atomic::AtomicU64>) {
    let mut got = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = got.windows(4).position(|part| part == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8_lossy(&got[..end]).into_owned();
        let field = |name: &str| {
            let line = head.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        let length: usize = field("content-length:").parse().unwrap_or(0);
        while got.len() < end + length {
            if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                return;
            }
        }
        got.drain(..end + length);
        let method = head.split(' ').next().unwrap_or_default().to_owned();
        *seen
            .lock()
            .entry((method, field("x-request-id:")))
            .or_default() += 1;
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789";
        let (sent, dies) = match turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 23 {
            3 => ("", true),
            7 => ("HTTP/1.1 200 OK\r\ncont", true),
            11 => ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n012", true),
            // As a server does that closes what it thinks idle.
            13 | 19 => (whole, true),
            _ => (whole, false),
        };
        if stream.write_all(sent.as_bytes()).await.is_err() || dies {
            return;
        }
    }
}

async fn upstream(serving: &mut JoinSet<()>, seen: &Seen) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let seen = Arc::clone(seen);
    serving.spawn(async move {
        let (mut connections, turn) = (JoinSet::new(), Arc::default());
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(answer(stream, Arc::clone(&seen), Arc::clone(&turn)));
        }
    });
    url
}

#[tokio::test]
async fn calls_whose_upstream_dies_are_charged_once_or_not_at_all() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let (mut serving, seen) = (JoinSet::new(), Seen::default());
    let url = upstream(&mut serving, &seen).await;
    let cost = COST.to_string();
    stack.cli(&[
        "service",
        "set",
        "dying",
        "--upstream",
        &url,
        "--cost",
        &cost,
    ]);
    let customer = stack.customer("Dying", 100_000);
    let scope = ["--scope", "dying:call", "--environment", "production"];
    let (_, key) = stack.key(&customer, &scope);
    let plan = Plan {
        gateways: stack.gateways(),
        key,
        shots: vec![
            Shot::get("/api/v1/dying/x"),
            Shot::post("/api/v1/dying/x", "{}"),
        ],
        workers: WORKERS,
        pause: Duration::ZERO,
    };
    let (stop, outcome) = (CancellationToken::new(), Arc::<Mutex<Outcome>>::default());
    let load = tokio::spawn(load::watched(plan, stop.clone(), Arc::clone(&outcome)));
    let enough = eventually(SETTLE_LIMIT, "calls are made", async || {
        let sent = outcome.lock().sent;
        if sent >= CALLS {
            Ok(())
        } else {
            Err(format!("{sent} of {CALLS}"))
        }
    });
    enough.await.expect("made");
    stop.cancel();
    let outcome = load.await.expect("no panic");

    let answered = outcome.by_status.get(&200).copied().unwrap_or(0);
    assert!(answered > CALLS / 2, "{:?}", outcome.by_status);
    assert!(
        outcome.by_code.contains_key("upstream_unreachable"),
        "{:?}",
        outcome.by_code
    );
    let seen = seen.lock();
    let often = |method: &str| {
        let counts = seen.iter().filter(|((it, _), _)| it == method);
        counts.map(|(_, count)| *count).max().unwrap_or(0)
    };
    assert_eq!(often("POST"), 1, "a POST is sent once");
    assert!(often("GET") >= 1);
    drop(seen);
    let report = stack.audit_with(&[&outcome]);
    assert_eq!(report["differences"], 0, "{report:#}");
    // Whoever has a whole answer has paid for it, and for nothing else.
    let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
    let paid = COST * i64::try_from(answered).expect("few");
    assert_eq!(
        wallet["total_used"], paid,
        "{:?}: {wallet}",
        outcome.by_status
    );
}
