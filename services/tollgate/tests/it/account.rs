//! What people do about their accounts, what operators do for them, and what strangers may ask.

use http::Method;
use serde_json::{Value, json};
use testkit::{
    eventually,
    load::{Answer, Shot},
};
use totp_rs::Totp;

use crate::{
    client::{Client, PASSWORD, is, refusal, refused, shot, text},
    stack::{DISTANCE, Stack},
    world::{SOON, mailed},
};

/// Whom the proxy in front says it has seen.
const HOME: &str = "198.51.100.7";
const OTHER_PASSWORD: &str = "another horse, another battery";

/// A request as the proxy in front hands it on; what the client itself claims stands to the left.
fn from_home(shot: Shot) -> Shot {
    shot.with("x-forwarded-for", &format!("203.0.113.99, {HOME}"))
}

fn code_at(totp: &Totp, seconds: u64) -> Value {
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    json!({ "code": totp.generate(now + seconds).to_string() })
}

#[tokio::test]
async fn people_look_after_their_accounts_and_the_log_says_from_where() {
    let stack = Stack::start_with(&["--ephemeral"], &[("TOLLGATE_PORTAL_TRUSTED_HOPS", "1")]).await;
    let mut ada = Client::person(&stack, "ada").await;
    changes_name_and_language(&stack, &mut ada).await;
    let first = mailed(&stack, "ada@example.com", "/verify/").await;
    let again = ada
        .call(Method::POST, "/v1/account/verification", &Value::Null)
        .await;
    assert_eq!(again.status, 202);
    let second = eventually(SOON, "a second link arrives", async || {
        let second = mailed(&stack, "ada@example.com", "/verify/").await;
        if second == first {
            Err(second)
        } else {
            Ok(second)
        }
    });
    let second = json!({ "token": second.await.unwrap() });
    ada.ok(Method::POST, "/v1/verify-email", &second).await;

    sees_and_ends_sessions(&stack, &mut ada).await;
    changes_the_password(&mut ada).await;
    turns_the_second_factor_on_and_off(&mut ada).await;
    gets_a_lost_second_factor_reset(&stack, &mut ada).await;
    every_entry_says_from_where(&stack).await;
}

async fn changes_name_and_language(stack: &Stack, ada: &mut Client) {
    let change = json!({ "name": "Ada Lovelace", "language": "fr" });
    let change = from_home(shot(Method::PATCH, "/v1/account", &change));
    let changed = ada.shoot(&change).await;
    assert_eq!(changed.json()["language"], "fr", "{changed:?}");
    assert_eq!(ada.get("/v1/account").await["name"], "Ada Lovelace");
    for wrong in [
        json!({ "language": "xx" }),
        json!({ "name": "" }),
        json!({ "email": "x" }),
    ] {
        let told = refused(ada, Method::PATCH, "/v1/account", wrong).await;
        assert_eq!(told, is(400, "invalid"));
    }
    let from: String = sqlx::query_scalar(
        "select host(address) from keys.audit_log where action = 'user.updated'",
    )
    .fetch_one(stack.pool())
    .await
    .unwrap();
    assert_eq!(from, HOME, "what the client claims itself is not believed");
}

