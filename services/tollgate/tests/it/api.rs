//! The management API: an operator's road through it, and the end of a session.

use http::Method;
use serde_json::{Value, json};
use testkit::{
    eventually,
    load::{Answer, Shot},
};

use crate::{
    client::{Client, refusal, shot, text},
    stack::{SETTLE_LIMIT, Stack},
};

const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";

#[tokio::test]
async fn an_operator_sells_a_first_call() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let mut operator = Client::new(&stack, &stack.demo("operator_token"));

    let made = json!({ "name": "Acme", "owner_email": "owner@acme.example" });
    let made = operator.ok(Method::POST, "/v1/organisations", &made).await;
    let org = format!("/v1/organisations/{}", text(&made, "org_id"));
    let grant = format!("/v1/operator{}/credits", org.trim_start_matches("/v1"));
    let credits = json!({ "credits": 10, "reason": "welcome" });
    let once = shot(Method::POST, &grant, &credits).with("idempotency-key", "grant-1");
    for _ in 0..3 {
        let answer = operator.shoot(&once).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["balance"].as_i64()),
            (201, Some(10))
        );
    }

    let wish = json!({ "name": "first", "environment": "production",
                       "scopes": ["mileage:calculate"], "user_id": text(&made, "user_id") });
    let created = keys_are_shown_once(&mut operator, &org, &wish).await;
    let call = stack
        .call(&text(&created, "key"), &Shot::get(DISTANCE))
        .await;
    assert_eq!((call.status.as_u16(), call.cost()), (200, 1), "{call:?}");
    receipt_and_totals_appear(&mut operator, &org, &call).await;

    let key = format!("{org}/keys/{}", text(&created, "key_id"));
    changes_need_the_version_that_was_seen(&mut operator, &key).await;
    operator
        .ok(Method::POST, &format!("{key}/suspend"), &Value::Null)
        .await;
    operator
        .ok(Method::POST, &format!("{key}/restore"), &Value::Null)
        .await;
    let reason = json!({ "reason": "the end" });
    let ended = operator
        .ok(Method::POST, &format!("{key}/revoke"), &reason)
        .await;
    assert_eq!(ended["pending_gateways"], json!([]), "{ended}");
    let late = stack
        .call(&text(&created, "key"), &Shot::get(DISTANCE))
        .await;
    assert_eq!(
        (late.status.as_u16(), text(&late.json(), "code").as_str()),
        (401, "key_revoked")
    );
    let log = operator.get(&format!("{org}/audit-log")).await;
    let actions: Vec<&str> = log["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .filter_map(|entry| entry["action"].as_str())
        .collect();
    for action in ["organisation.created", "key.created", "key.revoked"] {
        assert!(actions.contains(&action), "{action} in {actions:?}");
    }
    refusals_are_problems(&mut operator, &org).await;
}

/// Creates a key; whoever asks again with the same key gets its id, and never its secret.
async fn keys_are_shown_once(operator: &mut Client, org: &str, wish: &Value) -> Value {
    let path = format!("{org}/keys");
    let create = shot(Method::POST, &path, wish).with("idempotency-key", "key-1");
    let first = operator.shoot(&create).await;
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(first.header("cache-control"), "no-store");
    let created = first.json();
    assert!(text(&created, "key").starts_with("sk_live_"));
    let again = operator.shoot(&create).await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    let wanted = json!({ "key_id": created["key_id"], "key": null });
    assert_eq!((again.status.as_u16(), again.json()), (201, wanted));
    let mut other = wish.clone();
    other["name"] = json!("other");
    let other = shot(Method::POST, &path, &other).with("idempotency-key", "key-1");
    let other = operator.shoot(&other).await;
    assert_eq!(refusal(&other), (422, "idempotency_conflict".to_owned()));
    let listed = operator.get(&path).await;
    assert_eq!(listed["keys"].as_array().map(Vec::len), Some(1), "{listed}");
    assert!(!listed.to_string().contains(&text(&created, "key")));
    created
}

