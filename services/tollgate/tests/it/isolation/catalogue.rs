//! What the database says of roles, tables and functions, after migrations by an owner who is no
//! superuser: what row security does not spare.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Postgres as Server, Transaction,
    postgres::PgConnectOptions,
};
use testkit::{
    auditor::{self, Sources},
    servers::{Options, Postgres},
};
use uuid::Uuid;

/// Tables without row security, and why.
const OPEN: [(&str, &str); 1] = [("migrations", "which of them were applied; nobody's data")];

/// What is written once: no role changes or deletes it.
const APPEND_ONLY: [&str; 11] = [
    "keys.audit_log",
    "wallet.ledger_entries",
    "wallet.gaps",
    "usage_ingest.gaps",
    "stats_aggregator.gaps",
    "anomaly_detector.gaps",
    "keys.discards",
    "wallet.discards",
    "usage_ingest.discards",
    "stats_aggregator.discards",
    "anomaly_detector.discards",
];

/// Every schema, by the folders of its migrations.
pub(super) fn schemas() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let entries = std::fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let schemas: BTreeSet<String> = names.collect();
    assert!(schemas.len() >= 6, "{schemas:?}");
    schemas.into_iter().collect()
}

async fn connect(url: &str, role: Option<&str>) -> sqlx::Result<PgConnection> {
    let mut options: PgConnectOptions = url.parse().unwrap();
    if let Some(role) = role {
        options = options.options([("role", role)]);
    }
    PgConnection::connect_with(&options).await
}

fn migrate(url: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command
        .args(["migrate", "--json"])
        .env_clear()
        .env("DATABASE_URL", url)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir(std::env::temp_dir());
    command.spawn().unwrap()
}

/// The URL of a database as somebody else.
fn url_of(postgres: &Postgres, database: &str, user: &str) -> String {
    let url = postgres.url(database);
    let (_, place) = url.split_once('@').unwrap();
    format!("postgres://{user}:secret@{place}")
}

