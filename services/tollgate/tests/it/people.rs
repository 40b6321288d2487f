//! People and the life of their keys, on real servers, with mails that arrive.

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
use totp_rs::Totp;

use crate::stack::Stack;

/// Mails arrive, and gateways learn, within this.
const SOON: Duration = Duration::from_secs(20);
const PASSWORD: &str = "correct horse battery";
const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";
const LIVE: [&str; 4] = [
    "--environment",
    "production",
    "--scope",
    "mileage:calculate",
];

/// Both services of a running stack.
struct World {
    stack: Stack,
    people: PeopleServiceClient<Channel>,
    keys: KeysServiceClient<Channel>,
}

impl World {
    async fn start() -> Self {
        let stack = Stack::start(&["--ephemeral"]).await;
        let url = stack.info()["grpc"]["keys"].as_str().unwrap().to_owned();
        let token = stack.demo("operator_token").into();
        let channel = runtime::grpc::client(&url, &token).unwrap();
        Self {
            people: PeopleServiceClient::new(channel.clone()),
            keys: KeysServiceClient::new(channel),
            stack,
        }
    }

    async fn messages(&self) -> Vec<Value> {
        let base = self.stack.info()["mail"].as_str().unwrap().to_owned();
        let answer = Connection::to(&base)
            .call("", &Shot::get("/api/messages"))
            .await
            .unwrap();
        answer.json().as_array().unwrap().clone()
    }

