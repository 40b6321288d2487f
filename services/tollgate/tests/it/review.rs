//! What is known of keys: notes, lists, uses; and live keys whose creator has left.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};
use testkit::load::Shot;

use crate::{
    client::{Client, is, refused, text},
    stack::{SETTLE_LIMIT, Stack, signal},
};

const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";

#[tokio::test]
async fn keys_are_noted_found_counted_and_outlive_who_made_them() {
    let stack = Stack::start(&["--ephemeral", "--processes"]).await;
    let acme = stack.customer("Acme", 1000);
    let place = format!("/v1/organisations/{}", acme.org);
    let mut operator = Client::new(&stack, &stack.demo("operator_token"));
    let keys = format!("{place}/keys");
    let wish = json!({ "name": "Shop front", "environment": "production", "daily_quota": 5,
        "scopes": ["mileage:calculate"], "user_id": acme.user,
        "metadata": { "team": "shop", "ticket": "T-7" } });
    let made = operator.ok(Method::POST, &keys, &wish).await;
    let key = format!("{keys}/{}", text(&made, "key_id"));
    is_noted(&stack, &mut operator, &key, &made).await;
    is_found(&stack, &mut operator, &keys, &wish).await;
    is_counted(&stack, &mut operator, &key, &text(&made, "key")).await;
    outlives_its_maker(&stack, &mut operator, &place).await;
    is_shown_without_the_wallet(&stack, &mut operator, &key).await;
}

