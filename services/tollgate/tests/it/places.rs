//! Organisations, policies, members, services: what two people change at once, who is invited,
//! hands over and leaves; and grants that are cut off.

use http::Method;
use serde_json::{Value, json};
use totp_rs::Totp;

use crate::{
    client::{Client, is, refusal, refused, shot, text},
    stack::{SETTLE_LIMIT, Stack},
    world::mailed,
};

async fn own_organisation(person: &mut Client) -> String {
    let listed = person.get("/v1/organisations").await;
    text(&listed["organisations"][0], "org_id")
}

/// Changes something twice with the version that was seen once: the second change is refused, until
/// it is seen what the first has made of it.
async fn collides(client: &mut Client, path: &str, changes: [(Method, &str, Value); 2]) {
    let tagged = |(method, place, body): &(Method, &str, Value), tag: &str| {
        shot(method.clone(), place, body).with("if-match", tag)
    };
    let seen = client.call(Method::GET, path, &Value::Null).await;
    let tag = seen.header("etag").to_owned();
    assert_eq!(
        tag,
        format!("\"{}\"", seen.json()["version"]),
        "{path}: {seen:?}"
    );
    let done = client.shoot(&tagged(&changes[0], &tag)).await;
    assert_eq!(done.status, 200, "{path}: {done:?}");
    assert_ne!(done.header("etag"), tag, "{path}");
    let late = client.shoot(&tagged(&changes[1], &tag)).await;
    assert_eq!(refusal(&late), is(412, "precondition_failed"), "{path}");
    let now = client.call(Method::GET, path, &Value::Null).await;
    assert_eq!(
        now.header("etag"),
        done.header("etag"),
        "{path}: nothing changed"
    );
    let done = client.shoot(&tagged(&changes[1], now.header("etag"))).await;
    assert_eq!(done.status, 200, "{path}: {done:?}");
}

#[tokio::test]
async fn who_changes_what_somebody_else_has_changed_is_told() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let mut ada = Client::person(&stack, "ada").await;
    let org = own_organisation(&mut ada).await;
    let place = format!("/v1/organisations/{org}");
    collides(
        &mut ada,
        &place,
        [
            (Method::PATCH, &place, json!({ "name": "One" })),
            (Method::PATCH, &place, json!({ "name": "Two" })),
        ],
    )
    .await;
    let policy = format!("{place}/policy");
    collides(
        &mut ada,
        &policy,
        [
            (Method::PATCH, &policy, json!({ "leak_action": "revoke" })),
            (Method::PATCH, &policy, json!({ "leak_action": "notify" })),
        ],
    )
    .await;
    let shown = ada.get(&policy).await;
    assert_eq!(shown["leak_action"], "notify");

    let mut operator = Client::new(&stack, &stack.demo("operator_token"));
    let add = json!({ "email": "dev@example.com", "role": "developer" });
    let added = operator
        .ok(Method::POST, &format!("{place}/members"), &add)
        .await;
    let member = format!("{place}/members/{}", text(&added, "user_id"));
    collides(
        &mut ada,
        &member,
        [
            (Method::PATCH, &member, json!({ "role": "billing" })),
            (Method::PATCH, &member, json!({ "role": "admin" })),
        ],
    )
    .await;
    services_collide(&mut operator, &mut ada).await;
    names_and_policies_are_checked(&stack, &mut ada, &place).await;
}

