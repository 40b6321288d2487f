//! F15 for calls with idempotency keys: the database forgets who has them while they are under way.

use std::cell::Cell;

use rustix::process::Signal;
use testkit::{
    eventually,
    load::{Answer, Connection},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use super::{super::chat, followed, lose_the_stream, server::Server};
use crate::{
    idempotency::{COST, World, client::send, code, is_refused, keyed, once},
    stack::{SETTLE_LIMIT, Stack, signal},
};

/// Key of a call through the first gateway that is under way all the time.
pub(crate) const LONG: &str = "long";
/// And of one whose gateway, the second, dies with the database.
const DYING: &str = "dying";
/// Where the upstream answers when the test says so.
const SLOW: &str = "/slow";
/// Credits of a call there. It differs, so that it tells when the route is sold.
pub(crate) const SLOW_COST: i64 = 3;
const _: () = assert!(SLOW_COST != COST, "else the route tells nothing");

/// A standby is promoted that does not know who has a key, and the stream is lost as well. The call
/// that has it goes on for longer than keys are refused, and is the only one that is made.
#[tokio::test]
async fn f15_a_call_under_way_keeps_a_key_that_the_database_has_forgotten() {
    let world = start(&[]).await;
    let used = world.used();
    let mut long = forgotten(&world).await;
    for gateway in [0, 1] {
        let again = ask(&world, gateway, LONG).await.expect("answered");
        is_refused(&again, 409, "idempotency_key_in_use");
    }
    world.upstream.shut(false);
    let first = read(&mut long).await;
    let again = world.settled(1, &keyed(SLOW, LONG)).await;
    is_given_again(&again, &first);
    // What nobody was charged for is made again, and charged once.
    let made = eventually(SETTLE_LIMIT, "the other key is free", async || {
        let answer = ask(&world, 0, DYING).await?;
        match code(&answer).as_str() {
            "idempotency_key_in_use" => Err(format!("{answer:?}")),
            _ => Ok(answer),
        }
    });
    let made = made.await.expect("free");
    assert_eq!(
        (made.status.as_u16(), made.cost()),
        (201, SLOW_COST),
        "{made:?}"
    );
    assert_eq!(world.upstream.asked(LONG), 1);
    assert_eq!(world.upstream.asked(DYING), 2);
    assert_eq!(world.used(), used + 2 * SLOW_COST, "one charge a key");
}

/// Usage is read again long after the failover. Nobody gets a key before it is read, nor right
/// after, when nobody has told yet who has it.
#[tokio::test]
async fn f15_keys_are_refused_from_when_the_stream_was_read_again() {
    let stack = Stack::start(&["--ephemeral", "--processes"]).await;
    let live = stack.demo("live_key");
    let present = async |key: &str| {
        let shot = chat().with("idempotency-key", key);
        stack.call(&live, &shot).await
    };
    let before = present("before").await;
    assert_eq!(before.status, 200, "{before:?}");
    stack.audit();
    let mut holder = stack.pool().begin().await.expect("begun");
    stack
        .while_nobody_restarts(async || {
            signal(stack.pids("usage-ingest")[0], Signal::KILL);
            // What it reads again it cannot apply meanwhile.
            let held = "select from usage_ingest.inbox for update";
            let held = sqlx::raw_sql(held).execute(&mut *holder).await;
            assert!(held.expect("held").rows_affected() > 0);
            execute(
                &stack,
                "update usage_ingest.origin set timeline = 'FFFFFFFF'",
            )
            .await;
        })
        .await;
    let follows = "select count(*) from usage_ingest.origin where moved_at is not null";
    until_one(&stack, follows).await;
    let long_ago = "update usage_ingest.origin set moved_at = moved_at - interval '1 day'";
    execute(&stack, long_ago).await;
    let reading = present("reading").await;
    is_refused(&reading, 503, "metering_unavailable");
    let has_read = "select count(*) from usage_ingest.origin where caught_up_at is not null";
    assert_eq!(stack.count(has_read).await, 0, "it cannot have read again");
    holder.rollback().await.expect("released");
    until_one(&stack, has_read).await;
    let read = present("read").await;
    is_refused(&read, 503, "metering_unavailable");
    let later = "update usage_ingest.origin set caught_up_at = caught_up_at - interval '70 s'";
    execute(&stack, later).await;
    let given = eventually(SETTLE_LIMIT, "keys are given again", async || {
        let answer = present("told").await;
        match answer.status.as_u16() {
            200 => Ok(()),
            _ => Err(format!("{answer:?}")),
        }
    });
    given.await.expect("given");
    stack.audit();
}

async fn execute(stack: &Stack, sql: &'static str) {
    let done = sqlx::raw_sql(sql).execute(stack.pool()).await;
    done.expect("executed");
}

async fn until_one(stack: &Stack, sql: &'static str) {
    let there = eventually(SETTLE_LIMIT, sql, async || match stack.count(sql).await {
        1 => Ok(()),
        count => Err(count.to_string()),
    });
    there.await.expect("there is one");
}

/// A world where a call may take longer than all that happens here, however slow the machine.
pub(crate) async fn start(variables: &[(&str, &str)]) -> World {
    let world = World::start(variables).await;
    let cost = SLOW_COST.to_string();
    let route = ["--method", "POST", "--prefix", SLOW, "--scope", "once:call"];
    let patient = ["--cost", &cost, "--timeout-ms", "600000"];
    world
        .stack
        .cli(&[&["route", "set", "once"][..], &route, &patient].concat());
    for gateway in [0, 1] {
        let sold = eventually(SETTLE_LIMIT, "the route is sold", async || {
            let answer = world.at(gateway, &world.key, &once(SLOW)).await;
            match answer.cost() {
                SLOW_COST => Ok(()),
                _ => Err(format!("{answer:?}")),
            }
        });
        sold.await.expect("sold");
    }
    world
}

/// Two calls with keys are under way when the primary dies, and one of their gateways. What is
/// promoted knows neither key. Returns the other call when keys are given again.
pub(crate) async fn forgotten(world: &World) -> TcpStream {
    let stack = &world.stack;
    let primary = Server::of(stack);
    let (proxy, standby) = followed(stack, &primary).await;
    watched(world).await;
    proxy.black_hole();
    world.upstream.shut(true);
    let long = send(world, 0, SLOW, LONG).await;
    let dying = send(world, 1, SLOW, DYING).await;
    let keys = "select count(*) from usage_ingest.idempotency_keys";
    assert_eq!(stack.count(keys).await, 2);
    let known = Cell::new(-1);
    stack
        .while_nobody_restarts(async || {
            signal(stack.pids("gateway")[1], Signal::KILL);
            primary.kill();
            // With what it has held back: to resume it first would let that through.
            proxy.cut();
            lose_the_stream(stack).await;
            standby.promote().await;
            known.set(standby.count(keys).await);
            primary.put_in_place(&standby.stop(), None);
        })
        .await;
    drop(dying);
    assert_eq!(known.get(), 0, "what was promoted lacks the keys");
    let refused = world.at(0, &world.key, &keyed(SLOW, LONG)).await;
    is_refused(&refused, 503, "metering_unavailable");
    told(world).await;
    long
}

/// Waits until every consumer keeps its watermarks back until the standby has what they count: they
/// look for one once a second, and ask it how far it is when they have something to tell.
async fn watched(world: &World) {
    let watched = eventually(SETTLE_LIMIT, "the standby is watched", async || {
        world.at(0, &world.key, &once("/fail")).await;
        let asking = "select count(*) from pg_stat_activity
                       where query like '%flush_lsn%' and query not like '%pg_stat_activity%'";
        match world.stack.count(asking).await {
            4.. => Ok(()),
            few => Err(format!("{few} consumers")),
        }
    });
    watched.await.expect("watched");
}

/// Waits until all that the first gateway has written is applied, and the stream was read again;
/// then lets the time pass for which keys are refused.
async fn told(world: &World) {
    // Refused or not, it has a record, behind all that was noted before.
    let answer = world.at(0, &world.key, &once("/fail")).await;
    let request = answer.header("x-request-id").trim_start_matches("req_");
    let request: uuid::Uuid = request.parse().expect("an id");
    let told = eventually(SETTLE_LIMIT, "the gateway has told", async || {
        let applied: Result<bool, _> = sqlx::query_scalar(
            "select exists (
                    select
                      from usage_ingest.api_usage_logs l
                      join usage_ingest.inbox i using (journal_id)
                     where l.request_id = $1
                       and i.applied @> int8range(0, l.seq + 1))
                and (select caught_up_at is not null from usage_ingest.origin)",
        )
        .bind(request)
        .fetch_one(world.stack.pool())
        .await;
        match applied {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    told.await.expect("told");
    let later = "update usage_ingest.origin
                    set moved_at = moved_at - interval '70 s',
                        caught_up_at = caught_up_at - interval '70 s'";
    execute(&world.stack, later).await;
}

/// Presents a key until somebody can say something of it.
pub(crate) async fn ask(world: &World, gateway: usize, key: &str) -> Result<Answer, String> {
    let base = world.stack.gateways()[gateway].clone();
    let told = eventually(SETTLE_LIMIT, "something is said of a key", async || {
        let answer = Connection::to(&base)
            .call(&world.key, &keyed(SLOW, key))
            .await;
        match answer {
            Ok(answer) if answer.status != 503 => Ok(answer),
            other => Err(format!("{other:?}")),
        }
    });
    told.await.map_err(|error| format!("{error:?}"))
}

/// The whole answer, as it comes.
pub(crate) async fn read(call: &mut TcpStream) -> String {
    let mut text = String::new();
    call.read_to_string(&mut text).await.expect("an answer");
    let cost = format!("\r\ntollgate-cost: {SLOW_COST}\r\n");
    let is_charged = text.starts_with("HTTP/1.1 201 ") && text.contains(&cost);
    assert!(is_charged, "{text}");
    text
}

/// An answer is the one that another client has read.
#[track_caller]
fn is_given_again(answer: &Answer, first: &str) {
    assert_eq!((answer.status.as_u16(), answer.cost()), (201, 0));
    assert_eq!(answer.header("idempotency-replayed"), "true", "{answer:?}");
    let original = answer.header("tollgate-original-request-id");
    let body = std::str::from_utf8(&answer.body).expect("a text");
    let is_same = first.contains(&format!("\r\nx-request-id: {original}\r\n"));
    assert!(is_same && first.contains(body), "{answer:?} of {first}");
}
