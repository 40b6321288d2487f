//! Calls through the whole edge: a real client, a real upstream, a real journal.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::{
    cell::RefCell,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use proto::{
    events::v1::{Disposition, Permit, Record},
    keys::v1 as wire,
};
use runtime::{Host, Node, Settings, Stop, Variables};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use types::{LeaseId, NewKey, QuotaKind};
use uuid::Uuid;

use crate::{
    Config,
    body::{BodyError, EdgeBody},
    catalogue::Catalogue,
    country::Countries,
    edge::{self, Edge, Worker},
    journal::{Journal, Limits, Options, SEGMENT_BYTES_MIN},
    keyring,
    lease::{Lease, Owner},
    lender::Lender,
    pool::Pool,
    ship, start,
};

const GRANTED: i64 = 1_000;
const COST: i64 = 3;

/// What one poll of an answer's body gave, and how many records there were then.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    /// So many bytes in all by now; the flag: the body says that this is its end.
    Data(usize, bool),
    Trailers,
    End,
    Error,
}

type Log = Rc<RefCell<Vec<(Seen, u64)>>>;

/// An answer's body with somebody looking over its shoulder.
struct Watched {
    inner: EdgeBody,
    journal: Journal,
    bytes: usize,
    log: Log,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(task) else {
            return Poll::Pending;
        };
        let seen = match &frame {
            None => Seen::End,
            Some(Err(_)) => Seen::Error,
            Some(Ok(frame)) => match frame.data_ref() {
                None => Seen::Trailers,
                Some(data) => {
                    self.bytes += data.remaining();
                    Seen::Data(self.bytes, self.inner.is_end_stream())
                }
            },
        };
        let records = self.journal.next_seq();
        self.log.borrow_mut().push((seen, records));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

struct Rig {
    worker: Rc<Worker>,
    key: NewKey,
    lease: Arc<Lease>,
    /// Of the day's quota and the month's.
    permits: [Arc<Lease>; 2],
    log: Log,
    upstream: TcpListener,
    edge: TcpListener,
    _dir: TempDir,
}

fn settings() -> (Settings, Config) {
    let secret = "0123456789abcdef0123456789abcdef";
    let pairs = [
        ("NATS_URL", "nats://127.0.0.1:1"),
        ("API_KEY_PEPPER", secret),
        ("TOLLGATE_SERVICE_TOKEN", secret),
        ("TOLLGATE_OPERATOR_TOKEN", secret),
        ("TOLLGATE_GATEWAY_PRINCIPAL_SECRET", secret),
        ("TOLLGATE_GATEWAY_JOURNAL_DIR", "unused"),
        ("OTEL_SDK_DISABLED", "true"),
        ("RUST_LOG", "warn"),
    ];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let mut variables = Variables::from_pairs(pairs.into_iter().map(owned));
    let config = Config::read(&mut variables);
    (Settings::read(&mut variables, &["gateway"], &[]), config)
}

/// A service whose upstream is at `address`.
fn catalogue(address: SocketAddr) -> Catalogue {
    let route = wire::Route {
        method: "*".to_owned(),
        path_prefix: "/".to_owned(),
        scope: "s:r".to_owned(),
        body_bytes_max: 100,
        timeout_ms: 5_000,
        ..wire::Route::default()
    };
    let durable = wire::Route {
        path_prefix: "/disk".to_owned(),
        durability: "disk".to_owned(),
        ..route.clone()
    };
    let service = wire::Service {
        service_id: format!("svc_{}", Uuid::from_u128(9).simple()),
        name: "echo".to_owned(),
        upstream_url: format!("http://{address}"),
        base_cost_per_call: COST,
        active: true,
        routes: vec![route, durable],
        ..wire::Service::default()
    };
    Catalogue::from_wire(wire::Catalogue {
        version: 1,
        services: vec![service],
    })
}

fn granted(id: u128) -> Arc<Lease> {
    let lease = Arc::new(Lease::new(LeaseId::new(Uuid::from_u128(id))));
    assert!(lease.extend(GRANTED, 0, 0).is_none());
    lease
}

impl Rig {
    async fn new(host: &Host, config: &Config) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options {
            segment_bytes: SEGMENT_BYTES_MIN,
            room_bytes_min: SEGMENT_BYTES_MIN,
            ..Options::new(dir.path())
        };
        let (journal, _) = Journal::open(&options, Uuid::from_u128(4), 0).expect("a journal");
        let (lender, _) = Lender::new(host, journal.clone(), "g".to_owned()).expect("a lender");
        let (touches, _) = mpsc::channel(1);
        let countries = Countries::none();
        let edge = start::edge(
            host,
            config,
            journal,
            Arc::clone(&lender),
            countries,
            touches,
        );
        let edge: Arc<Edge> = edge.expect("an edge");
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = upstream.local_addr().expect("bound");
        edge.catalogue.store(Arc::new(catalogue(address)));

