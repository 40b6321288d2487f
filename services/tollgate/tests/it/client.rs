//! A client of the management API.

use http::Method;
use serde_json::{Value, json};
use testkit::load::{Answer, Connection, Shot};

use crate::stack::Stack;

pub(crate) const PASSWORD: &str = "correct horse battery staple";

/// Somebody at the API: an operator, a person, or nobody.
pub(crate) struct Client {
    connection: Connection,
    pub(crate) token: String,
}

impl Client {
    pub(crate) fn new(stack: &Stack, token: &str) -> Self {
        let info = stack.info();
        Self {
            connection: Connection::to(info["api"].as_str().expect("the API")),
            token: token.to_owned(),
        }
    }

    /// Signs up and in.
    pub(crate) async fn person(stack: &Stack, name: &str) -> Self {
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

    pub(crate) async fn shoot(&mut self, shot: &Shot) -> Answer {
        let answer = self.connection.call(&self.token, shot).await;
        answer.expect("an answer")
    }

    pub(crate) async fn call(&mut self, method: Method, path: &str, body: &Value) -> Answer {
        self.shoot(&shot(method, path, body)).await
    }

    /// A call that must succeed.
    pub(crate) async fn ok(&mut self, method: Method, path: &str, body: &Value) -> Value {
        let answer = self.call(method.clone(), path, body).await;
        assert!(answer.status.is_success(), "{method} {path}: {answer:?}");
        answer.json()
    }

    pub(crate) async fn get(&mut self, path: &str) -> Value {
        self.ok(Method::GET, path, &Value::Null).await
    }
}

pub(crate) fn shot(method: Method, path: &str, body: &Value) -> Shot {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let mut shot = Shot::post(path, &body);
    shot.method = method;
    shot
}

pub(crate) fn text(value: &Value, field: &str) -> String {
    let text = value[field].as_str();
    text.unwrap_or_else(|| panic!("{field} in {value}"))
        .to_owned()
}

/// Status and code of a refusal, which must be a problem document with the request's id.
pub(crate) fn refusal(answer: &Answer) -> (u16, String) {
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

/// A refusal's status and code.
pub(crate) fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// Status and code of a call that must be refused.
pub(crate) async fn refused(
    client: &mut Client,
    method: Method,
    path: &str,
    body: Value,
) -> (u16, String) {
    let answer = client.call(method, path, &body).await;
    refusal(&answer)
}
