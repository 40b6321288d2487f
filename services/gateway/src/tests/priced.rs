//! Calls whose cost is known only afterwards, through the whole edge. The route charges 2 credits
//! and one for ten tokens, a token is 4 bytes where nobody counts them, and 50 are held.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::time::Duration;

use http::Method;
use proto::{
    events::v1::{Disposition, Record, RecordKind},
    keys::v1::Route,
};
use tokio::io::AsyncWriteExt as _;

use super::{
    costs::ticket,
    rig::{self, GRANTED, MAX_COST, Rig},
};
use crate::{
    admit::{Aim, Asked, admit},
    meter::GOES_ON_PERIOD,
    opened::Opened,
    recovery,
    units::JSON_BYTES_MAX,
    upload::Upload,
};

struct Case {
    name: &'static str,
    fields: &'static str,
    answer: Vec<Vec<u8>>,
    /// In the head of the answer: what it costs.
    tells: Option<i64>,
    /// What the client's bytes end with.
    ends: &'static str,
    cost: i64,
    overrun: i64,
    estimated: bool,
    disposition: Disposition,
}

fn case(name: &'static str, answer: &[&str], cost: i64) -> Case {
    Case {
        name,
        fields: "connection: close\r\n",
        answer: answer
            .iter()
            .map(|piece| piece.as_bytes().to_vec())
            .collect(),
        tells: Some(cost),
        ends: "",
        cost,
        overrun: 0,
        estimated: false,
        disposition: Disposition::Completed,
    }
}

fn head(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n")
}

/// One chunk, as it is transferred.
fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

const JSON: &str = "content-type: application/json; charset=utf-8\r\n";
const CHUNKED: &str = "transfer-encoding: chunked\r\n";
const EVENTS: &str = "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n";
const TRAILERS: &str = "connection: close, te\r\nte: trailers\r\n";

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let event = |tokens| {
        let text = format!("data: {{\"usage\": {{\"total_tokens\": {tokens}}}}}\n\n");
        chunk(&text)
    };
    let (last, done) = (event(205), chunk("data: [DONE]\n\n"));
    let json = "{\"usage\": {\"total_tokens\": 31}}";
    let long = format!(
        "{{\"usage\": {{\"total_tokens\": 1}}, \"x\": \"{}\"}}",
        "x".repeat(JSON_BYTES_MAX)
    );
    vec![
        case(
            "a header tells",
            &[
                &head("tollgate-usage: tokens=101\r\ncontent-length: 2\r\n"),
                "ok",
            ],
            2 + 11,
        ),
        case(
            "a header tells, and the body is not asked",
            &[
                &head(&format!(
                    "tollgate-usage: tokens=0\r\n{JSON}content-length: 31\r\n"
                )),
                json,
            ],
            2,
        ),
        case(
            "a document tells",
            &[
                &head(&format!("{JSON}{CHUNKED}")),
                &chunk(json),
                "0\r\n\r\n",
            ],
            2 + 4,
        ),
        Case {
            ends: json,
            ..case(
                "a document tells",
                &[&head(&format!("{JSON}content-length: 31\r\n")), json],
                6,
            )
        },
        Case {
            estimated: true,
            ..case(
                "a document does not tell",
                &[
                    &head(&format!("{JSON}content-length: 9\r\n")),
                    "{\"a\": 12}",
                ],
                2 + 1,
            )
        },
        Case {
            estimated: true,
            cost: MAX_COST,
            // 1,048,614 bytes, 262,154 tokens.
            overrun: 2 + 26_216 - MAX_COST,
            tells: None,
            ..case(
                "a document that is too long is not looked into",
                &[
                    &head(&format!("{JSON}{CHUNKED}")),
                    &chunk(&long),
                    "0\r\n\r\n",
                ],
                0,
            )
        },
        case(
            "not charged",
            &["HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"],
            0,
        ),
        Case {
            estimated: true,
            ..case("nothing to look into", &[&head("content-length: 0\r\n")], 2)
        },
        Case {
            tells: None,
            fields: TRAILERS,
            ends: "0\r\ntollgate-cost: 23\r\n\r\n",
            ..case(
                "the last event tells",
                &[&head(EVENTS), &event(1), &last, &done, "0\r\n\r\n"],
                2 + 21,
            )
        },
        Case {
            tells: None,
            ends: "[DONE]\n\n\r\n0\r\n\r\n",
            ..case(
                "to who wants no trailers",
                &[&head(EVENTS), &last, &done, "0\r\n\r\n"],
                23,
            )
        },
        Case {
            tells: None,
            fields: TRAILERS,
            ends: "0\r\nx-sum: 1\r\ntollgate-cost: 3\r\n\r\n",
            ..case(
                "a trailer has the last word",
                &[
                    &head(&format!("trailer: x-sum\r\n{EVENTS}")),
                    &last,
                    "0\r\nx-sum: 1\r\ntollgate-usage: tokens=7\r\n\r\n",
                ],
                3,
            )
        },
        Case {
            tells: None,
            overrun: 2 + 100_000 - MAX_COST,
            ..case(
                "too much",
                &[&head(EVENTS), &event(1_000_000), "0\r\n\r\n"],
                MAX_COST,
            )
        },
        Case {
            tells: None,
            disposition: Disposition::UpstreamAborted,
            ..case(
                "a stream that breaks off behind a report",
                &[&head(EVENTS), &last],
                23,
            )
        },
        Case {
            tells: None,
            estimated: true,
            disposition: Disposition::UpstreamAborted,
            ..case(
                "a stream that breaks off before",
                &[&head(EVENTS), &chunk("data: x\n\n")],
                3,
            )
        },
        Case {
            tells: None,
            disposition: Disposition::UpstreamFailed,
            ..case(
                "a document that breaks off",
                &[&head(&format!("{JSON}content-length: 31\r\n")), "{"],
                0,
            )
        },
    ]
}

