//! A whole edge with one key, in front of a real upstream: what flows of calls are tested with.

use std::{
    cell::RefCell,
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use prost::Message as _;
use proto::{channel::Channel, events::v1::Record, keys::v1 as wire};
use runtime::{Host, Node, Settings, Variables};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::task::TaskTracker;
use types::{LeaseId, NewKey, QuotaKind};
use uuid::Uuid;

use crate::{
    Config,
    body::{BodyError, EdgeBody},
    catalogue::Catalogue,
    config::Upstreams,
    country::Countries,
    edge::{self, Edge, Worker},
    journal::{Disk, Journal, Limits, Options, SEGMENT_BYTES_MIN, SystemDisk},
    keyring::{self, Entry},
    lease::{Lease, Owner},
    lender::Lender,
    listen::{OnThread, Peer},
    pool::{self, Connector, Pool, patience::Patience},
    start,
    strangers::Strangers,
};

/// A client that does not speak TLS.
fn plain(address: SocketAddr) -> Peer {
    Peer {
        address: address.ip(),
        is_secure: false,
    }
}

pub(crate) const GRANTED: i64 = 1_000;
/// For the records of many calls at once.
const ROOM_BYTES: usize = 1 << 20;
pub(crate) const COST: i64 = 3;
/// Of the priced route.
pub(crate) const MAX_COST: i64 = 50;

/// What one poll of an answer's body gave, and how many records there were then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// So many bytes in all by now; the flag: the body says that this is its end.
    Data(usize, bool),
    Trailers,
    End,
    Error,
}

pub(crate) type Log = Rc<RefCell<Vec<(Seen, u64)>>>;

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
                    self.bytes = self.bytes.saturating_add(data.remaining());
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

/// An edge, a key in its memory, and an upstream that answers by hand.
pub(crate) struct Rig {
    pub(crate) worker: Rc<Worker>,
    pub(crate) key: NewKey,
    pub(crate) lease: Arc<Lease>,
    /// Of the day's quota and the month's.
    pub(crate) permits: [Arc<Lease>; 2],
    pub(crate) log: Log,
    upstreams: Upstreams,
    upstream: TcpListener,
    edge: TcpListener,
    dir: TempDir,
}

/// A gateway's host with these further variables.
pub(crate) async fn host(more: &[(&str, &str)]) -> (Host, Config) {
    let secret = "0123456789abcdef0123456789abcdef";
    let pairs = [
        ("NATS_URL", "nats://127.0.0.1:1"),
        ("API_KEY_PEPPER", secret),
        ("TOLLGATE_SERVICE_TOKEN", secret),
        ("TOLLGATE_OPERATOR_TOKEN", secret),
        ("TOLLGATE_GATEWAY_PRINCIPAL_SECRET", secret),
        ("TOLLGATE_GATEWAY_JOURNAL_DIR", "unused"),
        ("OTEL_SDK_DISABLED", "true"),
        ("TOLLGATE_GATEWAY_UPSTREAM_NETWORKS", "127.0.0.0/8"),
        ("RUST_LOG", "warn"),
    ];
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut variables = Variables::from_pairs(pairs.iter().chain(more).map(owned));
    let config = Config::read(&mut variables);
    let settings = Settings::read(&mut variables, &["gateway"], &[]);
    let mut node = Node::connect(settings, &["gateway"]).await.expect("a node");
    (node.host("gateway").expect("a host"), config)
}

