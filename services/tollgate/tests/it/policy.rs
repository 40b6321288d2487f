//! What happens after an anomaly, and after too many new keys, on real servers.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream::Stream};
use futures_util::StreamExt;
use prost::Message as _;
use proto::{
    events::v1::{AnomalyFlagged, KeyCreated},
    keys::v1 as pb,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use testkit::{
    eventually,
    load::{Connection, Shot},
};
use tonic::Code;
use uuid::Uuid;

use crate::{
    stack::{Customer, LIVE, Stack, signal},
    world::{SOON, World, by, code_of},
};

/// A revocation is effective within this on gateways that hear the bus, and so is the opposite.
const REVOCATION_BOUND: Duration = Duration::from_secs(1);

/// An anomaly of an organisation's keys.
fn flagged(number: u128, org: &str, keys: &[&str]) -> AnomalyFlagged {
    AnomalyFlagged {
        anomaly_id: format!("ano_{}", Uuid::from_u128(number).simple()),
        org_id: org.to_owned(),
        key_id: String::new(),
        kind: "key_burst".to_owned(),
        summary: format!("summary of number {number}"),
        key_ids: keys.iter().map(|key| (*key).to_owned()).collect(),
        at_unix_micros: 0,
    }
}

/// The detector's place on the bus.
struct Bus {
    jetstream: jetstream::Context,
    anomalies: Stream,
}

impl Bus {
    async fn of(stack: &Stack) -> Self {
        let url = stack.info()["nats_url"].as_str().unwrap().to_owned();
        let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
        let found = eventually(SOON, "the stream is there", || async {
            let stream = jetstream.get_stream("ANOMALY").await;
            stream.map_err(|error| error.to_string())
        });
        let anomalies = found.await.unwrap();
        Self {
            jetstream,
            anomalies,
        }
    }

    /// Publishes bytes so many times, and waits until the follower is done with all of them.
    async fn send(&self, org: &str, payload: &[u8], times: u32) {
        let mut last = 0;
        for _ in 0..times {
            let subject = format!("anomaly.v1.flagged.{org}");
            let sent = self.jetstream.publish(subject, payload.to_vec().into());
            last = sent.await.unwrap().await.unwrap().sequence;
        }
        let done = eventually(Duration::from_secs(60), "the event is applied", || async {
            let info = self.anomalies.consumer_info("keys-anomalies").await;
            let info = info.map_err(|error| error.to_string())?;
            let (floor, waiting) = (info.ack_floor.stream_sequence, info.num_ack_pending);
            match floor >= last && waiting == 0 {
                true => Ok(()),
                false => Err(format!("{floor} of {last}, {waiting} unacknowledged")),
            }
        });
        done.await.unwrap();
    }

    async fn flag(&self, event: &AnomalyFlagged) {
        self.send(&event.org_id, &event.encode_to_vec(), 1).await;
    }
}

/// How many entries of the audit log are about something.
async fn entries(stack: &Stack, action: &str, target: &str) -> i64 {
    let sql = "select count(*) from keys.audit_log where action = $1 and target = $2";
    sqlx::query_scalar(sql)
        .bind(action)
        .bind(target)
        .fetch_one(stack.pool())
        .await
        .unwrap()
}

/// Mails about an anomaly, sent or waiting.
async fn mails_to(stack: &Stack, address: &str) -> i64 {
    let sql = "select count(*) from keys.outbox_mail where template = 'anomaly' and recipient = $1";
    sqlx::query_scalar(sql)
        .bind(address)
        .fetch_one(stack.pool())
        .await
        .unwrap()
}

fn set_policy(stack: &Stack, customer: &Customer, action: &str) {
    let set = ["org", "policy", &customer.org, "--anomaly-action", action];
    assert_eq!(stack.cli(&set)["anomaly_action"], action);
}

fn shown(stack: &Stack, key: &str, field: &str) -> Value {
    stack.cli(&["key", "show", key])[field].clone()
}

/// Everything that is judged on the way.
struct Scene {
    world: World,
    bus: Bus,
    acme: Customer,
    other: Customer,
}

impl Scene {
    async fn lift(&self, by_user: &str, event: &AnomalyFlagged) -> pb::LiftAnomalyResponse {
        let request = lift(event);
        let mut keys = self.world.keys.clone();
        let lifted = keys.lift_anomaly(by(by_user, request)).await.unwrap();
        let lifted = lifted.into_inner();
        assert_eq!(lifted.pending_gateways, Vec::<String>::new());
        assert!(lifted.confirmed_gateways > 0, "a gateway lives");
        lifted
    }

    /// The key works, and nothing is left of a throttle.
    async fn works(&self, key: &str) {
        for _ in 0..4 {
            assert_eq!(self.world.status(key).await, (200, String::new()));
        }
    }
}

fn lift(event: &AnomalyFlagged) -> pb::LiftAnomalyRequest {
    pb::LiftAnomalyRequest {
        anomaly_id: event.anomaly_id.clone(),
        org_id: event.org_id.clone(),
    }
}

#[tokio::test]
async fn an_anomaly_gets_what_the_policy_says_once_and_is_lifted_in_one_step() {
    let world = World::start().await;
    let bus = Bus::of(&world.stack).await;
    let scene = Scene {
        acme: world.stack.customer("Acme", 1000),
        other: world.stack.customer("Other", 1000),
        bus,
        world,
    };
    notifies(&scene).await;
    throttles(&scene).await;
    suspends(&scene).await;
    is_lifted_by_who_may(&scene).await;
    holds_until_the_last_is_lifted(&scene).await;
    leaves_alone_what_people_ended(&scene).await;
    is_lifted_before_it_is_heard_of(&scene).await;
    grows_while_it_is_open(&scene).await;
    concerns_the_platform_or_nobody(&scene).await;
    scene.world.stack.cli(&["audit-log", "verify"]);
}

async fn notifies(scene: &Scene) {
    let (stack, org) = (&scene.world.stack, &scene.acme.org);
    let (id, key) = stack.key(&scene.acme, &LIVE);
    scene.works(&key).await;
    let event = flagged(1, org, &[&id]);
    scene.bus.flag(&event).await;
    assert_eq!(
        entries(stack, "anomaly.flagged", &event.anomaly_id).await,
        1
    );
    assert_eq!(mails_to(stack, "acme@example.com").await, 1);
    scene
        .world
        .mailed("acme@example.com", "summary of number")
        .await;
    assert_eq!(shown(stack, &id, "status"), "active");
    scene.works(&key).await;
}

async fn throttles(scene: &Scene) {
    let (stack, org) = (&scene.world.stack, &scene.acme.org);
    set_policy(stack, &scene.acme, "throttle");
    let (id, key) = stack.key(&scene.acme, &LIVE);
    scene.works(&key).await;
    let event = flagged(2, org, &[&id]);
    scene.bus.flag(&event).await;
    scene
        .world
        .until(&key, 429, "abnormal_usage_detected")
        .await;
    assert_eq!(shown(stack, &id, "status"), "throttled");
    assert_eq!(shown(stack, &id, "throttled"), true);
    let reason = shown(stack, &id, "suspended_reason");
    assert!(
        reason.as_str().unwrap().contains(&event.anomaly_id),
        "{reason}"
    );
    assert_eq!(entries(stack, "key.throttled", &id).await, 1);
    // Whoever restores the key by hand is rid of the throttle.
    stack.cli(&["key", "restore", &id]);
    assert_eq!(shown(stack, &id, "status"), "active");
    scene.world.until(&key, 200, "").await;
    assert_eq!(entries(stack, "key.restored", &id).await, 1);
}

async fn suspends(scene: &Scene) {
    let (stack, org) = (&scene.world.stack, &scene.acme.org);
    set_policy(stack, &scene.acme, "suspend");
    let (id, key) = stack.key(&scene.acme, &LIVE);
    let (foreign_id, foreign) = stack.key(&scene.other, &LIVE);
    scene.works(&key).await;
    scene.works(&foreign).await;
    let event = flagged(3, org, &[&id, &foreign_id]);
    scene.bus.send(org, &event.encode_to_vec(), 5).await;
    scene.world.until(&key, 403, "key_suspended").await;
    assert_eq!(shown(stack, &id, "status"), "suspended");
    for (action, target) in [
        ("anomaly.flagged", event.anomaly_id.as_str()),
        ("key.suspended", &id),
    ] {
        assert_eq!(entries(stack, action, target).await, 1, "{action}");
    }
    assert_eq!(
        mails_to(stack, "acme@example.com").await,
        3,
        "one an anomaly"
    );
    // The other organisation has nothing of it.
    scene.works(&foreign).await;
    assert_eq!(entries(stack, "key.suspended", &foreign_id).await, 0);
    assert_eq!(mails_to(stack, "other@example.com").await, 0);
    let named = "select count(*) from keys.audit_log
                  where action = 'anomaly.flagged' and details::text like '%' || $1 || '%'";
    let named: i64 = sqlx::query_scalar(named)
        .bind(&foreign_id)
        .fetch_one(stack.pool())
        .await
        .unwrap();
    assert_eq!(named, 0, "nor is it named to strangers");
}

/// Continues with what `suspends` has left.
async fn is_lifted_by_who_may(scene: &Scene) {
    let (stack, acme) = (&scene.world.stack, &scene.acme);
    let event = flagged(3, &acme.org, &[]);
    let member = |email: &str, role: &str| {
        let add = ["member", "add", "--org", &acme.org, "--email", email];
        let made = stack.cli(&[&add[..], &["--role", role]].concat());
        made["user_id"].as_str().unwrap().to_owned()
    };
    let mut keys = scene.world.keys.clone();
    for role in ["developer", "billing"] {
        let user = member(&format!("{role}@example.com"), role);
        let refused = keys.lift_anomaly(by(&user, lift(&event))).await;
        assert_eq!(code_of(refused), Code::PermissionDenied, "{role}");
    }
    let stranger = &scene.other.user;
    let of_strangers = keys.lift_anomaly(by(stranger, lift(&event))).await;
    assert_eq!(code_of(of_strangers), Code::NotFound);
    let own = pb::LiftAnomalyRequest {
        org_id: scene.other.org.clone(),
        ..lift(&event)
    };
    let as_own = keys.lift_anomaly(by(stranger, own)).await;
    assert_eq!(code_of(as_own), Code::NotFound, "named as one's own");

    let listed = stack.cli(&["key", "list", "--org", &acme.org]);
    let listed = listed["keys"].as_array().unwrap().iter();
    let suspended: Vec<&Value> = listed.filter(|key| key["status"] == "suspended").collect();
    assert_eq!(suspended.len(), 1, "{suspended:?}");
    let admin = member("admin@example.com", "admin");
    let began = Instant::now();
    let lifted = scene.lift(&admin, &event).await;
    assert!(began.elapsed() < REVOCATION_BOUND, "{:?}", began.elapsed());
    assert_eq!(lifted.key_ids, [suspended[0]["key_id"].as_str().unwrap()]);
    let again = scene.lift(&acme.user, &event).await;
    assert_eq!(again.key_ids, Vec::<String>::new());
    assert_eq!(entries(stack, "anomaly.lifted", &event.anomaly_id).await, 1);
    assert_eq!(entries(stack, "key.restored", &lifted.key_ids[0]).await, 1);
    // An old event that comes again does not bring it back.
    let late = flagged(3, &acme.org, &[&lifted.key_ids[0]]);
    scene.bus.flag(&late).await;
    assert_eq!(shown(stack, &lifted.key_ids[0], "status"), "active");
}

async fn holds_until_the_last_is_lifted(scene: &Scene) {
    let (stack, org, owner) = (&scene.world.stack, &scene.acme.org, &scene.acme.user);
    let (id, key) = stack.key(&scene.acme, &LIVE);
    let (first, second) = (flagged(4, org, &[&id]), flagged(5, org, &[&id]));
    scene.bus.flag(&first).await;
    scene.bus.flag(&second).await;
    assert_eq!(
        entries(stack, "key.suspended", &id).await,
        1,
        "it was already"
    );
    let lifted = scene.lift(owner, &first).await;
    assert_eq!(lifted.key_ids, Vec::<String>::new());
    assert_eq!(scene.world.status(&key).await.0, 403);
    let reason = shown(stack, &id, "suspended_reason");
    assert!(
        reason.as_str().unwrap().contains(&second.anomaly_id),
        "{reason}"
    );
    let lifted = scene.lift(owner, &second).await;
    assert_eq!(lifted.key_ids, [id]);
    // Every live gateway has confirmed: there is nothing to wait for.
    scene.works(&key).await;
}

async fn leaves_alone_what_people_ended(scene: &Scene) {
    let (stack, org, owner) = (&scene.world.stack, &scene.acme.org, &scene.acme.user);
    let (by_hand, _) = stack.key(&scene.acme, &LIVE);
    let (revoked, _) = stack.key(&scene.acme, &LIVE);
    let (taken_over, _) = stack.key(&scene.acme, &LIVE);
    stack.cli(&["key", "suspend", &by_hand]);
    stack.cli(&["key", "revoke", &revoked, "--reason", "test"]);
    let event = flagged(6, org, &[&by_hand, &revoked, &taken_over]);
    scene.bus.flag(&event).await;
    assert_eq!(shown(stack, &by_hand, "suspended_reason"), "");
    stack.cli(&["key", "suspend", &taken_over]);
    let lifted = scene.lift(owner, &event).await;
    assert_eq!(lifted.key_ids, Vec::<String>::new());
    for (key, status) in [
        (&by_hand, "suspended"),
        (&revoked, "revoked"),
        (&taken_over, "suspended"),
    ] {
        assert_eq!(shown(stack, key, "status"), status, "{key}");
    }
}

async fn is_lifted_before_it_is_heard_of(scene: &Scene) {
    let (stack, org) = (&scene.world.stack, &scene.acme.org);
    let (id, key) = stack.key(&scene.acme, &LIVE);
    let event = flagged(7, org, &[&id]);
    scene.lift(&scene.acme.user, &event).await;
    let mails = mails_to(stack, "acme@example.com").await;
    scene.bus.flag(&event).await;
    assert_eq!(
        entries(stack, "anomaly.flagged", &event.anomaly_id).await,
        1
    );
    assert_eq!(shown(stack, &id, "status"), "active");
    assert_eq!(mails_to(stack, "acme@example.com").await, mails);
    scene.works(&key).await;
}

async fn grows_while_it_is_open(scene: &Scene) {
    let (stack, org, owner) = (&scene.world.stack, &scene.acme.org, &scene.acme.user);
    let (first, _) = stack.key(&scene.acme, &LIVE);
    let (second, _) = stack.key(&scene.acme, &LIVE);
    scene.bus.flag(&flagged(8, org, &[&first])).await;
    let mails = mails_to(stack, "acme@example.com").await;
    // Somebody restores the first: what comes again does not suspend it again.
    stack.cli(&["key", "restore", &first]);
    let grown = flagged(8, org, &[&first, &second]);
    scene.bus.send(org, &grown.encode_to_vec(), 2).await;
    assert_eq!(shown(stack, &first, "status"), "active");
    assert_eq!(shown(stack, &second, "status"), "suspended");
    assert_eq!(
        entries(stack, "anomaly.extended", &grown.anomaly_id).await,
        1
    );
    assert_eq!(entries(stack, "key.suspended", &second).await, 1);
    assert_eq!(mails_to(stack, "acme@example.com").await, mails);
    assert_eq!(scene.lift(owner, &grown).await.key_ids, [second]);
}

async fn concerns_the_platform_or_nobody(scene: &Scene) {
    let stack = &scene.world.stack;
    let platform = flagged(9, "", &[]);
    scene
        .bus
        .send("platform", &platform.encode_to_vec(), 2)
        .await;
    assert_eq!(
        entries(stack, "anomaly.flagged", &platform.anomaly_id).await,
        1
    );
    let nobody = flagged(10, &format!("org_{}", Uuid::from_u128(1).simple()), &[]);
    scene.bus.flag(&nobody).await;
    scene.bus.send("x", b"no event", 1).await;
    let aside = "select count(*) from keys.dead_letters where subject like 'anomaly.v1.flagged.%'";
    assert_eq!(stack.count(aside).await, 2);
    assert_eq!(
        entries(stack, "anomaly.flagged", &nobody.anomaly_id).await,
        0
    );
}

#[tokio::test]
async fn who_dies_before_the_acknowledgement_acts_once() {
    let stack = Stack::start(&["--ephemeral", "--processes"]).await;
    let bus = Bus::of(&stack).await;
    let acme = stack.customer("Acme", 100);
    let (id, _) = stack.key(&acme, &LIVE);
    set_policy(&stack, &acme, "suspend");
    let point = "keys.anomaly_committed:1".to_owned();
    stack.arm("keys", std::slice::from_ref(&point));
    signal(stack.pids("keys")[0], Signal::KILL);
    let event = flagged(1, &acme.org, &[&id]);
    bus.flag(&event).await;
    let (died, _) = stack.deaths();
    assert!(died.contains(&("keys".to_owned(), point)), "{died:?}");
    let shown = eventually(SOON, "the next life answers", || async {
        let (code, shown, text) = stack.try_cli(&["key", "show", &id]);
        (code == Some(0)).then_some(shown).ok_or(text)
    });
    assert_eq!(shown.await.unwrap()["status"], "suspended");
    for (action, target) in [
        ("anomaly.flagged", event.anomaly_id.as_str()),
        ("key.suspended", &id),
    ] {
        assert_eq!(entries(&stack, action, target).await, 1, "{action}");
    }
    assert_eq!(mails_to(&stack, "acme@example.com").await, 1);
}

/// Somebody at the management API.
struct Person {
    api: Connection,
    token: String,
    org: String,
}

impl Person {
    async fn sign_up(stack: &Stack) -> Self {
        let info = stack.info();
        let mut api = Connection::to(info["api"].as_str().unwrap());
        let account = json!({ "email": "ada@example.com", "password": "correct horse battery",
                              "name": "Ada", "organisation_name": "Ada" });
        let sign_up = Shot::post("/v1/signup", &account.to_string());
        assert_eq!(api.call("", &sign_up).await.unwrap().status, 202);
        let login = json!({ "email": "ada@example.com", "password": "correct horse battery" });
        let login = Shot::post("/v1/login", &login.to_string());
        let session = api.call("", &login).await.unwrap().json();
        let token = session["token"].as_str().unwrap().to_owned();
        let list = Shot::get("/v1/organisations");
        let places = api.call(&token, &list).await.unwrap().json();
        let org = places["organisations"][0]["org_id"].as_str().unwrap();
        let org = org.to_owned();
        Self { api, token, org }
    }

    async fn create(&mut self) -> testkit::load::Answer {
        let path = format!("/v1/organisations/{}/keys", self.org);
        let key = json!({ "name": "more", "environment": "test", "scopes": ["mileage:calculate"] });
        let create = Shot::post(&path, &key.to_string());
        self.api.call(&self.token, &create).await.unwrap()
    }
}

#[tokio::test]
async fn who_makes_too_many_keys_is_told_when_to_go_on_and_everybody_who_watches_is_told() {
    let limit = [("TOLLGATE_KEYS_PER_HOUR_MAX", "3")];
    let stack = Stack::start_with(&["--ephemeral"], &limit).await;
    let mut ada = Person::sign_up(&stack).await;
    let mut made: Vec<String> = Vec::new();
    for _ in 0..3 {
        let answer = ada.create().await;
        assert_eq!(answer.status, 201, "{answer:?}");
        made.push(answer.json()["key_id"].as_str().unwrap().to_owned());
    }
    for _ in 0..3 {
        let refused = ada.create().await;
        assert_eq!(refused.status, 429, "{refused:?}");
        let wait: u64 = refused.header("retry-after").parse().unwrap();
        assert!((3500..=3600).contains(&wait), "{wait}");
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("at most 3 keys an hour"), "{detail}");
    }
    assert_eq!(entries(&stack, "key.creation_refused", &ada.org).await, 1);
    assert!(
        metrics(&stack)
            .await
            .contains("tollgate_key_creations_refused_total 3")
    );
    // An hour later there is another entry, and another key may be made.
    let earlier = "update keys.organisations set creation_refused_at = creation_refused_at
                       - interval '1 hour'";
    run(&stack, earlier).await;
    assert_eq!(ada.create().await.status, 429);
    assert_eq!(entries(&stack, "key.creation_refused", &ada.org).await, 2);
    let oldest = made[0].strip_prefix("key_").unwrap();
    let older = format!(
        "update keys.api_keys set created_at = created_at - interval '1 hour' where id = '{oldest}'"
    );
    sqlx::query(AssertSqlSafe(older))
        .execute(stack.pool())
        .await
        .unwrap();
    let answer = ada.create().await;
    assert_eq!(answer.status, 201, "{answer:?}");
    made.push(answer.json()["key_id"].as_str().unwrap().to_owned());
    is_announced(&stack, &ada.org, &made).await;
}

