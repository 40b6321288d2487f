//! A tenant with rows in every table, made as tenants make them: by calls.

use proto::keys::v1 as pb;
use serde_json::{Value, json};
use testkit::{
    eventually,
    load::{Answer, Connection, Shot},
};
use totp_rs::Totp;
use uuid::Uuid;

use crate::{
    stack::{COUNTRIES, Customer, SETTLE_LIMIT, Stack, address_in},
    world::{PASSWORD, World, by},
};

pub(super) const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";
const SCOPE: &str = "mileage:calculate";

/// An organisation with its owner.
pub(super) struct Tenant {
    pub(super) org: Uuid,
    pub(super) user: Uuid,
    /// A live key.
    pub(super) key: Uuid,
    pub(super) live_key: String,
    /// Of the owner, at the management API.
    session: String,
}

/// What the bytes after the kind of an id say.
fn uuid_of(id: &str) -> Uuid {
    let digits = id.split_once('_').expect("a kind").1;
    digits.parse().expect("an id")
}

fn text(value: &Value, field: &str) -> String {
    let text = value[field].as_str();
    text.unwrap_or_else(|| panic!("{field} in {value}"))
        .to_owned()
}

impl Tenant {
    /// What services say to the database when they work for this tenant.
    pub(super) fn scopes(&self) -> [String; 2] {
        [format!("user:{}", self.user), format!("org:{}", self.org)]
    }

    /// How this tenant's things are told, in columns and in texts.
    pub(super) fn ids(&self) -> impl Iterator<Item = String> {
        let all = [self.org, self.user, self.key];
        all.into_iter()
            .flat_map(|id| [id.to_string(), id.simple().to_string()])
    }

    pub(super) async fn with_everything(world: &mut World, name: &str) -> Self {
        let email = format!("{name}@example.com");
        let customer = a_customer(world, &email).await;
        let org = customer.org.as_str();
        let stack = &world.stack;
        stack.cli(&["org", "policy", org, "--anomaly-action", "throttle"]);
        stack.cli(&[
            "wallet",
            "grant",
            "--org",
            org,
            "--credits",
            "1000",
            "--reason",
            "test",
        ]);
        let live = [
            "--environment",
            "production",
            "--scope",
            SCOPE,
            "--daily-quota",
            "1000",
        ];
        let (key, live_key) = stack.key(&customer, &live);
        let (_, test_key) = stack.key(&customer, &["--environment", "test", "--scope", SCOPE]);
        stack.cli(&[
            "invitation",
            "create",
            "--org",
            org,
            "--email",
            &format!("guest-{email}"),
        ]);
        somebody_leaves(stack, org, &email);
        let (_, leaked) = stack.key(&customer, &live);
        a_key_leaks(world, leaked).await;
        let tenant = Self {
            org: uuid_of(org),
            user: uuid_of(&customer.user),
            key: uuid_of(&key),
            live_key,
            session: sign_in(&world.stack, &email).await,
        };
        let asked = tenant.ask_once(&world.stack, "first").await;
        assert!(asked.status.is_success(), "{asked:?}");
        a_second_factor(world, &customer.user).await;
        tenant.calls(&world.stack, &test_key).await;
        tenant
    }

    /// Calls that are paid, tried, and seen from too many countries.
    async fn calls(&self, stack: &Stack, test_key: &str) {
        stack.call(test_key, &Shot::get(DISTANCE)).await;
        for country in 0..COUNTRIES.len() {
            let shot = Shot::get(DISTANCE).with("x-forwarded-for", &address_in(country));
            stack.call(&self.live_key, &shot).await;
        }
        let held = eventually(SETTLE_LIMIT, "the anomaly holds the key", async || {
            let held: i64 =
                sqlx::query_scalar("select count(*) from keys.anomaly_actions where org_id = $1")
                    .bind(self.org)
                    .fetch_one(stack.pool())
                    .await
                    .expect("a count");
            if held > 0 { Ok(()) } else { Err("not yet") }
        });
        held.await.expect("held");
    }

    /// A request to the management API that is carried out once for each `key`.
    pub(super) async fn ask_once(&self, stack: &Stack, key: &str) -> Answer {
        let (org, user) = (self.org.simple(), self.user.simple());
        let wish = json!({
            "name": key, "user_id": format!("usr_{user}"), "environment": "test",
            "scopes": [SCOPE],
        });
        let shot = Shot::post(
            &format!("/v1/organisations/org_{org}/keys"),
            &wish.to_string(),
        );
        at_api(stack, &self.session, &shot.with("idempotency-key", key)).await
    }
}

async fn at_api(stack: &Stack, token: &str, shot: &Shot) -> Answer {
    let info = stack.info();
    let api = info["api"].as_str().expect("the API");
    Connection::to(api)
        .call(token, shot)
        .await
        .expect("an answer")
}

/// Somebody who has signed up, and asked for a new password.
async fn a_customer(world: &mut World, email: &str) -> Customer {
    let user = world.sign_up(email).await;
    let request = pb::ListOrganisationsOfRequest {
        user_id: user.clone(),
    };
    let places = world.people.list_organisations_of(by(&user, request)).await;
    let org = places.unwrap().into_inner().memberships[0].org_id.clone();
    let request = pb::RequestPasswordResetRequest {
        email: email.to_owned(),
        address: "192.0.2.1".to_owned(),
    };
    world.people.request_password_reset(request).await.unwrap();
    Customer { org, user }
}

/// Of a member who has left there are live keys to be reviewed.
fn somebody_leaves(stack: &Stack, org: &str, email: &str) {
    let email = format!("leaver-{email}");
    let added = stack.cli(&["member", "add", "--org", org, "--email", &email]);
    let leaver = Customer {
        org: org.to_owned(),
        user: text(&added, "user_id"),
    };
    stack.key(&leaver, &["--environment", "production", "--scope", SCOPE]);
    stack.cli(&["member", "remove", "--org", org, "--user", &leaver.user]);
}

async fn a_key_leaks(world: &mut World, key: String) {
    let report = pb::ReportLeakedKeyRequest {
        key,
        source: "scanner".to_owned(),
        url: "https://example.com/leak".to_owned(),
        ..Default::default()
    };
    world.keys.report_leaked_key(report).await.unwrap();
}

/// A session, as long as there is no second factor.
async fn sign_in(stack: &Stack, email: &str) -> String {
    let login = json!({ "email": email, "password": PASSWORD });
    let answer = at_api(stack, "", &Shot::post("/v1/login", &login.to_string())).await;
    assert!(answer.status.is_success(), "{answer:?}");
    text(&answer.json(), "token")
}

async fn a_second_factor(world: &mut World, user: &str) {
    let user_id = user.to_owned();
    let start = pb::StartTotpRequest { user_id };
    let started = world
        .people
        .start_totp(by(user, start))
        .await
        .unwrap()
        .into_inner();
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    let confirm = pb::ConfirmTotpRequest {
        user_id: user.to_owned(),
        code: Totp::from_url(&started.otpauth_url)
            .unwrap()
            .generate(now)
            .to_string(),
    };
    world.people.confirm_totp(by(user, confirm)).await.unwrap();
}
