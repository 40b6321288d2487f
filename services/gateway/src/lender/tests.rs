//! The lender against a wallet that answers by hand.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::{
    collections::BTreeMap,
    future::{Ready, ready},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream::FuturesUnordered};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use prost::Message;
use tempfile::TempDir;
use tower::util::BoxCloneSyncService;
use types::OrgId;
use uuid::Uuid;

use super::{
    size::{LEASE_ACQUISITIONS, LEASE_MICROS_MIN},
    *,
};
use crate::tests::rig;

/// No test waits longer.
const LIMIT: Duration = Duration::from_secs(10);
/// Before a gRPC message: a flag and its length.
const PREFIX_BYTES: usize = 5;

/// One wallet, which lends what is needed and not more, all by one lease.
#[derive(Default)]
struct Wallet {
    available: i64,
    granted_cum: i64,
    /// The first one is the lease's id too.
    nonces: Vec<Vec<u8>>,
}

/// Wallets by their owners, with so many credits each.
pub(crate) struct Bank(i64, BTreeMap<String, Wallet>);

impl Bank {
    pub(crate) fn new(credits: i64) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self(credits, BTreeMap::new())))
    }

    pub(crate) fn acquire(&mut self, ask: wire::Ask) -> wire::Answer {
        let wallet = || Wallet {
            available: self.0,
            ..Wallet::default()
        };
        self.1
            .entry(owner_of(&ask))
            .or_insert_with(wallet)
            .acquire(ask)
    }
}

pub(super) fn owner_of(ask: &wire::Ask) -> String {
    ask.account.clone().expect("an owner").org_id
}

impl Wallet {
    fn acquire(&mut self, ask: wire::Ask) -> wire::Answer {
        if !self.nonces.contains(&ask.nonce) {
            if self.available < ask.minimum {
                return wire::Answer {
                    outcome: wire::Outcome::Short.into(),
                    available: self.available,
                    ..wire::Answer::default()
                };
            }
            self.nonces.push(ask.nonce);
            self.available -= ask.minimum;
            self.granted_cum += ask.minimum;
        }
        let lease = wire::Lease {
            lease_id: self.nonces.first().cloned().unwrap_or_default(),
            granted_cum: self.granted_cum,
            ..wire::Lease::default()
        };
        wire::Answer {
            outcome: wire::Outcome::Lent.into(),
            available: self.available,
            lease: Some(lease),
            ..wire::Answer::default()
        }
    }
}

fn framed(message: &impl Message) -> Bytes {
    let encoded = message.encode_to_vec();
    let length = u32::try_from(encoded.len()).expect("short");
    [&[0][..], &length.to_be_bytes(), &encoded].concat().into()
}

/// Messages as they come.
fn reply<F>(messages: F) -> http::Response<tonic::body::Body>
where
    F: futures_util::Stream<Item = Result<Bytes, Status>> + Send + 'static,
{
    let well = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static("0"),
    )]);
    let frames = messages.map_ok(Frame::data);
    let frames = frames.chain(futures_util::stream::iter([Ok(Frame::trailers(well))]));
    let body = tonic::body::Body::new(StreamBody::new(frames));
    let answer = http::Response::builder().header("content-type", "application/grpc");
    answer.body(body).expect("a response")
}

/// A lender whose requests for credits `answer` answers one by one, and the place of its journal.
/// Heartbeats are always taken.
async fn lender<F, Fut>(answer: F) -> (Arc<Lender>, TempDir)
where
    F: Fn(wire::Ask) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<wire::Answer, Status>> + Send + 'static,
{
    lender_of(move |asks| {
        let answered = (0..).zip(asks).map(|(position, ask)| {
            let answer = answer(ask);
            async move {
                let answer = answer.await?;
                Ok(vec![wire::Answer { position, ..answer }])
            }
        });
        answered.collect::<FuturesUnordered<_>>()
    })
    .await
}

/// As [`lender`]: `answer` has what travels together, and answers in so many messages.
pub(super) async fn lender_of<F, S>(answer: F) -> (Arc<Lender>, TempDir)
where
    F: Fn(Vec<wire::Ask>) -> S + Clone + Send + Sync + 'static,
    S: futures_util::Stream<Item = Result<Vec<wire::Answer>, Status>> + Send + 'static,
{
    lender_that_beats(answer, |_| ready(Ok(()))).await
}

