//! Ids of another tenant wherever an id may stand: as if they were nobody's, and nothing of the
//! tenant they belong to changes.

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use serde_json::Value;
use uuid::Uuid;

use super::{
    AT_ONCE, hear,
    requests::request,
    rows::MATRIX,
    scene::Scene,
    table::{Case, Right, Verdict},
    who::Who,
    wire::Grpc,
    world::{Tenant, World, unknown, uuid_of},
};

/// Names in requests that stand for an object of a tenant, and the kind of its id.
const KINDS: [(&str, &str); 7] = [
    ("org", "org"),
    ("key", "key"),
    ("user", "usr"),
    ("caller", "usr"),
    ("invitation", "inv"),
    ("anomaly", "ano"),
    ("session", "web"),
];
/// Whose rows must stay as they are; the owner is the stranger, who has sessions.
const BYSTANDERS: [&str; 3] = ["admin", "developer", "billing"];

/// What is lifted need not have been heard of: nobody's anomaly may be ours in a moment.
const UNHEARD: &str = "KeysService/LiftAnomaly";

/// What the other tenant has.
pub(super) struct Theirs {
    objects: BTreeMap<&'static str, String>,
    ids: Vec<Uuid>,
}

impl Theirs {
    pub(super) async fn make(world: &World) -> Self {
        let tenant = world.theirs.clone();
        let mut scene = Scene::set(world, Case("live"), Who::Operator, true).await;
        scene.move_to(&tenant);
        let mut objects = BTreeMap::new();
        for (name, place) in [
            ("org", "{org}"),
            ("key", "{key}"),
            ("user", "{caller}"),
            ("caller", "{caller}"),
            ("invitation", "{invitation}"),
            ("anomaly", "{anomaly}"),
            ("session", "{session}"),
            ("request", "{their-request}"),
        ] {
            objects.insert(name, scene.fill(place).await);
        }
        let people = BYSTANDERS.iter().map(|role| &tenant.members[role].id);
        let ids = objects.values().chain(people).map(|id| uuid_of(id));
        Self {
            ids: ids.collect(),
            objects,
        }
    }

    /// One digest for each table, of the rows in which any of the tenant's ids stands. What was
    /// begun is waited for: events arrive when they like.
    pub(super) async fn digest(&self, world: &World) -> BTreeMap<String, String> {
        world.is_quiet().await;
        let columns: Vec<(String, String, String)> = sqlx::query_as(
            "select table_schema::text, table_name::text, column_name::text
               from information_schema.columns
              where data_type = 'uuid'
                and table_schema not in ('information_schema', 'pg_catalog')",
        )
        .fetch_all(world.stack.pool())
        .await
        .expect("columns");
        let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (schema, table, column) in columns {
            let condition = format!("{column} = any($1)");
            tables
                .entry(format!("{schema}.{table}"))
                .or_default()
                .push(condition);
        }
        let mut found = BTreeMap::new();
        for (table, conditions) in tables {
            let sql = format!(
                "select count(*) || ' ' || coalesce(md5(string_agg(it::text, ';'
                                                    order by it::text)), '')
                   from {table} it
                  where {}",
                conditions.join(" or ")
            );
            let digest: String = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
                .bind(&self.ids)
                .fetch_one(world.stack.pool())
                .await
                .expect("a digest");
            found.insert(table, digest);
        }
        assert!(
            found.values().filter(|it| !it.starts_with("0 ")).count() > 5,
            "{found:?}"
        );
        found
    }
}

