//! What one cell is about: made for it, so that no cell spoils the next.

use std::collections::BTreeMap;

use http::Method;
use proto::keys::v1 as pb;
use serde_json::Value;
use testkit::load::{Answer, Connection, Shot};
use totp_rs::Totp;
use uuid::Uuid;

use super::{
    named,
    requests::request,
    table::Case,
    who::Who,
    wire::Credentials,
    world::{
        LINK_HASH, PASSWORD, Person, SEED, STALE_SECONDS, Session, Tenant, World, key_wish,
        unknown, uuid_of,
    },
};

/// One cell's caller and objects. Names in braces are filled in where a request mentions them.
pub(super) struct Scene<'a> {
    world: &'a World,
    case: Case,
    who: Who,
    tenant: Tenant,
    stranger: Option<Person>,
    filled: BTreeMap<&'static str, String>,
}

impl<'a> Scene<'a> {
    /// Sets the stage. What only reads is shown the tenants that are there.
    pub(super) async fn set(world: &'a World, case: Case, who: Who, is_reading: bool) -> Self {
        let mut scene = Self {
            world,
            case,
            who,
            tenant: world.ours.clone(),
            stranger: None,
            filled: BTreeMap::new(),
        };
        if !is_reading {
            let roles = [who.role().unwrap_or("owner"), who.another()];
            scene.tenant = world.tenant(&roles).await;
        }
        if who == Who::Stranger {
            scene.stranger = Some(match is_reading {
                true => world.theirs.member("owner").clone(),
                false => world.tenant(&[]).await.member("owner").clone(),
            });
        }
        if case.has("succeeded") {
            world.add_member(&scene.tenant.org, "owner").await;
        }
        scene.policy().await;
        scene
    }

    pub(super) fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Lets somebody else ask the same.
    pub(super) fn let_ask(&mut self, who: Who) {
        self.who = who;
    }

    /// Makes the objects of another tenant instead.
    pub(super) fn move_to(&mut self, tenant: &Tenant) {
        self.tenant = tenant.clone();
    }

    /// Says what a name stands for.
    pub(super) fn put(&mut self, name: &'static str, value: String) {
        self.filled.insert(name, value);
    }

    /// A text in which names stand for the ids of the scene.
    pub(super) fn without_ids(&self, text: &str) -> String {
        let ids = self.filled.iter().filter(|(_, value)| value.contains('_'));
        ids.fold(text.to_owned(), |text, (name, value)| {
            text.replace(value, name)
        })
    }

    async fn policy(&self) {
        let (open, lax) = (self.case.has("open"), self.case.has("lax"));
        if !open && !lax {
            return;
        }
        let request = pb::SetPolicyRequest {
            org_id: self.tenant.org.clone(),
            developers_may_create_live_keys: open.then_some(true),
            live_keys_need_second_factor: lax.then_some(false),
            ..Default::default()
        };
        self.world
            .keys
            .clone()
            .set_policy(request)
            .await
            .expect("set");
    }

    /// The person who asks, where it is one.
    fn person(&self) -> Option<&Person> {
        match self.who.role() {
            Some(role) => Some(self.tenant.member(role)),
            None => self.stranger.as_ref(),
        }
    }

    /// Whoever `{caller}` is; nobody, when that id is unknown.
    fn subject(&self) -> Option<&Person> {
        match (self.person(), self.case.has("other's")) {
            (Some(person), false) => Some(person),
            (None, false) if self.who == Who::Unknown => None,
            _ => Some(self.another()),
        }
    }

    /// A member who is not the one that asks.
    fn another(&self) -> &Person {
        self.tenant.member(self.who.another())
    }

    /// What a caller of the API sends as its token.
    pub(super) async fn token(&self) -> String {
        let state = match self.who {
            Who::Expired => Session::Expired,
            Who::Idle => Session::Idle,
            Who::Outdated => Session::Outdated,
            Who::Operator => return self.world.operator.clone(),
            Who::Garbage => return "tgs_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned(),
            _ if self.case.has("unproved") => Session::Plain,
            _ if self.case.has("stale") => Session::Stale,
            _ => Session::Fresh,
        };
        let of = match state {
            Session::Expired | Session::Idle | Session::Outdated => {
                Some(self.tenant.member("owner"))
            }
            _ => self.person(),
        };
        match of {
            Some(person) => self.world.session(&person.id, state).await.1,
            None => String::new(),
        }
    }