/// As [`lender_of`], with somebody who says what becomes of each heartbeat.
async fn lender_that_beats<F, S, B, Fut>(answer: F, beat: B) -> (Arc<Lender>, TempDir)
where
    F: Fn(Vec<wire::Ask>) -> S + Clone + Send + Sync + 'static,
    S: futures_util::Stream<Item = Result<Vec<wire::Answer>, Status>> + Send + 'static,
    B: Fn(wire::HeartbeatRequest) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (host, _) = rig::host(&[]).await;
    let dir = tempfile::tempdir().expect("a directory");
    let opened = Journal::open(&rig::options(dir.path()), Uuid::from_u128(4), 0);
    let (journal, _) = opened.expect("a journal");
    let (lender, _) = Lender::new(&host, wallet(answer, beat), journal, "g".to_owned());
    (lender, dir)
}

/// A wallet that answers so.
pub(crate) fn wallet<F, S, B, Fut>(answer: F, beat: B) -> Channel
where
    F: Fn(Vec<wire::Ask>) -> S + Clone + Send + Sync + 'static,
    S: futures_util::Stream<Item = Result<Vec<wire::Answer>, Status>> + Send + 'static,
    B: Fn(wire::HeartbeatRequest) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    BoxCloneSyncService::new(tower::service_fn(
        move |request: http::Request<tonic::body::Body>| {
            let (answer, beat) = (answer.clone(), beat.clone());
            async move {
                let is_acquire = request.uri().path().ends_with("/Acquire");
                let body = request.into_body().collect().await;
                let message = body.expect("a request").to_bytes().slice(PREFIX_BYTES..);
                if !is_acquire {
                    let beat = beat(wire::HeartbeatRequest::decode(message).expect("a heartbeat"));
                    let taken = || framed(&wire::HeartbeatResponse::default());
                    let taken = async move { beat.await.map(|()| taken()) };
                    return Ok(reply(futures_util::stream::once(taken)));
                }
                let asked = wire::AcquireRequest::decode(message).expect("a request");
                let answers = answer(asked.asks);
                Ok(reply(answers.map_ok(|answers| {
                    framed(&wire::AcquireResponse { answers })
                })))
            }
        },
    ))
}

pub(super) fn owner(n: u128) -> Owner {
    Owner::Organisation(OrgId::new(Uuid::from_u128(n)))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_come_too_late_do_not_disturb_the_closing() {
    let bank = Bank::new(1);
    let (lender, _dir) = lender(move |asked| {
        let answer = bank.lock().acquire(asked);
        ready(Ok(answer))
    })
    .await;
    let mut leases = Vec::new();
    for n in 1..=100 {
        let account = lender.account(owner(n));
        let held = lender.hold_or_acquire(&account, 1).await;
        drop(held.expect("there is one"));
        leases.extend(account.lease());
    }
    let (closing, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let close_one_by_one = async {
        for (index, lease) in leases.iter().enumerate() {
            closing.store(index, Ordering::Release);
            lease.drain();
            while lender.desk.is_open(lease.id) {
                lender.heartbeat().await;
            }
        }
    };
    let call = || {
        while !is_over.load(Ordering::Acquire) {
            let lease = leases.get(closing.load(Ordering::Acquire));
            let lease = lease.filter(|lease| lease.is_draining());
            let held = lease.and_then(|lease| lease.hold(1, 0));
            assert!(held.is_none(), "it drains");
        }
    };
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            scope.spawn(call);
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                tokio::runtime::Handle::current().block_on(close_one_by_one);
            }));
            is_over.store(true, Ordering::Release);
            ended.expect("the heartbeat goes on");
        });
    });
    assert!(lender.desk.open().is_empty(), "all have their final counts");
}

/// What becomes of requests on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Line {
    Good,
    /// The wallet dies after its commit.
    LosesReplies,
    Down,
}