async fn run(stack: &Stack, sql: &'static str) {
    sqlx::query(sql).execute(stack.pool()).await.unwrap();
}

async fn metrics(stack: &Stack) -> String {
    let info = stack.info();
    let base = info["ops"]["keys"].as_str().unwrap().to_owned();
    let answer = Connection::to(&base)
        .call("", &Shot::get("/metrics"))
        .await
        .unwrap();
    String::from_utf8(answer.body.to_vec()).unwrap()
}

/// Each key that was made is announced, and one that replaces another is not.
async fn is_announced(stack: &Stack, org: &str, made: &[String]) {
    stack.cli(&["key", "rotate", &made[3]]);
    let customer = Customer {
        org: org.to_owned(),
        user: shown(stack, &made[0], "created_by")
            .as_str()
            .unwrap()
            .to_owned(),
    };
    let (last, _) = stack.key(&customer, &LIVE);
    let wanted: Vec<String> = made.iter().cloned().chain([last]).collect();
    let url = stack.info()["nats_url"].as_str().unwrap().to_owned();
    let jetstream = jetstream::new(async_nats::connect(url).await.unwrap());
    let stream = jetstream.get_stream("KEYS").await.unwrap();
    let created = jetstream::consumer::pull::OrderedConfig {
        filter_subject: format!("keys.v1.created.{org}"),
        ..Default::default()
    };
    let consumer = stream.create_consumer(created).await.unwrap();
    let events = consumer.messages().await.unwrap().take(wanted.len());
    let read = events.map(|event| {
        let event = event.unwrap();
        let id = event.headers.as_ref().unwrap().get("Nats-Msg-Id").unwrap();
        let key = KeyCreated::decode(event.payload.clone()).unwrap();
        assert_eq!(
            (id.as_str(), key.org_id.as_str()),
            (key.key_id.as_str(), org)
        );
        assert!(
            key.at_unix_micros > 0 && key.created_by.starts_with("usr_"),
            "{key:?}"
        );
        key.key_id
    });
    let found: Vec<String> = tokio::time::timeout(SOON, read.collect()).await.unwrap();
    assert_eq!(found, wanted);
    let waiting = "select count(*) from keys.outbox_created";
    let empty = eventually(SOON, "nothing waits", || async {
        match stack.count(waiting).await {
            0 => Ok(()),
            more => Err(format!("{more} wait")),
        }
    });
    empty.await.unwrap();
}