async fn sees_and_ends_sessions(stack: &Stack, ada: &mut Client) {
    let mut elsewhere = Client::new(stack, "");
    let login = json!({ "email": "ada@example.com", "password": PASSWORD });
    let login = shot(Method::POST, "/v1/login", &login).with("user-agent", "a telephone");
    elsewhere.token = text(&elsewhere.shoot(&from_home(login)).await.json(), "token");
    let sessions = ada.get("/v1/account/sessions").await;
    let sessions = sessions["sessions"].as_array().unwrap().clone();
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    let current = |it: &&Value| it["current"] == true;
    assert_eq!(sessions.iter().filter(current).count(), 1);
    let other = sessions.iter().find(|it| it["current"] == false).unwrap();
    assert_eq!(
        (&other["address"], &other["user_agent"]),
        (&json!(HOME), &json!("a telephone"))
    );
    assert!(
        !format!("{sessions:?}").contains("tgs_"),
        "no token is shown again"
    );

    let path = format!("/v1/account/sessions/{}", text(other, "session_id"));
    let mut eve = Client::person(stack, "eve").await;
    let told = refused(&mut eve, Method::DELETE, &path, Value::Null).await;
    assert_eq!(told, is(404, "not_found"), "somebody else's is not there");
    elsewhere.get("/v1/account").await;
    ada.ok(Method::DELETE, &path, &Value::Null).await;
    let told = refused(&mut elsewhere, Method::GET, "/v1/account", Value::Null).await;
    assert_eq!(told, is(401, "unauthenticated"));
    let told = refused(ada, Method::DELETE, &path, Value::Null).await;
    assert_eq!(told, is(404, "not_found"));

    let login = json!({ "email": "ada@example.com", "password": PASSWORD });
    for _ in 0..2 {
        let session = elsewhere.ok(Method::POST, "/v1/login", &login).await;
        elsewhere.token = text(&session, "token");
    }
    let ended = ada
        .ok(Method::DELETE, "/v1/account/sessions", &Value::Null)
        .await;
    assert_eq!(ended["ended"], 2);
    let told = refused(&mut elsewhere, Method::GET, "/v1/account", Value::Null).await;
    assert_eq!(told, is(401, "unauthenticated"));
    ada.get("/v1/account").await;
}

async fn changes_the_password(ada: &mut Client) {
    let change = |old: &str, new: &str| json!({ "old_password": old, "new_password": new });
    let path = "/v1/account/password";
    for (body, wanted) in [
        (
            change("not the old one", OTHER_PASSWORD),
            is(401, "unauthenticated"),
        ),
        (change(PASSWORD, "short"), is(400, "invalid")),
    ] {
        assert_eq!(refused(ada, Method::PUT, path, body).await, wanted);
    }
    let old_token = ada.token.clone();
    let next = ada
        .ok(Method::PUT, path, &change(PASSWORD, OTHER_PASSWORD))
        .await;
    let told = refused(ada, Method::GET, "/v1/account", Value::Null).await;
    assert_eq!(
        told,
        is(401, "unauthenticated"),
        "the session that asked has ended too"
    );
    ada.token = text(&next, "token");
    assert_ne!(ada.token, old_token);
    let sessions = ada.get("/v1/account/sessions").await;
    assert_eq!(
        sessions["sessions"].as_array().map(Vec::len),
        Some(1),
        "{sessions}"
    );
    let login = json!({ "email": "ada@example.com", "password": PASSWORD });
    let told = refused(ada, Method::POST, "/v1/login", login).await;
    assert_eq!(told, is(401, "unauthenticated"));
}

async fn enrols(ada: &mut Client) -> (Totp, Vec<String>) {
    let started = ada.ok(Method::POST, "/v1/account/totp", &Value::Null).await;
    let totp = Totp::from_url(text(&started, "otpauth_url")).unwrap();
    let confirmed = ada
        .ok(Method::POST, "/v1/account/totp/confirm", &code_at(&totp, 0))
        .await;
    let codes = confirmed["recovery_codes"].as_array().unwrap();
    let codes = codes.iter().map(|it| it.as_str().unwrap().to_owned());
    (totp, codes.collect())
}

async fn turns_the_second_factor_on_and_off(ada: &mut Client) {
    let (totp, codes) = enrols(ada).await;
    let login = json!({ "email": "ada@example.com", "password": OTHER_PASSWORD });
    let told = refused(ada, Method::POST, "/v1/login", login).await;
    assert_eq!(told, is(403, "second_factor_required"));
    let renew = "/v1/account/recovery-codes";
    let told = refused(ada, Method::POST, renew, json!({ "code": "000000" })).await;
    assert_eq!(told, is(401, "unauthenticated"));
    let renew = shot(Method::POST, renew, &code_at(&totp, 30)).with("idempotency-key", "renew");
    let renewed = ada.shoot(&renew).await.json();
    let again = ada.shoot(&renew).await;
    assert_eq!(again.json()["recovery_codes"], Value::Null, "shown once");
    let disable = "/v1/account/totp/disable";
    let old = json!({ "code": codes[0] });
    let told = refused(ada, Method::POST, disable, old).await;
    assert_eq!(told, is(401, "unauthenticated"), "the old codes are void");
    let new = json!({ "code": renewed["recovery_codes"][0] });
    ada.ok(Method::POST, disable, &new).await;
    assert_eq!(ada.get("/v1/account").await["second_factor"], false);
    let told = refused(ada, Method::POST, disable, new).await;
    assert_eq!(told, is(409, "conflict"));
}

