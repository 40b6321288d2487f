//! Mails in the language of who reads them, and reports of leaked keys.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message as _;
use proto::{
    events::v1::WalletLow,
    keys::v1::{self as pb, ReportLeakedKeyResponse},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use testkit::eventually;
use tonic::{Code, Status};

use crate::{
    stack::{LIVE, Stack},
    world::{PASSWORD, SOON, World, by, code_of},
};

/// A scanner's key pair, and the variable that makes the services believe it.
fn scanner() -> (EcdsaKeyPair, String) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let head = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
    let mut der = hex::decode(head).unwrap();
    der.extend_from_slice(pair.public_key().as_ref());
    let body = STANDARD.encode(der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----");
    (pair, format!("hub key-1\n{pem}\n"))
}

async fn mails_to(world: &World, to: &str) -> Vec<Value> {
    let all = world.messages().await.into_iter();
    all.filter(|mail| mail["to"][0] == to).collect()
}

/// Waits for the mail with this in its subject.
async fn mail(world: &World, to: &str, subject: &str) -> Value {
    let found = eventually(SOON, "the mail arrives", || async {
        let mails = mails_to(world, to).await;
        let is_it = |mail: &&Value| mail["subject"].as_str().unwrap().contains(subject);
        mails
            .iter()
            .find(is_it)
            .cloned()
            .ok_or(format!("{mails:?}"))
    });
    found.await.unwrap()
}

#[tokio::test]
async fn everybody_is_written_to_in_the_own_language_as_text_and_as_html() {
    let mut world = World::start().await;
    let sign_up = pb::SignUpRequest {
        email: "chloe@example.com".to_owned(),
        password: PASSWORD.to_owned(),
        name: "Chloé".to_owned(),
        organisation_name: "Café & Fils".to_owned(),
        address: "192.0.2.1".to_owned(),
        language: "fr".to_owned(),
    };
    let unknown = pb::SignUpRequest {
        language: "de".to_owned(),
        ..sign_up.clone()
    };
    assert_eq!(
        code_of(world.people.sign_up(unknown).await),
        Code::InvalidArgument
    );
    world.people.sign_up(sign_up).await.unwrap();
    let welcome = mail(&world, "chloe@example.com", "Confirmez votre adresse").await;
    assert!(
        welcome["html"]
            .as_str()
            .unwrap()
            .contains("<html lang=\"fr\">")
    );
    let signed_in = world.sign_in("chloe@example.com", PASSWORD).await.unwrap();
    let user = signed_in.user_id;

    let org = first_organisation(&mut world, &user).await;
    live_keys_are_told_of(&world, &org).await;

    // From here on in English.
    let change = pb::UpdateUserRequest {
        user_id: user.clone(),
        name: None,
        language: Some("en".to_owned()),
    };
    world.people.update_user(by(&user, change)).await.unwrap();
    let forgot = pb::RequestPasswordResetRequest {
        email: "chloe@example.com".to_owned(),
        address: "192.0.2.1".to_owned(),
    };
    world.people.request_password_reset(forgot).await.unwrap();
    mail(&world, "chloe@example.com", "Choose a new password").await;
    runs_low(&world, &org).await;
}

async fn first_organisation(world: &mut World, user: &str) -> String {
    let list = pb::ListOrganisationsOfRequest {
        user_id: user.to_owned(),
    };
    let places = world.people.list_organisations_of(list).await.unwrap();
    places.into_inner().memberships[0].org_id.clone()
}

/// The creator and the owners are told of a live key, each once; of a test key nobody.
async fn live_keys_are_told_of(world: &World, org: &str) {
    let stack = &world.stack;
    let added = ["member", "add", "--org", org, "--email", "dev@example.com"];
    let added = stack.cli(&[&added[..], &["--role", "developer"]].concat());
    let developer = added["user_id"].as_str().unwrap();
    let base = [
        "key", "create", "--org", org, "--user", developer, "--name", "<b>",
    ];
    stack.cli(&[&base[..], &["--environment", "test"], &LIVE[2..]].concat());
    let made = stack.cli(&[&base[..], &LIVE[..]].concat());
    let told = mail(world, "chloe@example.com", "Nouvelle clé chez Café & Fils").await;
    assert!(
        told["html"].as_str().unwrap().contains("&lt;b&gt;"),
        "{told}"
    );
    assert!(
        told["text"]
            .as_str()
            .unwrap()
            .contains("« <b> »".replace(' ', "\u{a0}").as_str())
    );
    mail(world, "dev@example.com", "New key of Café & Fils").await;
    let id = made["key_id"].as_str().unwrap();
    stack.cli(&["key", "revoke", id, "--reason", "Trop vieille"]);
    let told = mail(world, "chloe@example.com", "Clé révoquée").await;
    assert!(
        told["text"].as_str().unwrap().contains("Trop vieille"),
        "{told}"
    );
    mail(world, "dev@example.com", "revoked").await;
    assert_eq!(
        mails_to(world, "dev@example.com").await.len(),
        2,
        "not of the test key"
    );
}

/// A wallet that runs low is mailed about once, however often the event comes.
async fn runs_low(world: &World, org: &str) {
    let jetstream = world.stack.jetstream().await;
    let low = |percent, balance| WalletLow {
        org_id: org.to_owned(),
        percent,
        balance,
        reference: 5_000,
        reference_at_unix_micros: 1_800_000_000_000_000,
        at_unix_micros: 1_800_000_000_000_001,
    };
    for event in [low(50, 2_499), low(50, 2_499), low(20, 999)] {
        let subject = format!("wallet.v1.low.{org}");
        let published = jetstream
            .publish(subject, event.encode_to_vec().into())
            .await;
        published.unwrap().await.unwrap();
    }
    let told = mail(world, "chloe@example.com", "less than 20 %").await;
    assert!(
        told["text"].as_str().unwrap().contains("999 credits"),
        "{told}"
    );
    let mails = mails_to(world, "chloe@example.com").await;
    let half = mails
        .iter()
        .filter(|mail| mail["subject"].as_str().unwrap().contains("50 %"));
    assert_eq!(half.count(), 1);
}

struct Reports {
    world: World,
    pair: EcdsaKeyPair,
}

impl Reports {
    async fn send(
        &self,
        report: pb::ReportLeakedKeyRequest,
    ) -> Result<ReportLeakedKeyResponse, Status> {
        let url = "https://paste.example/1".to_owned();
        let report = pb::ReportLeakedKeyRequest { url, ..report };
        let mut keys = self.world.keys.clone();
        Ok(keys.report_leaked_key(report).await?.into_inner())
    }

    fn signed(&self, key: &str, payload: &str) -> pb::ReportLeakedKeyRequest {
        let signature = self.pair.sign(&SystemRandom::new(), payload.as_bytes());
        pb::ReportLeakedKeyRequest {
            key: key.to_owned(),
            payload: payload.as_bytes().to_vec(),
            signature: STANDARD.encode(signature.unwrap()),
            key_identifier: "key-1".to_owned(),
            ..Default::default()
        }
    }
}

#[tokio::test]
async fn a_leak_is_acted_on_once_by_key_or_plain_hash_and_a_signature_names_its_source() {
    let (pair, known) = scanner();
    let variables = [("TOLLGATE_KEYS_SCANNER_KEYS", known.as_str())];
    let stack = Stack::start_with(&["--ephemeral"], &variables).await;
    let reports = Reports {
        world: World::of(stack),
        pair,
    };
    let stack = &reports.world.stack;
    let acme = stack.customer("Acme", 100);
    let (id, key) = stack.key(&acme, &LIVE);
    let (other_id, other) = stack.key(&acme, &LIVE);

    // By the plain hash, which anybody can compute who has the key, and after a rotation still.
    stack.cli(&["pepper", "rotate", "--timeout", "20"]);
    let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
    let by_hash = pb::ReportLeakedKeyRequest {
        key_hash: digest.to_vec(),
        source: "somebody".to_owned(),
        ..Default::default()
    };
    let done = reports.send(by_hash.clone()).await.unwrap();
    assert_eq!(
        (done.action.as_str(), done.key_id.as_str()),
        ("suspended", id.as_str())
    );
    reports.world.until(&key, 403, "key_suspended").await;
    let again = reports.send(by_hash).await.unwrap();
    assert_eq!(again.action, "suspended");
    let hash = "select count(*) from keys.api_keys where report_hash = $1 or key_hash = $1";
    let plain: i64 = sqlx::query_scalar(hash)
        .bind(&digest[..])
        .fetch_one(stack.pool())
        .await
        .unwrap();
    assert_eq!(plain, 0, "the plain hash is stored nowhere");

    signed_reports_are_checked(&reports, &other).await;
    each_is_noted_once(&reports, &acme.org, &id, &other_id).await;
}

/// A signature over another body, or by somebody else, is refused and does nothing.
async fn signed_reports_are_checked(reports: &Reports, other: &str) {
    let wrong = reports.signed(other, "[]");
    assert_eq!(code_of(reports.send(wrong).await), Code::PermissionDenied);
    let payload = format!("[{{\"token\":\"{other}\"}}]");
    let unknown = pb::ReportLeakedKeyRequest {
        key_identifier: "key-2".to_owned(),
        ..reports.signed(other, &payload)
    };
    assert_eq!(code_of(reports.send(unknown).await), Code::PermissionDenied);
    reports.world.until(other, 200, "").await;
    let done = reports.send(reports.signed(other, &payload)).await.unwrap();
    assert_eq!(
        (done.action.as_str(), done.verified_source.as_str()),
        ("suspended", "hub")
    );
    let told = mail(&reports.world, "acme@example.com", "found in public").await;
    assert!(
        told["html"]
            .as_str()
            .unwrap()
            .contains("https://paste.example/1")
    );
}

async fn each_is_noted_once(reports: &Reports, org: &str, id: &str, other_id: &str) {
    let entries = reports
        .world
        .stack
        .cli(&["audit-log", "list", "--org", org]);
    let entries = entries["entries"].as_array().unwrap();
    let of = |id: &str| {
        let mut found = entries.iter();
        found
            .find(|it| it["action"] == "key.leak_reported" && it["target"] == id)
            .unwrap()
    };
    assert_eq!(of(id)["details"]["source"], "somebody");
    assert_eq!(of(id)["details"]["signed_with"], Value::Null);
    assert_eq!(of(other_id)["details"]["source"], "hub");
    assert_eq!(of(other_id)["details"]["signed_with"], "key-1");
    let leaks = entries
        .iter()
        .filter(|it| it["action"] == "key.leak_reported");
    assert_eq!(leaks.count(), 2, "a repetition is nothing new");
    let mails = mails_to(&reports.world, "acme@example.com").await;
    let about = mails
        .iter()
        .filter(|mail| mail["subject"].as_str().unwrap().contains("public"));
    assert_eq!(about.count(), 2, "one for each key");
}
