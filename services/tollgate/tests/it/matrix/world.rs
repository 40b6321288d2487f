//! One stack with two tenants, and how more of what a cell needs comes to be there.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use futures_util::TryStreamExt;
use proto::{
    channel::Channel,
    keys::v1::{
        self as pb, keys_service_client::KeysServiceClient,
        people_service_client::PeopleServiceClient,
    },
};
use serde_json::Value;
use testkit::{eventually, load::Shot};
use uuid::Uuid;

use crate::stack::{SETTLE_LIMIT, Stack};

pub(super) const PASSWORD: &str = "correct horse battery";
/// Whose password is hashed.
pub(super) const SEED: &str = "seed@example.com";
const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";
/// A second factor counts for ten minutes.
pub(super) const STALE_SECONDS: i64 = 11 * 60;

/// A user.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) id: String,
    pub(super) email: String,
}

/// An organisation with one member of each role.
#[derive(Clone, Debug)]
pub(super) struct Tenant {
    pub(super) org: String,
    pub(super) members: BTreeMap<&'static str, Person>,
}

impl Tenant {
    /// Its own id and those of its members.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        let members = self.members.values().map(|member| member.id.as_str());
        std::iter::once(self.org.as_str()).chain(members)
    }

    pub(super) fn member(&self, role: &str) -> &Person {
        &self.members[role]
    }
}

/// One running stack with two tenants that every cell that only reads may share.
pub(super) struct World {
    pub(super) stack: Stack,
    pub(super) api: String,
    pub(super) grpc: String,
    pub(super) operator: String,
    pub(super) services: String,
    pub(super) keys: KeysServiceClient<Channel>,
    pub(super) people: PeopleServiceClient<Channel>,
    serial: AtomicU32,
    pub(super) ours: Tenant,
    pub(super) theirs: Tenant,
    /// A call of each: `req_…`.
    pub(super) requests: [String; 2],
}

/// What the bytes after the kind of an id say.
pub(super) fn uuid_of(id: &str) -> Uuid {
    let digits = id.split_once('_').expect("a kind").1;
    digits.parse().expect("an id")
}

/// The bytes of a sha256 over a purpose and a value, as `keys` stores the tokens of links.
pub(super) const LINK_HASH: &str =
    "sha256('token'::bytea || '\\x00'::bytea || convert_to($1, 'UTF8'))";

impl World {
    pub(super) async fn start() -> Self {
        let variables = [
            // Operators' keys count too, and there will be many.
            ("TOLLGATE_KEYS_PER_HOUR_MAX", "1000000"),
            // Every request comes from an address of its own.
            ("TOLLGATE_PORTAL_TRUSTED_HOPS", "1"),
            // Nobody looks at thousands of traces.
            ("OTEL_SDK_DISABLED", "true"),
        ];
        let stack = Stack::start_with(&["--ephemeral"], &variables).await;
        let info = stack.info();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let (api, grpc) = (text(&info["api"]), text(&info["grpc"]["keys"]));
        let secrets = std::fs::read(stack.data().join("ephemeral/secrets.json")).expect("secrets");
        let secrets: Value = serde_json::from_slice(&secrets).expect("JSON");
        let operator = text(&secrets["operator_token"]);
        let channel = runtime::grpc::client(&grpc, &operator.clone().into()).expect("a channel");
        let empty = Tenant {
            org: String::new(),
            members: BTreeMap::new(),
        };
        let mut world = Self {
            stack,
            api,
            grpc,
            operator,
            services: text(&secrets["service_token"]),
            keys: KeysServiceClient::new(channel.clone()),
            people: PeopleServiceClient::new(channel),
            serial: AtomicU32::new(0),
            ours: empty.clone(),
            theirs: empty,
            requests: [String::new(), String::new()],
        };
        world.a_password_is_known().await;
        let roles = ["admin", "developer", "billing"];
        world.ours = world.tenant(&roles).await;
        world.theirs = world.tenant(&roles).await;
        let (ours, theirs) = (world.ours.clone(), world.theirs.clone());
        world.requests = [world.used(&ours).await, world.used(&theirs).await];
        world.lends().await;
        world
    }