/// A line to a bank that can be cut.
fn line_to(
    bank: Arc<Mutex<Bank>>,
    line: Arc<Mutex<Line>>,
) -> impl Fn(wire::Ask) -> Ready<Result<wire::Answer, Status>> + Clone {
    move |asked| {
        let mut line = line.lock();
        let answer = (*line != Line::Down).then(|| bank.lock().acquire(asked));
        if *line == Line::LosesReplies {
            *line = Line::Down;
        }
        let lost = || Status::unavailable("the wallet is away");
        let answer = answer.filter(|_| *line == Line::Good);
        ready(answer.ok_or_else(lost))
    }
}

#[tokio::test]
async fn what_a_lost_reply_lent_is_found_before_a_call_is_refused() {
    let line = Arc::new(Mutex::new(Line::LosesReplies));
    let (lender, _dir) = lender(line_to(Bank::new(100), Arc::clone(&line))).await;
    let account = lender.account(owner(1));
    // The wallet lends 60 and dies; the next call finds it dead.
    for _ in 0..2 {
        let refused = lender.hold_or_acquire(&account, 60).await;
        assert_eq!(refused.err(), Some(Refusal::CreditsUnavailable));
    }
    *line.lock() = Line::Good;
    // Another call needs more than the wallet has left, and more than was lent: both will do.
    let held = lender.hold_or_acquire(&account, 90).await.expect("funded");
    assert_eq!(held.credits(), 90);
    drop(held);
    let refused = lender.hold_or_acquire(&account, 101).await;
    assert_eq!(refused.err(), Some(Refusal::CreditsExhausted));
    assert_eq!(account.in_hand(), 90, "nothing is lent that is not known");
}

#[tokio::test]
async fn a_grant_that_a_client_did_not_wait_for_is_found_by_the_next() {
    let bank = Bank::new(60);
    let (lender, _dir) = lender(move |request| {
        let answer = bank.lock().acquire(request);
        async move {
            tokio::task::yield_now().await;
            Ok(answer)
        }
    })
    .await;
    let account = lender.account(owner(1));
    // The wallet has lent by the first step; the next ones write the grant down.
    for steps in 1..4 {
        let mut given_up = Box::pin(lender.hold_or_acquire(&account, 60));
        for _ in 0..steps {
            if futures_util::poll!(&mut given_up).is_ready() {
                break;
            }
        }
    }
    let held = lender.hold_or_acquire(&account, 60).await.expect("funded");
    assert_eq!(held.credits(), 60);
}

#[tokio::test]
async fn a_slow_wallet_lends_to_the_next_call_and_for_longer() {
    let bank = Bank::new(60);
    let slower_than_a_call_waits = CALL_WAITS_MAX + Duration::from_millis(200);
    let (lender, _dir) = lender(move |request| {
        let bank = Arc::clone(&bank);
        async move {
            // Who gives up is not lent to.
            tokio::time::sleep(slower_than_a_call_waits).await;
            Ok(bank.lock().acquire(request))
        }
    })
    .await;
    let account = lender.account(owner(1));
    assert_eq!(lender.lease_micros(), LEASE_MICROS_MIN);
    // A call that comes meanwhile is told after as long as a call waits.
    let second = async {
        while account.begun() == 0 {
            tokio::task::yield_now().await;
        }
        lender.hold_or_acquire(&account, 60).await
    };
    let first = lender.hold_or_acquire(&account, 60);
    let (held, refused) = futures_util::join!(first, second);
    assert_eq!(refused.err(), Some(Refusal::CreditsUnavailable));
    // The first one would have given up as well; what it asked for has come all the same.
    let held = held.expect("funded");
    assert_eq!(held.credits(), 60);
    let taken = i64::try_from(slower_than_a_call_waits.as_micros()).expect("short");
    assert!(lender.lease_micros() > LEASE_ACQUISITIONS * taken);
    (0..100).for_each(|_| lender.tick());
    assert_eq!(lender.lease_micros(), LEASE_MICROS_MIN, "it is forgotten");
}