#[tokio::test]
async fn every_table_is_closed_and_no_role_of_a_service_owns_anything() {
    let postgres = Postgres::start(&Options::ephemeral()).await.unwrap();
    let mut root = connect(&postgres.url("postgres"), None).await.unwrap();
    root.execute("create role owner login createrole password 'secret'")
        .await
        .unwrap();
    for database in ["one", "two"] {
        postgres.create_database(database).await.unwrap();
        let sql = format!("alter database {database} owner to owner");
        root.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    // Roles are the whole server's, and two databases make them at the same time.
    let both = ["one", "two"].map(|database| migrate(&url_of(&postgres, database, "owner")));
    for one in both {
        let done = one.wait_with_output().unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    let mut database = connect(&postgres.url("one"), None).await.unwrap();
    roles_are_powerless(&mut database).await;
    schemas_are_apart(&mut database).await;
    definers_have_a_fixed_path(&mut database).await;
    membership_decides(&postgres, &mut database).await;
    a_day_gets_its_partition(&mut database).await;
    // After it: a day has its partition.
    tables_are_closed(&mut database).await;
    logins_stay_in_their_roles(&postgres, &mut root).await;
    the_auditor_does_not_judge_a_part(&postgres).await;
    postgres.stop().await;
}

async fn roles_are_powerless(database: &mut PgConnection) {
    let found: Vec<(String, bool)> = sqlx::query_as(
        "select r.rolname::text,
                r.rolsuper or r.rolbypassrls or r.rolcanlogin or r.rolcreaterole or r.rolcreatedb
                or r.rolreplication
                or exists (select from pg_auth_members m where m.member = r.oid)
                or exists (select from pg_shdepend d where d.refobjid = r.oid and d.deptype = 'o')
           from pg_roles r
          where r.rolname like 'tollgate%'",
    )
    .fetch_all(database)
    .await
    .unwrap();
    let found: BTreeMap<String, bool> = found.into_iter().collect();
    let wanted = schemas().into_iter().flat_map(|schema| {
        let roles = [
            format!("tollgate_{schema}"),
            format!("tollgate_{schema}_tenant"),
        ];
        roles.map(|role| (role, false))
    });
    assert_eq!(
        found,
        wanted.collect(),
        "two each, which own nothing and inherit nothing"
    );
}

/// A table as the catalogue has it.
#[derive(Debug, sqlx::FromRow)]
struct Place {
    schema: String,
    name: String,
    is_view: bool,
    is_partition: bool,
    is_closed: bool,
    is_forced: bool,
    is_barrier: bool,
    service_policy: bool,
    tenant_policy: bool,
    tenant_may: bool,
    somebody_may_change: bool,
    somebody_may_truncate: bool,
    public_may: bool,
}

async fn tables_are_closed(database: &mut PgConnection) {
    let places: Vec<Place> = sqlx::query_as(
        "select n.nspname::text as schema, c.relname::text as name,
                c.relkind in ('v', 'm', 'f') as is_view, c.relispartition as is_partition,
                c.relrowsecurity as is_closed, c.relforcerowsecurity as is_forced,
                coalesce('security_barrier=true' = any (c.reloptions), false) as is_barrier,
                exists (select from pg_policy p
                         where p.polrelid = c.oid and s.oid = any (p.polroles))
                    as service_policy,
                exists (select from pg_policy p
                         where p.polrelid = c.oid and t.oid = any (p.polroles))
                    as tenant_policy,
                has_any_column_privilege(t.oid, c.oid, 'select, insert, update, references')
                or has_table_privilege(t.oid, c.oid, 'delete') as tenant_may,
                has_table_privilege(t.oid, c.oid, 'update, delete')
                or has_table_privilege(s.oid, c.oid, 'update, delete') as somebody_may_change,
                has_table_privilege(t.oid, c.oid, 'truncate, trigger')
                or has_table_privilege(s.oid, c.oid, 'truncate, trigger') as somebody_may_truncate,
                exists (select from aclexplode(c.relacl) a where a.grantee = 0) as public_may
           from pg_class c
           join pg_namespace n on n.oid = c.relnamespace
           join pg_roles s on s.rolname = 'tollgate_' || n.nspname
           join pg_roles t on t.rolname = 'tollgate_' || n.nspname || '_tenant'
          where c.relkind in ('r', 'p', 'v', 'm', 'f')",
    )
    .fetch_all(database)
    .await
    .unwrap();
    assert!(places.len() > 40, "the tables were found");
    for place in places {
        let name = format!("{}.{}", place.schema, place.name);
        assert!(!place.somebody_may_truncate, "{name}");
        assert!(!place.public_may, "{name}");
        let is_append_only = APPEND_ONLY.contains(&name.as_str());
        assert!(!(is_append_only && place.somebody_may_change), "{name}");
        if OPEN.iter().any(|(open, _)| *open == place.name) {
            assert!(
                !place.tenant_may,
                "{name} is open, so no tenant may come near"
            );
            continue;
        }
        if place.is_view {
            assert!(
                place.is_barrier,
                "{name}: a view decides before conditions do"
            );
            continue;
        }
        assert!(place.is_closed, "{name} has no row security");
        if place.is_partition {
            // Its owner moves rows into it.
            assert!(!place.tenant_may, "{name} is reached by its table only");
            continue;
        }
        assert!(place.is_forced, "{name} is open to its owner");
        assert!(place.service_policy, "{name}: the service cannot work");
        let both = (place.tenant_may, place.tenant_policy);
        assert_eq!(
            both.0, both.1,
            "{name}: a right without a policy, or a policy without a right"
        );
    }
}

/// No role has any right in another's schema, nor may make anything in its own.
async fn schemas_are_apart(database: &mut PgConnection) {
    let wrong: Vec<(String, String)> = sqlx::query_as(
        "select r.rolname::text, n.nspname::text
           from pg_roles r
          cross join pg_namespace n
          where r.rolname like 'tollgate%'
            and exists (select from pg_roles o where o.rolname = 'tollgate_' || n.nspname)
            and (has_schema_privilege(r.oid, n.oid, 'create')
                 or has_schema_privilege(r.oid, n.oid, 'usage') <>
                    (r.rolname in ('tollgate_' || n.nspname, 'tollgate_' || n.nspname || '_tenant')))",
    )
    .fetch_all(database)
    .await
    .unwrap();
    assert_eq!(wrong, []);
}

/// What runs as the owner cannot be made to call somebody else's function.
async fn definers_have_a_fixed_path(database: &mut PgConnection) {
    let found: Vec<(String, bool)> = sqlx::query_as(
        "select p.oid::regprocedure::text,
                coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
           from pg_proc p
           join pg_namespace n on n.oid = p.pronamespace
           join pg_roles o on o.rolname = 'tollgate_' || n.nspname
          where p.prosecdef",
    )
    .fetch_all(database)
    .await
    .unwrap();
    assert!(found.len() >= 3, "{found:?}");
    let loose: Vec<_> = found.iter().filter(|(_, is_fixed)| !is_fixed).collect();
    assert!(loose.is_empty(), "{loose:?}");
}

/// A transaction for a user, in the tenants' role.
async fn as_member(database: &mut PgConnection, user: Uuid) -> Transaction<'_, Server> {
    let mut tx = database.begin().await.unwrap();
    tx.execute("set local role tollgate_keys_tenant")
        .await
        .unwrap();
    let scope = format!("set local tollgate.scope = 'user:{user}'");
    tx.execute(AssertSqlSafe(scope)).await.unwrap();
    tx
}

/// Two users with an organisation each, of which the second is a member of both, and a call of a
/// day without a partition.
async fn fill(database: &mut PgConnection, [user, other]: [Uuid; 2], [org, place]: [Uuid; 2]) {
    let fill = format!(
        "begin; set local role tollgate_keys;
         insert into keys.users (id, email, created_at, updated_at)
         select id, id || '@example.com', now(), now()
           from unnest(array['{user}', '{other}']::uuid[]) id;
         insert into keys.organisations (id, name, slug, owner_id, created_at, updated_at)
         values ('{org}', 'it', 'one', '{user}', now(), now()),
                ('{place}', 'it', 'two', '{other}', now(), now());
         insert into keys.organisation_members (id, org_id, user_id, role, joined_at)
         values ('{org}', '{org}', '{user}', 'owner', now()),
                ('{place}', '{place}', '{other}', 'owner', now()),
                ('{other}', '{org}', '{other}', 'developer', now());
         commit;
         begin; set local role tollgate_usage_ingest;
         insert into usage_ingest.api_usage_logs
             (day, journal_id, seq, request_id, org_id, service, endpoint, method, status_code,
              response_time_ms, upstream_time_ms, credits_used, environment, disposition, timestamp)
         values ('2020-02-29', '{org}', 0, '{org}', '{org}', 's', '/', 'GET', 200, 1, 1, 1,
                 'test', 'completed', '2020-02-29');
         commit;"
    );
    database.execute(AssertSqlSafe(fill)).await.unwrap();
}

/// Membership and the last owner: their functions work under an owner whom row security binds, for
/// a role that sees less than they do.
async fn membership_decides(postgres: &Postgres, database: &mut PgConnection) {
    let [user, other, org, place] = [1, 2, 3, 4].map(Uuid::from_u128);
    fill(database, [user, other], [org, place]).await;
    let owner = url_of(postgres, "one", "owner");
    let mut connection = connect(&owner, None).await.unwrap();
    let seen: i64 = sqlx::query_scalar("select count(*) from usage_ingest.api_usage_logs")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(seen, 0, "the owner is bound");

    // Who leaves sees nothing of the organisation any more; whether it has an owner is judged.
    let mut tx = as_member(database, other).await;
    let leave = format!(
        "delete from keys.organisation_members where org_id = '{org}' and user_id = '{other}'"
    );
    tx.execute(AssertSqlSafe(leave)).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = as_member(database, user).await;
    for (sql, wanted) in [
        ("select count(*) from keys.organisations".to_owned(), 1),
        (
            "select count(*) from keys.organisation_members".to_owned(),
            1,
        ),
        ("select count(*) from keys.users".to_owned(), 1),
        (format!("select count(*) from keys.people_of('{org}')"), 1),
        (format!("select count(*) from keys.people_of('{place}')"), 0),
    ] {
        let seen: i64 = sqlx::query_scalar(AssertSqlSafe(sql.clone()))
            .fetch_one(&mut *tx)
            .await
            .unwrap();
        assert_eq!(seen, wanted, "{sql}");
    }
    tx.execute("delete from keys.organisation_members")
        .await
        .unwrap();
    let refused = tx.commit().await.unwrap_err();
    let error = refused.as_database_error();
    let constraint = error.and_then(|error| error.constraint());
    assert_eq!(constraint, Some("organisation_has_owner"), "{refused}");
}

/// The service makes partitions by a function of the owner, and may not do so itself.
async fn a_day_gets_its_partition(database: &mut PgConnection) {
    database
        .execute("set role tollgate_usage_ingest")
        .await
        .unwrap();
    for wanted in [Some(1_i64), None] {
        let moved: Option<i64> =
            sqlx::query_scalar("select usage_ingest.make_partition('2020-02-29')")
                .fetch_one(&mut *database)
                .await
                .unwrap();
        assert_eq!(moved, wanted);
    }
    let denied = database
        .execute("select from usage_ingest.api_usage_logs_20200229")
        .await;
    assert!(denied.is_err(), "a partition is reached by its table only");
    let calls: i64 = sqlx::query_scalar("select count(*) from usage_ingest.api_usage_logs")
        .fetch_one(&mut *database)
        .await
        .unwrap();
    assert_eq!(calls, 1);
    database.execute("reset role").await.unwrap();
}

/// A login for one service reaches its two roles and nobody else's.
async fn logins_stay_in_their_roles(postgres: &Postgres, root: &mut PgConnection) {
    root.execute(
        "create role portal_login login password 'secret'
         in role tollgate_portal, tollgate_portal_tenant",
    )
    .await
    .unwrap();
    let url = url_of(postgres, "one", "portal_login");
    for role in ["tollgate_portal", "tollgate_portal_tenant"] {
        let mut connection = connect(&url, Some(role)).await.unwrap();
        // Even what resets the role stays in it.
        connection.execute("reset role").await.unwrap();
        let now: String = sqlx::query_scalar("select current_user::text")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(now, role);
        connection
            .execute("select from portal.sessions")
            .await
            .unwrap();
    }
    // Is every migration applied? A service asks before it takes a role.
    let mut connection = connect(&url, None).await.unwrap();
    connection
        .execute("select version from portal.migrations")
        .await
        .unwrap();
    for role in [
        "tollgate_wallet",
        "tollgate_keys_tenant",
        "owner",
        "postgres",
    ] {
        assert!(connect(&url, Some(role)).await.is_err(), "{role}");
    }
}

/// Sums over the rows that row security leaves would prove nothing.
async fn the_auditor_does_not_judge_a_part(postgres: &Postgres) {
    let sources = |postgres_url| Sources {
        postgres_url,
        ..Sources::default()
    };
    let all = auditor::audit(&sources(postgres.url("one")), Duration::ZERO).await;
    assert!(all.is_ok(), "{all:?}");
    let part = auditor::audit(&sources(url_of(postgres, "one", "owner")), Duration::ZERO).await;
    let said = format!("{:#}", part.unwrap_err());
    assert!(said.contains("row-level security"), "{said}");
}