/// One question, asked once with somebody else's id and once with nobody's.
struct Question<'a> {
    right: &'a Right,
    place: &'static str,
    case: Case,
    who: Who,
    name: &'static str,
    /// What is put into the request: as it is not ours, and as it is nobody's.
    puts: [Vec<(&'static str, String)>; 2],
    wanted: Verdict,
}

fn mentions(place: &str, name: &str) -> bool {
    let placeholder = format!("{{{name}}}");
    let whole = super::named(place);
    [whole.as_str(), place, request(place).unwrap_or_default()]
        .iter()
        .any(|text| text.contains(&placeholder))
}

/// Whether a field or query parameter of this name is in the request of a place.
pub(super) fn has(place: &str, field: &str) -> bool {
    let body = request(place).unwrap_or_default();
    body.contains(&format!("\"{field}\"")) || place.contains(&format!("?{field}="))
}

fn kind(name: &str) -> &'static str {
    let found = KINDS.iter().find(|(of, _)| *of == name);
    found.map_or("req", |(_, kind)| kind)
}

/// Everybody's questions about one object at one place.
fn about<'a>(
    right: &'a Right,
    (place, case): (&'static str, Case),
    name: &'static str,
    world: &World,
    theirs: &Theirs,
) -> Vec<Question<'a>> {
    let nobodys = unknown(kind(name));
    let question = |who: Who, puts: [Vec<(&'static str, String)>; 2]| Question {
        right,
        place,
        case,
        who,
        name,
        puts,
        wanted: Verdict::NotFound,
    };
    if name == "org" {
        // Everything is ours, and everything is nobody's.
        let objects = theirs.objects.keys().filter(|name| mentions(place, name));
        let nothing = objects.map(|&name| (name, unknown(kind(name)))).collect();
        return vec![question(Who::Stranger, [Vec::new(), nothing])];
    }
    let put = |id: &str| vec![(name, id.to_owned())];
    let members = [Who::Owner, Who::Admin, Who::Developer, Who::Billing];
    let mut found: Vec<Question<'_>> = members
        .iter()
        .map(|&who| question(who, [put(&theirs.objects[name]), put(&nobodys)]))
        .collect();
    if mentions(place, "org") {
        // Operators see all, each at its place; and strangers have a place of their own.
        found.push(question(
            Who::Operator,
            [put(&theirs.objects[name]), put(&nobodys)],
        ));
        let at_home = ("org", world.theirs.org.clone());
        let mut ours = vec![at_home.clone()];
        if kind(name) == "usr" {
            ours.push((name, world.ours.members["developer"].id.clone()));
        }
        found.push(question(
            Who::Stranger,
            [ours, vec![at_home, (name, nobodys)]],
        ));
    }
    found
}

fn questions<'a>(world: &World, theirs: &Theirs) -> Vec<Question<'a>> {
    let mut found = Vec::new();
    for right in MATRIX {
        for line in right.lines {
            for &place in line.at {
                for &name in theirs.objects.keys() {
                    let is_judged = match right.trusts(place) {
                        true => is_bounded(place, name),
                        false => true,
                    };
                    if !mentions(place, name) || !is_judged || right.is_of_gateways() {
                        continue;
                    }
                    let mut asked = about(right, (place, line.case), name, world, theirs);
                    asked.retain(|it| is_theirs_to_refuse(right, it));
                    for question in &mut asked {
                        question.wanted = right.verdict(line, question.who);
                    }
                    found.extend(asked);
                }
            }
        }
    }
    found
}

/// A service that takes its caller's word for the organisation still looks into that one only.
fn is_bounded(place: &str, name: &str) -> bool {
    name != "org" && mentions(place, "org")
}

/// Operators may do everything with a user or a key that is named without its organisation.
fn is_theirs_to_refuse(right: &Right, question: &Question<'_>) -> bool {
    question.who != Who::Operator || !right.is_of_accounts() && mentions(question.place, "org")
}