fn check(rig: &Rig, case: &Case, got: &str) {
    let name = case.name;
    let told = case
        .tells
        .map(|cost| format!("\r\ntollgate-cost: {cost}\r\n"));
    let head = got.split("\r\n\r\n").next().unwrap_or_default();
    match &told {
        Some(told) => assert!(format!("{head}\r\n").contains(told), "{name}: {got}"),
        None => assert!(!head.contains("tollgate-cost: "), "{name}: {got}"),
    }
    assert!(got.ends_with(case.ends), "{name}: {got}");
    let records = rig.records();
    let kinds: Vec<RecordKind> = records.iter().map(Record::kind).collect();
    assert_eq!(kinds.first(), Some(&RecordKind::Open), "{name}");
    assert_eq!(kinds.last(), Some(&RecordKind::Call), "{name}");
    for note in records
        .iter()
        .filter(|record| record.kind() != RecordKind::Call)
    {
        assert_eq!((note.held, note.cost), (MAX_COST, 0), "{name}");
        assert!((0..=note.held).contains(&note.due), "{name}");
    }
    let last = records.last().expect("a record");
    let call = last.call.as_ref().expect("a call");
    assert_eq!(call.disposition(), case.disposition, "{name}");
    assert_eq!(
        (last.cost, call.overrun, call.estimated),
        (case.cost, case.overrun, case.estimated),
        "{name}"
    );
    assert_eq!(last.cum, case.cost, "{name}");
    assert_eq!(rig.lease.cum(), case.cost, "{name}");
    rig.lease.drain();
    assert!(rig.lease.is_spent(), "{name}: nothing is held any more");
    assert_eq!(rig.lease.give_back(0), GRANTED - case.cost, "{name}");
}

#[tokio::test]
async fn a_call_costs_what_its_upstream_reports_and_never_more_than_is_held() {
    let (host, config) = rig::host(&[]).await;
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        for case in cases() {
            let rig = Rig::new(&host, &config).await;
            let answer: Vec<&[u8]> = case.answer.iter().map(Vec::as_slice).collect();
            let line = "GET /api/v1/echo/priced HTTP/1.1";
            let called = rig.call(line, case.fields, &answer);
            let bounded = tokio::time::timeout(Duration::from_secs(20), called);
            let got = bounded
                .await
                .unwrap_or_else(|_| panic!("{} takes for ever", case.name));
            check(&rig, &case, &got);
            let (_, opened) = recovery::totals(&host, rig.journal())
                .await
                .expect("readable");
            assert!(!opened.any(), "{}: every call has ended", case.name);
        }
    });
    all.await;
}

