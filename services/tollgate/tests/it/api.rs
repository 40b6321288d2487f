//! The management API: an operator's road through it, and what strangers see of others.

use http::Method;
use serde_json::{Map, Value, json};
use testkit::{
    eventually,
    load::{Answer, Connection, Shot},
};

use crate::stack::{SETTLE_LIMIT, Stack};

const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";
const PASSWORD: &str = "correct horse battery staple";

/// Somebody at the API: an operator, a person, or nobody.
struct Client {
    connection: Connection,
    token: String,
}

impl Client {
    fn new(stack: &Stack, token: &str) -> Self {
        let info = stack.info();
        Self {
            connection: Connection::to(info["api"].as_str().expect("the API")),
            token: token.to_owned(),
        }
    }

    /// Signs up and in.
    async fn person(stack: &Stack, name: &str) -> Self {
        let mut client = Self::new(stack, "");
        let email = format!("{name}@example.com");
        let account = json!({ "email": email, "password": PASSWORD, "name": name,
                              "organisation_name": name });
        let answer = client.call(Method::POST, "/v1/signup", &account).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let login = json!({ "email": email, "password": PASSWORD });
        let session = client.ok(Method::POST, "/v1/login", &login).await;
        client.token = text(&session, "token");
        client
    }

    async fn shoot(&mut self, shot: &Shot) -> Answer {
        let answer = self.connection.call(&self.token, shot).await;
        answer.expect("an answer")
    }

    async fn call(&mut self, method: Method, path: &str, body: &Value) -> Answer {
        self.shoot(&shot(method, path, body)).await
    }

    /// A call that must succeed.
    async fn ok(&mut self, method: Method, path: &str, body: &Value) -> Value {
        let answer = self.call(method.clone(), path, body).await;
        assert!(answer.status.is_success(), "{method} {path}: {answer:?}");
        answer.json()
    }

    async fn get(&mut self, path: &str) -> Value {
        self.ok(Method::GET, path, &Value::Null).await
    }
}

fn shot(method: Method, path: &str, body: &Value) -> Shot {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let mut shot = Shot::post(path, &body);
    shot.method = method;
    shot
}

fn text(value: &Value, field: &str) -> String {
    let text = value[field].as_str();
    text.unwrap_or_else(|| panic!("{field} in {value}"))
        .to_owned()
}

/// Status and code of a refusal, which must be a problem document with the request's id.
fn refusal(answer: &Answer) -> (u16, String) {
    assert_eq!(
        answer.header("content-type"),
        "application/problem+json",
        "{answer:?}"
    );
    let problem = answer.json();
    assert_eq!(problem["status"], answer.status.as_u16());
    assert_eq!(problem["request_id"], answer.header("x-request-id"));
    (answer.status.as_u16(), text(&problem, "code"))
}

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

/// What the document says of the routes, with somebody's ids filled in.
struct Operation {
    method: Method,
    template: String,
    body: Value,
    is_open: bool,
}

async fn operations(stack: &Stack) -> Vec<Operation> {
    let document = Client::new(stack, "").get("/openapi.json").await;
    let mut found = Vec::new();
    for (template, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("an item") {
            let method = method.to_uppercase().parse().expect("a method");
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            found.push(Operation {
                method,
                template: template.clone(),
                body: body(&document, schema),
                is_open: operation["security"].as_array().is_some_and(Vec::is_empty),
            });
        }
    }
    assert!(found.len() >= 40, "{} operations", found.len());
    found
}

/// A body that fits: an answer of 400 would say nothing of rights.
fn body(document: &Value, schema: &Value) -> Value {
    let Some(name) = schema["$ref"].as_str() else {
        return Value::Null;
    };
    let name = name.trim_start_matches("#/components/schemas/");
    let schema = &document["components"]["schemas"][name];
    let mut body = Map::new();
    for field in schema["required"].as_array().into_iter().flatten() {
        let field = field.as_str().expect("a name");
        let value = match field {
            "email" => json!("somebody@example.com"),
            "role" => json!("developer"),
            "environment" => json!("test"),
            "scopes" => json!(["mileage:calculate"]),
            "scope" => json!("mileage:calculate"),
            "overlap_seconds" | "credits" => json!(1),
            "password" | "new_password" => json!("not the right one"),
            _ => json!("123456"),
        };
        body.insert(field.to_owned(), value);
    }
    Value::Object(body)
}

fn filled(template: &str, ids: &[(&str, &str)]) -> String {
    let mut path = template.to_owned();
    for (name, value) in ids {
        path = path.replace(&format!("{{{name}}}"), value);
    }
    assert!(!path.contains('{'), "{path} is filled");
    path
}

/// Everything of the first tenant is asked for by the second one, on every route.
#[tokio::test]
async fn another_organisation_s_ids_are_not_there_and_nobody_gets_nothing() {
    let stack = Stack::start(&["--ephemeral"]).await;
    let operations = operations(&stack).await;

    let mut nobody = Client::new(&stack, "");
    let ids = [
        ("org", stack.demo("org_id")),
        ("user", stack.demo("user_id")),
        ("service", "mileage".to_owned()),
    ];
    let call = stack
        .call(&stack.demo("live_key"), &Shot::get(DISTANCE))
        .await;
    let mut operator = Client::new(&stack, &stack.demo("operator_token"));
    let keys = format!("/v1/organisations/{}/keys", stack.demo("org_id"));
    let keys = operator.get(&keys).await;
    let key = text(&keys["keys"][0], "key_id");
    let anomaly = "ano_".to_owned() + &"0".repeat(32);
    let mut theirs: Vec<(&str, &str)> = ids.iter().map(|(n, v)| (*n, v.as_str())).collect();
    theirs.push(("key", &key));
    theirs.push(("request", call.header("x-request-id")));
    theirs.push(("anomaly", &anomaly));

    let mut cells = 0;
    for operation in operations.iter().filter(|it| !it.is_open) {
        let path = filled(&operation.template, &theirs);
        for token in [
            "",
            "tgs_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "nonsense",
        ] {
            nobody.token = token.to_owned();
            let method = operation.method.clone();
            let answer = nobody.call(method, &path, &operation.body).await;
            let wanted = (401, "unauthenticated".to_owned());
            assert_eq!(refusal(&answer), wanted, "{} {path}", operation.method);
            cells += 1;
        }
    }

    let mut stranger = Client::person(&stack, "stranger").await;
    let own = stranger.get("/v1/organisations").await;
    let own = text(&own["organisations"][0], "org_id");
    let mut mixed = vec![("org", own.as_str())];
    mixed.extend(theirs.iter().filter(|(name, _)| *name != "org"));
    for operation in operations.iter().filter(|it| it.template.contains('{')) {
        let is_operator = operation.template.starts_with("/v1/operator/");
        // Under the stranger's own organisation only what is deeper is somebody else's.
        let is_deep = operation.template.matches('{').count() > 1;
        let variants = [Some(&theirs), is_deep.then_some(&mixed)];
        for ids in variants.into_iter().flatten() {
            let path = filled(&operation.template, ids);
            let method = operation.method.clone();
            let answer = stranger.call(method, &path, &operation.body).await;
            let wanted = match is_operator {
                true => (403, "forbidden".to_owned()),
                false => (404, "not_found".to_owned()),
            };
            assert_eq!(refusal(&answer), wanted, "{} {path}", operation.method);
            cells += 1;
        }
    }
    println!("cells of the sweep: {cells}");
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