    /// Another session of whoever `{caller}` is.
    async fn another_session(&self) -> String {
        let subject = self.subject().expect("somebody");
        self.world.session(&subject.id, Session::Plain).await.0
    }

    /// What a caller of the gRPC port sends.
    pub(super) fn credentials(&self) -> Credentials {
        let now = jiff::Timestamp::now().as_second();
        let second_factor_at = match (self.case.has("unproved"), self.case.has("stale")) {
            (true, _) => None,
            (_, true) => Some(now - STALE_SECONDS),
            _ => Some(now),
        };
        let (token, actor) = match self.who {
            Who::Nobody => (String::new(), String::new()),
            Who::Garbage => ("garbage".to_owned(), String::new()),
            Who::Services => (self.world.services.clone(), String::new()),
            Who::Unnamed => (self.world.operator.clone(), String::new()),
            Who::Operator => (self.world.operator.clone(), "operator".to_owned()),
            Who::Malformed => (self.world.operator.clone(), "usr_nobody".to_owned()),
            Who::Unknown => (self.world.operator.clone(), unknown("usr")),
            _ => {
                let person = self.person().expect("a person");
                (self.world.operator.clone(), person.id.clone())
            }
        };
        Credentials {
            token,
            actor,
            second_factor_at,
        }
    }

    /// A request with all names filled in.
    pub(super) async fn fill(&mut self, text: &str) -> String {
        let mut filled = text.to_owned();
        for name in NAMES {
            let placeholder = format!("{{{name}}}");
            if filled.contains(&placeholder) {
                let value = self.named(name).await;
                filled = filled.replace(&placeholder, &value);
            }
        }
        filled
    }

    async fn named(&mut self, name: &'static str) -> String {
        if let Some(known) = self.filled.get(name) {
            return known.clone();
        }
        let value = match name {
            "key" | "key-text" => {
                let (id, text) = self.key().await;
                self.filled.insert("key", id);
                self.filled.insert("key-text", text);
                self.filled[name].clone()
            }
            "invitation" => self.invitation().await,
            "invited" => self.invited().await,
            "verify" | "reset" => self.mailed(name).await,
            "code" => self.authenticator(self.subject(), true).await,
            "first-code" => self.authenticator(self.subject(), false).await,
            "session" => self.another_session().await,
            "user" => self.concerned().await,
            "request" => self.world.requests[0].clone(),
            "their-request" => self.world.requests[1].clone(),
            "lease" => self.lease().await,
            "anomaly" => self.anomaly().await,
            "address" => self.with_password().await,
            "password" => self.password().await,
            _ => self.plain(name),
        };
        self.filled.insert(name, value.clone());
        value
    }

    /// Names that need nothing to be made.
    fn plain(&self, name: &str) -> String {
        match name {
            "org" => self.tenant.org.clone(),
            "caller" => self
                .subject()
                .map_or_else(|| unknown("usr"), |it| it.id.clone()),
            "email" => match self.person() {
                Some(person) if !self.case.has("other's") => person.email.clone(),
                _ => self.world.new_email(),
            },
            "new-email" => self.world.new_email(),
            "role" => self.case.after("to:").unwrap_or("developer").to_owned(),
            "environment" => self.environment().to_owned(),
            "service" if self.case.has("new") => format!("service-{}", self.world.next()),
            "service" => "mileage".to_owned(),
            "serial" => self.world.next().to_string(),
            "journal" => unknown("jrn"),
            "hash" => format!("{:064x}", self.world.next()),
            "nonce" => format!("{:032x}", self.world.next()),
            _ => panic!("nobody makes {name}"),
        }
    }

