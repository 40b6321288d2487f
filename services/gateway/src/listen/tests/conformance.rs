//! RFC 9113 by its sections: what a peer must be told that breaks a rule, and what must be ignored.

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::{
    Client, Front,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, hello, request,
    },
    with_front,
};

const PUSH_PROMISE: u8 = 5;
const PADDED: u8 = 8;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

/// How a peer that breaks a rule is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Told {
    /// Not at all: it is to be ignored, and the next request is served.
    Nothing,
    /// The connection ends with this code.
    Away(u32),
    /// The stream ends with this one, and the next request is served; or the connection does,
    /// which is allowed of every such error (RFC 9113, 5.4.1).
    Reset(u32),
}

impl Told {
    /// Whether who says `said` keeps a rule of which this is due.
    fn allows(self, said: Self) -> bool {
        match (self, said) {
            (Self::Reset(due), Self::Away(code)) => code == due,
            (due, said) => due == said,
        }
    }
}

/// Which streams there are before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    None,
    /// A request on stream 1, whose body has not ended.
    Open,
    /// One that has, and waits for its answer.
    HalfClosed,
}

/// Kind, flags, stream, content.
type Sent = (u8, u8, u32, &'static [u8]);

const WINDOW_MAX: &[u8] = &[0x7f, 0xff, 0xff, 0xff];
const BIG: &[u8] = &[b'x'; 16_385];

const RULES: &[(&str, Before, &[Sent], Told)] = {
    use Before::{HalfClosed, None, Open};
    use Told::{Away, Nothing, Reset};
    const PROTOCOL: Told = Away(PROTOCOL_ERROR);
    const SIZE: Told = Away(FRAME_SIZE_ERROR);
    &[
        (
            "4.1 unknown kinds are ignored",
            None,
            &[(0xff, 0, 0, b"12345678")],
            Nothing,
        ),
        (
            "4.1 unknown flags are ignored",
            None,
            &[(PING, 0x16, 0, b"87654321")],
            Nothing,
        ),
        (
            "4.1 the reserved bit is ignored",
            None,
            &[(PING, 0, 1 << 31, b"87654321")],
            Nothing,
        ),
        (
            "4.2 a frame that is too large",
            Open,
            &[(DATA, 0, 1, BIG)],
            Reset(FRAME_SIZE_ERROR),
        ),
        (
            "4.2 a list that is too large a frame",
            None,
            &[(HEADERS, END_HEADERS, 1, BIG)],
            SIZE,
        ),
        (
            "4.3 a list that is no list",
            None,
            &[(HEADERS, END_HEADERS, 1, &[0x40])],
            Away(COMPRESSION_ERROR),
        ),
        (
            "4.3 an index that is not there",
            None,
            &[(HEADERS, END_HEADERS, 1, &[0xff, 0xff, 0x7f])],
            Away(COMPRESSION_ERROR),
        ),
        (
            "4.3 a priority inside a list",
            None,
            &[(HEADERS, 0, 1, &[0x82]), (PRIORITY, 0, 1, &[0, 0, 0, 0, 1])],
            PROTOCOL,
        ),
        (
            "4.3 another list inside a list",
            None,
            &[(HEADERS, 0, 1, &[0x82]), (HEADERS, 0, 3, &[0x82])],
            PROTOCOL,
        ),
        (
            "5.1 data of an idle stream",
            None,
            &[(DATA, 0, 1, b"x")],
            PROTOCOL,
        ),
        (
            "5.1 a reset of an idle stream",
            None,
            &[(RST_STREAM, 0, 1, &[0, 0, 0, 8])],
            PROTOCOL,
        ),
        (
            "5.1 a window of an idle stream",
            None,
            &[(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])],
            PROTOCOL,
        ),
        (
            "5.1 a continuation of nothing",
            None,
            &[(CONTINUATION, END_HEADERS, 1, &[0x82])],
            PROTOCOL,
        ),
        (
            "5.1 data behind the end",
            HalfClosed,
            &[(DATA, 0, 1, b"x")],
            Reset(STREAM_CLOSED),
        ),
        (
            "5.1 a list behind the end",
            HalfClosed,
            &[(HEADERS, END_HEADERS | END_STREAM, 1, &[0x82])],
            Reset(STREAM_CLOSED),
        ),
        (
            "5.1.1 a stream of ours",
            None,
            &[(HEADERS, END_HEADERS, 2, &[0x82, 0x84, 0x86])],
            PROTOCOL,
        ),
        (
            "5.1.1 a stream below others",
            None,
            &[
                (HEADERS, END_HEADERS, 5, &[0x82]),
                (HEADERS, END_HEADERS, 3, &[0x82]),
            ],
            PROTOCOL,
        ),
        (
            "6.1 data of no stream",
            None,
            &[(DATA, 0, 0, b"x")],
            PROTOCOL,
        ),
        (
            "6.1 padding beyond the frame",
            Open,
            &[(DATA, PADDED, 1, &[9, b'x'])],
            PROTOCOL,
        ),
        (
            "6.2 a list of no stream",
            None,
            &[(HEADERS, END_HEADERS, 0, &[0x82])],
            PROTOCOL,
        ),
        (
            "6.2 padding beyond the list",
            None,
            &[(HEADERS, END_HEADERS | PADDED, 1, &[9, 0x82])],
            PROTOCOL,
        ),
        (
            "6.3 a priority of no stream",
            None,
            &[(PRIORITY, 0, 0, &[0, 0, 0, 1, 1])],
            PROTOCOL,
        ),
        (
            "6.3 a priority of another size",
            None,
            &[(PRIORITY, 0, 1, &[0, 0, 0, 1])],
            Reset(FRAME_SIZE_ERROR),
        ),
        (
            "6.4 a reset of no stream",
            None,
            &[(RST_STREAM, 0, 0, &[0, 0, 0, 8])],
            PROTOCOL,
        ),
        (
            "6.4 a reset of another size",
            Open,
            &[(RST_STREAM, 0, 1, &[0, 0, 8])],
            SIZE,
        ),
        (
            "6.5 an acknowledgement that says more",
            None,
            &[(SETTINGS, ACK, 0, &[0, 1, 0, 0, 0, 0])],
            SIZE,
        ),
        (
            "6.5 settings of a stream",
            None,
            &[(SETTINGS, 0, 1, &[])],
            PROTOCOL,
        ),
        (
            "6.5 settings of another size",
            None,
            &[(SETTINGS, 0, 0, &[0, 1, 0])],
            SIZE,
        ),
        (
            "6.5.2 a push that is neither",
            None,
            &[(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2])],
            PROTOCOL,
        ),
        (
            "6.5.2 a window that is too large",
            None,
            &[(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])],
            Away(FLOW_CONTROL_ERROR),
        ),
        (
            "6.5.2 frames that are too small",
            None,
            &[(SETTINGS, 0, 0, &[0, 5, 0, 0, 0x3f, 0xff])],
            PROTOCOL,
        ),
        (
            "6.5.2 frames that are too large",
            None,
            &[(SETTINGS, 0, 0, &[0, 5, 1, 0, 0, 0])],
            PROTOCOL,
        ),
        (
            "6.5.2 unknown settings are ignored",
            None,
            &[(SETTINGS, 0, 0, &[0, 0xff, 0, 0, 0, 1])],
            Nothing,
        ),
        (
            "6.6 a push of a client",
            Open,
            &[(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82])],
            PROTOCOL,
        ),
        (
            "6.7 a ping of a stream",
            None,
            &[(PING, 0, 1, b"12345678")],
            PROTOCOL,
        ),
        (
            "6.7 a ping of another size",
            None,
            &[(PING, 0, 0, b"1234567")],
            SIZE,
        ),
        (
            "6.7 an answer to no ping",
            None,
            &[(PING, ACK, 0, b"unasked!")],
            Nothing,
        ),
        (
            "6.8 a farewell of a stream",
            None,
            &[(GOAWAY, 0, 1, &[0; 8])],
            PROTOCOL,
        ),
        (
            "6.9 a window of nothing",
            None,
            &[(WINDOW_UPDATE, 0, 0, &[0; 4])],
            PROTOCOL,
        ),
        (
            "6.9 a stream's window of nothing",
            Open,
            &[(WINDOW_UPDATE, 0, 1, &[0; 4])],
            Reset(PROTOCOL_ERROR),
        ),
        (
            "6.9 a window of another size",
            None,
            &[(WINDOW_UPDATE, 0, 0, &[0, 0, 1])],
            SIZE,
        ),
        (
            "6.9.1 a window beyond all",
            None,
            &[
                (WINDOW_UPDATE, 0, 0, WINDOW_MAX),
                (WINDOW_UPDATE, 0, 0, WINDOW_MAX),
            ],
            Away(FLOW_CONTROL_ERROR),
        ),
        (
            "6.9.1 a stream's window beyond all",
            Open,
            &[
                (WINDOW_UPDATE, 0, 1, WINDOW_MAX),
                (WINDOW_UPDATE, 0, 1, WINDOW_MAX),
            ],
            Reset(FLOW_CONTROL_ERROR),
        ),
        (
            "6.10 data inside a list",
            None,
            &[(HEADERS, 0, 1, &[0x82]), (DATA, 0, 1, b"x")],
            PROTOCOL,
        ),
        (
            "6.10 a continuation of another stream",
            None,
            &[
                (HEADERS, 0, 1, &[0x82]),
                (CONTINUATION, END_HEADERS, 3, &[0x84]),
            ],
            PROTOCOL,
        ),
        (
            "6.10 a continuation of no stream",
            None,
            &[
                (HEADERS, 0, 1, &[0x82]),
                (CONTINUATION, END_HEADERS, 0, &[0x84]),
            ],
            PROTOCOL,
        ),
        (
            "6.10 a continuation of an end",
            Open,
            &[(CONTINUATION, END_HEADERS, 1, &[0x84])],
            PROTOCOL,
        ),
        (
            "8.1 trailers that do not end",
            Open,
            &[(HEADERS, END_HEADERS, 1, &[0x10, 1, b'x', 1, b'y'])],
            Reset(PROTOCOL_ERROR),
        ),
    ]
};

