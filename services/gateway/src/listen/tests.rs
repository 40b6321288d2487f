//! The listener from outside: real sockets in front, and an upstream that writes down what it got.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test that is wrong about its own data may panic"
)]

mod ambiguous;
mod burst;
mod conformance;
mod drain;
mod elsewhere;
mod ends;
mod express;
mod floods;
mod frames;
mod hints;
mod limits;
mod overload;
mod reuse;
mod smuggling;
mod sockets;
mod spoofing;
mod tls;
mod upstream;
mod vectors;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::LocalRuntime,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::upstream::Upstream;
use super::{Door, Hall, accept};
use crate::{
    keyring,
    tests::rig::{self, Rig},
};

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// A gateway's listener, its edge, and a recording upstream.
pub(super) struct Front {
    pub(super) rig: Rig,
    pub(super) hall: Rc<Hall>,
    upstream: Upstream,
    /// Its address.
    behind: SocketAddr,
    pub(super) address: SocketAddr,
    pub(super) stop: CancellationToken,
    /// Ends with the listener.
    pub(super) carrying: JoinHandle<()>,
}

impl Front {
    async fn new(host: &runtime::Host, config: &crate::Config) -> Self {
        let rig = Rig::new(host, config).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let door = Arc::new(Door::new(host, config).expect("a door"));
        let hall = Hall::new(Rc::clone(&rig.worker), door);
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let carrying = tokio::task::spawn_local(accept(
            Rc::clone(&hall),
            listener,
            stop.clone(),
            cut.clone(),
        ));
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let behind = upstream.local_addr().expect("bound");
        rig.offer(behind, |_| {});
        let upstream = Upstream::start(upstream);
        let front = Self {
            behind,
            rig,
            hall,
            upstream,
            address,
            stop,
            carrying,
        };
        front.refresh();
        front
    }

    /// Keys stay young, and there is room for records.
    pub(super) fn refresh(&self) {
        keyring::tests::inform(&self.rig.worker.edge.keyring);
        self.rig.worker.edge.journal.maintain(0).expect("a disk");
    }

    pub(super) async fn connect(&self) -> Client<TcpStream> {
        self.refresh();
        let stream = TcpStream::connect(self.address).await.expect("connected");
        stream.set_nodelay(true).expect("a socket");
        Client::new(stream)
    }

    /// A request as text, with the key.
    pub(super) fn request(&self, line: &str, fields: &str) -> String {
        let key = self.rig.key.reveal();
        format!("{line} HTTP/1.1\r\nhost: edge\r\nx-api-key: {key}\r\n{fields}\r\n")
    }

    /// A call of a client that does nothing wrong.
    pub(super) async fn assert_serves(&self) {
        let mut good = self.connect().await;
        good.send(self.request("GET /api/v1/echo/good", "").as_bytes())
            .await;
        let answer = good.answer().await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

/// Runs a test with a front of these variables.
pub(super) fn with_front(variables: &[(&str, &str)], test: impl AsyncFn(Front)) {
    with_fronts(1, variables, test);
}

/// Runs a test so often, each time with a front of its own.
pub(super) fn with_fronts(times: u32, variables: &[(&str, &str)], test: impl AsyncFn(Front)) {
    // As a thread of the edge has it.
    let runtime = LocalRuntime::new().expect("a runtime");
    runtime.block_on(async {
        let (host, config) = rig::host(variables).await;
        for _ in 0..times {
            let front = Front::new(&host, &config).await;
            tokio::time::timeout(LIMIT, test(front))
                .await
                .expect("the test ends");
        }
    });
}

/// What a client got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// In lower case.
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// A problem document with this code, as every refusal of ours is.
    pub(super) fn assert_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).expect("a document");
        assert_eq!(problem["code"], code, "{self:?}");
        let id = problem["request_id"].as_str().expect("an id");
        assert!(
            self.head.contains(&format!("\r\nx-request-id: {id}\r\n")),
            "{self:?}"
        );
        let kind = "\r\ncontent-type: application/problem+json\r\n";
        assert!(self.head.contains(kind), "{self:?}");
    }
}

/// The other end of a connection of HTTP/1.
pub(super) struct Client<S> {
    pub(super) stream: S,
    got: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            got: Vec::new(),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sent");
        self.stream.flush().await.expect("sent");
    }

    /// Reads more; false at the end, or when the connection is broken.
    pub(super) async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.got).await;
        read.is_ok_and(|bytes| bytes > 0)
    }

    /// The next answer, or `None` at the end.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        loop {
            if let Some((answer, length)) = parse(&self.got) {
                self.got.drain(..length);
                if answer.status != 100 {
                    return Some(answer);
                }
            } else if !self.more().await {
                return None;
            }
        }
    }

    /// What has come and is no whole answer.
    pub(super) fn got(&self) -> &[u8] {
        &self.got
    }

    /// Throws away the beginning of it.
    pub(super) fn drop_front(&mut self, bytes: usize) {
        self.got.drain(..bytes);
    }
}

/// An answer and how long it is, once it is there.
fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
    let end = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head[9..12].parse().expect("a status");
    let length = head
        .split("\r\ncontent-length: ")
        .nth(1)
        .and_then(|text| text.split("\r\n").next())
        .map(|text| text.parse().expect("a length"));
    let (body, whole) = if matches!(status, 100 | 204 | 304) {
        (Vec::new(), end)
    } else if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        let tail = memchr::memmem::find(&bytes[end..], b"0\r\n\r\n")? + end;
        (bytes[end..tail].to_vec(), tail + 5)
    } else {
        let whole = end + length.unwrap_or(0);
        (bytes.get(end..whole)?.to_vec(), whole)
    };
    Some((Answer { status, head, body }, whole))
}