    /// One password is hashed; whoever needs one gets its hash.
    async fn a_password_is_known(&self) {
        let request = pb::SignUpRequest {
            email: SEED.to_owned(),
            password: PASSWORD.to_owned(),
            name: "Seed".to_owned(),
            organisation_name: "Seed".to_owned(),
            address: "192.0.2.1".to_owned(),
            ..Default::default()
        };
        self.people
            .clone()
            .sign_up(request)
            .await
            .expect("signed up");
    }

    /// A call that is refused, so that nothing of it moves later: its request's id.
    async fn used(&self, of: &Tenant) -> String {
        let wish = pb::CreateKeyRequest {
            scopes: vec!["pdf:read".to_owned()],
            ..key_wish(of, of.member("owner"), "production")
        };
        let made = self
            .keys
            .clone()
            .create_key(wish)
            .await
            .expect("a key")
            .into_inner();
        let answer = self.stack.call(&made.key, &Shot::get(DISTANCE)).await;
        assert_eq!(answer.status, 403, "{answer:?}");
        let request = answer.header("x-request-id").to_owned();
        let id = uuid_of(&request);
        let noted = eventually(SETTLE_LIMIT, "the call is counted", async || {
            let counted: bool = sqlx::query_scalar(
                "select exists (select from usage_ingest.api_usage_logs where request_id = $1)
                    and exists (select from stats_aggregator.daily_stats where org_id = $2)",
            )
            .bind(id)
            .bind(uuid_of(&of.org))
            .fetch_one(self.stack.pool())
            .await
            .expect("a row");
            if counted { Ok(()) } else { Err("not yet") }
        });
        noted.await.expect("counted");
        request
    }