/// Rules of which `h2` says only that one was broken, and ends the connection: with the code for
/// what has no better one. Nobody gets more or less by it than by the right one.
const SAID_GENERALLY: &[&str] = &[
    "4.3 a list that is no list",
    "4.3 an index that is not there",
    "5.1 data behind the end",
    "5.1 a list behind the end",
    "6.3 a priority of another size",
    "6.4 a reset of another size",
    "6.5 an acknowledgement that says more",
    "6.5 settings of another size",
    "6.5.2 a window that is too large",
    "6.7 a ping of another size",
    "6.9 a window of another size",
];

/// What the gateway said to it; `Err` when it is not what it should be.
async fn check(
    front: &Front,
    (name, before, sent, told): &(&str, Before, &[Sent], Told),
) -> Result<(), String> {
    let mut client = front.connect().await;
    client.send(&hello(&[])).await;
    let line = if *before == Before::HalfClosed {
        "events"
    } else {
        "a"
    };
    let head = request(
        "POST",
        &format!("/api/v1/echo/{line}"),
        front.rig.key.reveal(),
        &[],
    );
    match before {
        Before::None => {}
        Before::Open => client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await,
        Before::HalfClosed => {
            client
                .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head))
                .await;
        }
    }
    for (kind, flags, stream, content) in *sent {
        drop(
            client
                .stream
                .write_all(&frame(*kind, *flags, *stream, content))
                .await,
        );
    }
    // Whoever is still answered has been told nothing.
    let probe = request("GET", "/api/v1/echo/a", front.rig.key.reveal(), &[]);
    let probe = frame(HEADERS, END_HEADERS | END_STREAM, 9, &probe);
    drop(client.stream.write_all(&probe).await);
    let said = said(&mut client).await;
    let is_right = said.is_some_and(|said| match SAID_GENERALLY.contains(name) {
        true => said == Told::Away(PROTOCOL_ERROR),
        false => told.allows(said),
    });
    let wrong = format!("{name}: {told:?} was due, said was {said:?}");
    is_right.then_some(()).ok_or(wrong)
}

/// What the gateway says until it answers the probe, or ends; None when it ends without a word.
async fn said(client: &mut Client<TcpStream>) -> Option<Told> {
    let mut said = Told::Nothing;
    while let Some(frame) = client.frame().await {
        let code = |at: usize| {
            let bytes = frame
                .content
                .get(at..at + 4)
                .and_then(|it| it.first_chunk());
            u32::from_be_bytes(*bytes.expect("a code"))
        };
        match frame.kind {
            RST_STREAM if frame.stream == 1 => said = Told::Reset(code(0)),
            GOAWAY => return Some(Told::Away(code(4))),
            DATA if frame.stream == 9 => return Some(said),
            _ => {}
        }
    }
    None
}

#[test]
fn a_peer_that_breaks_the_rules_of_http2_is_told_which() {
    with_front(&[], async |front| {
        let mut wrong = Vec::new();
        for rule in RULES {
            wrong.extend(check(&front, rule).await.err());
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        let known = |name: &&str| RULES.iter().any(|(rule, ..)| rule == name);
        assert!(SAID_GENERALLY.iter().all(known), "each is a rule");
        front.assert_serves().await;
    });
}