async fn services_collide(operator: &mut Client, person: &mut Client) {
    let service = "/v1/operator/services/mileage";
    let routes = "/v1/operator/services/mileage/routes";
    let route = |cost: i64| json!({ "method": "GET", "scope": "mileage:calculate", "cost": cost });
    collides(
        operator,
        service,
        [
            (Method::PUT, service, json!({ "description": "First" })),
            (Method::PUT, routes, route(2)),
        ],
    )
    .await;
    let full = operator.get(service).await;
    assert!(text(&full, "upstream_url").starts_with("http://"));
    let costs: Vec<&Value> = full["routes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["cost"])
        .collect();
    assert!(costs.contains(&&json!(2)), "{full}");
    let listed = operator.get("/v1/operator/services").await;
    assert!(
        listed["services"].as_array().unwrap().contains(&full),
        "{listed}"
    );
    let new = shot(
        Method::PUT,
        "/v1/operator/services/new",
        &json!({ "upstream_url": "http://x" }),
    );
    let answer = operator.shoot(&new.with("if-match", "\"1\"")).await;
    assert_eq!(
        refusal(&answer),
        is(412, "precondition_failed"),
        "there is none yet"
    );
    for path in [service, "/v1/operator/services"] {
        assert_eq!(
            refused(person, Method::GET, path, Value::Null).await,
            is(403, "forbidden")
        );
    }
    let nothing = "/v1/operator/services/nothing";
    assert_eq!(
        refused(operator, Method::GET, nothing, Value::Null).await,
        is(404, "not_found")
    );
}

async fn names_and_policies_are_checked(stack: &Stack, ada: &mut Client, place: &str) {
    let mut eve = Client::person(stack, "eve").await;
    let theirs = own_organisation(&mut eve).await;
    let theirs = eve.get(&format!("/v1/organisations/{theirs}")).await;
    for (body, wanted) in [
        (json!({ "slug": theirs["slug"] }), is(409, "conflict")),
        (json!({ "slug": "NO" }), is(400, "invalid")),
        (json!({ "name": "" }), is(400, "invalid")),
    ] {
        let told = refused(ada, Method::PATCH, place, body.clone()).await;
        assert_eq!(told, wanted, "{body}");
    }
    let moved = ada
        .ok(Method::PATCH, place, &json!({ "slug": "lovelace" }))
        .await;
    assert_eq!(moved["slug"], "lovelace");
    let policy = format!("{place}/policy");
    let origins = json!({ "allowed_origins": ["https://ada.example.com"] });
    let set = ada.ok(Method::PATCH, &policy, &origins).await;
    assert_eq!(set["allowed_origins"], origins["allowed_origins"]);
    for body in [
        json!({ "leak_action": "ignore" }),
        json!({ "anomaly_action": "ignore" }),
        json!({ "key_lifetime_seconds_max": 5 }),
    ] {
        assert_eq!(
            refused(ada, Method::PATCH, &policy, body).await,
            is(400, "invalid")
        );
    }
    for (method, path) in [(Method::PATCH, place), (Method::GET, &policy)] {
        let told = refused(&mut eve, method, path, json!({ "name": "Mine" })).await;
        assert_eq!(told, is(404, "not_found"));
    }
    stack.cli(&[
        "org",
        "update",
        &place["/v1/organisations/".len()..],
        "--name",
        "Three",
    ]);
    let stale = [
        "org",
        "update",
        &place["/v1/organisations/".len()..],
        "--slug",
        "other",
    ];
    let (code, _, told) = stack.try_cli(&[&stale[..], &["--if-version", "1"]].concat());
    assert_eq!(code, Some(1));
    assert!(told.contains("by now"), "{told}");
}

/// Everything an invited person and its inviter may do.
#[tokio::test]
async fn invitations_end_are_sent_again_and_lead_to_a_place_that_can_be_left_and_handed_over() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let (mut ada, mut bob) = (
        Client::person(&stack, "ada").await,
        Client::person(&stack, "bob").await,
    );
    let org = own_organisation(&mut ada).await;
    let place = format!("/v1/organisations/{org}");
    let name = text(&ada.get(&place).await, "name");
    let invitations = format!("{place}/invitations");
    let wish = json!({ "email": "bob@example.com", "role": "admin" });
    let first = ada.ok(Method::POST, &invitations, &wish).await;
    let first = format!("{invitations}/{}", text(&first, "invitation_id"));
    let token = mailed(&stack, "bob@example.com", "/invite/").await;

    let mut nobody = Client::new(&stack, "");
    let show = "/v1/invitations/show";
    let shown = nobody
        .ok(Method::POST, show, &json!({ "token": token }))
        .await;
    assert_eq!(
        shown,
        json!({ "organisation_name": name, "role": "admin" }),
        "and nothing else"
    );
    let told = refused(
        &mut nobody,
        Method::POST,
        show,
        json!({ "token": "unknown" }),
    )
    .await;
    assert_eq!(told, is(400, "invalid"));

    is_revoked(&mut ada, &mut bob, (&org, &first)).await;
    let told = refused(&mut nobody, Method::POST, show, json!({ "token": token })).await;
    assert_eq!(told, is(409, "conflict"));

    let second = ada.ok(Method::POST, &invitations, &wish).await;
    let second = format!("{invitations}/{}", text(&second, "invitation_id"));
    let sent = ada
        .ok(Method::POST, &format!("{second}/resend"), &Value::Null)
        .await;
    assert_eq!(sent["status"], "open");
    let newest = newest_token(&stack, &token).await;
    let accepted = bob
        .ok(
            Method::POST,
            "/v1/invitations/accept",
            &json!({ "token": newest }),
        )
        .await;
    assert_eq!(accepted, json!({ "org_id": org, "role": "admin" }));
    is_handed_over_and_left(&stack, &mut ada, &mut bob, &place).await;
}