/// A service whose upstream is at `address`.
fn service(address: SocketAddr) -> wire::Service {
    let route = wire::Route {
        method: "*".to_owned(),
        path_prefix: "/".to_owned(),
        scope: "s:r".to_owned(),
        body_bytes_max: 100,
        timeout_ms: 5_000,
        idle_timeout_ms: 300_000,
        total_timeout_ms: 86_400_000,
        ..wire::Route::default()
    };
    let durable = wire::Route {
        path_prefix: "/disk".to_owned(),
        durability: "disk".to_owned(),
        ..route.clone()
    };
    let big = wire::Route {
        path_prefix: "/big".to_owned(),
        body_bytes_max: 1 << 40,
        timeout_ms: 120_000,
        ..route.clone()
    };
    let priced = wire::Route {
        path_prefix: "/priced".to_owned(),
        cost: Some(2),
        unit_prices: vec![wire::UnitPrice {
            unit: "tokens".to_owned(),
            credits: 1,
            per: 10,
            pointer: "/usage/total_tokens".to_owned(),
            bytes_per_unit: 4,
        }],
        max_cost: MAX_COST,
        unreported: "estimate".to_owned(),
        on_server_abort: "answered".to_owned(),
        ..route.clone()
    };
    wire::Service {
        service_id: format!("svc_{}", Uuid::from_u128(9).simple()),
        name: "echo".to_owned(),
        upstream_url: format!("http://{address}"),
        base_cost_per_call: COST,
        active: true,
        protocol: "http1".to_owned(),
        connections_max: 4_096,
        connect_timeout_ms: 5_000,
        routes: vec![route, durable, big, priced],
        ..wire::Service::default()
    }
}

/// A catalogue with that service alone.
pub(crate) fn catalogue(address: SocketAddr) -> Catalogue {
    offered(service(address))
}

fn offered(service: wire::Service) -> Catalogue {
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

fn pool(upstreams: &Upstreams, edge: &Edge) -> Pool {
    let limits = pool::Limits {
        index: 0,
        threads: 1,
        waiting_max: upstreams.waiting_max,
        wait: upstreams.wait,
    };
    Pool::new(connector(upstreams, edge), limits)
}

fn connector(upstreams: &Upstreams, edge: &Edge) -> Connector {
    // An upstream with this certificate is trusted, as `localhost`.
    let trusted = include_bytes!("../listen/tests/fixture/first.pem");
    let mut roots = rustls::RootCertStore::empty();
    let trusted = CertificateDer::from_pem_slice(trusted).expect("a certificate");
    roots.add(trusted).expect("a root");
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ));
    let tls = tls
        .with_safe_default_protocol_versions()
        .expect("a protocol");
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    Connector::new(
        Arc::new(tls),
        Arc::new(upstreams.networks.clone()),
        (edge.metrics.upstreams.clone(), Arc::default()),
        edge.clock.clone(),
    )
}

impl Rig {
    pub(crate) async fn new(host: &Host, config: &Config) -> Self {
        Self::with(host, config, |_| {}).await
    }

    /// As `new`, with another key.
    pub(crate) async fn with(
        host: &Host,
        config: &Config,
        change: impl FnOnce(&mut Entry),
    ) -> Self {
        let wallet = host.channel("wallet").expect("a channel");
        Self::on(Arc::new(SystemDisk), wallet, host, config, change).await
    }

    /// As `with`, on a disk and with a wallet of one's own.
    pub(crate) async fn on(
        disk: Arc<dyn Disk>,
        wallet: Channel,
        host: &Host,
        config: &Config,
        change: impl FnOnce(&mut Entry),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let opened = Journal::open_on(disk, &options(dir.path()), Uuid::from_u128(4), 0);
        let (journal, _) = opened.expect("a journal");
        let (lender, _) = Lender::new(host, wallet, journal.clone(), "g".to_owned());
        let (touches, _) = mpsc::channel(1);
        let (strangers, _) = Strangers::new(config);
        let edge = start::edge(
            host,
            config,
            journal,
            Arc::clone(&lender),
            strangers,
            Countries::none(),
            touches,
        );
        let (edge, _): (Arc<Edge>, _) = edge.expect("an edge");
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
        change(&mut entry);
        let key = keyring::tests::know(&edge.keyring, entry);

        let pool = pool(&config.upstreams, &edge);
        Self {
            worker: Rc::new(Worker {
                edge,
                pool,
                patience: Patience::new(),
                beyond: TaskTracker::new(),
            }),
            key,
            lease,
            permits,
            log: Log::default(),
            upstreams: config.upstreams.clone(),
            upstream,
            edge: TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            dir,
        }
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.worker.edge.journal
    }

    /// Sends a request head, and returns what the client got until its connection ended.
    pub(crate) async fn call(&self, line: &str, fields: &str, answer: &[&[u8]]) -> String {
        self.call_as(self.key.reveal(), line, fields, answer).await
    }