    /// A call that is paid: its lease can be asked about.
    async fn lends(&self) {
        let answer = self
            .stack
            .call(&self.stack.demo("live_key"), &Shot::get(DISTANCE))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    pub(super) fn next(&self) -> u32 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn new_email(&self) -> String {
        format!("person-{}@example.com", self.next())
    }

    pub(super) async fn add_member(&self, org: &str, role: &str) -> Person {
        let email = self.new_email();
        let request = pb::AddMemberRequest {
            org_id: org.to_owned(),
            email: email.clone(),
            role: role.to_owned(),
        };
        let added = self.keys.clone().add_member(request).await.expect("added");
        let id = added.into_inner().user_id;
        Person { id, email }
    }

    /// A new organisation with an owner and members of these roles, all of them new: in one
    /// statement, since every cell that changes something has one.
    pub(super) async fn tenant(&self, roles: &[&'static str]) -> Tenant {
        let mut members = BTreeMap::new();
        for role in ["owner"].iter().chain(roles) {
            members.entry(*role).or_insert_with(|| Person {
                id: unknown("usr"),
                email: self.new_email(),
            });
        }
        let org = unknown("org");
        let ids: Vec<Uuid> = members.values().map(|it| uuid_of(&it.id)).collect();
        let emails: Vec<&str> = members.values().map(|it| it.email.as_str()).collect();
        let roles: Vec<&str> = members.keys().copied().collect();
        let made = sqlx::query(
            "with people as (
                 insert into keys.users (id, email, created_at, updated_at)
                 select id, email, now(), now() from unnest($1, $2) as it (id, email)),
             place as (
                 insert into keys.organisations
                        (id, name, slug, owner_id, created_at, updated_at)
                 values ($4, 'Tenant', $5, $6, now(), now()))
             insert into keys.organisation_members (id, org_id, user_id, role, joined_at)
             select id, $4, id, role, now() from unnest($1, $3) as it (id, role)",
        )
        .bind(&ids)
        .bind(&emails)
        .bind(&roles)
        .bind(uuid_of(&org))
        .bind(format!("tenant-{}", self.next()))
        .bind(uuid_of(&members["owner"].id))
        .execute(self.stack.pool())
        .await;
        assert_eq!(
            made.expect("a tenant").rows_affected(),
            u64::try_from(ids.len()).expect("few")
        );
        Tenant { org, members }
    }

    /// Waits until every event that was written is published, and every one that was published is
    /// dealt with.
    pub(super) async fn is_quiet(&self) {
        let url = self.stack.info()["nats_url"]
            .as_str()
            .expect("a URL")
            .to_owned();
        let nats = async_nats::connect(url).await.expect("NATS");
        let jetstream = async_nats::jetstream::new(nats);
        let quiet = eventually(SETTLE_LIMIT, "all events are dealt with", async || {
            let written: i64 = sqlx::query_scalar(
                "select (select count(*) from keys.outbox_created)
                      + (select count(*) from keys.changes where published_at is null)",
            )
            .fetch_one(self.stack.pool())
            .await
            .expect("a count");
            let waiting = waiting(&jetstream).await?;
            match (written, waiting) {
                (0, 0) => Ok(()),
                counts => Err(format!("unpublished and waiting: {counts:?}")),
            }
        });
        quiet.await.expect("quiet");
    }

    pub(super) async fn run(&self, sql: &'static str, text: &str, id: Uuid) {
        let done = sqlx::query(sql)
            .bind(text)
            .bind(id)
            .execute(self.stack.pool())
            .await;
        assert_eq!(done.expect("executed").rows_affected(), 1, "{sql}");
    }

    /// A session as signing in makes it, in some state; its id and token.
    pub(super) async fn session(&self, user: &str, state: Session) -> (String, String) {
        let id = Uuid::now_v7();
        let token = format!("tgs_matrix{}", self.next());
        let (age, end, idle, factor, epoch) = match state {
            Session::Fresh => (60, 3600, 0, Some(0), 0),
            Session::Plain => (60, 3600, 0, None, 0),
            Session::Stale => (3600, 3600, 0, Some(STALE_SECONDS), 0),
            Session::Expired => (3600, -1, 0, Some(0), 0),
            Session::Idle => (100_000, 3600, 13 * 3600, Some(0), 0),
            Session::Outdated => (60, 3600, 0, Some(0), 1),
        };
        let done = sqlx::query(
            "insert into portal.sessions
                (id, token_hash, user_id, session_epoch, created_at, last_seen_at, expires_at,
                 second_factor_at, address, user_agent)
             select $1, sha256(convert_to($2, 'UTF8')), id, session_epoch - $8,
                    now() - make_interval(secs => $4), now() - make_interval(secs => $6),
                    now() + make_interval(secs => $5), now() - make_interval(secs => $7),
                    '192.0.2.1', 'matrix'
               from keys.users
              where id = $3",
        )
        .bind(id)
        .bind(&token)
        .bind(uuid_of(user))
        .bind(f64::from(age))
        .bind(f64::from(end))
        .bind(f64::from(idle))
        .bind(factor.map(seconds))
        .bind(i64::from(epoch))
        .execute(self.stack.pool())
        .await;
        assert_eq!(done.expect("a session").rows_affected(), 1);
        (format!("web_{}", id.as_simple()), token)
    }
}

/// Messages of all streams that some consumer has not acknowledged.
async fn waiting(jetstream: &async_nats::jetstream::Context) -> Result<u64, String> {
    let mut waiting = 0;
    let mut names = jetstream.stream_names();
    while let Some(name) = names.try_next().await.map_err(|error| error.to_string())? {
        let stream = jetstream.get_stream(&name).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let mut consumers = stream.consumers();
        while let Some(it) = consumers
            .try_next()
            .await
            .map_err(|error| error.to_string())?
        {
            waiting += it.num_pending + u64::try_from(it.num_ack_pending).unwrap_or(u64::MAX);
        }
    }
    Ok(waiting)
}

fn seconds(of: i64) -> f64 {
    f64::from(i32::try_from(of).expect("small"))
}

/// What a session is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Session {
    /// With a second factor of this moment.
    Fresh,
    /// Without one.
    Plain,
    /// With one of eleven minutes ago.
    Stale,
    Expired,
    Idle,
    Outdated,
}

pub(super) fn key_wish(of: &Tenant, holder: &Person, environment: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest {
        org_id: of.org.clone(),
        user_id: holder.id.clone(),
        name: "matrix".to_owned(),
        environment: environment.to_owned(),
        scopes: vec!["mileage:calculate".to_owned()],
        ..Default::default()
    }
}

/// An id that nobody has.
pub(super) fn unknown(kind: &str) -> String {
    format!("{kind}_{}", Uuid::now_v7().as_simple())
}
