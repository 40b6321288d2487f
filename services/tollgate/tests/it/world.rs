//! The control plane's gRPC services on a whole stack, and what tests do with them again and again.

use std::time::Duration;

use proto::{
    channel::Channel,
    keys::v1::{
        self as pb, keys_service_client::KeysServiceClient,
        people_service_client::PeopleServiceClient,
    },
};
use serde_json::Value;
use testkit::{
    eventually,
    load::{Connection, Shot},
};
use tonic::{Code, Request, Status};

use crate::stack::Stack;

/// Mails arrive, and gateways learn, within this.
pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const PASSWORD: &str = "correct horse battery";
const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";

/// Both services of a running stack.
pub(crate) struct World {
    pub(crate) stack: Stack,
    pub(crate) people: PeopleServiceClient<Channel>,
    pub(crate) keys: KeysServiceClient<Channel>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::of(Stack::start(&["--ephemeral"]).await)
    }

    /// The services of a stack.
    pub(crate) fn of(stack: Stack) -> Self {
        let url = stack.info()["grpc"]["keys"].as_str().unwrap().to_owned();
        let token = stack.demo("operator_token").into();
        let channel = runtime::grpc::client(&url, &token).unwrap();
        Self {
            people: PeopleServiceClient::new(channel.clone()),
            keys: KeysServiceClient::new(channel),
            stack,
        }
    }

    pub(crate) async fn messages(&self) -> Vec<Value> {
        messages(&self.stack).await
    }

    /// The newest mail to somebody with this in its text; what follows it, up to a blank.
    pub(crate) async fn mailed(&self, to: &str, before: &str) -> String {
        mailed(&self.stack, to, before).await
    }

    /// What a call with a key is answered.
    pub(crate) async fn status(&self, key: &str) -> (u16, String) {
        let answer = self.stack.call(key, &Shot::get(DISTANCE)).await;
        let code = answer.json()["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (answer.status.as_u16(), code)
    }

    /// Waits until a call with a key is answered so.
    pub(crate) async fn until(&self, key: &str, status: u16, code: &str) {
        let wanted = (status, code.to_owned());
        let reached = eventually(SOON, "the gateway knows", || async {
            let now = self.status(key).await;
            if now == wanted {
                Ok(())
            } else {
                Err(format!("{now:?}, not {wanted:?}"))
            }
        });
        reached.await.unwrap();
    }

    pub(crate) async fn sign_up(&mut self, email: &str) -> String {
        let request = pb::SignUpRequest {
            email: email.to_owned(),
            password: PASSWORD.to_owned(),
            name: "Somebody".to_owned(),
            organisation_name: "Some Company".to_owned(),
            address: "192.0.2.1".to_owned(),
            language: String::new(),
        };
        self.people.sign_up(request).await.unwrap();
        self.sign_in(email, PASSWORD).await.unwrap().user_id
    }

    pub(crate) async fn sign_in(
        &mut self,
        email: &str,
        password: &str,
    ) -> Result<pb::AuthenticateResponse, Status> {
        let request = pb::AuthenticateRequest {
            email: email.to_owned(),
            password: password.to_owned(),
            address: "192.0.2.1".to_owned(),
        };
        Ok(self.people.authenticate(request).await?.into_inner())
    }

    pub(crate) async fn present(
        &mut self,
        user_id: &str,
        code: &str,
    ) -> Result<pb::VerifySecondFactorResponse, Status> {
        let request = pb::VerifySecondFactorRequest {
            user_id: user_id.to_owned(),
            code: code.to_owned(),
        };
        Ok(self
            .people
            .verify_second_factor(request)
            .await?
            .into_inner())
    }
}

/// A request of a user.
pub(crate) fn by<T>(user: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("tollgate-actor", user.parse().unwrap());
    request
}

/// A request of a user who has just shown a second factor.
pub(crate) fn by_two_factors<T>(user: &str, message: T) -> Request<T> {
    let mut request = by(user, message);
    let now = jiff::Timestamp::now().as_second().to_string();
    let metadata = request.metadata_mut();
    metadata.insert("tollgate-second-factor-at", now.parse().unwrap());
    request
}

pub(crate) fn code_of<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

async fn messages(stack: &Stack) -> Vec<Value> {
    let base = stack.info()["mail"].as_str().unwrap().to_owned();
    let answer = Connection::to(&base)
        .call("", &Shot::get("/api/messages"))
        .await
        .unwrap();
    answer.json().as_array().unwrap().clone()
}

/// The newest mail to somebody with this in its text; what follows it, up to a blank.
pub(crate) async fn mailed(stack: &Stack, to: &str, before: &str) -> String {
    let found = eventually(SOON, "the mail arrives", || async {
        let messages = messages(stack).await;
        let texts = messages
            .iter()
            .filter(|mail| mail["to"][0] == to)
            .filter_map(|mail| mail["text"].as_str()?.split_once(before));
        let last = texts
            .collect::<Vec<_>>()
            .pop()
            .map(|(_, rest)| rest.to_owned());
        last.ok_or_else(|| format!("{messages:?}"))
    });
    let rest = found.await.unwrap();
    rest.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}