#[tokio::test]
async fn a_wallet_that_is_slow_for_some_keeps_neither_heartbeats_nor_others_waiting() {
    let line = Arc::new(Mutex::new(Line::Good));
    let good = line_to(Bank::new(100), Arc::clone(&line));
    let slow = [owner(1), owner(3)].map(|owner| wire_account(&Account::new(owner)).org_id);
    let state = Arc::clone(&line);
    let (lender, _dir) = lender(move |asked| {
        let is_slow = *state.lock() == Line::Good && slow.contains(&owner_of(&asked));
        let answer = good(asked);
        async move {
            if is_slow {
                std::future::pending::<()>().await;
            }
            answer.await
        }
    })
    .await;
    let accounts = [1, 2, 3].map(|n| lender.account(owner(n)));
    for account in &accounts {
        *line.lock() = Line::LosesReplies;
        let refused = lender.hold_or_acquire(account, 7).await;
        assert_eq!(refused.err(), Some(Refusal::CreditsUnavailable));
    }
    *line.lock() = Line::Good;
    let beaten = tokio::time::timeout(LIMIT, lender.heartbeat());
    beaten.await.expect("a heartbeat waits for no owner");
    let answered = async {
        while accounts.iter().all(|account| account.in_hand() == 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = lender.ask_again() => panic!("two are never answered"),
        answered = tokio::time::timeout(LIMIT, answered) => answered.expect("one is answered"),
    }
    assert_eq!(accounts.map(|account| account.in_hand()), [0, 7, 0]);
}

/// A wallet that has missed a heartbeat is out of reach until it has taken one, however long the
/// next one takes: nobody's turn is spent on asking it.
#[tokio::test]
async fn what_was_not_answered_is_asked_again_when_a_heartbeat_is_taken_and_not_before() {
    let line = Arc::new(Mutex::new(Line::LosesReplies));
    let nonces: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let (to_bank, asked) = (
        line_to(Bank::new(7), Arc::clone(&line)),
        Arc::clone(&nonces),
    );
    let answer = move |asks: Vec<wire::Ask>| {
        asked
            .lock()
            .extend(asks.iter().map(|ask| ask.nonce.clone()));
        let answers = asks.into_iter().map(&to_bank);
        let answers = answers.map(|answer| answer.into_inner().map(|answer| vec![answer]));
        futures_util::stream::iter(answers.collect::<Vec<_>>())
    };
    let open = Arc::new(tokio::sync::Semaphore::new(0));
    let beats: Arc<Mutex<Vec<bool>>> = Arc::default();
    let (state, gate, heard) = (Arc::clone(&line), Arc::clone(&open), Arc::clone(&beats));
    let (lender, _dir) = lender_that_beats(answer, move |beat| {
        heard.lock().push(beat.tells_all);
        let (is_down, gate) = (*state.lock() == Line::Down, Arc::clone(&gate));
        async move {
            if is_down {
                return Err(Status::unavailable("the wallet is away"));
            }
            drop(gate.acquire().await);
            Ok(())
        }
    })
    .await;
    let account = lender.account(owner(1));
    let refused = lender.hold_or_acquire(&account, 7).await;
    assert_eq!(refused.err(), Some(Refusal::CreditsUnavailable));
    lender.heartbeat().await;
    *line.lock() = Line::Good;
    let asked_before = nonces.lock().len();
    let heard_before = beats.lock().len();
    let mut heartbeat = Box::pin(lender.heartbeat());
    while beats.lock().len() == heard_before {
        assert!(futures_util::poll!(&mut heartbeat).is_pending(), "it hangs");
        tokio::task::yield_now().await;
    }
    lender.ask_again().await;
    assert_eq!(nonces.lock().len(), asked_before, "asked while it hangs");
    // One that is given up has not told the wallet either.
    drop(heartbeat);
    lender.ask_again().await;
    assert_eq!(nonces.lock().len(), asked_before, "asked without an answer");
    open.add_permits(1);
    lender.heartbeat().await;
    assert!(beats.lock().ends_with(&[true, true]), "{beats:?}");
    lender.ask_again().await;
    assert_eq!(account.in_hand(), 7, "what the lost reply lent");
    let nonces: std::collections::BTreeSet<_> = nonces.lock().drain(..).collect();
    assert_eq!(nonces.len(), 1, "it was asked with one nonce");
    lender.heartbeat().await;
    assert!(beats.lock().ends_with(&[true, false]), "{beats:?}");
}