async fn gets_a_lost_second_factor_reset(stack: &Stack, ada: &mut Client) {
    enrols(ada).await;
    let user = text(&ada.get("/v1/account").await, "user_id");
    let path = format!("/v1/operator/users/{user}/second-factor/reset");
    let told = refused(ada, Method::POST, &path, Value::Null).await;
    assert_eq!(told, is(403, "forbidden"));
    let mut operator = Client::new(stack, &stack.demo("operator_token"));
    operator.ok(Method::POST, &path, &Value::Null).await;
    let told = refused(ada, Method::GET, "/v1/account", Value::Null).await;
    assert_eq!(told, is(401, "unauthenticated"), "every session has ended");
    let told = refused(&mut operator, Method::POST, &path, Value::Null).await;
    assert_eq!(told, is(409, "conflict"));
    let login = json!({ "email": "ada@example.com", "password": OTHER_PASSWORD });
    let session = ada.ok(Method::POST, "/v1/login", &login).await;
    ada.token = text(&session, "token");
    let told = stack.count(
        "select count(*) from keys.outbox_mail
          where template = 'second_factor_removed' and recipient = 'ada@example.com'",
    );
    assert_eq!(told.await, 2, "the user is told, as when it was disabled");
    let nobody = "/v1/operator/users/usr_00000000000000000000000000000001/second-factor/reset";
    let told = refused(&mut operator, Method::POST, nobody, Value::Null).await;
    assert_eq!(told, is(404, "not_found"));
}

async fn every_entry_says_from_where(stack: &Stack) {
    let nowhere = stack.count("select count(*) from keys.audit_log where address is null");
    assert_eq!(nowhere.await, 0, "whoever acted was somewhere");
    // The CLI of the fixture calls the services itself.
    let listed = stack.cli(&["audit-log", "list", "--limit", "1000"]);
    let entries = listed["entries"].as_array().unwrap();
    let by = |action: &str| entries.iter().find(|it| it["action"] == action).unwrap();
    assert_eq!(by("service.created")["address"], "127.0.0.1");
    assert_eq!(by("user.second_factor_reset")["actor"], "operator");
    stack.cli(&["audit-log", "verify"]);
    for sql in [
        "alter table keys.audit_log disable trigger audit_log_is_append_only",
        "update keys.audit_log set address = '192.0.2.66' where action = 'user.updated'",
    ] {
        sqlx::query(sql).execute(stack.pool()).await.unwrap();
    }
    let (code, found, _) = stack.try_cli(&["audit-log", "verify"]);
    assert_eq!(
        (code, &found["problems"][0]["kind"]),
        (Some(1), &json!("altered"))
    );
}

/// What a public route answers, without a session.
async fn stranger(stack: &Stack, shot: &Shot) -> Answer {
    Client::new(stack, "").shoot(shot).await
}

