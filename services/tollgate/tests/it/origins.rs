//! Web pages that call: which of them may, and what browsers are told.

use http::Method;
use serde_json::json;
use testkit::{
    eventually,
    load::{Answer, Shot},
};

use crate::stack::{LIVE, SETTLE_LIMIT, Stack};

const APP: &str = "https://app.example.com";
const EVIL: &str = "https://evil.example";
fn distance() -> Shot {
    Shot::get("/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37")
}

fn from(page: &str) -> Shot {
    distance().with("origin", page)
}

/// What a browser asks before a page may call with a key.
async fn preflight(stack: &Stack, page: &str) -> Answer {
    let shot = Shot {
        method: Method::OPTIONS,
        ..from(page)
    };
    let shot = shot
        .with("access-control-request-method", "GET")
        .with("access-control-request-headers", "x-api-key");
    stack.call("", &shot).await
}

async fn becomes(stack: &Stack, page: &str, status: u16) -> Answer {
    let told = eventually(SETTLE_LIMIT, "gateways know the list", async || {
        let answer = preflight(stack, page).await;
        match answer.status.as_u16() == status {
            true => Ok(answer),
            false => Err(format!("{answer:?}")),
        }
    });
    told.await.expect("told")
}

#[track_caller]
fn is_readable(answer: &Answer, status: u16, by: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(
        answer.header("access-control-allow-origin"),
        by,
        "{answer:?}"
    );
    let exposed = answer.header("access-control-expose-headers");
    assert_eq!(
        exposed.contains("x-request-id"),
        !by.is_empty(),
        "{answer:?}"
    );
    let vary = answer.headers.get_all("vary").iter();
    assert!(vary.into_iter().any(|it| it == "origin"), "{answer:?}");
}

#[tokio::test]
async fn pages_call_with_keys_of_organisations_that_list_them_and_no_others() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let (acme, open, plain) = (
        stack.customer("Acme", 100),
        stack.customer("Open", 100),
        stack.customer("Plain", 100),
    );
    let [(_, acme_key), (_, open_key), (_, plain_key)] =
        [&acme, &open, &plain].map(|customer| stack.key(customer, &LIVE));
    let refused = preflight(&stack, APP).await;
    assert_eq!(refused.status, 403, "{refused:?}");
    assert_eq!(refused.json()["code"], "origin_not_allowed");
    assert_eq!(refused.header("access-control-allow-origin"), "");

    let set = |org: &str, origins: &[&str]| {
        let named = origins
            .iter()
            .flat_map(|origin| ["--allowed-origin", origin]);
        stack.cli(&[&["org", "policy", org][..], &named.collect::<Vec<_>>()].concat())
    };
    let policy = set(
        &acme.org,
        &["HTTPS://App.example.com:443", "http://localhost:3000"],
    );
    assert_eq!(
        policy["allowed_origins"],
        json!([APP, "http://localhost:3000"])
    );
    for wrong in [&["https://app.example.com/"][..], &["*", APP], &["null"]] {
        let named = wrong.iter().flat_map(|origin| ["--allowed-origin", origin]);
        let named: Vec<_> = named.collect();
        let (code, _, said) = stack.try_cli(&[&["org", "policy", &acme.org][..], &named].concat());
        assert_ne!(code, Some(0), "{wrong:?}: {said}");
        assert!(said.contains("allowed_origins"), "{wrong:?}: {said}");
    }

    let told = becomes(&stack, APP, 204).await;
    assert_eq!(told.header("access-control-allow-origin"), APP);
    assert_eq!(told.header("access-control-allow-methods"), "GET");
    assert_eq!(told.header("access-control-allow-headers"), "x-api-key");
    assert_ne!(told.header("access-control-max-age"), "");
    assert_eq!(preflight(&stack, EVIL).await.status, 403);

    is_readable(&stack.call(&acme_key, &from(APP)).await, 200, APP);
    let refused = stack.call(&acme_key, &from(EVIL)).await;
    is_readable(&refused, 403, "");
    assert_eq!(refused.json()["code"], "origin_not_allowed");
    // Elsewhere than in a browser nobody says where a call comes from.
    let answer = stack.call(&acme_key, &distance()).await;
    assert_eq!((answer.status.as_u16(), answer.header("vary")), (200, ""));
    is_readable(&stack.call(&plain_key, &from(APP)).await, 200, "");
    // A page can read why it was refused, also where nobody knows whose key it has.
    is_readable(&stack.call("sk_live_nothing", &from(APP)).await, 401, APP);

    set(&open.org, &["*"]);
    becomes(&stack, EVIL, 204).await;
    is_readable(&stack.call(&open_key, &from(EVIL)).await, 200, "*");
    is_readable(&stack.call(&acme_key, &from(EVIL)).await, 403, "*");

    set(&acme.org, &["none"]);
    set(&open.org, &["none"]);
    becomes(&stack, APP, 403).await;
    is_readable(&stack.call(&acme_key, &from(APP)).await, 200, "");

    stack.audit();
    for (customer, calls) in [(&acme, 3), (&open, 1), (&plain, 1)] {
        let wallet = stack.cli(&["wallet", "show", "--org", &customer.org]);
        assert_eq!(wallet["total_used"], calls, "a refusal costs nothing");
    }
    let refusals = "select count(*) from usage_ingest.api_usage_logs
                     where status_code = 403 and credits_used = 0";
    assert_eq!(stack.count(refusals).await, 2, "each has its row");
}
