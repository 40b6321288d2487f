//! The second wall between tenants: roles that own nothing, and row security in every table.
//!
//! What is judged is read from the catalogue, so a new table is closed, or fails here.

mod catalogue;
mod rows;
mod tenants;

use std::collections::BTreeSet;

use serde_json::Value;
use testkit::{eventually, load::Shot};

use self::{
    rows::{Look, Table},
    tenants::Tenant,
};
use crate::{
    stack::{SETTLE_LIMIT, Stack},
    world::World,
};

/// What everybody sees, whoever asks for whom.
const SHARED: [(&str, &str); 4] = [
    ("keys.services", "the catalogue is for sale"),
    ("keys.scopes", "the catalogue is for sale"),
    ("keys.routes", "the catalogue is for sale"),
    (
        "keys.audit_head",
        "the end of the one chain: a number and a hash",
    ),
];

fn is_shared(table: &Table) -> bool {
    SHARED.iter().any(|(name, _)| *name == table.name)
}

/// Settings that name nobody.
const NOBODY: [&str; 7] = [
    "",
    "every ",
    "EVERY",
    "org:",
    "user:",
    "user",
    "user:00000000-0000-0000-0000-000000000000",
];

#[tokio::test]
async fn a_tenant_meets_nothing_of_another_without_any_condition() {
    let mut world = World::start().await;
    let ours = Tenant::with_everything(&mut world, "ours").await;
    let theirs = Tenant::with_everything(&mut world, "theirs").await;
    world.stack.audit();
    let look = Look::at(&world.stack);
    let tables = look.tables().await;
    assert!(tables.len() > 20, "the tables were found");
    for table in &tables {
        let (own, strange) = (look.of(table, &ours).await, look.of(table, &theirs).await);
        nobody_sees_anything(&look, table).await;
        if is_shared(table) {
            assert_eq!(own, strange, "{}: one for all", table.name);
            continue;
        }
        assert!(
            !own.is_empty(),
            "{}: a tenant with everything has rows here",
            table.name
        );
        assert!(!strange.is_empty(), "{}: so has the other", table.name);
        let both: BTreeSet<_> = own.intersection(&strange).collect();
        assert!(both.is_empty(), "{}: both see {both:?}", table.name);
        for row in &own {
            let leak = theirs.ids().find(|id| row.contains(id.as_str()));
            assert_eq!(leak, None, "{}: {row}", table.name);
        }
        let all = look.everything(table).await;
        let hidden = all
            .iter()
            .find(|row| row.text.contains(&ours.org.to_string()) && !own.contains(&row.text));
        assert!(
            hidden.is_none(),
            "{}: own row hidden: {hidden:?}",
            table.name
        );
        let foreign = all.iter().filter(|row| strange.contains(&row.text));
        for row in foreign.take(3) {
            look.cannot_change(table, &ours, row).await;
            look.cannot_insert(table, &ours, row).await;
        }
    }
    announcing_for_others_is_refused(&look, &ours, &theirs).await;
    requests_run_in_the_tenants_roles(&mut world, &ours).await;
    work_runs_in_the_services_roles(&mut world, &ours).await;
}

async fn nobody_sees_anything(look: &Look<'_>, table: &Table) {
    for scope in std::iter::once(None).chain(NOBODY.map(Some)) {
        // A scope that cannot be read is an error, which is as good as nothing.
        let seen = look.rows(table, scope).await.unwrap_or_default();
        match is_shared(table) {
            true => assert!(!seen.is_empty(), "{}: for all", table.name),
            false => assert!(seen.is_empty(), "{} for {scope:?}: {seen:?}", table.name),
        }
    }
}

/// The outbox of new keys is emptied at once, so no row of it can be copied.
async fn announcing_for_others_is_refused(look: &Look<'_>, ours: &Tenant, theirs: &Tenant) {
    for (key, is_own) in [(ours.key, true), (theirs.key, false)] {
        let done = look
            .as_tenant("keys", &ours.scopes()[0], async |connection| {
                sqlx::query("insert into keys.outbox_created (key_id) values ($1)")
                    .bind(key)
                    .execute(connection)
                    .await
            })
            .await;
        assert_eq!(done.is_ok(), is_own, "{done:?}");
    }
}

/// A question of a tenant to each service.
fn questions(tenant: &Tenant) -> [(&'static str, Vec<String>); 5] {
    let org = format!("org_{}", tenant.org.simple());
    let of = |words: &[&str]| {
        let words = words.iter().map(|word| (*word).to_owned());
        words.chain(["--org".to_owned(), org.clone()]).collect()
    };
    [
        ("keys", of(&["key", "list"])),
        ("wallet", of(&["wallet", "show"])),
        ("usage_ingest", of(&["usage", "calls"])),
        ("stats_aggregator", of(&["usage", "daily"])),
        ("anomaly_detector", of(&["anomaly", "list"])),
    ]
}

/// Takes the role of a schema its rights, and gives them back.
async fn without_rights(stack: &Stack, role: &str, schema: &str, meanwhile: impl AsyncFnOnce()) {
    let run = async |sql: String| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(stack.pool())
            .await
            .unwrap();
    };
    run(format!("revoke usage on schema {schema} from {role}")).await;
    meanwhile().await;
    run(format!("grant usage on schema {schema} to {role}")).await;
}

/// Who asks is answered by a connection in this role: without the role's rights there is no
/// answer, with those of the service's own all there.
async fn requests_run_in_the_tenants_roles(world: &mut World, tenant: &Tenant) {
    let stack = &world.stack;
    for (schema, question) in questions(tenant) {
        let question: Vec<&str> = question.iter().map(String::as_str).collect();
        let before = stack.cli(&question);
        without_rights(
            stack,
            &format!("tollgate_{schema}_tenant"),
            schema,
            async || {
                let (code, answer, _) = stack.try_cli(&question);
                assert_ne!(code, Some(0), "{schema}: {answer}");
            },
        )
        .await;
        assert_eq!(stack.cli(&question), before, "{schema}");
    }
    without_rights(stack, "tollgate_portal_tenant", "portal", async || {
        let again = tenant.ask_once(stack, "again").await;
        assert_eq!(again.status, 500, "{again:?}");
    })
    .await;
    let again = tenant.ask_once(stack, "again").await;
    assert!(again.status.is_success(), "{again:?}");
}

/// What all processes have logged.
fn logs(stack: &Stack) -> String {
    let files = std::fs::read_dir(stack.data().join("log"))
        .unwrap()
        .flatten();
    files
        .map(|file| std::fs::read_to_string(file.path()).unwrap_or_default())
        .collect()
}

/// What a service does by itself runs in its own role: without its rights it says so in its log.
async fn work_runs_in_the_services_roles(world: &mut World, tenant: &Tenant) {
    let stack = &world.stack;
    for schema in catalogue::schemas() {
        without_rights(stack, &format!("tollgate_{schema}"), &schema, async || {
            let complains = eventually(SETTLE_LIMIT, "the service complains", async || {
                // Gives consumers and look-ups something to do.
                stack
                    .call(&tenant.live_key, &Shot::get(tenants::DISTANCE))
                    .await;
                tenant.ask_once(stack, "asks").await;
                let wanted = format!("permission denied for schema {schema}");
                match logs(stack).contains(&wanted) {
                    true => Ok(()),
                    false => Err(wanted),
                }
            });
            complains.await.unwrap();
        })
        .await;
    }
    // All of them have caught up.
    let report: Value = stack.audit();
    assert!(report["calls"].as_u64() > Some(0), "{report}");
}
