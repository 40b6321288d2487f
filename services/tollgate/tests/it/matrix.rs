//! Every route and every RPC, asked by everybody there is: answers are those of the permission
//! matrix, and another organisation's things are not there.

mod foreign;
mod requests;
mod rows;
mod scene;
mod table;
mod who;
mod wire;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use testkit::load::Answer;
use tonic::{Code, Status};

use self::{
    requests::request,
    rows::MATRIX,
    scene::Scene,
    table::{Case, Verdict},
    who::Who,
    wire::{Grpc, Route},
    world::World,
};

/// Cells that are asked at once.
const AT_ONCE: usize = 8;
/// Fewer cells than this, and something was not asked.
const CELLS_MIN: usize = 1000;
/// Ids that are no tenant's: one is ignored, the others name peppers.
const NOBODYS: [&str; 3] = ["route_id", "pepper_id", "previous_pepper_id"];

/// One question and its right answer.
#[derive(Clone, Copy, Debug)]
struct Cell {
    says: &'static str,
    place: &'static str,
    case: Case,
    who: Who,
    wanted: Verdict,
}

fn is_route(place: &str) -> bool {
    place.contains(' ')
}

/// What is asked there does not change anything: all may look at the same things.
fn is_reading(place: &str) -> bool {
    let name = place.split('/').next_back().unwrap_or(place);
    match is_route(place) {
        true => place.starts_with("GET "),
        false => ["Get", "List"].iter().any(|verb| name.starts_with(verb)),
    }
}

/// A place of the table as the running system calls it.
fn named(place: &str) -> String {
    let place = place.split(['#', '?']).next().unwrap_or(place);
    place.replace('…', "/v1/organisations/{org}")
}

/// Every place of the table, by the name the system has for it.
fn places() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut found: BTreeMap<String, BTreeSet<_>> = BTreeMap::new();
    for line in MATRIX.iter().flat_map(|right| right.lines) {
        for place in line.at {
            found.entry(named(place)).or_default().insert(*place);
        }
    }
    found
}

/// All cells, in groups that may look at the same things: everybody who is refused for want of an
/// identity is one group.
fn groups() -> Vec<Vec<Cell>> {
    let mut groups = Vec::new();
    for right in MATRIX {
        for line in right.lines {
            for place in line.at {
                let callers = match is_route(place) {
                    true => &Who::AT_ROUTES[..],
                    false => &Who::AT_RPCS[..],
                };
                let cells = callers.iter().map(|&who| Cell {
                    says: right.says,
                    place,
                    case: line.case,
                    who,
                    wanted: right.verdict(line, who),
                });
                let (refused, others): (Vec<Cell>, Vec<Cell>) =
                    cells.partition(|cell| cell.who.is_nobody() && cell.wanted != Verdict::Done);
                groups.extend(others.into_iter().map(|cell| vec![cell]));
                groups.push(refused);
            }
        }
    }
    groups
}

fn asks_for_second_factor(text: &str) -> bool {
    text.contains("needs a second factor") || text.contains("second_factor_required")
}

/// What an answer of the API says, which must be whole: a refusal is a problem document.
fn heard(answer: &Answer) -> Verdict {
    if answer.status.is_success() {
        return Verdict::Done;
    }
    let problem = answer.json();
    let is_problem = answer.header("content-type") == "application/problem+json"
        && problem["status"] == answer.status.as_u16()
        && problem["request_id"] == answer.header("x-request-id");
    if !is_problem {
        return Verdict::Other;
    }
    match (answer.status.as_u16(), problem["code"].as_str()) {
        (401, Some("unauthenticated")) => Verdict::Unauthenticated,
        (403, Some("forbidden" | "second_factor_required")) => {
            match asks_for_second_factor(&problem.to_string()) {
                true => Verdict::Unproved,
                false => Verdict::Forbidden,
            }
        }
        (404, Some("not_found")) => Verdict::NotFound,
        (409, Some("conflict")) => Verdict::Conflict,
        _ => Verdict::Other,
    }
}

fn told(status: &Status) -> Verdict {
    match status.code() {
        Code::Unauthenticated => Verdict::Unauthenticated,
        Code::PermissionDenied => match asks_for_second_factor(status.message()) {
            true => Verdict::Unproved,
            false => Verdict::Forbidden,
        },
        Code::NotFound => Verdict::NotFound,
        Code::AlreadyExists => Verdict::Conflict,
        _ => Verdict::Other,
    }
}

/// Asks for all of a group, and says what is wrong with the answers.
async fn ask_all(world: &World, grpc: &Grpc, cells: &[Cell]) -> Vec<String> {
    let Some(first) = cells.first() else {
        return Vec::new();
    };
    let is_reading = is_reading(first.place) || first.wanted == Verdict::Unauthenticated;
    let mut scene = Scene::set(world, first.case, first.who, is_reading).await;
    let mut wrong = Vec::new();
    for cell in cells {
        scene.let_ask(cell.who);
        wrong.extend(ask(&mut scene, grpc, *cell).await.err());
    }
    wrong
}

