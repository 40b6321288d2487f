//! The upstream gets the requests that were meant, and no other.

use std::cell::Cell;

use tokio::io::AsyncWriteExt as _;

use super::{
    Front,
    upstream::Left,
    vectors::{self, Vector},
    with_fronts,
};

/// How the bytes of a vector arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    AtOnce,
    /// In pieces of so many bytes.
    Pieces(usize),
}

fn bytes(front: &Front, text: &str) -> Vec<u8> {
    let key = front.rig.key.reveal();
    let fields = format!("host: edge\r\nx-api-key: {key}\r\n");
    let evil = format!("GET /api/v1/echo/smuggled HTTP/1.1\r\n{fields}\r\n");
    let text = text
        .replace(
            "{POST}",
            &format!("POST /api/v1/echo/a HTTP/1.1\r\n{fields}"),
        )
        .replace("{GET}", &format!("GET /api/v1/echo/a HTTP/1.1\r\n{fields}"))
        .replace("{EVIL}", &evil)
        .replace("{KEY}", key);
    text.into_bytes()
}

/// What became of a vector, when it is not what should have.
async fn check(front: &Front, vector: &Vector, pace: Pace) -> Result<(), String> {
    let mut client = front.connect().await;
    let bytes = bytes(front, vector.sent);
    let size = match pace {
        Pace::AtOnce => bytes.len(),
        Pace::Pieces(size) => size,
    };
    for piece in bytes.chunks(size) {
        // The gateway may have had enough.
        if client.stream.write_all(piece).await.is_err() {
            break;
        }
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    let mut answers = Vec::new();
    while answers.len() < vector.answers.len()
        && let Some(answer) = client.answer().await
    {
        if answer.status == 400 {
            answer.assert_problem(400, "bad_request");
        }
        answers.push(answer.status);
    }
    let mut wanted: Vec<_> = vector
        .arrives
        .iter()
        .map(|(path, body)| (format!("/{path}"), (*body).to_owned()))
        .collect();
    if !vector.closes {
        let probe = front.request("GET /api/v1/echo/probe", "connection: close\r\n");
        drop(client.stream.write_all(probe.as_bytes()).await);
        let answer = client.answer().await;
        answers.extend(answer.map(|answer| answer.status));
        wanted.push(("/probe".to_owned(), String::new()));
    }
    let more = client.answer().await;
    let (got, left) = front.arrived().await;
    // Only a body that breaks off leaves something: the beginning of a request that never ends.
    let is_beginning =
        |left: &Left| !left.is_open && vector.begins.is_some_and(|it| left.begins("POST /a", it));
    let is_whole = left.len() <= 1 && left.iter().all(is_beginning);
    let spoofed = got.iter().any(|got| {
        let names = [
            "upgrade: h2c",
            "http2-settings:",
            "content_length",
            "transfer_encoding",
        ];
        names.iter().any(|name| got.fields.contains(name))
    });
    let came: Vec<_> = got
        .iter()
        .map(|got| {
            let path = got.line.split(' ').nth(1).unwrap_or_default().to_owned();
            (path, String::from_utf8_lossy(&got.body).into_owned())
        })
        .collect();
    let probed = if vector.closes { &[][..] } else { &[200] };
    let expected = [vector.answers, probed].concat();
    if answers == expected && more.is_none() && came == wanted && is_whole && !spoofed {
        return Ok(());
    }
    Err(format!(
        "{} ({pace:?}): answers {answers:?}, arrived {came:?}, left {left:?}, more {more:?}",
        vector.name
    ))
}

#[test]
fn ambiguous_requests_are_refused_and_nothing_is_smuggled() {
    let vectors = vectors::all().count();
    assert!(vectors >= 60, "{vectors}");
    let paces = Cell::new(&[Pace::AtOnce, Pace::Pieces(7), Pace::Pieces(1)][..]);
    with_fronts(3, &[], async |front| {
        let (pace, others) = paces.get().split_first().expect("as many as fronts");
        paces.set(others);
        let mut wrong = Vec::new();
        for vector in vectors::all() {
            wrong.extend(check(&front, vector, *pace).await.err());
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}