async fn is_noted(stack: &Stack, operator: &mut Client, key: &str, made: &Value) {
    let noted = json!({ "team": "shop", "ticket": "T-7" });
    assert_eq!(operator.get(key).await["metadata"], noted);
    let many: Value = (0..21)
        .map(|n| (n.to_string(), json!("x")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for wrong in [
        many,
        json!({ "n": "x".repeat(201) }),
        json!({ "n": 7 }),
        json!({ "": "x" }),
    ] {
        let told = refused(operator, Method::PATCH, key, json!({ "metadata": wrong })).await;
        assert_eq!(told, is(400, "invalid"));
    }
    operator
        .ok(Method::PATCH, key, &json!({ "name": "Shop window" }))
        .await;
    assert_eq!(
        operator.get(key).await["metadata"],
        noted,
        "what is not named stays"
    );
    let id = text(made, "key_id");
    let changed = stack.cli(&["key", "update", &id, "--metadata", "team=desk=1"]);
    assert_eq!(changed["metadata"], json!({ "team": "desk=1" }));
    let log = stack.cli(&["audit-log", "list", "--limit", "1"]);
    let details = &log["entries"][0]["details"];
    assert_eq!(details["before"]["metadata"], noted, "{log}");
    let record =
        stack.count("select count(*) from keys.api_keys where metadata = '{\"team\": \"desk=1\"}'");
    assert_eq!(record.await, 1);
    let (code, _, told) = stack.try_cli(&["key", "update", &id, "--metadata", "nonsense"]);
    assert_eq!(
        (code, told.contains("name=value")),
        (Some(64), true),
        "{told}"
    );
}

async fn is_found(stack: &Stack, operator: &mut Client, keys: &str, wish: &Value) {
    let mut ids = Vec::new();
    for (name, more) in [
        ("Warehouse 100%", json!({})),
        ("warehouse old", json!({})),
        ("Suspended", json!({})),
        (
            "Short",
            json!({ "expires_at": (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2)).to_string() }),
        ),
    ] {
        let mut wish = wish.clone();
        wish["name"] = json!(name);
        for (field, value) in more.as_object().unwrap() {
            wish[field] = value.clone();
        }
        ids.push(text(
            &operator.ok(Method::POST, keys, &wish).await,
            "key_id",
        ));
    }
    stack.cli(&["key", "revoke", &ids[1], "--reason", "old"]);
    stack.cli(&["key", "suspend", &ids[2]]);
    let expired = testkit::eventually(SETTLE_LIMIT, "a short life ends", async || {
        let shown = stack.cli(&["key", "show", &ids[3]]);
        if shown["status"] == "expired" {
            Ok(())
        } else {
            Err(shown)
        }
    });
    expired.await.unwrap();
    // Every status finds the keys that say they have it, and no others.
    let all = operator.get(keys).await;
    let all = all["keys"].as_array().unwrap().clone();
    for status in ["active", "throttled", "suspended", "revoked", "expired"] {
        let found = operator.get(&format!("{keys}?status={status}")).await;
        let id = |it: &Value| text(it, "key_id");
        let found: BTreeSet<String> = found["keys"].as_array().unwrap().iter().map(id).collect();
        let wanted = all.iter().filter(|it| it["status"] == status);
        assert_eq!(found, wanted.map(id).collect(), "{status}");
    }
    let names = |found: &Value| found["keys"].as_array().unwrap().len();
    for (query, count) in [
        ("name=WAREHOUSE", 2),
        ("name=100%25", 1),
        ("name=%25", 1),
        ("name=_", 0),
        ("name=warehouse&status=revoked", 1),
    ] {
        let found = operator.get(&format!("{keys}?{query}")).await;
        assert_eq!(names(&found), count, "{query}: {found}");
    }
    let told = refused(
        operator,
        Method::GET,
        &format!("{keys}?status=new"),
        Value::Null,
    )
    .await;
    assert_eq!(told, is(400, "invalid"));
    let listed = stack.cli(&[
        "key",
        "list",
        "--org",
        all[0]["org_id"].as_str().unwrap(),
        "--status",
        "revoked",
    ]);
    assert_eq!(names(&listed), 1);
}

async fn is_counted(stack: &Stack, operator: &mut Client, key: &str, secret: &str) {
    let shown = operator.get(key).await;
    assert_eq!(
        (&shown["daily_used"], &shown["monthly_used"]),
        (&json!(0), &Value::Null)
    );
    for _ in 0..3 {
        let answer = stack.call(secret, &Shot::get(DISTANCE)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let operator = tokio::sync::Mutex::new(operator);
    let counted = testkit::eventually(SETTLE_LIMIT, "three calls count", async || {
        let shown = operator.lock().await.get(key).await;
        if shown["daily_used"] == 3 {
            Ok(())
        } else {
            Err(shown)
        }
    });
    counted.await.unwrap();
}

async fn outlives_its_maker(stack: &Stack, operator: &mut Client, place: &str) {
    let mut dev = Client::person(stack, "dev").await;
    let user = text(&dev.get("/v1/account").await, "user_id");
    let add = json!({ "email": "dev@example.com", "role": "admin" });
    operator
        .ok(Method::POST, &format!("{place}/members"), &add)
        .await;
    operator
        .ok(
            Method::PATCH,
            &format!("{place}/policy"),
            &json!({ "live_keys_need_second_factor": false }),
        )
        .await;
    let keys = format!("{place}/keys");
    let wish = |environment: &str| {
        json!({ "name": environment, "environment": environment,
        "scopes": ["mileage:calculate"] })
    };
    let mut made = Vec::new();
    for environment in ["test", "production", "production"] {
        made.push(dev.ok(Method::POST, &keys, &wish(environment)).await);
    }
    let reviews = format!("{place}/key-reviews");
    let none = json!([]);
    assert_eq!(
        operator.get(&reviews).await["reviews"],
        none,
        "nobody has left"
    );
    let left = dev
        .ok(Method::POST, &format!("{place}/leave"), &Value::Null)
        .await;
    assert_eq!(
        left,
        json!({ "revoked_test_keys": 1, "live_keys_to_review": 2 })
    );
    for (made, status) in made.iter().zip([401, 200, 200]) {
        let reached = testkit::eventually(SETTLE_LIMIT, "the gateway knows", async || {
            let answer = stack.call(&text(made, "key"), &Shot::get(DISTANCE)).await;
            if answer.status.as_u16() == status {
                Ok(())
            } else {
                Err(format!("{answer:?}"))
            }
        });
        reached.await.unwrap();
    }
    let told = refused(&mut dev, Method::GET, &reviews, Value::Null).await;
    assert_eq!(told, is(404, "not_found"));
    let listed = operator.get(&format!("{reviews}?limit=1")).await;
    let review = &listed["reviews"][0];
    assert_eq!(
        (&review["email"], &review["key"]["key_id"]),
        (&json!("dev@example.com"), &made[2]["key_id"])
    );
    assert_eq!(review["key"]["created_by"], json!(user));
    let cursor = text(&listed, "next_cursor");
    let next = operator
        .get(&format!("{reviews}?limit=1&cursor={cursor}"))
        .await;
    assert_eq!(next["reviews"][0]["key"]["key_id"], made[1]["key_id"]);
    assert_eq!(next["next_cursor"], Value::Null);
    are_decided(stack, operator, place, &made).await;
}

async fn are_decided(stack: &Stack, operator: &mut Client, place: &str, made: &[Value]) {
    let reviews = format!("{place}/key-reviews");
    let keep = format!("{reviews}/{}/keep", text(&made[1], "key_id"));
    // Whoever may not decide about keys is refused; whoever is a stranger sees none.
    let mut helper = Client::person(stack, "helper").await;
    let told = refused(&mut helper, Method::POST, &keep, Value::Null).await;
    assert_eq!(told, is(404, "not_found"));
    let add = json!({ "email": "helper@example.com", "role": "developer" });
    operator
        .ok(Method::POST, &format!("{place}/members"), &add)
        .await;
    for (method, path) in [(Method::POST, &keep), (Method::GET, &reviews)] {
        let told = refused(&mut helper, method, path, Value::Null).await;
        assert_eq!(told, is(403, "forbidden"));
    }
    operator.ok(Method::POST, &keep, &Value::Null).await;
    let told = refused(operator, Method::POST, &keep, Value::Null).await;
    assert_eq!(told, is(404, "not_found"), "it is decided");
    let org = place.trim_start_matches("/v1/organisations/");
    let listed = stack.cli(&["key", "reviews", "--org", org]);
    let keys: Vec<&Value> = listed["reviews"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["key_id"])
        .collect();
    assert_eq!(keys, [&made[2]["key_id"]]);
    stack.cli(&[
        "key",
        "revoke",
        &text(&made[2], "key_id"),
        "--reason",
        "nobody needs it",
    ]);
    assert_eq!(
        operator.get(&reviews).await["reviews"],
        json!([]),
        "revoked is decided too"
    );
    assert_eq!(
        stack.try_cli(&["key", "keep", &text(&made[2], "key_id")]).0,
        Some(1)
    );
}

/// A wallet that hangs delays a list of keys by its patience and takes nothing else away.
async fn is_shown_without_the_wallet(stack: &Stack, operator: &mut Client, key: &str) {
    let wallet = stack.pids("wallet");
    for pid in &wallet {
        signal(*pid, rustix::process::Signal::STOP);
    }
    let shown = operator.call(Method::GET, key, &Value::Null).await;
    for pid in &wallet {
        signal(*pid, rustix::process::Signal::CONT);
    }
    assert_eq!(shown.status, 200, "{shown:?}");
    let shown = shown.json();
    assert_eq!(
        (&shown["daily_quota"], &shown["daily_used"]),
        (&json!(5), &Value::Null)
    );
}
