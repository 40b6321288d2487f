//! The life of keys: rotated, deleted, reported, guarded by policy; and the log of it all.

use proto::keys::v1 as pb;
use tonic::Code;

use crate::{
    stack::{Customer, LIVE},
    world::{World, by, by_two_factors, code_of},
};

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

/// Writers at once in the tests of the logs.
const WRITERS: usize = 4;
/// Changes of each.
const CHANGES: usize = 15;

#[tokio::test]
async fn changes_made_at_once_are_one_chain_and_become_visible_in_their_order() {
    let world = World::start().await;
    let pool = world.stack.pool();
    let newest = "select coalesce(max(id), 0) from keys.changes";
    let first = world.stack.count(newest).await;
    let customers: Vec<_> = (0..WRITERS)
        .map(|n| world.stack.customer(&format!("Writer{n}"), 0))
        .collect();
    let noted = "select count(*) from keys.audit_log
                  where action in ('key.created', 'service.updated')";
    let before = world.stack.count(noted).await;
    let makers = customers.iter().map(|customer| make_keys(&world, customer));
    let sellers = ["ai", "mileage", "pdf"].map(|name| change_prices(&world, name));
    let writing = futures_util::future::join(
        futures_util::future::join_all(makers),
        futures_util::future::join_all(sellers),
    );
    let mut writing = std::pin::pin!(writing);
    // As a gateway follows the log: from the newest it has seen.
    let mut seen = vec![first];
    let mut is_done = false;
    while !is_done {
        is_done = futures_util::poll!(&mut writing).is_ready();
        let more = "select id from keys.changes where id > $1 order by id";
        let more: Vec<i64> = sqlx::query_scalar(more)
            .bind(seen.last())
            .fetch_all(pool)
            .await
            .unwrap();
        seen.extend(more);
    }
    let all = "select id from keys.changes where id >= $1 order by id";
    let all: Vec<i64> = sqlx::query_scalar(all)
        .bind(first)
        .fetch_all(pool)
        .await
        .unwrap();
    assert_eq!(seen, all, "nothing appears behind what was seen");
    assert_eq!(all.len(), (WRITERS + 3) * CHANGES + 1);
    let noted = world.stack.count(noted).await - before;
    let noted = usize::try_from(noted).unwrap();
    assert_eq!(noted, (WRITERS + 3) * CHANGES, "each change has its entry");
    world.stack.cli(&["audit-log", "verify"]);
}

async fn make_keys(world: &World, customer: &Customer) {
    let mut keys = world.keys.clone();
    for _ in 0..CHANGES {
        let request = pb::CreateKeyRequest {
            org_id: customer.org.clone(),
            user_id: customer.user.clone(),
            environment: "test".to_owned(),
            name: "One of many".to_owned(),
            scopes: vec!["mileage:calculate".to_owned()],
            ..pb::CreateKeyRequest::default()
        };
        keys.create_key(request).await.unwrap();
    }
}

async fn change_prices(world: &World, name: &str) {
    let mut keys = world.keys.clone();
    for step in 0..CHANGES {
        let request = pb::SetServiceRequest {
            name: name.to_owned(),
            base_cost_per_call: Some(10 + i64::try_from(step).unwrap()),
            ..pb::SetServiceRequest::default()
        };
        keys.set_service(request).await.unwrap();
    }
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