/// At each record of a journal the process could have died. What a successor would charge grows
/// with what was delivered, and is never above the hold.
#[tokio::test]
async fn a_successor_ends_a_call_by_what_its_last_note_says() {
    let (host, config) = rig::host(&[]).await;
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        let rig = Rig::new(&host, &config).await;
        let events = chunk(&format!("data: {}\n\n", "x".repeat(40 * 1024)));
        let head = head(EVENTS);
        let mut answer: Vec<&[u8]> = vec![head.as_bytes()];
        answer.extend([events.as_bytes(); 4]);
        answer.push(b"0\r\n\r\n");
        rig.call(
            "GET /api/v1/echo/priced HTTP/1.1",
            "connection: close\r\n",
            &answer,
        )
        .await;
        let records = rig.records();
        assert!(records.len() >= 4, "64 KiB are a note: {}", records.len());
        let mut before = 0;
        for dead_at in 1..=records.len() {
            let mut opened = Opened::default();
            for record in records.iter().take(dead_at) {
                opened.read(record).expect("a call");
            }
            let mut totals = std::collections::BTreeMap::new();
            let ended = opened.end(&mut totals, &[], 7).expect("leases");
            if dead_at == records.len() {
                assert!(ended.is_empty(), "it has ended");
                continue;
            }
            let [end] = &ended[..] else {
                panic!("one call, {} records", ended.len());
            };
            let call = end.call.as_ref().expect("a call");
            assert_eq!(call.disposition(), Disposition::GatewayAborted);
            assert_eq!((end.kind(), end.at_unix_micros), (RecordKind::Call, 7));
            assert!((before..=MAX_COST).contains(&end.cost), "{}", end.cost);
            assert_eq!(end.cum, end.cost, "the lease has no other call");
            assert_eq!(end.permits.len(), 2);
            assert!(end.permits.iter().all(|permit| permit.cum == 1));
            before = end.cost;
        }
        assert_eq!(before, MAX_COST, "160 KiB are more than is held for");
    });
    all.await;
}

/// Neither an upstream that thinks nor a body that pauses keeps the journal behind a call's note:
/// it is noted again, before the answer, inside a document that is read, and inside a stream.
#[tokio::test]
async fn a_call_of_which_nothing_comes_is_noted_again() {
    let (host, config) = rig::host(&[]).await;
    let document = head(&format!("{JSON}content-length: 31\r\n")) + "{";
    let stream = head(EVENTS) + &chunk("data: x\n\n");
    let noted_again = ["", &document, &stream].map(async |said: &str| {
        let rig = Rig::new(&host, &config).await;
        let is_patient = |route: &mut Route| route.timeout_ms = 60_000;
        rig.offer(rig.behind(), |it| it.routes.iter_mut().for_each(is_patient));
        let upstream = async {
            let mut stream = rig.accept().await;
            stream.write_all(said.as_bytes()).await.expect("written");
            let is_note = |record: &Record| record.kind() == RecordKind::Progress;
            while !rig.records().iter().any(is_note) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let called = rig.call(
            "GET /api/v1/echo/priced HTTP/1.1",
            "connection: close\r\n",
            &[],
        );
        let both = async { tokio::join!(called, upstream) };
        let bounded = tokio::time::timeout(4 * GOES_ON_PERIOD, both).await;
        assert!(bounded.is_ok(), "{said:?}: {:?}", rig.records());
    });
    let all = futures_util::future::join_all(noted_again);
    tokio::task::LocalSet::new().run_until(all).await;
}

/// What has just been noted for its bytes is not noted for its time as well.
#[tokio::test]
async fn a_call_is_noted_again_when_nothing_else_has_noted_it() {
    let (host, config) = rig::host(&[]).await;
    let rig = Rig::new(&host, &config).await;
    let edge = &rig.worker.edge;
    let hash = edge.keyring.hashing().hash(&rig.key.presented());
    let now = edge.clock.monotonic_nanos();
    let entry = edge.keyring.cached(&hash, now).expect("known");
    let catalogue = edge.catalogue.load_full();
    let aim = Aim::Said(&catalogue, "echo", &Method::GET, "/priced");
    let admitted = admit(edge, aim, Asked::Plain { now }, ticket(&rig, &entry));
    let mut ticket = admitted.await.ok().expect("admitted").0.ticket;
    assert_eq!(ticket.keep_noted(), None, "nothing is known of it");
    ticket.forwarding(Upload::of(&[])).expect("noted");
    let period = u64::try_from(GOES_ON_PERIOD.as_nanos()).expect("short");
    let noted = edge.clock.monotonic_nanos();
    ticket.sent(&[7; 64 * 1024]);
    let kinds = || rig.records().iter().map(Record::kind).collect::<Vec<_>>();
    let of_bytes = [RecordKind::Open, RecordKind::Progress];
    assert_eq!(kinds(), of_bytes);
    let left = ticket.keep_noted_at(noted + period);
    assert!(left.is_some_and(|left| left < GOES_ON_PERIOD), "{left:?}");
    assert_eq!(kinds(), of_bytes);
    let later = edge.clock.monotonic_nanos() + period;
    assert_eq!(ticket.keep_noted_at(later), Some(GOES_ON_PERIOD));
    assert_eq!(kinds(), [&of_bytes[..], &[RecordKind::Progress]].concat());
}
