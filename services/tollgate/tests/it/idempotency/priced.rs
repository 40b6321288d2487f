//! Idempotency keys of calls whose cost is known only afterwards.

use bytes::Bytes;
use rustix::process::Signal;
use testkit::load::{Connection, Shot};

use super::{World, code, is_refused};
use crate::{crash::KEYED, fault::priced, stack::signal};

const LIVE: [&str; 4] = ["--environment", "production", "--scope", "ai:write"];

/// A question whose answer counts its tokens; no two answers are the same.
fn question(key: &str, more: &str) -> Shot {
    let body = format!(
        r#"{{"model": "m"{more}, "messages": [{{"role": "user", "content":
            "Paris lies on the Seine. Lyon lies on the Rhône. What lies on the Seine?"}}]}}"#
    );
    Shot::post("/api/v1/ai/chat/completions", &body).with("idempotency-key", key)
}

/// Calls of the customer that were charged, and with how much.
async fn charged(world: &World) -> (i64, i64) {
    world.stack.audit();
    let sums = "select count(*) filter (where credits_used > 0), sum(credits_used)::int8
                  from usage_ingest.api_usage_logs where service = 'ai' and org_id = $1";
    let org: types::OrgId = world.customer.org.parse().expect("an id");
    let sums = sqlx::query_as(sums).bind(org.uuid());
    sums.fetch_one(world.stack.pool()).await.expect("a row")
}

#[tokio::test]
async fn a_priced_call_with_a_key_is_charged_its_units_once() {
    let world = World::start(&[]).await;
    let stack = &world.stack;
    priced::price_tokens(stack);
    let (_, key) = stack.key(&world.customer, &LIVE);

    // A credit, and one for ten tokens.
    let first = world.settled_for(0, &key, &question("a", "")).await;
    assert_eq!(first.status, 200, "{first:?}");
    let tokens = first.json()["usage"]["total_tokens"]
        .as_i64()
        .expect("counted");
    let cost = 1 + (tokens + 9) / 10;
    assert_eq!(first.cost(), cost, "{first:?}");
    for gateway in [1, 0] {
        let again = world.at(gateway, &key, &question("a", "")).await;
        assert_eq!((again.status, again.cost()), (first.status, 0), "{again:?}");
        assert_eq!(again.body, first.body);
        assert_eq!(
            again.header("tollgate-original-request-id"),
            first.header("x-request-id")
        );
    }
    let other = world
        .at(0, &key, &question("a", r#", "max_tokens": 2"#))
        .await;
    is_refused(&other, 422, "idempotency_key_reused");
    assert_eq!(charged(&world).await, (1, cost));

    // A stream whose cost came with its last event, and in a trailer that ended here.
    let stream = question("b", r#", "stream": true"#).with("te", "trailers");
    let streamed = world.at(0, &key, &stream).await;
    assert_eq!(
        (streamed.status.as_u16(), streamed.cost()),
        (200, cost),
        "{streamed:?}"
    );
    let again = world.settled_for(1, &key, &stream).await;
    assert_eq!(
        (again.cost(), &again.body),
        (0, &streamed.body),
        "{again:?}"
    );
    assert_eq!(charged(&world).await, (2, 2 * cost));
    let replayed = replays(&world).await;
    assert!(replayed >= 1, "counted: {replayed}");

    // A gateway that dies at each step has charged for an answer, or for none.
    for (index, point) in KEYED.iter().enumerate() {
        stack.arm("gateway", &[format!("{point}:1"), format!("{point}:1")]);
        for pid in stack.pids("gateway") {
            signal(pid, Signal::KILL);
        }
        let shot = question(&format!("c{index}"), "");
        let answer = world.settled_for(0, &key, &shot).await;
        assert_eq!(answer.status, 200, "{point}: {answer:?}");
        let again = world.settled_for(1, &key, &shot).await;
        assert_eq!(
            (again.cost(), &again.body),
            (0, &answer.body),
            "{point}: {again:?}"
        );
        let calls = 3 + i64::try_from(index).expect("few");
        assert_eq!(charged(&world).await, (calls, calls * cost), "{point}");
    }
}

/// Answers given again, as the gateways count them.
async fn replays(world: &World) -> u64 {
    let ops = world.stack.info()["ops"]["gateway"].clone();
    let ops = ops.as_str().expect("an address").to_owned();
    let answer = Connection::to(&ops).call("", &Shot::get("/metrics")).await;
    let text: Bytes = answer.expect("metrics").body;
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = "tollgate_keyed_calls_total{result=\"replayed\"} ";
    let count = text.lines().find_map(|it| it.strip_prefix(line));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

impl World {
    /// Waits for an answer that is more than a wait: gateways die meanwhile.
    async fn settled_for(&self, gateway: usize, key: &str, shot: &Shot) -> testkit::load::Answer {
        let settled = testkit::eventually(crate::stack::SETTLE_LIMIT, "answered", async || {
            let base = self.stack.gateways()[gateway].clone();
            let answer = Connection::to(&base).call(key, shot).await;
            let answer = answer.map_err(|error| error.to_string())?;
            match answer.status.as_u16() {
                503 | 409 => Err(code(&answer)),
                _ => Ok(answer),
            }
        });
        settled.await.expect("answered")
    }
}