/// What is answered, with names for ids.
async fn answer(
    world: &World,
    grpc: &Grpc,
    it: &Question<'_>,
    put: &[(&'static str, String)],
) -> (Verdict, String) {
    let mut scene = Scene::set(world, it.case, it.who, true).await;
    for (name, value) in put {
        scene.put(name, value.clone());
    }
    let (verdict, text) = hear(&mut scene, grpc, it.place).await;
    (verdict, scene.without_ids(&text))
}

async fn check(world: &World, grpc: &Grpc, it: &Question<'_>) -> Result<(), String> {
    let (verdict, foreign) = answer(world, grpc, it, &it.puts[0]).await;
    let (unknown, nobodys) = answer(world, grpc, it, &it.puts[1]).await;
    let at = format!(
        "{:?} {} [{}] with another's {} ({})",
        it.who, it.place, it.case.0, it.name, it.right.says
    );
    // Operators see both places: one that is wrong need not sound like one that is not there.
    let is_same = match it.who {
        _ if it.place == UNHEARD && it.wanted == Verdict::Done => verdict == Verdict::NotFound,
        Who::Operator => verdict == unknown,
        _ => foreign == nobodys,
    };
    if !is_same {
        return Err(format!("{at}: {foreign}, and with nobody's: {nobodys}"));
    }
    let is_path = super::named(it.place).contains(&format!("{{{}}}", it.name));
    let is_right = match verdict {
        Verdict::NotFound => true,
        // A list of nothing; whoever may not do it at all; a field that is named.
        Verdict::Done => super::is_reading(it.place),
        Verdict::Forbidden | Verdict::Unproved => it.wanted != Verdict::Done || !is_path,
        Verdict::Other => !is_path && foreign.contains(&format!("{}_id", kind_field(it.name))),
        Verdict::Conflict | Verdict::Unauthenticated => false,
    };
    match is_right {
        true => Ok(()),
        false => Err(format!("{at}: {foreign}")),
    }
}

/// How the field of a body is called that holds it.
fn kind_field(name: &str) -> &str {
    match name {
        "caller" => "user",
        name => name,
    }
}

/// Puts the other tenant's ids, and a stranger's questions, to every place; how many.
pub(super) async fn sweep(
    world: &World,
    grpc: &Grpc,
    theirs: &Theirs,
    wrong: &mut Vec<String>,
) -> usize {
    let questions = questions(world, theirs);
    let asked = stream::iter(&questions).map(|it| check(world, grpc, it));
    let answers: Vec<_> = asked.buffered(AT_ONCE).collect().await;
    wrong.extend(answers.into_iter().filter_map(Result::err));
    questions.len()
}

/// Developers see what they did, billing what was paid, owners and admins everything.
pub(super) async fn audit_views(world: &World, wrong: &mut Vec<String>) -> usize {
    let Tenant { org, members } = &world.ours;
    let mut seen = BTreeMap::new();
    for who in [Who::Owner, Who::Admin, Who::Developer, Who::Billing] {
        let mut scene = Scene::set(world, Case("own test"), who, true).await;
        if who != Who::Billing {
            let create = scene.shot("POST …/keys").await;
            let made = scene.shoot(&create).await;
            assert_eq!(made.status, 201, "{made:?}");
        }
        let read = scene.shot("GET …/audit-log").await;
        let entries = scene.shoot(&read).await.json()["entries"].clone();
        seen.insert(who, entries.as_array().cloned().unwrap_or_default());
    }
    let is_in = |entry: &Value, field: &str, of: &str| entry[field].as_str() == Some(of);
    let own = members["developer"].id.as_str();
    let checks = [
        (
            Who::Owner,
            seen[&Who::Owner]
                .iter()
                .any(|it| is_in(it, "actor", "operator")),
        ),
        (
            Who::Admin,
            seen[&Who::Admin]
                .iter()
                .any(|it| is_in(it, "actor", &members["owner"].id)),
        ),
        (
            Who::Developer,
            !seen[&Who::Developer].is_empty()
                && seen[&Who::Developer]
                    .iter()
                    .all(|it| is_in(it, "actor", own)),
        ),
        (
            Who::Billing,
            seen[&Who::Billing].iter().all(|it| {
                it["action"]
                    .as_str()
                    .is_some_and(|action| action.starts_with("billing."))
            }),
        ),
    ];
    for (who, is_right) in checks {
        if !is_right {
            wrong.push(format!(
                "{who:?} sees of the audit log of {org}: {:?}",
                seen[&who]
            ));
        }
    }
    checks.len()
}