    fn environment(&self) -> &'static str {
        match self.case.has("live") {
            true => "production",
            false => "test",
        }
    }

    async fn key(&self) -> (String, String) {
        let mut keys = self.world.keys.clone();
        let leaving = match self.case.has("left") {
            true => Some(self.world.add_member(&self.tenant.org, "developer").await),
            false => None,
        };
        let holder = match (&leaving, self.person()) {
            (Some(leaving), _) => leaving,
            (_, Some(person)) if self.who.role().is_some() && self.case.has("own") => person,
            _ => self.another(),
        };
        let wish = key_wish(&self.tenant, holder, self.environment());
        let made = keys.create_key(wish).await.expect("a key").into_inner();
        if self.case.has("suspended") {
            let request = pb::UpdateKeyRequest {
                key_id: made.key_id.clone(),
                active: Some(false),
                ..Default::default()
            };
            keys.update_key(request).await.expect("suspended");
        }
        if let Some(leaving) = leaving {
            let request = pb::RemoveMemberRequest {
                org_id: self.tenant.org.clone(),
                user_id: leaving.id,
            };
            keys.remove_member(request).await.expect("gone");
        }
        (made.key_id, made.key)
    }

    /// The member that a change of members is about.
    async fn concerned(&self) -> String {
        if let Some(role) = self.case.after("of:") {
            let member = self.world.add_member(&self.tenant.org, role).await;
            if self.case.has("proved") {
                self.authenticator(Some(&member), true).await;
            }
            return member.id;
        }
        assert!(self.case.has("self"), "somebody is meant: {:?}", self.case);
        let person = self.person().unwrap_or_else(|| self.another());
        person.id.clone()
    }

    async fn invite(&self, org: &str, email: String, role: &str) -> String {
        let request = pb::CreateInvitationRequest {
            org_id: org.to_owned(),
            email,
            role: role.to_owned(),
        };
        let made = self.world.people.clone().create_invitation(request).await;
        let made = made.expect("an invitation").into_inner().invitation;
        made.expect("an invitation").invitation_id
    }

    /// An open invitation of the organisation.
    async fn invitation(&self) -> String {
        let role = self.case.after("to:").unwrap_or("developer");
        self.invite(&self.tenant.org, self.world.new_email(), role)
            .await
    }

    /// The token of an invitation of who asks, to somebody else's organisation.
    async fn invited(&self) -> String {
        let Tenant { org, .. } = self.world.tenant(&[]).await;
        let email = match self.subject() {
            Some(person) if !self.case.has("misdirected") => person.email.clone(),
            _ => self.world.new_email(),
        };
        // One address is mailed a few times an hour at most: somebody else's mail.
        let id = self.invite(&org, self.world.new_email(), "developer").await;
        let token = format!("invited-{}", self.world.next());
        let sql = format!(
            "update keys.invitations set token_hash = {LINK_HASH}, email = $3 where id = $2"
        );
        let done = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&token)
            .bind(uuid_of(&id))
            .bind(&email)
            .execute(self.world.stack.pool())
            .await;
        assert_eq!(done.expect("a token").rows_affected(), 1);
        token
    }

    /// The token of a mail to somebody.
    async fn mailed(&self, purpose: &str) -> String {
        let token = format!("mailed-{}", self.world.next());
        let sql = format!(
            "insert into keys.mail_tokens (token_hash, user_id, purpose, expires_at)
             values ({LINK_HASH}, $2, $3, now() + interval '1 hour')"
        );
        let done = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(&token)
            .bind(uuid_of(&self.another().id))
            .bind(purpose)
            .execute(self.world.stack.pool())
            .await;
        assert_eq!(done.expect("a token").rows_affected(), 1);
        token
    }

    /// Gives somebody an authenticator; its code.
    async fn authenticator(&self, of: Option<&Person>, is_confirmed: bool) -> String {
        let secret = format!("secret of 20 bytes{:02}", self.world.next() % 100);
        let sql = "update keys.users
                      set totp_secret = convert_to($1, 'UTF8'),
                          totp_confirmed_at = case when $3 then now() end
                    where id = $2";
        if let Some(person) = of {
            let done = sqlx::query(sql)
                .bind(&secret)
                .bind(uuid_of(&person.id))
                .bind(is_confirmed)
                .execute(self.world.stack.pool())
                .await;
            assert_eq!(done.expect("a secret").rows_affected(), 1);
        }
        let totp = totp_rs::Builder::new().with_secret(secret.into_bytes());
        let totp: Totp = totp.build().expect("an authenticator");
        let now = u64::try_from(jiff::Timestamp::now().as_second()).expect("after 1970");
        totp.generate(now).to_string()
    }

    /// The address of whoever `{caller}` is, who has a password from now on.
    async fn with_password(&self) -> String {
        let sql = "update keys.users
                      set password = (select password from keys.users where email = $1)
                    where id = $2";
        let Some(subject) = self.subject() else {
            return self.world.new_email();
        };
        self.world.run(sql, SEED, uuid_of(&subject.id)).await;
        subject.email.clone()
    }

    async fn password(&self) -> String {
        self.with_password().await;
        PASSWORD.to_owned()
    }

    async fn lease(&self) -> String {
        let found: Uuid = sqlx::query_scalar("select id from wallet.leases limit 1")
            .fetch_one(self.world.stack.pool())
            .await
            .expect("a lease");
        found.as_simple().to_string()
    }

    /// An open anomaly of the organisation, which `keys` has heard of.
    async fn anomaly(&self) -> String {
        let id = Uuid::now_v7();
        for sql in [
            "insert into anomaly_detector.anomalies
                 (id, org_id, kind, identity, summary, window_from, at, created_at, published_at,
                  published_keys)
             values ($2, $1, 'wallet_drain', $2::text, 'found', now(), now(), now(), now(), 0)",
            "insert into keys.anomalies (id, org_id, kind, flagged_at)
             values ($2, $1, 'wallet_drain', now())",
        ] {
            let done = sqlx::query(sql)
                .bind(uuid_of(&self.tenant.org))
                .bind(id)
                .execute(self.world.stack.pool())
                .await;
            done.expect("an anomaly");
        }
        format!("ano_{}", id.as_simple())
    }

    /// A request of the API: a place with its names, and its body.
    pub(super) async fn shot(&mut self, place: &str) -> Shot {
        let name = named(place);
        let (method, path) = name.split_once(' ').expect("method and path");
        let query = place
            .split_once('?')
            .map_or(String::new(), |(_, query)| format!("?{query}"));
        let path = self.fill(&format!("{path}{query}")).await;
        let mut shot = Shot::get(&path);
        if let Some(body) = request(place) {
            shot = Shot::post(&path, &self.fill(body).await);
        }
        shot.method = method.parse::<Method>().expect("a method");
        shot
    }

    /// A message for the gRPC port.
    pub(super) async fn message(&mut self, place: &str) -> Value {
        let text = request(place).unwrap_or_else(|| panic!("{place} has no request"));
        let text = self.fill(text).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{place}: {error}: {text}"))
    }

    /// Calls the API, from a place of its own: some routes count what comes from one.
    pub(super) async fn shoot(&self, shot: &Shot) -> Answer {
        let token = self.token().await;
        let [_, _, high, low] = self.world.next().to_be_bytes();
        let shot = shot
            .clone()
            .with("x-forwarded-for", &format!("198.51.{high}.{low}"));
        let answer = Connection::to(&self.world.api).call(&token, &shot).await;
        answer.unwrap_or_else(|error| panic!("{} {}: {error:#}", shot.method, shot.path))
    }
}

/// Everything a request may mention.
const NAMES: [&str; 27] = [
    "org",
    "caller",
    "key",
    "key-text",
    "invitation",
    "invited",
    "verify",
    "reset",
    "code",
    "first-code",
    "session",
    "request",
    "their-request",
    "lease",
    "anomaly",
    "address",
    "password",
    "email",
    "new-email",
    "role",
    "environment",
    "serial",
    "journal",
    "hash",
    "nonce",
    "user",
    "service",
];
