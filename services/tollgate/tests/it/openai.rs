//! OpenAI's own SDKs against the sample of an API in OpenAI's shape: plain, streaming, refused,
//! tried again, given up. What they were answered is what was charged.

use std::process::Command;

use serde_json::{Value, json};
use testkit::{eventually, load::Shot};

use crate::{
    clients,
    stack::{Customer, SETTLE_LIMIT, Stack},
};

const LIVE: [&str; 6] = [
    "--environment",
    "production",
    "--scope",
    "ai:read",
    "--scope",
    "ai:write",
];
/// Credits of a call.
const COST: i64 = 3;

fn chat() -> Shot {
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "Who is there?"}]}"#;
    Shot::post("/api/v1/ai/chat/completions", body)
}

/// Keys by what is the matter with them.
async fn keys(stack: &Stack, customer: &Customer, poor: &str) -> Value {
    let key = |more: &[&str]| stack.key(customer, &[&LIVE[..], more].concat());
    let (_, good) = key(&[]);
    let (id, revoked) = key(&[]);
    stack.cli(&["key", "revoke", &id, "--reason", "test"]);
    let (_, slow) = key(&["--rate", "1", "--burst", "1"]);
    let (_, spent) = key(&["--daily-quota", "1"]);
    let scopeless = ["--environment", "production", "--scope", "pdf:read"];
    let (_, scopeless) = stack.key(customer, &scopeless);
    let (_, poor) = stack.key(&stack.customer(poor, 2), &LIVE);
    let answer = stack.call(&spent, &chat()).await;
    assert_eq!(
        (answer.status.as_u16(), answer.cost()),
        (200, COST),
        "{answer:?}"
    );
    let unknown = types::NewKey::from_random(types::Environment::Production, &[3; 28]);
    json!({
        "good": good, "revoked": revoked, "slow": slow, "spent": spent, "scopeless": scopeless,
        "poor": poor, "unknown": unknown.reveal(),
    })
}

/// Runs a script; each call that it was answered cost `COST`, and nothing else was charged.
async fn check(stack: &Stack, customer: &Customer, poor: &str, mut script: Command) {
    let used = |stack: &Stack| {
        stack.audit();
        let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
        wallet["total_used"].as_i64().expect("a number")
    };
    let keys = keys(stack, customer, poor).await;
    let before = used(stack);
    let base = format!("{}/api/v1/ai", stack.gateways()[0]);
    script.args([base, keys.to_string()]);
    let said = clients::run(script).await;
    let answered = said["answered"].as_array().expect("a list");
    assert!(answered.len() > 20, "{said}");
    for call in answered {
        assert_eq!(call[1], COST, "{said}");
    }
    let charged = i64::try_from(answered.len()).expect("few") * COST;
    let settled = eventually(SETTLE_LIMIT, "everything is charged", async || {
        match used(stack) - before {
            more if more == charged => Ok(()),
            more => Err(format!("{more} instead of {charged}")),
        }
    });
    settled.await.expect("charged");
}

#[tokio::test]
async fn the_official_sdks_work_unchanged_and_pay_for_what_they_were_answered() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let customer = stack.customer("Sdk", 1_000);
    check(
        &stack,
        &customer,
        "Pia",
        clients::python("openai_client.py"),
    )
    .await;
    check(&stack, &customer, "Joe", clients::node("openai_client.mjs")).await;
}