        let mut entry = keyring::tests::entry(&["s:r"]);
        entry.account = lender.account(entry.account.owner);
        let lease = granted(6);
        entry.account.replace(Arc::clone(&lease));
        let permits = [granted(7), granted(8)];
        for (kind, lease) in [QuotaKind::Daily, QuotaKind::Monthly].iter().zip(&permits) {
            let (org, key, kind) = (entry.org, entry.key, *kind);
            let account = lender.account(Owner::Quota { org, key, kind });
            account.replace(Arc::clone(lease));
            entry.quotas.push(account);
        }
        let key = keyring::tests::know(&edge.keyring, entry);

        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ));
        let tls = tls
            .with_safe_default_protocol_versions()
            .expect("a protocol");
        let tls = tls
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let pool = Pool::new(Arc::new(tls));
        Self {
            worker: Rc::new(Worker { edge, pool }),
            key,
            lease,
            permits,
            log: Log::default(),
            upstream,
            edge: TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            _dir: dir,
        }
    }

    fn journal(&self) -> &Journal {
        &self.worker.edge.journal
    }

    /// Sends a request head, and returns what the client got until its connection ended.
    async fn call(&self, line: &str, fields: &str, answer: &[&[u8]]) -> String {
        let client = async {
            let address = self.edge.local_addr().expect("bound");
            let mut stream = TcpStream::connect(address).await.expect("connected");
            let key = self.key.reveal();
            let head = format!("{line}\r\nhost: edge\r\nx-api-key: {key}\r\n{fields}\r\n");
            stream.write_all(head.as_bytes()).await.expect("sent");
            let mut got = Vec::new();
            let read = stream.read_to_end(&mut got).await;
            assert!(read.is_ok() || !got.is_empty(), "{read:?}");
            String::from_utf8_lossy(&got).into_owned()
        };
        let serve = async {
            let (stream, peer) = self.edge.accept().await.expect("accepted");
            let service = service_fn(|request: Request<Incoming>| async move {
                let response = edge::handle(Rc::clone(&self.worker), peer, request).await;
                Ok::<_, Infallible>(response.map(|inner| Watched {
                    inner,
                    journal: self.journal().clone(),
                    bytes: 0,
                    log: Rc::clone(&self.log),
                }))
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            drop(connection.await); // an answer that breaks off is an error here
        };
        let (got, (), ()) = tokio::join!(client, serve, self.answer(answer));
        got
    }

    /// Answers one request on a new connection, piece by piece, and closes it.
    async fn answer(&self, pieces: &[&[u8]]) {
        if pieces.is_empty() {
            return;
        }
        let (mut stream, _) = self.upstream.accept().await.expect("accepted");
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(stream.read_buf(&mut head).await.expect("read") > 0);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        assert!(!head.contains(self.key.reveal()), "the key stays here");
        for piece in pieces {
            stream.write_all(piece).await.expect("written");
            stream.flush().await.expect("written");
            // Until the edge has read it, so that pieces arrive as such.
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn records(&self) -> Vec<Record> {
        let end = self.journal().next_seq();
        let batch = self.journal().reader(0).next_batch(Limits::before(end));
        let records = batch.expect("readable").map(|batch| batch.records);
        let decode = |bytes: Bytes| Record::decode(bytes).expect("a record");
        records
            .unwrap_or_default()
            .into_iter()
            .map(decode)
            .collect()
    }
}

struct Case {
    name: &'static str,
    line: &'static str,
    fields: &'static str,
    answer: &'static [&'static [u8]],
    /// What the client's bytes end with, in the transfer coding it was sent.
    ends: &'static str,
    status: u32,
    cost: i64,
    disposition: Disposition,
    /// Bytes after which the answer is complete, when a length says so.
    complete_at: Option<usize>,
}

const GET: &str = "GET /api/v1/echo/x?y=1 HTTP/1.1";
const CLOSE: &str = "connection: close\r\n";

const PLAIN: Case = Case {
    name: "content-length",
    line: GET,
    fields: CLOSE,
    answer: &[b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc", b"def"],
    ends: "\r\n\r\nabcdef",
    status: 200,
    cost: COST,
    disposition: Disposition::Completed,
    complete_at: Some(6),
};

const CASES: &[Case] = &[
    PLAIN,
    Case {
        name: "a route that waits for the disk",
        line: "GET /api/v1/echo/disk HTTP/1.1",
        ..PLAIN
    },
    Case {
        name: "chunked",
        answer: &[
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
            b"3\r\ndef\r\n",
            b"0\r\n\r\n",
        ],
        ends: "3\r\ndef\r\n0\r\n\r\n",
        complete_at: None,
        ..PLAIN
    },
    Case {
        name: "chunked on a route that waits for the disk",
        line: "GET /api/v1/echo/disk HTTP/1.1",
        answer: &[
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
            b"0\r\n\r\n",
        ],
        ends: "3\r\nabc\r\n0\r\n\r\n",
        complete_at: None,
        ..PLAIN
    },
    Case {
        name: "trailers, and none of them ours",
        fields: "connection: close, te\r\nte: trailers\r\n",
        answer: &[
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, tollgate-cost\r\n\r\n",
            b"3\r\nabc\r\n",
            b"0\r\nx-sum: 1\r\ntollgate-cost: 0\r\n\r\n",
        ],
        ends: "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
        complete_at: None,
        ..PLAIN
    },
    Case {
        name: "empty",
        answer: &[b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"],
        ends: "\r\n\r\n",
        complete_at: Some(0),
        ..PLAIN
    },
    Case {
        name: "HEAD",
        line: "HEAD /api/v1/echo/x HTTP/1.1",
        answer: &[b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n"],
        ends: "\r\n\r\n",
        complete_at: Some(0),
        ..PLAIN
    },
    Case {
        name: "204",
        answer: &[b"HTTP/1.1 204 No Content\r\n\r\n"],
        ends: "\r\n\r\n",
        status: 204,
        complete_at: Some(0),
        ..PLAIN
    },
    Case {
        name: "not charged",
        answer: &[b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"],
        ends: "\r\n\r\nno",
        status: 404,
        cost: 0,
        complete_at: Some(2),
        ..PLAIN
    },
    Case {
        name: "until the connection closes",
        answer: &[b"HTTP/1.1 200 OK\r\n\r\nabc", b"def"],
        ends: "def\r\n0\r\n\r\n",
        complete_at: None,
        ..PLAIN
    },
    Case {
        name: "a length beside a transfer coding",
        answer: &[
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
            b"3\r\nabc\r\n",
            b"0\r\n\r\n",
        ],
        ends: "3\r\nabc\r\n0\r\n\r\n",
        complete_at: None,
        ..PLAIN
    },
    Case {
        name: "HTTP/1.0, where the end is the connection's",
        line: "GET /api/v1/echo/x HTTP/1.0",
        answer: &[
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
            b"3\r\ndef\r\n",
            b"0\r\nx-sum: 1\r\n\r\n",
        ],
        ends: "\r\n\r\nabcdef",
        complete_at: Some(6),
        ..PLAIN
    },
    Case {
        name: "an upstream that breaks off",
        answer: &[b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc"],
        ends: "abc",
        disposition: Disposition::UpstreamAborted,
        ..PLAIN
    },
    Case {
        name: "a switch that nobody asked for",
        answer: &[b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nHTTP/1.1"],
        ends: "}\n",
        status: 502,
        cost: 0,
        disposition: Disposition::UpstreamFailed,
        complete_at: Some(0),
        ..PLAIN
    },
    Case {
        name: "an announced body that is too long",
        line: "POST /api/v1/echo/x HTTP/1.1",
        fields: "connection: close\r\ncontent-length: 101\r\n",
        answer: &[],
        ends: "}\n",
        status: 413,
        cost: 0,
        disposition: Disposition::Refused,
        complete_at: Some(0),
    },
];

/// A call that was forwarded has used one permit of each quota, another one none.
fn check_permits(rig: &Rig, case: &Case, record: &Record) {
    let name = case.name;
    let uses = i64::from(case.disposition != Disposition::Refused);
    let used: Vec<Permit> = rig
        .permits
        .iter()
        .filter(|_| uses > 0)
        .map(|lease| Permit {
            lease_id: lease.id.bytes().to_vec(),
            cum: 1,
        })
        .collect();
    assert_eq!(record.permits, used, "{name}");
    for lease in &rig.permits {
        lease.drain();
        assert!(lease.is_spent(), "{name}");
        assert_eq!(lease.cum(), uses, "{name}");
        assert_eq!(lease.give_back(), GRANTED - uses, "{name}");
    }
}

/// What a successor would take for final counts, had this process died now.
async fn check_totals(host: &Host, rig: &Rig, case: &Case) {
    let totals = ship::totals(host, rig.journal()).await.expect("readable");
    for lease in rig.permits.iter().chain([&rig.lease]) {
        let total = totals.get(&lease.id).map_or(0, |total| total.cum);
        assert_eq!(total, lease.cum(), "{}", case.name);
    }
}

/// The one record of a call, written before the answer was complete; and the lease agrees.
fn check(rig: &Rig, case: &Case, got: &str) {
    let name = case.name;
    assert!(got.ends_with(case.ends), "{name}: {got}");
    assert!(got.contains(&format!(" {} ", case.status)), "{name}: {got}");
    let log = rig.log.borrow().clone();
    for (seen, records) in &log {
        let complete = match seen {
            Seen::Data(bytes, is_end) => *is_end || case.complete_at.is_some_and(|at| *bytes >= at),
            Seen::Trailers | Seen::End | Seen::Error => true,
        };
        assert_eq!(*records, u64::from(complete), "{name}: {log:?}");
    }
    let records = rig.records();
    assert_eq!(records.len(), 1, "{name}");
    let record = records.first().expect("counted");
    let call = record.call.as_ref().expect("a call");
    assert_eq!(call.disposition(), case.disposition, "{name}");
    assert_eq!(
        (call.status, record.cost),
        (case.status, case.cost),
        "{name}"
    );
    assert_eq!(record.cum, case.cost, "{name}");
    assert_eq!(record.lease_id.is_empty(), case.cost == 0, "{name}");
    assert_eq!(rig.lease.cum(), case.cost, "{name}");
    check_permits(rig, case, record);
    // Nothing is held any more, and what was not spent is back.
    rig.lease.drain();
    assert!(rig.lease.is_spent(), "{name}");
    assert_eq!(rig.lease.give_back(), GRANTED - case.cost, "{name}");
    let in_flight = rig.worker.edge.in_flight.load(Ordering::SeqCst);
    assert_eq!(in_flight, 0, "{name}");
}

/// Syncs and says so, as the upkeep does.
async fn keep_up(edge: &Edge, done: &Stop) {
    while !done.is_requested() {
        let stats = edge.journal.maintain(0).expect("a disk");
        start::publish_synced(edge, stats.synced_seq);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_record_comes_before_the_last_byte() {
    let (settings, config) = settings();
    let mut node = Node::connect(settings, &["gateway"]).await.expect("a node");
    let host = node.host("gateway").expect("a host");
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        for case in CASES {
            let rig = Rig::new(&host, &config).await;
            let called = rig.call(case.line, case.fields, case.answer);
            let bounded = tokio::time::timeout(std::time::Duration::from_secs(10), called);
            let done = Stop::default();
            let got = async {
                let got = bounded.await;
                done.request();
                got.unwrap_or_else(|_| panic!("{} takes for ever", case.name))
            };
            let (got, ()) = tokio::join!(got, keep_up(&rig.worker.edge, &done));
            check(&rig, case, &got);
            check_totals(&host, &rig, case).await;
        }
    });
    all.await;
}
