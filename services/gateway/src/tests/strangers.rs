//! Calls with keys that nobody issued, through the whole edge.

use types::{Environment, NewKey, Refusal};

use super::rig::{self, Rig};
use crate::keyring::tests::{Script, record};

const GET: &str = "GET /api/v1/echo/x HTTP/1.1";
const ANSWER: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"];
const LIMIT: u8 = 20;

/// Header fields of a call from an address.
fn from(address: &str) -> String {
    format!("connection: close\r\nx-forwarded-for: {address}\r\n")
}

fn stranger(n: u8) -> NewKey {
    NewKey::from_random(Environment::Production, &[100_u8.wrapping_add(n); 28])
}

/// Everything of an answer that may tell one refusal from another.
fn told(answer: &str) -> String {
    let lines = answer.lines().filter(|line| !line.starts_with("date: "));
    let mut text: Vec<&str> = lines.collect();
    let id = answer.split("req_").nth(1).and_then(|rest| rest.get(..32));
    let id = id.expect("a request id").to_owned();
    text.retain(|line| !line.is_empty());
    text.join("\n").replace(&id, "")
}

async fn rig_with_script() -> (Rig, Script) {
    let script = Script::start().await;
    let more = [
        ("TOLLGATE_KEYS_GRPC_URL", script.url.as_str()),
        ("TOLLGATE_GATEWAY_TRUSTED_HOPS", "1"),
    ];
    let (host, config) = rig::host(&more).await;
    (Rig::new(&host, &config).await, script)
}

#[tokio::test]
async fn an_address_with_too_many_unknown_keys_has_no_more_looked_up() {
    let local = tokio::task::LocalSet::new();
    let all = Box::pin(local.run_until(async {
        let (rig, script) = rig_with_script().await;
        let (here, there) = (from("2001:db8::1"), from("198.51.100.7"));
        let first = rig.call_as(stranger(0).reveal(), GET, &here, &[]).await;
        assert!(first.starts_with("HTTP/1.1 401 "), "{first}");
        let malformed = rig.call_as("sk_live_short", GET, &here, &[]).await;
        let again = rig.call_as(stranger(0).reveal(), GET, &here, &[]).await;
        assert_eq!(told(&first), told(&malformed), "one answer for all");
        assert_eq!(told(&first), told(&again), "known to be unknown or not");
        for n in 1..LIMIT {
            let got = rig.call_as(stranger(n).reveal(), GET, &here, &[]).await;
            assert_eq!(told(&first), told(&got));
        }
        assert_eq!(script.questions(), usize::from(LIMIT));
        // Whatever the key: it is not looked up, and not even called unknown.
        let neighbour = from("2001:db8::2");
        for (key, fields) in [
            (stranger(LIMIT).reveal(), &here),
            (stranger(0).reveal(), &here),
            ("sk_live_short", &here),
            (stranger(LIMIT).reveal(), &neighbour),
        ] {
            let got = rig.call_as(key, GET, fields, &[]).await;
            assert!(got.starts_with("HTTP/1.1 429 "), "{got}");
            assert!(got.contains(Refusal::RateLimited.as_str()), "{got}");
            let wait = got.split("\r\nretry-after: ").nth(1);
            let wait = wait.and_then(|rest| rest.split("\r\n").next());
            let wait: u64 = wait.and_then(|it| it.parse().ok()).expect("seconds");
            assert!((50..=60).contains(&wait), "{wait}");
        }
        assert_eq!(script.questions(), usize::from(LIMIT));
        // A key in memory is served; and elsewhere all is as ever.
        let got = rig.call(GET, &here, ANSWER).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
        let got = rig.call_as(stranger(99).reveal(), GET, &there, &[]).await;
        assert_eq!(told(&first), told(&got));
        assert_eq!(rig.records().len(), 1, "strangers leave no record");
    }));
    all.await;
}

#[tokio::test]
async fn a_header_that_no_proxy_wrote_does_not_help() {
    let local = tokio::task::LocalSet::new();
    let all = Box::pin(local.run_until(async {
        let (rig, script) = rig_with_script().await;
        for n in 0..LIMIT {
            let fields = from(&format!("10.0.0.{n}, 192.0.2.1"));
            let got = rig.call_as(stranger(n).reveal(), GET, &fields, &[]).await;
            assert!(got.starts_with("HTTP/1.1 401 "), "{got}");
        }
        let fields = from("10.0.0.99, 192.0.2.1");
        let last = stranger(LIMIT);
        let got = rig.call_as(last.reveal(), GET, &fields, &[]).await;
        assert!(got.starts_with("HTTP/1.1 429 "), "{got}");
        assert_eq!(script.questions(), usize::from(LIMIT));
    }));
    all.await;
}

#[tokio::test]
async fn a_good_key_that_is_looked_up_is_served_though_others_were_unknown() {
    let local = tokio::task::LocalSet::new();
    let all = Box::pin(local.run_until(async {
        let (rig, script) = rig_with_script().await;
        let here = from("192.0.2.1");
        for n in 1..LIMIT {
            let got = rig.call_as(stranger(n).reveal(), GET, &here, &[]).await;
            assert!(got.starts_with("HTTP/1.1 401 "), "{got}");
        }
        script.answer(Some(record(1)));
        for n in 0..5 {
            // It has no scope here: it is known, which is what counts.
            let key = stranger(LIMIT.wrapping_add(n));
            let got = rig.call_as(key.reveal(), GET, &here, &[]).await;
            assert!(got.starts_with("HTTP/1.1 403 "), "{got}");
            assert!(got.contains(Refusal::InsufficientScope.as_str()), "{got}");
        }
    }));
    all.await;
}