/// Under an organisation it is not of, an invitation is not there, though one is its inviter.
async fn is_revoked(ada: &mut Client, bob: &mut Client, (org, invitation): (&str, &str)) {
    let other = ada
        .ok(
            Method::POST,
            "/v1/organisations",
            &json!({ "name": "Other" }),
        )
        .await;
    let elsewhere = invitation.replace(org, &text(&other, "org_id"));
    for verb in ["resend", "revoke"] {
        let told = refused(
            ada,
            Method::POST,
            &format!("{elsewhere}/{verb}"),
            Value::Null,
        )
        .await;
        assert_eq!(told, is(404, "not_found"));
        let told = refused(
            bob,
            Method::POST,
            &format!("{invitation}/{verb}"),
            Value::Null,
        )
        .await;
        assert_eq!(told, is(404, "not_found"));
    }
    let ended = ada
        .ok(Method::POST, &format!("{invitation}/revoke"), &Value::Null)
        .await;
    assert_eq!(ended["status"], "revoked");
    let told = refused(
        ada,
        Method::POST,
        &format!("{invitation}/resend"),
        Value::Null,
    )
    .await;
    assert_eq!(told, is(409, "conflict"));
}

/// The token of the last of the three mails: an accepted one opens nothing else.
async fn newest_token(stack: &Stack, first: &str) -> String {
    let three = async || {
        let sent = stack.count(
            "select count(*) from keys.outbox_mail
              where template = 'invitation' and sent_at is not null",
        );
        match sent.await {
            3 => Ok(()),
            sent => Err(sent),
        }
    };
    testkit::eventually(SETTLE_LIMIT, "three mails are sent", three)
        .await
        .unwrap();
    let newest = mailed(stack, "bob@example.com", "/invite/").await;
    assert_ne!(newest, first);
    newest
}

