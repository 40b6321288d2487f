//! The whole road: one call, from key to statistics, on real servers.

use std::time::Duration;

use serde_json::Value;
use testkit::{
    eventually,
    load::{Answer, Shot},
};

use crate::stack::{DISTANCE, SETTLE_LIMIT, Stack};

const CHAT: &str = r#"{"model": "small", "messages": [{"role": "user", "content":
    "A tollgate stands at the entrance of a bridge. Who passes pays. What stands there?"}]}"#;

fn render() -> Shot {
    Shot::post("/api/v1/pdf/render", r#"{"text": "Hello, bridge."}"#)
}

fn code(answer: &Answer) -> (u16, String) {
    let code = answer.json()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (answer.status.as_u16(), code)
}

fn balance(stack: &Stack, org: &str) -> i64 {
    // Reads as the CLI does: balance still counts what a gateway holds and has not spent.
    stack.cli(&["wallet", "show", "--org", org])["balance"]
        .as_i64()
        .expect("a balance")
}

#[tokio::test]
async fn a_call_is_answered_billed_counted_and_traced() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let (key, org) = (stack.demo("live_key"), stack.demo("org_id"));
    let before = balance(&stack, &org);

    let pdf = stack.call(&key, &render()).await;
    let chat = stack
        .call(&key, &Shot::post("/api/v1/ai/chat/completions", CHAT))
        .await;
    let distance = stack.call(&key, &Shot::get(DISTANCE)).await;
    assert_eq!((pdf.status.as_u16(), pdf.cost()), (200, 1), "{pdf:?}");
    assert!(pdf.body.starts_with(b"%PDF-"), "not a PDF");
    assert_eq!((chat.status.as_u16(), chat.cost()), (200, 3), "{chat:?}");
    assert!(
        chat.json()["usage"]["total_tokens"]
            .as_u64()
            .is_some_and(|tokens| tokens > 0)
    );
    assert_eq!(
        (distance.status.as_u16(), distance.cost()),
        (200, 1),
        "{distance:?}"
    );
    let kilometres = distance.json()["kilometres"].as_f64().expect("a number");
    assert!((650.0..670.0).contains(&kilometres), "{kilometres}");

    let row_lag = rows_appear(&stack).await;
    assert_eq!(
        balance(&stack, &org),
        before - 5,
        "1 + 3 + 1 credits were spent"
    );
    let days = stack
        .count("select total_requests from stats_aggregator.daily_stats")
        .await;
    assert_eq!(days, 3);
    println!("answer to row and statistics: {row_lag:?}");

    let report = stack.audit();
    assert_eq!(report["differences"], 0, "{report:#}");
    assert_eq!(report["calls"], 3);
    tells_the_story(&stack, &pdf);
    is_one_trace(&stack, &pdf).await;
    streams(&stack, &key).await;
    refuses(&stack, &key).await;
    test_keys_spend_test_credits(&stack, before - 5 - 3).await;
    assert_eq!(stack.audit()["differences"], 0);
}

async fn rows_appear(stack: &Stack) -> Duration {
    let began = std::time::Instant::now();
    let seen = eventually(
        SETTLE_LIMIT,
        "three rows, counted and settled",
        async || {
            let rows = stack
                .count("select count(*) from usage_ingest.api_usage_logs")
                .await;
            let counted = stack
            .count("select coalesce(sum(total_requests), 0)::int8 from stats_aggregator.daily_stats")
            .await;
            let used = stack
                .count("select sum(total_used)::int8 from wallet.wallets")
                .await;
            if (rows, counted, used) == (3, 3, 5) {
                return Ok(began.elapsed());
            }
            Err(format!(
                "{rows} rows, {counted} counted, {used} credits settled"
            ))
        },
    );
    seen.await.expect("a call shows everywhere")
}

fn tells_the_story(stack: &Stack, pdf: &Answer) {
    let request = pdf.header("x-request-id").to_owned();
    let story = stack.cli(&["why", &request]);
    assert_eq!(story["request_id"], request.as_str());
    assert_eq!(story["cost"], 1, "{story:#}");
    assert_eq!(story["settled"], true, "{story:#}");
    assert!(
        !story["row"].is_null() && !story["statistics"].is_null(),
        "{story:#}"
    );
    let trace = story["trace_id"].as_str().expect("a trace id");
    assert_eq!(trace.len(), 32);
}

async fn is_one_trace(stack: &Stack, pdf: &Answer) {
    let story = stack.cli(&["why", pdf.header("x-request-id")]);
    let trace = story["trace_id"].as_str().expect("a trace id").to_owned();
    let info = stack.info();
    let page = info["traces"]
        .as_str()
        .expect("the trace page is in dev.json")
        .to_owned();
    let wanted = ["gateway", "stats-aggregator", "usage-ingest", "wallet"];
    let whole = eventually(SETTLE_LIMIT, "one trace over all services", async || {
        let shot = Shot::get(&format!("/api/traces/{trace}"));
        let answer = testkit::load::Connection::to(&page)
            .call("", &shot)
            .await
            .map_err(|error| format!("{error:#}"))?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let missing: Vec<&&str> = wanted
            .iter()
            .filter(|name| !text.contains(&format!("\"{name}\"")))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("without {missing:?}: {text}"))
        }
    });
    whole.await.expect("the trace is whole");
}