/// Asks at one place, and reads the answer; without the request's own id in it.
async fn hear(scene: &mut Scene<'_>, grpc: &Grpc, place: &str) -> (Verdict, String) {
    if is_route(place) {
        let shot = scene.shot(place).await;
        let answer = scene.shoot(&shot).await;
        let verdict = heard(&answer);
        let mut body = answer.json();
        if let Some(problem) = body.as_object_mut().filter(|_| verdict != Verdict::Done) {
            problem.remove("request_id");
        }
        return (verdict, format!("{} {body}", answer.status));
    }
    let message = scene.message(place).await;
    match grpc
        .call(&named(place), &scene.credentials(), &message)
        .await
    {
        Ok(bytes) => (Verdict::Done, String::from_utf8_lossy(&bytes).into_owned()),
        Err(status) => (
            told(&status),
            format!("{:?} {}", status.code(), status.message()),
        ),
    }
}

async fn ask(scene: &mut Scene<'_>, grpc: &Grpc, cell: Cell) -> Result<(), String> {
    let (verdict, text) = hear(scene, grpc, cell.place).await;
    let Cell {
        says,
        place,
        case,
        who,
        wanted,
    } = cell;
    let cell = format!("{who:?} {place} [{}] ({says})", case.0);
    if verdict != wanted {
        return Err(format!("{cell}: not {wanted:?} but {text}"));
    }
    let shows = who == Who::Stranger && verdict == Verdict::Done && !speaks_for_others(place);
    match scene.tenant().ids().find(|id| shows && text.contains(*id)) {
        Some(id) => Err(format!("{cell}: is shown {id}: {text}")),
        None => Ok(()),
    }
}

/// RPCs of services that know no members show what their caller names.
fn speaks_for_others(place: &str) -> bool {
    !is_route(place)
        && !["KeysService/", "PeopleService/"]
            .iter()
            .any(|it| place.starts_with(it))
}

fn report(what: &str, wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{what}, {} of them:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// The table has what the system offers, and nothing else; requests have every id there may be.
fn is_complete(routes: &BTreeMap<String, Route>, grpc: &Grpc) {
    let offered: BTreeSet<String> = routes.keys().cloned().chain(grpc.rpcs()).collect();
    let places = places();
    let listed: BTreeSet<String> = places.keys().cloned().collect();
    let mut wrong: Vec<String> = Vec::new();
    wrong.extend(
        offered
            .difference(&listed)
            .map(|it| format!("{it} is not in the table")),
    );
    wrong.extend(
        listed
            .difference(&offered)
            .map(|it| format!("{it} is not offered")),
    );
    for (name, places) in &places {
        let route = routes.get(name);
        for place in places {
            if route.is_none_or(|route| route.has_body) != request(place).is_some() {
                wrong.push(format!(
                    "{place}: a body, or none, should be in the requests"
                ));
            }
        }
        let ids = match route {
            Some(route) => route.ids.clone(),
            None => grpc.ids_of(name),
        };
        let is_put = |id: &String| {
            NOBODYS.contains(&id.as_str()) || places.iter().any(|place| foreign::has(place, id))
        };
        let lacking = ids.iter().filter(|id| !is_put(id));
        wrong.extend(lacking.map(|id| format!("{name}: no request has the {id}")));
    }
    let listed: BTreeSet<&str> = places.values().flatten().copied().collect();
    let unused = requests::REQUESTS
        .iter()
        .filter(|(place, _)| !listed.contains(place));
    wrong.extend(unused.map(|(place, _)| format!("{place} has a request and no line")));
    report("the table and the system differ", &wrong);
}

#[tokio::test]
async fn every_route_and_every_rpc_keeps_to_the_matrix_and_other_tenants_are_not_there() {
    let world = World::start().await;
    let grpc = Grpc::connect(&world.grpc).await;
    let routes = wire::routes(&world.api).await;
    is_complete(&routes, &grpc);

    let theirs = foreign::Theirs::make(&world).await;
    let before = theirs.digest(&world).await;
    let groups = groups();
    let asked = stream::iter(&groups).map(|cells| ask_all(&world, &grpc, cells));
    let mut wrong: Vec<String> = asked.buffered(AT_ONCE).concat().await;
    let foreign = foreign::sweep(&world, &grpc, &theirs, &mut wrong).await;
    let views = foreign::audit_views(&world, &mut wrong).await;

    let cells = groups.iter().flatten();
    let (at_routes, at_rpcs): (Vec<&Cell>, Vec<&Cell>) =
        cells.partition(|cell| is_route(cell.place));
    println!(
        "routes: {}, rpcs: {}, route cells: {}, rpc cells: {}, foreign ids: {foreign}, \
         audit views: {views}",
        routes.len(),
        grpc.rpcs().len(),
        at_routes.len(),
        at_rpcs.len()
    );
    let after = theirs.digest(&world).await;
    let changed = after
        .iter()
        .filter(|(table, digest)| before.get(*table) != Some(*digest));
    wrong.extend(changed.map(|(table, _)| format!("rows of another tenant changed in {table}")));
    report("wrong cells", &wrong);
    assert!(
        at_routes.len() + at_rpcs.len() >= CELLS_MIN,
        "something was not asked"
    );
}