    /// The newest mail to somebody with this in its text; what follows it, up to a blank.
    async fn mailed(&self, to: &str, before: &str) -> String {
        let found = eventually(SOON, "the mail arrives", || async {
            let messages = self.messages().await;
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

    /// What a call with a key is answered.
    async fn status(&self, key: &str) -> (u16, String) {
        let answer = self.stack.call(key, &Shot::get(DISTANCE)).await;
        let code = answer.json()["code"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (answer.status.as_u16(), code)
    }

    /// Waits until a call with a key is answered so.
    async fn until(&self, key: &str, status: u16, code: &str) {
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

    async fn sign_up(&mut self, email: &str) -> String {
        let request = pb::SignUpRequest {
            email: email.to_owned(),
            password: PASSWORD.to_owned(),
            name: "Somebody".to_owned(),
            organisation_name: "Some Company".to_owned(),
            address: "192.0.2.1".to_owned(),
        };
        self.people.sign_up(request).await.unwrap();
        self.sign_in(email, PASSWORD).await.unwrap().user_id
    }

    async fn sign_in(
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

    async fn present(
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
fn by<T>(user: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("tollgate-actor", user.parse().unwrap());
    request
}

/// A request of a user who has just shown a second factor.
fn by_two_factors<T>(user: &str, message: T) -> Request<T> {
    let mut request = by(user, message);
    let now = jiff::Timestamp::now().as_second().to_string();
    let metadata = request.metadata_mut();
    metadata.insert("tollgate-second-factor-at", now.parse().unwrap());
    request
}

fn code_of<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test]
async fn somebody_signs_up_proves_the_address_and_signs_in_with_two_factors() {
    let mut world = World::start().await;
    let email = "ada@example.com";
    let user = world.sign_up(email).await;
    let places = world
        .people
        .list_organisations_of(pb::ListOrganisationsOfRequest {
            user_id: user.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .memberships;
    assert_eq!((places.len(), places[0].role.as_str()), (1, "owner"));
    verifies(&mut world, email, &user).await;
    answers_alike(&mut world, email).await;
    let codes = enrols(&mut world, email, &user).await;
    uses_recovery_codes(&mut world, &user, &codes).await;
    resets(&mut world, email, &user).await;
    let waiting = world
        .stack
        .count("select count(*) from keys.outbox_mail where sent_at is not null and body <> ''")
        .await;
    assert_eq!(waiting, 0, "what was sent keeps no text");
}

async fn verifies(world: &mut World, email: &str, user: &str) {
    let token = world.mailed(email, "/verify/").await;
    let verify = pb::VerifyEmailRequest { token };
    let verified = world.people.verify_email(verify.clone()).await.unwrap();
    assert_eq!(verified.into_inner().user_id, user);
    let again = world.people.verify_email(verify).await;
    assert_eq!(code_of(again), Code::InvalidArgument, "a link is good once");
    assert!(world.sign_in(email, PASSWORD).await.unwrap().email_verified);
}

async fn answers_alike(world: &mut World, email: &str) {
    let known = world
        .sign_in(email, "wrong horse battery")
        .await
        .unwrap_err();
    let unknown = world
        .sign_in("nobody@example.com", PASSWORD)
        .await
        .unwrap_err();
    assert_eq!(known.code(), Code::Unauthenticated);
    assert_eq!(
        (known.code(), known.message()),
        (unknown.code(), unknown.message())
    );
    // Signing up again answers as the first time; the mail says what is the matter.
    let again = pb::SignUpRequest {
        email: email.to_uppercase(),
        password: "another password".to_owned(),
        name: "Eve".to_owned(),
        organisation_name: "Evil".to_owned(),
        address: "192.0.2.9".to_owned(),
    };
    world.people.sign_up(again).await.unwrap();
    world.mailed(email, "has an account").await;
    assert!(world.sign_in(email, "another password").await.is_err());
    // Ten failures, then nobody gets in as this address for a while: known or not.
    for _ in 0..20 {
        world
            .sign_in("mallory@example.com", "guess")
            .await
            .unwrap_err();
    }
    let refused = world.sign_in("mallory@example.com", "guess").await;
    assert_eq!(code_of(refused), Code::ResourceExhausted);
}

/// Turns the second factor on; the recovery codes.
async fn enrols(world: &mut World, email: &str, user: &str) -> Vec<String> {
    let start = pb::StartTotpRequest {
        user_id: user.to_owned(),
    };
    let stranger = by("usr_00000000000000000000000000000001", start.clone());
    assert_eq!(
        code_of(world.people.start_totp(stranger).await),
        Code::NotFound
    );
    let started = world
        .people
        .start_totp(by(user, start))
        .await
        .unwrap()
        .into_inner();
    let totp = Totp::from_url(&started.otpauth_url).unwrap();
    assert!(started.otpauth_url.contains(&started.secret));
    assert!(
        !world
            .sign_in(email, PASSWORD)
            .await
            .unwrap()
            .second_factor_required
    );

    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap();
    let code = totp.generate(now).to_string();
    let confirm = pb::ConfirmTotpRequest {
        user_id: user.to_owned(),
        code: code.clone(),
    };
    let confirmed = world.people.confirm_totp(by(user, confirm)).await.unwrap();
    let codes = confirmed.into_inner().recovery_codes;
    assert_eq!(codes.len(), 10);
    assert!(
        world
            .sign_in(email, PASSWORD)
            .await
            .unwrap()
            .second_factor_required
    );
    let replayed = world.present(user, &code).await;
    assert_eq!(
        code_of(replayed),
        Code::Unauthenticated,
        "a step counts once"
    );
    let next = totp.generate(now + 30).to_string();
    let accepted = world.present(user, &next).await.unwrap();
    assert!(!accepted.recovery_code);
    codes
}

async fn uses_recovery_codes(world: &mut World, user: &str, codes: &[String]) {
    let used = world.present(user, &codes[0].to_uppercase()).await.unwrap();
    assert_eq!((used.recovery_code, used.recovery_codes), (true, 9));
    assert_eq!(
        code_of(world.present(user, &codes[0]).await),
        Code::Unauthenticated
    );
    for _ in 0..4 {
        assert_eq!(
            code_of(world.present(user, "000000").await),
            Code::Unauthenticated
        );
    }
    let throttled = world.present(user, &codes[1]).await;
    assert_eq!(
        code_of(throttled),
        Code::ResourceExhausted,
        "five wrong codes"
    );
}

async fn resets(world: &mut World, email: &str, user: &str) {
    let epoch = world.sign_in(email, PASSWORD).await.unwrap().session_epoch;
    for address in [email, "nobody@example.com"] {
        let request = pb::RequestPasswordResetRequest {
            email: address.to_owned(),
            address: "192.0.2.1".to_owned(),
        };
        world.people.request_password_reset(request).await.unwrap();
    }
    let reset = pb::ResetPasswordRequest {
        token: world.mailed(email, "/reset/").await,
        new_password: "a better password".to_owned(),
    };
    let done = world
        .people
        .reset_password(reset.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (done.user_id.as_str(), done.session_epoch),
        (user, epoch + 1)
    );
    assert!(
        world.people.reset_password(reset).await.is_err(),
        "good once"
    );
    assert!(world.sign_in(email, PASSWORD).await.is_err());
    let again = world.sign_in(email, "a better password").await.unwrap();
    assert_eq!(again.session_epoch, epoch + 1);
    let change = pb::ChangePasswordRequest {
        user_id: user.to_owned(),
        old_password: "a better password".to_owned(),
        new_password: PASSWORD.to_owned(),
    };
    let changed = world
        .people
        .change_password(by(user, change))
        .await
        .unwrap();
    assert_eq!(changed.into_inner().session_epoch, epoch + 2);
    let mails = world.messages().await;
    let to_nobody = mails
        .iter()
        .filter(|mail| mail["to"][0] == "nobody@example.com");
    assert_eq!(to_nobody.count(), 0);
}

#[tokio::test]
async fn members_come_by_invitation_and_keep_to_their_roles() {
    let mut world = World::start().await;
    let acme = world.stack.customer("Acme", 0);
    let bob = world.sign_up("bob@example.com").await;
    let eve = world.sign_up("eve@example.com").await;
    let org = acme.org.as_str();
    let cli = |arguments: &[&str]| world.stack.cli(arguments);
    let create = [
        "invitation",
        "create",
        "--org",
        org,
        "--email",
        "bob@example.com",
    ];
    let made = cli(&[&create[..], &["--role", "admin"]].concat());
    let (code, _, text) = world.stack.try_cli(&create);
    assert_eq!(code, Some(1), "invited twice: {text}");
    let old = world.mailed("bob@example.com", "/invite/").await;
    let id = made["invitation_id"].as_str().unwrap();
    cli(&["invitation", "resend", id]);
    let token = eventually(SOON, "the second mail arrives", || async {
        let token = world.mailed("bob@example.com", "/invite/").await;
        if token == old { Err(token) } else { Ok(token) }
    });
    let token = token.await.unwrap();
    let accept = |token: &str, user: &str| pb::AcceptInvitationRequest {
        token: token.to_owned(),
        user_id: user.to_owned(),
    };
    let mut people = world.people.clone();
    let by_old = people.accept_invitation(accept(&old, &bob)).await;
    assert_eq!(
        code_of(by_old),
        Code::InvalidArgument,
        "the old link has ended"
    );
    let by_eve = people
        .accept_invitation(by(&eve, accept(&token, &eve)))
        .await;
    assert_eq!(code_of(by_eve), Code::PermissionDenied, "another address");
    let tries = (0..10).map(|_| {
        let mut people = world.people.clone();
        let request = by(&bob, accept(&token, &bob));
        async move { people.accept_invitation(request).await.is_ok() }
    });
    let accepted = futures_util::future::join_all(tries).await;
    assert_eq!(accepted.iter().filter(|ok| **ok).count(), 1, "{accepted:?}");
    assert_eq!(
        cli(&["invitation", "list", "--org", org])["invitations"][0]["status"],
        "accepted"
    );
    keeps_to_roles(&world, org, &acme.user, &bob, &eve).await;
}

async fn keeps_to_roles(world: &World, org: &str, owner: &str, bob: &str, eve: &str) {
    let role = |user: &str, role: &str| pb::UpdateMemberRoleRequest {
        org_id: org.to_owned(),
        user_id: user.to_owned(),
        role: role.to_owned(),
    };
    let mut people = world.people.clone();
    // Bob is an admin: he touches no owner and makes none.
    let demotes = people
        .update_member_role(by(bob, role(owner, "billing")))
        .await;
    assert_eq!(code_of(demotes), Code::PermissionDenied);
    let promotes = people.update_member_role(by(bob, role(bob, "owner"))).await;
    assert_eq!(code_of(promotes), Code::PermissionDenied);
    let stranger = people
        .update_member_role(by(eve, role(bob, "billing")))
        .await;
    assert_eq!(code_of(stranger), Code::NotFound);
    let last = people
        .update_member_role(by(owner, role(owner, "admin")))
        .await;
    assert_eq!(code_of(last), Code::AlreadyExists, "the last owner stays");
    let transfer = pb::TransferOwnershipRequest {
        org_id: org.to_owned(),
        user_id: bob.to_owned(),
    };
    let needs = people.transfer_ownership(by(owner, transfer.clone())).await;
    assert_eq!(
        code_of(needs),
        Code::PermissionDenied,
        "without a second factor"
    );
    let theft = people
        .transfer_ownership(by_two_factors(bob, transfer.clone()))
        .await;
    assert_eq!(code_of(theft), Code::PermissionDenied);
    people
        .transfer_ownership(by_two_factors(owner, transfer))
        .await
        .unwrap();
    let members = world.stack.cli(&["member", "list", "--org", org]);
    let role_of = |user: &str| {
        let members = members["members"].as_array().unwrap();
        let found = members.iter().find(|member| member["user_id"] == user);
        found.unwrap()["role"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        (role_of(bob).as_str(), role_of(owner).as_str()),
        ("owner", "admin")
    );
    // Two owners leave at once: one stays.
    let cli = [
        "member", "role", "--org", org, "--user", owner, "--role", "owner",
    ];
    world.stack.cli(&cli);
    let leave = |user: &str| {
        let mut keys = world.keys.clone();
        let request = pb::RemoveMemberRequest {
            org_id: org.to_owned(),
            user_id: user.to_owned(),
        };
        let request = by(user, request);
        async move { keys.remove_member(request).await.is_ok() }
    };
    let left = futures_util::future::join_all([leave(bob), leave(owner)]).await;
    assert_eq!(left.iter().filter(|ok| **ok).count(), 1, "{left:?}");
}

#[tokio::test]
async fn keys_are_rotated_deleted_reported_and_guarded_by_policy() {
    let mut world = World::start().await;
    let acme = world.stack.customer("Acme", 1000);
    let (id, key) = world.stack.key(&acme, &LIVE);
    world.until(&key, 200, "").await;

    let rotated = world
        .stack
        .cli(&["key", "rotate", &id, "--overlap", "3600"]);
    let (new_id, new) = (
        rotated["key_id"].as_str().unwrap(),
        rotated["key"].as_str().unwrap(),
    );
    world.until(new, 200, "").await;
    assert_eq!(world.status(&key).await.0, 200, "the old key goes on");
    let account = format!(
        "select count(*) from keys.api_keys where limits_key_id = (select limits_key_id from \
         keys.api_keys where id = '{}')",
        uuid_of(new_id)
    );
    let lineage: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(account))
        .fetch_one(world.stack.pool())
        .await
        .unwrap();
    assert_eq!(lineage, 2, "one account of limits for the lineage");
    assert_eq!(
        world.stack.try_cli(&["key", "rotate", &id]).0,
        Some(1),
        "rotated twice"
    );
    let next = world.stack.cli(&["key", "rotate", new_id]);
    let (last_id, last) = (
        next["key_id"].as_str().unwrap(),
        next["key"].as_str().unwrap(),
    );
    world.until(new, 401, "key_expired").await;
    world.until(last, 200, "").await;
    assert_eq!(
        world.stack.try_cli(&["key", "rotate", new_id]).0,
        Some(1),
        "it has ended"
    );

    world.stack.cli(&["key", "delete", last_id]);
    world.until(last, 401, "key_revoked").await;
    assert_eq!(
        world.stack.try_cli(&["key", "show", last_id]).0,
        Some(1),
        "it is hidden"
    );
    let listed = world.stack.cli(&["key", "list", "--org", &acme.org]);
    assert_eq!(listed["keys"].as_array().unwrap().len(), 2);

    is_reported(&mut world, &id, &key, &acme.user).await;
    guards(&mut world, &acme.org, &acme.user).await;
}

async fn is_reported(world: &mut World, id: &str, key: &str, user: &str) {
    let report = pb::ReportLeakedKeyRequest {
        key: key.to_owned(),
        source: "scanner".to_owned(),
        url: "https://example.com/leak".to_owned(),
        ..Default::default()
    };
    let done = world
        .keys
        .report_leaked_key(report.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (done.action.as_str(), done.key_id.as_str()),
        ("suspended", id)
    );
    world.until(key, 403, "key_suspended").await;
    world
        .mailed("acme@example.com", "was reported as leaked by")
        .await;
    let by_user = world.keys.report_leaked_key(by(user, report)).await;
    assert_eq!(code_of(by_user), Code::PermissionDenied);

    assert_eq!(world.stack.try_cli(&["key", "check", key]).0, Some(0));
    let typo = key.replace("sk_live_", "sk_test_");
    assert_eq!(world.stack.try_cli(&["key", "check", &typo]).0, Some(1));
}

fn uuid_of(id: &str) -> String {
    let digits = id.split_once('_').unwrap().1;
    uuid::Uuid::parse_str(digits).unwrap().to_string()
}

async fn guards(world: &mut World, org: &str, user: &str) {
    let wish = |environment: &str, user: &str| pb::CreateKeyRequest {
        org_id: org.to_owned(),
        user_id: user.to_owned(),
        name: "guarded".to_owned(),
        environment: environment.to_owned(),
        scopes: vec!["mileage:calculate".to_owned()],
        ..Default::default()
    };
    let mut keys = world.keys.clone();
    let without = keys.create_key(by(user, wish("production", user))).await;
    assert_eq!(
        code_of(without),
        Code::PermissionDenied,
        "a live key needs a second factor"
    );
    keys.create_key(by_two_factors(user, wish("production", user)))
        .await
        .unwrap();
    keys.create_key(by(user, wish("test", user))).await.unwrap();
    world
        .stack
        .cli(&["org", "policy", org, "--second-factor", "false"]);
    keys.create_key(by(user, wish("production", user)))
        .await
        .unwrap();

    let developer = ["member", "add", "--org", org, "--email", "dev@example.com"];
    let developer = world.stack.cli(&developer)["user_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let live = keys
        .create_key(by(&developer, wish("production", &developer)))
        .await;
    assert_eq!(code_of(live), Code::PermissionDenied);
    let allow = ["org", "policy", org, "--developers-live-keys", "true"];
    world.stack.cli(&allow);
    keys.create_key(by(&developer, wish("production", &developer)))
        .await
        .unwrap();
    world
        .stack
        .cli(&["org", "policy", org, "--key-lifetime-max", "86400"]);
    let endless = keys.create_key(by(user, wish("test", user))).await;
    assert_eq!(code_of(endless), Code::InvalidArgument);
    world
        .stack
        .cli(&["org", "policy", org, "--key-lifetime-max", "0"]);
    // At most 20 keys an hour, however they come.
    let tries = (0..25).map(|_| {
        let mut keys = world.keys.clone();
        let request = by(user, wish("test", user));
        async move {
            keys.create_key(request)
                .await
                .map_err(|refusal| refusal.code())
        }
    });
    let outcomes = futures_util::future::join_all(tries).await;
    let made = world
        .stack
        .count("select max(n) from (select count(*) as n from keys.api_keys group by org_id) x")
        .await;
    assert_eq!(made, 20);
    let refused: Vec<Code> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(
        refused.iter().all(|code| *code == Code::ResourceExhausted),
        "{refused:?}"
    );
}

#[tokio::test]
async fn whoever_tampers_with_the_audit_log_is_found_out() {
    let world = World::start().await;
    for name in ["One", "Two", "Three"] {
        world.stack.customer(name, 0);
    }
    let clean = world.stack.cli(&["audit-log", "verify"]);
    assert!(clean["rows"].as_i64().unwrap() > 3, "{clean}");
    let attacks = [
        (
            "altered",
            "update keys.audit_log set actor = 'nobody' where id = 3",
            "update keys.audit_log set actor = 'operator' where id = 3",
        ),
        (
            "removed",
            "with gone as (delete from keys.audit_log where id = 3 returning *)
             insert into public.gone select * from gone",
            "insert into keys.audit_log select * from public.gone",
        ),
        (
            "inserted",
            "insert into keys.audit_log (id, actor, action, target, at, prev_hash, hash)
             select -1, 'operator', 'key.created', 'x', now(), hash, hash
               from keys.audit_log where id = 1",
            "delete from keys.audit_log where id = -1",
        ),
    ];
    let run = async |sql: &'static str| {
        sqlx::query(sql).execute(world.stack.pool()).await.unwrap();
    };
    assert!(
        sqlx::query(attacks[0].1)
            .execute(world.stack.pool())
            .await
            .is_err(),
        "the table refuses"
    );
    run("alter table keys.audit_log disable trigger audit_log_is_append_only").await;
    run("create table public.gone (like keys.audit_log)").await;
    for (kind, attack, repair) in attacks {
        run(attack).await;
        let (code, found, _) = world.stack.try_cli(&["audit-log", "verify"]);
        assert_eq!(code, Some(1), "{kind}");
        let kinds: Vec<&str> = found["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|problem| problem["kind"].as_str().unwrap())
            .collect();
        assert!(kinds.contains(&kind), "{kind}: {found}");
        run(repair).await;
        world.stack.cli(&["audit-log", "verify"]);
    }
    run("delete from keys.audit_log where id = (select max(id) from keys.audit_log)").await;
    let (code, found, _) = world.stack.try_cli(&["audit-log", "verify"]);
    assert_eq!(
        (code, found["problems"][0]["kind"].as_str()),
        (Some(1), Some("removed"))
    );
}