async fn is_handed_over_and_left(stack: &Stack, ada: &mut Client, bob: &mut Client, place: &str) {
    let user = |account: &Value| text(account, "user_id");
    let (ada_id, bob_id) = (
        user(&ada.get("/v1/account").await),
        user(&bob.get("/v1/account").await),
    );
    let (leave, transfer) = (format!("{place}/leave"), format!("{place}/transfer"));
    let told = refused(ada, Method::POST, &leave, Value::Null).await;
    assert_eq!(told, is(409, "conflict"), "the last owner stays");
    let to_bob = json!({ "user_id": bob_id });
    let told = refused(ada, Method::POST, &transfer, to_bob.clone()).await;
    assert_eq!(told, is(403, "second_factor_required"));
    let started = ada.ok(Method::POST, "/v1/account/totp", &Value::Null).await;
    let totp = Totp::from_url(text(&started, "otpauth_url")).unwrap();
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    let code = json!({ "code": totp.generate(now).to_string() });
    ada.ok(Method::POST, "/v1/account/totp/confirm", &code)
        .await;
    let code = json!({ "code": totp.generate(now + 30).to_string() });
    ada.ok(Method::POST, "/v1/second-factor", &code).await;
    let done = ada.ok(Method::POST, &transfer, &to_bob).await;
    assert_eq!(done["previous_owner_id"], json!(ada_id));
    let told = refused(ada, Method::POST, &transfer, to_bob).await;
    assert_eq!(told, is(403, "forbidden"), "an admin now");
    let left = ada.ok(Method::POST, &leave, &Value::Null).await;
    assert_eq!(
        left,
        json!({ "revoked_test_keys": 0, "live_keys_to_review": 0 })
    );
    assert_eq!(
        refused(ada, Method::GET, place, Value::Null).await,
        is(404, "not_found")
    );
    let mut operator = Client::new(stack, &stack.demo("operator_token"));
    assert_eq!(
        refused(&mut operator, Method::POST, &leave, Value::Null).await,
        is(403, "forbidden")
    );
}

#[tokio::test]
async fn a_grant_cut_off_after_the_wallet_gave_it_is_given_once() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let acme = stack.customer("Acme", 0);
    let mut operator = Client::new(&stack, &stack.demo("operator_token"));
    let path = format!("/v1/operator/organisations/{}/credits", acme.org);
    let grant = |credits: i64| {
        let body = json!({ "credits": credits, "reason": "welcome" });
        shot(Method::POST, &path, &body).with("idempotency-key", &"k".repeat(64))
    };
    let first = operator.shoot(&grant(10)).await;
    assert_eq!(
        (first.status.as_u16(), &first.json()["balance"]),
        (201, &json!(10))
    );
    // As a process leaves it that dies before it notes the answer.
    let cut = "update portal.idempotency_keys set status = null, body = null";
    sqlx::query(cut).execute(stack.pool()).await.unwrap();
    let again = operator.shoot(&grant(10)).await;
    assert_eq!(
        (again.status.as_u16(), &again.json()["balance"]),
        (201, &json!(10)),
        "{again:?}"
    );
    let replayed = operator.shoot(&grant(10)).await;
    assert_eq!(
        replayed.header("idempotency-replayed"),
        "true",
        "its answer is known by now"
    );
    let other = operator.shoot(&grant(11)).await;
    assert_eq!(refusal(&other), is(422, "idempotency_conflict"));
    let given = stack.count("select count(*) from wallet.ledger_entries where credits = 10");
    assert_eq!(given.await, 1);

    // A page that happens to be full is the last one all the same.
    let ledger = format!("/v1/organisations/{}/wallet/ledger?limit=1", acme.org);
    let page = operator.get(&ledger).await;
    assert_eq!(page["entries"].as_array().map(Vec::len), Some(1));
    assert_eq!(page["next_cursor"], Value::Null, "{page}");
    // Where no service would recognise a repetition, the outcome stays unknown.
    let members = format!("/v1/organisations/{}/members", acme.org);
    let add = json!({ "email": "dev@example.com", "role": "developer" });
    let add = shot(Method::POST, &members, &add).with("idempotency-key", "member-1");
    assert_eq!(operator.shoot(&add).await.status, 201);
    sqlx::query(cut).execute(stack.pool()).await.unwrap();
    let pending = operator.shoot(&add).await;
    assert_eq!(refusal(&pending), is(409, "idempotency_conflict"));
}
