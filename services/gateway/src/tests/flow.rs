//! Calls through the whole edge: a real client, a real upstream, a real journal.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::sync::atomic::Ordering;

use proto::events::v1::{Disposition, Permit, Record};
use runtime::{Host, Stop};

use super::rig::{self, COST, GRANTED, Rig, Seen};
use crate::{edge::Edge, recovery, start};

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
        cost: 0,
        disposition: Disposition::UpstreamAborted,
        ..PLAIN
    },
    Case {
        name: "a redirect, which is the client's to follow",
        answer: &[
            b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
        ],
        ends: "\r\n\r\n",
        status: 302,
        cost: 0,
        complete_at: Some(0),
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
        assert_eq!(lease.give_back(0), GRANTED - uses, "{name}");
    }
}

/// What a successor would take for final counts, had this process died now.
async fn check_totals(host: &Host, rig: &Rig, case: &Case) {
    let (totals, _) = recovery::totals(host, rig.journal())
        .await
        .expect("readable");
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
    assert_eq!(rig.lease.give_back(0), GRANTED - case.cost, "{name}");
    let in_flight = rig.worker.edge.in_flight.load(Ordering::SeqCst);
    assert_eq!(in_flight, 0, "{name}");
}

/// Syncs and says so, as the upkeep does.
pub(super) async fn keep_up(edge: &Edge, done: &Stop) {
    while !done.is_requested() {
        let stats = edge.journal.maintain(0).expect("a disk");
        start::publish_synced(edge, stats.synced_seq);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_record_comes_before_the_last_byte() {
    let (host, config) = rig::host(&[]).await;
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
