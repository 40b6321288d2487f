//! Upstreams that say more than they were asked for, or say it too early: whoever calls next, with
//! whatever key, gets his own answer.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use types::KeyId;
use uuid::Uuid;

use super::{Client, Front, upstream::Left, with_front};
use crate::{keyring, listen::limits::READ_BYTES};

/// Who carries a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Express,
    Hyper,
}

const WAYS: [Way; 2] = [Way::Express, Way::Hyper];

/// What could be taken for the answer to the next request, or for its beginning.
const UNASKED: [&str; 4] = [
    "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nevil!",
    "HTTP/1.1 2",
    "\r\n",
    "x",
];

/// A client with a key of his own.
struct Who {
    name: &'static str,
    key: String,
    id: KeyId,
}

/// The one whose key everybody else uses here too, and another one.
fn two(front: &Front) -> (Who, Who) {
    let edge = &front.rig.worker.edge;
    let first = keyring::tests::entry(&["s:r"]).key;
    let mut entry = keyring::tests::entry(&["s:r"]);
    entry.key = KeyId::new(Uuid::from_u128(12));
    entry.account = edge.lender.account(entry.account.owner);
    let second = entry.key;
    let key = keyring::tests::know_as(&edge.keyring, 8, entry);
    let who = |name, key: &str, id| Who {
        name,
        key: key.to_owned(),
        id,
    };
    let alice = who("alice", front.rig.key.reveal(), first);
    (alice, who("bob", key.reveal(), second))
}

impl Who {
    /// His request, with his name as its body.
    fn request(&self, front: &Front, way: Way) -> String {
        self.request_of(front, way, self.name)
    }

    fn request_of(&self, front: &Front, way: Way, body: &str) -> String {
        let trailers = match way {
            Way::Express => "",
            // That is for hyper.
            Way::Hyper => "te: trailers\r\n",
        };
        let fields = format!("{trailers}content-length: {}\r\n", body.len());
        let request = front.request(&format!("POST /api/v1/echo/{}", self.name), &fields);
        request.replace(front.rig.key.reveal(), &self.key) + body
    }

    /// The answer that is meant for him.
    fn answer(&self) -> String {
        let body = format!("for {}", self.name);
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
    }

    /// Reads that answer, and no other.
    async fn assert_answered(&self, client: &mut Client<TcpStream>) {
        let answer = client.answer().await.expect("an answer");
        let body = String::from_utf8_lossy(&answer.body);
        let own = format!("for {}", self.name);
        assert_eq!((answer.status, &*body), (200, &*own), "{answer:?}");
        assert_eq!(client.got(), b"", "and nothing behind it");
    }
}

/// An upstream that is told what to do, connection by connection.
struct Behind(TcpListener);

impl Behind {
    /// One that nothing is known of yet.
    async fn new(front: &Front) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        front.rig.offer(address, |service| {
            for route in &mut service.routes {
                route.body_bytes_max = 20_000;
            }
        });
        Self(listener)
    }

    /// The next connection, which has to come before the client is answered.
    async fn accept(&self, client: &mut Client<TcpStream>) -> Line {
        let (stream, _) = tokio::select! {
            biased;
            accepted = self.0.accept() => accepted.expect("accepted"),
            answer = client.answer() => panic!("nobody was asked, and he got {answer:?}"),
        };
        // What is said is there at once, not when the next request acknowledges the last answer.
        stream.set_nodelay(true).expect("a socket");
        Line {
            stream,
            got: Vec::new(),
        }
    }

    /// Whether this connection is used before another one is opened.
    async fn is_reused(&self, line: &mut Line) -> bool {
        tokio::select! {
            biased;
            came = line.more() => came,
            _ = self.0.accept() => false,
        }
    }
}

/// A connection as the upstream has it.
struct Line {
    stream: TcpStream,
    got: Vec<u8>,
}

impl Line {
    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.got).await;
        read.is_ok_and(|bytes| bytes > 0)
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.expect("sent");
    }

    /// Reads a whole request: his, with this body.
    async fn assert_asked_by(&mut self, who: &Who, body: &str) {
        let whole = loop {
            let end = memchr::memmem::find(&self.got, b"\r\n\r\n");
            let whole = end.map(|end| end + 4 + body.len());
            match whole.filter(|whole| self.got.len() >= *whole) {
                Some(whole) => break whole,
                None => assert!(self.more().await, "an early end: {:?}", self.got),
            }
        };
        let rest = self.got.split_off(whole);
        let asked = String::from_utf8(std::mem::replace(&mut self.got, rest)).expect("text");
        let line = format!("POST /{} HTTP/1.1\r\n", who.name);
        assert!(asked.starts_with(&line), "{line}: {asked}");
        assert!(asked.contains(&format!("; key={}; ", who.id)), "{asked}");
        assert!(asked.ends_with(&format!("\r\n\r\n{body}")), "{asked}");
    }

    /// Nothing comes any more, and nothing came.
    async fn assert_unused(mut self) {
        while self.more().await {}
        assert_eq!(String::from_utf8_lossy(&self.got), "");
    }
}

