//! WebSockets of a client and a server that know nothing of the gateway between them.

use std::{collections::BTreeSet, process::Command};

use bytes::Bytes;
use h2::{RecvStream, SendStream, ext::Protocol};
use http::{Method, Request, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use sqlx::Row as _;
use testkit::eventually;
use tokio::net::TcpStream;
use types::RequestId;

use crate::{
    clients::{self, Running},
    crash::TUNNEL,
    stack::{SETTLE_LIMIT, Stack, signal},
};

/// Credits of a tunnel.
const COST: i64 = 5;
/// Tunnels that are open when their gateway dies.
const TUNNELS: usize = 6;
/// Gateways that die as soon as a tunnel is noted.
const DEATHS: usize = 3;

fn client(what: &str, gateway: &str, key: &str) -> Command {
    let mut command = clients::python("socket_client.py");
    let url = format!("{}/api/v1/chat/room?x=1", gateway.replace("http", "ws"));
    command.args([what, &url, key]);
    command
}

/// A stack that sells the server.
async fn sell(server: &mut Running) -> (Stack, String) {
    let arguments = ["--ephemeral", "--processes", "--gateways", "2"];
    let stack = Stack::start_with(&arguments, &[("TOLLGATE_GATEWAY_DRAIN_SECONDS", "2")]).await;
    let upstream = format!("http://127.0.0.1:{}", server.next());
    let cost = COST.to_string();
    let wish = ["--cost", &cost, "--scope", "chat:call"];
    stack.cli(
        &[
            &["service", "set", "chat", "--upstream", &upstream][..],
            &wish,
        ]
        .concat(),
    );
    let customer = stack.customer("Chat", 1_000);
    let (_, key) = stack.key(
        &customer,
        &["--environment", "production", "--scope", "chat:call"],
    );
    for gateway in stack.gateways() {
        let sold = eventually(SETTLE_LIMIT, "the service is sold", async || {
            let said = clients::run(client("talk", &gateway, &key)).await;
            match &said["request_id"] {
                Value::String(_) => Ok(()),
                _ => Err(said.to_string()),
            }
        });
        sold.await.expect("sold");
    }
    (stack, key)
}

/// Rows of these calls: status, credits, milliseconds, code of how they ended.
async fn rows(stack: &Stack, ids: &BTreeSet<String>) -> Vec<(i32, i64, i32, Value)> {
    let ids: Vec<_> = ids
        .iter()
        .map(|id| id.parse::<RequestId>().expect("an id").uuid())
        .collect();
    let select = "select status_code::int, credits_used::bigint, response_time_ms::int, details
                    from usage_ingest.api_usage_logs where request_id = any($1)";
    let rows = sqlx::query(select).bind(&ids).fetch_all(stack.pool()).await;
    let read = |row: sqlx::postgres::PgRow| (row.get(0), row.get(1), row.get(2), row.get(3));
    rows.expect("rows").into_iter().map(read).collect()
}

fn id(said: &Value) -> String {
    assert_eq!(said["request_id"], said["seen_by_upstream"], "{said}");
    assert_eq!(said["subprotocol"], "echo.v1", "{said}");
    assert_eq!(said["cost"], COST, "{said}");
    said["request_id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_websocket_is_charged_once_however_it_or_its_gateway_ends() {
    let mut server = Running::start(clients::python("socket_server.py"));
    let (stack, key) = sell(&mut server).await;
    let gateways = stack.gateways();
    let mut seen = BTreeSet::new();

    let said = clients::run(client("talk", &gateways[0], &key)).await;
    let talked = BTreeSet::from([id(&said)]);
    seen.insert(talk_by_http2(&gateways[0], &key).await);
    let refused = clients::run(client("talk", &gateways[0], "sk_live_no")).await;
    assert_eq!(
        (refused["status"].as_i64(), &refused["body"]["code"]),
        (Some(401), &"invalid_key".into())
    );
    stack.audit();
    let [(status, credits, _, details)] = &rows(&stack, &talked).await[..] else {
        panic!("one row");
    };
    assert_eq!((*status, *credits), (101, COST), "{details}");

    // Killed in the middle of tunnels: each is a call, once.
    let mut held: Vec<Running> = (0..TUNNELS)
        .map(|_| Running::start(client("hold", &gateways[0], &key)))
        .collect();
    for client in &mut held {
        seen.insert(id(&client.next()));
    }
    let mut by_http2 = Socket::open(&gateways[0], &key).await;
    seen.insert(by_http2.hear().await);
    signal(stack.pids("gateway")[0], Signal::KILL);
    for client in &mut held {
        assert_eq!(client.next()["closed"], "ConnectionClosedError");
    }
    assert!(by_http2.down.data().await.is_none_or(|data| data.is_err()));
    // One that stops has cut them, when their time is over.
    let mut held: Vec<Running> = (0..TUNNELS)
        .map(|_| Running::start(client("hold", &gateways[1], &key)))
        .collect();
    for client in &mut held {
        seen.insert(id(&client.next()));
    }
    signal(stack.pids("gateway")[1], Signal::TERM);
    for client in &mut held {
        assert_eq!(client.next()["closed"], "ConnectionClosedError");
    }
    stack.audit();
    let found = rows(&stack, &seen).await;
    assert_eq!(found.len(), 2 * TUNNELS + 2, "{found:?}");
    for (status, credits, _, details) in &found {
        assert_eq!((*status, *credits), (101, COST), "{details}");
    }
    die_after_the_note(&stack, &key).await;
    stack.audit();
}

/// A WebSocket on a stream of HTTP/2 (RFC 8441), as far as short messages go.
struct Socket {
    up: SendStream<Bytes>,
    down: RecvStream,
    got: Vec<u8>,
}

impl Socket {
    async fn open(gateway: &str, key: &str) -> Self {
        let address = gateway.strip_prefix("http://").expect("in the clear");
        let stream = TcpStream::connect(address).await.expect("connected");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(async move {
            drop(connection.await); // a gateway is killed
        });
        while !client.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("{gateway}/api/v1/chat/room?x=1"))
            .header("authorization", format!("Bearer {key}"))
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "echo.v1")
            .extension(Protocol::from("websocket"))
            .body(());
        let mut client = client.ready().await.expect("ready");
        let sent = client.send_request(request.expect("a request"), false);
        let (answer, up) = sent.expect("sent");
        let answer = answer.await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
        let said = |name| answer.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(said("sec-websocket-protocol"), "echo.v1");
        assert_eq!(said("tollgate-cost"), COST.to_string());
        Self {
            up,
            down: answer.into_body(),
            got: Vec::new(),
        }
    }

    /// Sends a short message.
    fn say(&mut self, text: &str) {
        let mask = [1, 2, 3, 4];
        let length = u8::try_from(text.len()).expect("short");
        let masked = text.bytes().zip(mask.iter().cycle());
        let mut frame = vec![0x81, 0x80 | length];
        frame.extend(mask);
        frame.extend(masked.map(|(byte, mask)| byte ^ mask));
        self.up.send_data(frame.into(), false).expect("sent");
    }

    /// Says goodbye, as the protocol wants it, and waits until the other side has done so, too.
    async fn close(mut self) {
        let farewell = vec![0x88, 0x80, 1, 2, 3, 4];
        self.up.send_data(farewell.into(), false).expect("sent");
        while let Some(data) = self.down.data().await {
            self.got.extend_from_slice(&data.expect("an orderly end"));
        }
        assert_eq!(self.got.first(), Some(&0x88), "{:?}", self.got);
    }

    /// The next short message.
    async fn hear(&mut self) -> String {
        loop {
            if let [0x81, length, rest @ ..] = &self.got[..]
                && let Some(text) = rest.get(..usize::from(*length))
            {
                let text = String::from_utf8(text.to_vec()).expect("text");
                self.got.drain(..2 + text.len());
                return text;
            }
            let data = self.down.data().await.expect("more").expect("data");
            self.got.extend_from_slice(&data);
        }
    }
}

/// Talks to the same server over HTTP/2, which it does not know. Returns the call's id, as it saw
/// it.
async fn talk_by_http2(gateway: &str, key: &str) -> String {
    let mut socket = Socket::open(gateway, key).await;
    let id = socket.hear().await;
    for text in ["", "x", &"y".repeat(125)] {
        socket.say(text);
        assert_eq!(socket.hear().await, text);
    }
    socket.close().await;
    id
}

/// The gateway dies between the note and the answer: nobody has heard of the change, and the books
/// agree with the upstream, which has.
async fn die_after_the_note(stack: &Stack, key: &str) {
    let spec = format!("{TUNNEL}:1");
    stack.arm("gateway", &vec![spec; DEATHS]);
    for pid in stack.pids("gateway") {
        signal(pid, Signal::KILL);
    }
    let died = eventually(SETTLE_LIMIT, "gateways die after the note", async || {
        for gateway in stack.gateways() {
            clients::run(client("talk", &gateway, key)).await;
        }
        let died = stack.deaths().0.len();
        match died >= DEATHS {
            true => Ok(()),
            false => Err(format!("{died} of {DEATHS}")),
        }
    });
    died.await.expect("died");
}