#[tokio::test]
async fn strangers_may_check_forms_report_leaks_and_learn_nothing() {
    let variables = [("TOLLGATE_PORTAL_TRUSTED_HOPS", "1")];
    let stack = Stack::start_with(&["--ephemeral"], &variables).await;
    let acme = stack.customer("Acme", 100);
    let (id, key) = stack.key(
        &acme,
        &[
            "--environment",
            "production",
            "--scope",
            "mileage:calculate",
        ],
    );
    tells_what_a_key_looks_like(&stack, &key).await;

    let report = |body: &Value| shot(Method::POST, "/v1/leaked-keys", body);
    let leaked = json!({ "key": key, "source": "a friend", "url": "https://example.com/paste" });
    let known = stranger(&stack, &report(&leaked)).await;
    let nobodys = "sk_live_".to_owned() + &"A".repeat(43);
    let unknown = stranger(&stack, &report(&json!({ "key": nobodys }))).await;
    assert_eq!((known.status.as_u16(), &known.body[..]), (202, &b""[..]));
    assert_eq!((unknown.status, &unknown.body), (known.status, &known.body));
    let refused = eventually(SOON, "the key is suspended", async || {
        let answer = stack.call(&key, &Shot::get(DISTANCE)).await;
        match answer.json()["code"] == "key_suspended" {
            true => Ok(()),
            false => Err(format!("{answer:?}")),
        }
    });
    refused.await.unwrap();
    mailed(&stack, "acme@example.com", "https://example.com/").await;
    let shown = stack.cli(&["key", "show", &id]);
    assert_eq!(shown["status"], "suspended");
    for (body, wanted) in [
        (json!({}), is(400, "invalid")),
        (json!([]), is(400, "invalid")),
        (json!({ "hash": "abc" }), is(400, "invalid")),
        (
            json!({ "key": key, "hash": "0".repeat(64) }),
            is(400, "invalid"),
        ),
        (json!("sk_live_"), is(400, "invalid")),
    ] {
        let answer = stranger(&stack, &report(&body)).await;
        assert_eq!(refusal(&answer), wanted, "{body}");
    }
    let forged = report(&json!([{ "token": key, "type": "key", "source": "commit" }]))
        .with("github-public-key-identifier", "nobody's")
        .with("github-public-key-signature", "AAAA");
    assert_eq!(
        refusal(&stranger(&stack, &forged).await).0,
        403,
        "a wrong signature"
    );
    asks_too_often(&stack).await;
    let log = std::fs::read_dir(stack.data().join("log")).unwrap();
    for file in log.flatten() {
        let text = std::fs::read_to_string(file.path()).unwrap_or_default();
        assert!(
            !text.contains(&key),
            "{} holds the key",
            file.path().display()
        );
    }
}

async fn tells_what_a_key_looks_like(stack: &Stack, key: &str) {
    let format = stranger(stack, &Shot::get("/v1/key-format")).await.json();
    let live = &format["prefixes"][0];
    assert_eq!(live["prefix"], "sk_live_");
    assert_eq!(live["regex"], "^sk_live_[A-Za-z0-9_-]{43}$");
    let body = key.strip_prefix("sk_live_").unwrap();
    assert_eq!(format["body_chars"], body.len());
    let typo = match body.starts_with('A') {
        true => format!("sk_live_B{}", &body[1..]),
        false => format!("sk_live_A{}", &body[1..]),
    };
    for (text, valid, environment) in [
        (key, true, json!("production")),
        (&typo, false, Value::Null),
        ("sk_live_", false, Value::Null),
        ("", false, Value::Null),
    ] {
        let check = shot(
            Method::POST,
            "/v1/key-format/check",
            &json!({ "key": text }),
        );
        let checked = stranger(stack, &check).await;
        let wanted = json!({ "valid": valid, "environment": environment });
        assert_eq!(
            (checked.status.as_u16(), checked.json()),
            (200, wanted),
            "{text}"
        );
    }
}

async fn asks_too_often(stack: &Stack) {
    let check = shot(Method::POST, "/v1/key-format/check", &json!({ "key": "x" }));
    let busy = check.clone().with("x-forwarded-for", "192.0.2.44");
    let mut last = stranger(stack, &busy).await;
    for _ in 0..100 {
        if last.status != 200 {
            break;
        }
        last = stranger(stack, &busy).await;
    }
    assert_eq!(refusal(&last), is(429, "exhausted"));
    assert!(!last.header("retry-after").is_empty());
    let other = check.with("x-forwarded-for", "192.0.2.45");
    assert_eq!(
        stranger(stack, &other).await.status,
        200,
        "nobody else waits"
    );
}