/// Answers to alice, and how they are told to her; the first ones need no hyper.
fn answers(alice: &Who) -> [(String, u16, String); 6] {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                   9\r\nfor alice\r\n0\r\n\r\n";
    let empty = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    // Read whole with one read, and what is behind it with none.
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 16000\r\nx: ";
    let fill = "y".repeat(READ_BYTES - 16_000 - head.len() - 4);
    let long = "z".repeat(16_000);
    let whole = format!("{head}{fill}\r\n\r\n{long}");
    assert_eq!(whole.len(), READ_BYTES);
    let told = |answer: &str, status, body: &str| (answer.to_owned(), status, body.to_owned());
    [
        told(&alice.answer(), 200, "for alice"),
        told(empty, 200, ""),
        told(&whole, 200, &long),
        told(chunked, 200, "9\r\nfor alice\r\n"),
        told("HTTP/1.1 204 x\r\n\r\n", 204, ""),
        told("HTTP/1.1 304 x\r\netag: x\r\n\r\n", 304, ""),
    ]
}

#[test]
fn what_comes_behind_an_answer_is_nobodys() {
    with_front(&[], async |front| {
        let (alice, bob) = two(&front);
        for way in WAYS {
            for (answer, status, body) in &answers(&alice) {
                for unasked in UNASKED {
                    let behind = Behind::new(&front).await;
                    let expressed = front.hall.expressed.get();
                    let mut first = front.connect().await;
                    first.send(alice.request(&front, way).as_bytes()).await;
                    let mut line = behind.accept(&mut first).await;
                    line.assert_asked_by(&alice, alice.name).await;
                    line.say(&format!("{answer}{unasked}")).await;
                    let got = first.answer().await.expect("an answer");
                    let told = (got.status, String::from_utf8_lossy(&got.body).into_owned());
                    assert_eq!(told, (*status, body.clone()), "{way:?}: {answer}");
                    let is_express = front.hall.expressed.get() > expressed;
                    let has_length = !answer.contains("chunked");
                    assert_eq!(is_express, way == Way::Express && has_length, "{answer}");

                    // Neither another one's next call nor one's own.
                    let mut second = front.connect().await;
                    second.send(bob.request(&front, way).as_bytes()).await;
                    let mut next = behind.accept(&mut second).await;
                    next.assert_asked_by(&bob, bob.name).await;
                    next.say(&bob.answer()).await;
                    bob.assert_answered(&mut second).await;
                    first.send(alice.request(&front, way).as_bytes()).await;
                    assert!(behind.is_reused(&mut next).await, "{way:?}: {answer}");
                    next.assert_asked_by(&alice, alice.name).await;
                    next.say(&alice.answer()).await;
                    alice.assert_answered(&mut first).await;
                    line.assert_unused().await;
                }
            }
        }
    });
}

#[test]
fn who_speaks_unasked_is_not_asked_again() {
    with_front(&[], async |front| {
        let (alice, bob) = two(&front);
        for way in WAYS {
            // The next request comes behind the unasked words, or before they are looked at.
            for (unasked, is_late) in UNASKED.iter().flat_map(|it| [(*it, false), (*it, true)]) {
                let behind = Behind::new(&front).await;
                let expressed = front.hall.expressed.get();
                let (mut first, mut second) = (front.connect().await, front.connect().await);
                first.send(alice.request(&front, way).as_bytes()).await;
                let mut line = behind.accept(&mut first).await;
                line.assert_asked_by(&alice, alice.name).await;
                line.say(&alice.answer()).await;
                alice.assert_answered(&mut first).await;
                // As long as it is silent, it is.
                second.send(bob.request(&front, way).as_bytes()).await;
                assert!(behind.is_reused(&mut line).await, "{way:?}: {unasked:?}");
                line.assert_asked_by(&bob, bob.name).await;
                line.say(&bob.answer()).await;
                bob.assert_answered(&mut second).await;

                if is_late {
                    first.send(alice.request(&front, way).as_bytes()).await;
                    line.say(unasked).await;
                } else {
                    line.say(unasked).await;
                    first.send(alice.request(&front, way).as_bytes()).await;
                }
                let mut next = behind.accept(&mut first).await;
                next.assert_asked_by(&alice, alice.name).await;
                next.say(&alice.answer()).await;
                alice.assert_answered(&mut first).await;
                line.assert_unused().await;
                let calls = front.hall.expressed.get() - expressed;
                assert_eq!(calls, if way == Way::Express { 3 } else { 0 });
            }
        }
    });
}