async fn receipt_and_totals_appear(operator: &mut Client, org: &str, call: &Answer) {
    let receipt = format!("{org}/usage/calls/{}", call.header("x-request-id"));
    let operator = tokio::sync::Mutex::new(operator);
    let settled = eventually(SETTLE_LIMIT, "receipt, day and wallet agree", async || {
        let mut operator = operator.lock().await;
        let found = operator.call(Method::GET, &receipt, &Value::Null).await;
        let days = operator.get(&format!("{org}/usage/daily")).await;
        let wallet = operator.get(&format!("{org}/wallet")).await;
        let is_there = found.status == 200
            && found.json()["credits_used"] == 1
            && days["days"][0]["total_credits"] == 1
            && wallet["balance"] == 9;
        match is_there {
            true => Ok(found.json()),
            false => Err(format!("{found:?} {days} {wallet}")),
        }
    });
    let receipt = settled.await.expect("what was charged is told");
    assert_eq!(receipt["service"], "mileage");
    assert_eq!(receipt["wallet"], "organisation");
    let mut operator = operator.lock().await;
    let mut entries = Vec::new();
    let mut page = format!("{org}/wallet/ledger?limit=1");
    loop {
        let found = operator.get(&page).await;
        entries.extend(found["entries"].as_array().cloned().unwrap_or_default());
        let Some(cursor) = found["next_cursor"].as_str() else {
            break;
        };
        page = format!("{org}/wallet/ledger?limit=1&cursor={cursor}");
    }
    let credits: Vec<_> = entries.iter().map(|entry| &entry["credits"]).collect();
    assert_eq!(credits, [&json!(-1), &json!(10)], "each once, newest first");
}

async fn changes_need_the_version_that_was_seen(operator: &mut Client, key: &str) {
    let seen = operator.call(Method::GET, key, &Value::Null).await;
    let change = |name: &str, tag: &str| {
        shot(Method::PATCH, key, &json!({ "name": name })).with("if-match", tag)
    };
    let first = operator.shoot(&change("second", seen.header("etag"))).await;
    assert_eq!(
        (first.status.as_u16(), text(&first.json(), "name").as_str()),
        (200, "second")
    );
    assert_ne!(first.header("etag"), seen.header("etag"));
    let late = operator.shoot(&change("third", seen.header("etag"))).await;
    assert_eq!(refusal(&late), (412, "precondition_failed".to_owned()));
}

async fn refusals_are_problems(operator: &mut Client, org: &str) {
    let keys = format!("{org}/keys");
    let huge = json!({ "name": "n".repeat(70_000) });
    for (method, path, body, wanted) in [
        (Method::GET, "/v1/nothing", Value::Null, (404, "not_found")),
        (
            Method::DELETE,
            "/v1/services",
            Value::Null,
            (405, "method_not_allowed"),
        ),
        (Method::POST, &keys, json!({ "name": 7 }), (400, "invalid")),
        (Method::POST, &keys, huge, (413, "body_too_large")),
        (
            Method::GET,
            &format!("{keys}?limit=0"),
            Value::Null,
            (400, "invalid"),
        ),
        (
            Method::GET,
            &format!("{keys}?cursor=x"),
            Value::Null,
            (400, "invalid"),
        ),
        (Method::POST, "/v1/logout", Value::Null, (403, "forbidden")),
    ] {
        let answer = operator.call(method.clone(), path, &body).await;
        let (status, code) = refusal(&answer);
        assert_eq!((status, code.as_str()), wanted, "{method} {path}");
    }
    let wrong = operator
        .call(Method::POST, &keys, &json!({ "name": 7 }))
        .await;
    let detail = text(&wrong.json(), "detail");
    assert!(detail.contains("name"), "the field is named: {detail}");
}

/// A token is void after signing out, and after a new password.
#[tokio::test]
async fn a_session_ends_with_its_logout() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let mut person = Client::person(&stack, "visitor").await;
    let account = person.get("/v1/account").await;
    assert_eq!(account["email"], "visitor@example.com");
    let stored = stack.count("select count(*) from portal.sessions where token_hash is not null");
    assert_eq!(stored.await, 1);
    let wrong = json!({ "email": "visitor@example.com", "password": "not the right one" });
    let refused = person.call(Method::POST, "/v1/login", &wrong).await;
    assert_eq!(refusal(&refused).0, 401);
    person.ok(Method::POST, "/v1/logout", &Value::Null).await;
    let late = person.call(Method::GET, "/v1/account", &Value::Null).await;
    assert_eq!(refusal(&late), (401, "unauthenticated".to_owned()));
    assert_eq!(late.header("www-authenticate"), "Bearer");
    assert_eq!(stack.count("select count(*) from portal.sessions").await, 0);
}
