//! Calls with a key that an anomaly throttles.

#![expect(
    clippy::indexing_slicing,
    reason = "a test that is wrong about its own data may panic"
)]

use std::sync::Arc;

use proto::events::v1::Disposition;
use types::{Rate, Refusal};

use super::rig::{self, COST, Rig};
use crate::{keyring::Entry, limits::Pace};

const GET: &str = "GET /api/v1/echo/x HTTP/1.1";
const CLOSE: &str = "connection: close\r\n";
const ANSWER: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"];

fn pace(per_second: u32, burst: u32) -> Pace {
    Pace {
        rate: Rate { per_second, burst },
        limiter: Arc::default(),
    }
}

fn body(answer: &str) -> serde_json::Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    serde_json::from_str(body).expect("a problem document")
}

#[tokio::test]
async fn a_throttled_key_is_refused_and_spends_nothing() {
    let (host, config) = rig::host(&[]).await;
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        let throttle = |entry: &mut Entry| {
            entry.throttle = Some(pace(1, 1));
            entry.rate = Some(pace(100, 3));
        };
        let rig = Rig::with(&host, &config, throttle).await;
        let got = rig.call(GET, CLOSE, ANSWER).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
        let names = "ratelimit-policy: \"throttle\";q=1;w=1, \"key\";q=100;w=1\r\n";
        assert!(got.contains(names), "{got}");
        for _ in 0..5 {
            let got = rig.call(GET, CLOSE, &[]).await;
            assert!(got.starts_with("HTTP/1.1 429 "), "{got}");
            assert!(got.contains("\r\nretry-after: 1\r\n"), "{got}");
            assert!(
                got.contains("\r\nratelimit: \"throttle\";r=0;t=1\r\n"),
                "{got}"
            );
            let problem = body(&got);
            let code = Refusal::AbnormalUsageDetected.as_str();
            assert_eq!(problem["code"], code);
            let detail = problem["detail"].as_str().expect("a sentence");
            assert!(detail.contains("anomaly"), "{detail}");
        }
        let records = rig.records();
        let costs: Vec<i64> = records.iter().map(|record| record.cost).collect();
        assert_eq!(costs, [COST, 0, 0, 0, 0, 0]);
        let refused = records.iter().skip(1);
        for call in refused.filter_map(|record| record.call.as_ref()) {
            assert_eq!(call.disposition(), Disposition::Refused);
            assert_eq!(call.code, Refusal::AbnormalUsageDetected.as_str());
        }
        // One call of credits and of permits, and one place in the key's own rate.
        assert_eq!(rig.lease.cum(), COST);
        assert!(rig.permits.iter().all(|lease| lease.cum() == 1));
        let hash = rig.worker.edge.keyring.hashing().hash(&rig.key.presented());
        let entry = {
            let edge = &rig.worker.edge;
            edge.keyring.cached(&hash, edge.clock.monotonic_nanos())
        }
        .expect("in memory");
        let own = entry.rate.as_ref().expect("a rate");
        let now = host.clock().monotonic_nanos();
        assert!(own.limiter.remaining(own.rate, now) >= 2);
    });
    all.await;
}

#[tokio::test]
async fn a_call_that_its_own_rate_refuses_takes_no_place_of_the_throttle() {
    let (host, config) = rig::host(&[]).await;
    let local = tokio::task::LocalSet::new();
    let all = local.run_until(async {
        let throttle = |entry: &mut Entry| {
            entry.throttle = Some(pace(100, 2));
            entry.rate = Some(pace(1, 1));
        };
        let rig = Rig::with(&host, &config, throttle).await;
        let got = rig.call(GET, CLOSE, ANSWER).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
        for _ in 0..5 {
            let got = rig.call(GET, CLOSE, &[]).await;
            assert!(got.starts_with("HTTP/1.1 429 "), "{got}");
            assert_eq!(body(&got)["code"], Refusal::RateLimited.as_str());
        }
        assert_eq!(rig.lease.cum(), COST);
    });
    all.await;
}