/// The upstream has read a few bytes of a request that is there whole.
#[test]
fn an_answer_before_the_end_of_its_request_arrives_and_the_next_one_too() {
    with_front(&[], async |front| {
        let (alice, bob) = two(&front);
        let body = "a".repeat(9_000);
        for way in WAYS {
            for ends in [false, true] {
                let behind = Behind::new(&front).await;
                let expressed = front.hall.expressed.get();
                let mut first = front.connect().await;
                let request = alice.request_of(&front, way, &body);
                first.send(request.as_bytes()).await;
                let mut line = behind.accept(&mut first).await;
                line.got.resize(10, 0);
                let read = line.stream.read_exact(&mut line.got).await;
                read.expect("the beginning");
                line.say(&alice.answer()).await;
                let mut line = Some(line).filter(|_| !ends); // what is unread breaks it
                alice.assert_answered(&mut first).await;

                let mut second = front.connect().await;
                second.send(bob.request(&front, way).as_bytes()).await;
                if let Some(line) = &mut line {
                    // All of the one request, and then the other.
                    line.assert_asked_by(&alice, &body).await;
                    line.assert_asked_by(&bob, bob.name).await;
                    line.say(&bob.answer()).await;
                } else {
                    let mut next = behind.accept(&mut second).await;
                    next.assert_asked_by(&bob, bob.name).await;
                    next.say(&bob.answer()).await;
                }
                bob.assert_answered(&mut second).await;
                let calls = front.hall.expressed.get() - expressed;
                assert_eq!(calls, if way == Way::Express { 2 } else { 0 });
            }
        }
    });
}

/// The client has sent a part of its body only; what follows looks like a request, and is not all.
#[test]
fn nobody_elses_request_becomes_the_rest_of_a_body() {
    with_front(&[], async |front| {
        let (alice, bob) = two(&front);
        let more = front.request("GET /api/v1/echo/smuggled", "");
        let body = format!("some{more}");
        let length = body.len() + 1;
        let sized = format!("content-length: {length}\r\n\r\nsome");
        let chunked = "transfer-encoding: chunked\r\n\r\n4\r\nsome\r\n".to_owned();
        let chunk = format!("{:x}\r\n{more}\r\n", more.len());
        for (fields, more) in [(&sized, &more), (&chunked, &chunk)] {
            for ends in [false, true] {
                let behind = Behind::new(&front).await;
                let mut first = front.connect().await;
                let head = front.request("POST /api/v1/echo/alice", "");
                let head = head.strip_suffix("\r\n").expect("a blank line");
                first.send(format!("{head}{fields}").as_bytes()).await;
                let mut line = behind.accept(&mut first).await;
                while memchr::memmem::find(&line.got, b"some").is_none() {
                    assert!(line.more().await, "some of the body comes");
                }
                line.say(&alice.answer()).await;
                if ends {
                    line.stream.shutdown().await.expect("said");
                }
                alice.assert_answered(&mut first).await;

                let mut second = front.connect().await;
                let request = bob.request(&front, Way::Hyper);
                second.send(request.as_bytes()).await;
                let mut next = behind.accept(&mut second).await;
                next.assert_asked_by(&bob, bob.name).await;
                // The gateway may have had enough of the first client.
                drop(first.stream.write_all(more.as_bytes()).await);
                next.say(&bob.answer()).await;
                bob.assert_answered(&mut second).await;
                drop(first);
                while line.more().await {}
                let left = Left {
                    bytes: String::from_utf8(line.got).expect("text"),
                    is_open: false,
                };
                assert!(left.begins("POST /alice", &body), "{left:?}");
                // What was more than the answered request came nowhere.
                second.send(request.as_bytes()).await;
                assert!(behind.is_reused(&mut next).await);
                next.assert_asked_by(&bob, bob.name).await;
                next.say(&bob.answer()).await;
                bob.assert_answered(&mut second).await;
            }
        }
    });
}