async fn streams(stack: &Stack, key: &str) {
    let mut body: Value = serde_json::from_str(CHAT).expect("JSON");
    body["stream"] = true.into();
    let shot = Shot::post("/api/v1/ai/chat/completions", &body.to_string());
    let answer = stack.call(key, &shot).await;
    assert_eq!((answer.status.as_u16(), answer.cost()), (200, 3));
    assert!(
        answer
            .header("content-type")
            .starts_with("text/event-stream")
    );
    let text = String::from_utf8_lossy(&answer.body);
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    assert!(text.contains("\"usage\""), "{text}");
}

/// Every refusal that a stranger can provoke has the contract's status and code.
async fn refuses(stack: &Stack, key: &str) {
    let get = Shot::get;
    let mut random = String::from("sk_live_");
    random.push_str(&"A".repeat(43));
    let both = get(DISTANCE).with("x-api-key", key);
    let in_query = get(&format!("{DISTANCE}&api_key={key}"));
    let cases = [
        (stack.call("", &get(DISTANCE)).await, (401, "missing_key")),
        (
            stack.call("sk_live_short", &get(DISTANCE)).await,
            (401, "invalid_key"),
        ),
        (
            stack.call(&random, &get(DISTANCE)).await,
            (401, "invalid_key"),
        ),
        (stack.call(key, &both).await, (400, "ambiguous_credentials")),
        (
            stack.call("", &in_query).await,
            (400, "ambiguous_credentials"),
        ),
        (
            stack.call(key, &get("/api/v1/nothing/x")).await,
            (404, "unknown_service"),
        ),
        (
            stack.call(key, &get("/api/v1/mileage/../pdf/x")).await,
            (400, "bad_request"),
        ),
        (
            stack.call(key, &get("/api/v1/mileage/a%2fb")).await,
            (400, "bad_request"),
        ),
        (
            stack.call(key, &get("/elsewhere")).await,
            (404, "unknown_service"),
        ),
    ];
    for (answer, (status, expected)) in &cases {
        assert_eq!(
            code(answer),
            (*status, (*expected).to_owned()),
            "{answer:?}"
        );
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let id = answer.header("x-request-id");
        assert!(
            id.starts_with("req_") && answer.json()["request_id"] == id,
            "{answer:?}"
        );
    }
    refuses_by_record(stack).await;
}

async fn refuses_by_record(stack: &Stack) {
    let customer = stack.customer("Refused", 1000);
    let live = ["--environment", "production", "--scope"];
    let (_, pdf_only) = stack.key(&customer, &[&live[..], &["pdf:read"]].concat());
    let answer = stack.call(&pdf_only, &Shot::get(DISTANCE)).await;
    assert_eq!(code(&answer), (403, "insufficient_scope".to_owned()));
    let soon = std::time::SystemTime::now() + Duration::from_secs(2);
    let soon = soon
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let soon = jiff::Timestamp::from_second(i64::try_from(soon).expect("fits")).expect("a time");
    let mileage = [&live[..], &["mileage:calculate"]].concat();
    let until = soon.to_string();
    let (_, short) = stack.key(
        &customer,
        &[&mileage[..], &["--expires-at", &until]].concat(),
    );
    assert_eq!(stack.call(&short, &Shot::get(DISTANCE)).await.status, 200);
    let expired = eventually(Duration::from_secs(10), "the key expires", async || {
        let seen = code(&stack.call(&short, &Shot::get(DISTANCE)).await);
        if seen == (401, "key_expired".to_owned()) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    expired
        .await
        .expect("expiry is judged on every call, cached or not");
    let home = [&mileage[..], &["--allow", "10.0.0.0/8"]].concat();
    let (_, homely) = stack.key(&customer, &home);
    let answer = stack.call(&homely, &Shot::get(DISTANCE)).await;
    assert_eq!(code(&answer), (403, "ip_not_allowed".to_owned()));
    let from_home = Shot::get(DISTANCE).with("x-forwarded-for", "10.1.2.3");
    assert_eq!(stack.call(&homely, &from_home).await.status, 200);
    let slow = [&mileage[..], &["--rate", "1", "--burst", "1"]].concat();
    let (_, slow) = stack.key(&customer, &slow);
    assert_eq!(stack.call(&slow, &Shot::get(DISTANCE)).await.status, 200);
    let answer = stack.call(&slow, &Shot::get(DISTANCE)).await;
    assert_eq!(code(&answer), (429, "rate_limited".to_owned()));
    assert!(!answer.header("retry-after").is_empty() && !answer.header("ratelimit").is_empty());
    let poor = stack.customer("Poor", 0);
    let (_, broke) = stack.key(&poor, &mileage);
    let answer = stack.call(&broke, &Shot::get(DISTANCE)).await;
    assert_eq!(code(&answer), (402, "credits_exhausted".to_owned()));
}

async fn test_keys_spend_test_credits(stack: &Stack, live_balance: i64) {
    let key = stack.demo("test_key");
    let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
    assert_eq!(
        (answer.status.as_u16(), answer.cost()),
        (200, 1),
        "{answer:?}"
    );
    let settled = eventually(SETTLE_LIMIT, "the test wallet fell by one", async || {
        let left = stack
            .count("select sum(balance)::int8 from wallet.test_wallets")
            .await;
        if left == 99 {
            Ok(())
        } else {
            Err(format!("{left} test credits"))
        }
    });
    settled.await.expect("test credits are settled");
    assert_eq!(
        balance(stack, &stack.demo("org_id")),
        live_balance,
        "no live credit moved"
    );
}