    /// As `call`, with another key.
    pub(crate) async fn call_as(
        &self,
        key: &str,
        line: &str,
        fields: &str,
        answer: &[&[u8]],
    ) -> String {
        keyring::tests::inform(&self.worker.edge.keyring);
        let client = async {
            let mut stream = TcpStream::connect(self.address()).await.expect("connected");
            let head = format!("{line}\r\nhost: edge\r\nx-api-key: {key}\r\n{fields}\r\n");
            stream.write_all(head.as_bytes()).await.expect("sent");
            let mut got = Vec::new();
            let read = stream.read_to_end(&mut got).await;
            assert!(read.is_ok() || !got.is_empty(), "{read:?}");
            String::from_utf8_lossy(&got).into_owned()
        };
        let (got, (), ()) = tokio::join!(client, self.serve(), self.answer(answer));
        got
    }

    /// Where the edge listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.edge.local_addr().expect("bound")
    }

    /// What opens connections, with nothing known.
    pub(crate) fn connector(&self, config: &Config) -> Connector {
        connector(&config.upstreams, &self.worker.edge)
    }

    /// The pool of another thread of the same edge.
    pub(crate) fn pool(&self) -> impl FnOnce() -> Pool + Send + use<> {
        let (upstreams, edge) = (self.upstreams.clone(), Arc::clone(&self.worker.edge));
        move || pool(&upstreams, &edge)
    }

    /// Where the upstream is.
    pub(crate) fn behind(&self) -> SocketAddr {
        self.upstream.local_addr().expect("bound")
    }

    /// The next connection to the upstream.
    pub(crate) async fn accept(&self) -> TcpStream {
        self.upstream.accept().await.expect("accepted").0
    }

    /// Serves one connection of a client.
    pub(crate) async fn serve(&self) {
        let (stream, peer) = self.edge.accept().await.expect("accepted");
        let service = service_fn(|request: Request<Incoming>| async move {
            let response = edge::handle(Rc::clone(&self.worker), plain(peer), request).await;
            Ok::<_, Infallible>(response.map(|inner| Watched {
                inner,
                journal: self.journal().clone(),
                bytes: 0,
                log: Rc::clone(&self.log),
            }))
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        drop(connection.with_upgrades().await); // an answer that breaks off is an error here
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

    /// Another upstream, or another manner to speak with it.
    pub(crate) fn offer(&self, address: SocketAddr, change: impl FnOnce(&mut wire::Service)) {
        let mut service = service(address);
        change(&mut service);
        self.worker.edge.catalogue.store(Arc::new(offered(service)));
    }

    /// Serves whoever connects, until it is dropped.
    pub(crate) async fn serve_all(&self) {
        while let Ok((stream, peer)) = self.edge.accept().await {
            keyring::tests::inform(&self.worker.edge.keyring);
            let worker = Rc::clone(&self.worker);
            let service = service_fn(move |request: Request<Incoming>| {
                let worker = Rc::clone(&worker);
                let answered = edge::handle(worker, plain(peer), request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            tokio::task::spawn_local(async move {
                let builder = auto::Builder::new(OnThread);
                drop(
                    builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        records(self.journal())
    }

    /// Where its journal is.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }
}

/// Small segments in this directory.
pub(crate) fn options(dir: &Path) -> Options {
    Options {
        segment_bytes: SEGMENT_BYTES_MIN,
        room_bytes_min: ROOM_BYTES,
        ..Options::new(dir)
    }
}

/// The first records of a journal.
pub(crate) fn records(journal: &Journal) -> Vec<Record> {
    let batch = journal
        .reader(0)
        .next_batch(Limits::before(journal.next_seq()));
    let records = batch.expect("readable").map(|batch| batch.records);
    let decode = |bytes: Bytes| Record::decode(bytes).expect("a record");
    records
        .unwrap_or_default()
        .into_iter()
        .map(decode)
        .collect()
}

/// Bytes of this process in memory; each test has a process of its own.
pub(crate) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let text = line.and_then(|line| line.split_whitespace().next());
    text.and_then(|text| text.parse::<usize>().ok())
        .unwrap_or(0)
        << 10
}
