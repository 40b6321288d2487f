//! The pepper of keys, replaced while everything runs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::{
    eventually,
    load::{self, Connection, Outcome, Plan, Shot},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    apart::Apart,
    stack::{Customer, Stack, signal},
    world::{SOON, World},
};

const DISTANCE: &str = "/api/v1/mileage/distance?from=48.85,2.35&to=43.29,5.37";
/// Keys that are called all the time.
const BUSY_KEYS: usize = 6;
const PAUSE: Duration = Duration::from_millis(5);
/// With each of them, on the slowest machine.
const CALLS_MIN: u64 = 20;

fn live_key(stack: &Stack, customer: &Customer) -> (String, String) {
    let more = [
        "--environment",
        "production",
        "--scope",
        "mileage:calculate",
    ];
    stack.key(customer, &more)
}

async fn status(base: &str, key: &str) -> u16 {
    let answer = Connection::to(base).call(key, &Shot::get(DISTANCE)).await;
    answer.expect("an answer").status.as_u16()
}

/// Calls with a key on both gateways, without a pause between the tests' steps.
fn busy(stack: &Stack, key: &str, stop: &CancellationToken, loads: &mut JoinSet<Outcome>) {
    let plan = Plan {
        gateways: stack.gateways(),
        key: key.to_owned(),
        shots: vec![Shot::get(DISTANCE)],
        workers: 2,
        pause: PAUSE,
    };
    loads.spawn(load::run(plan, stop.clone()));
}

fn rotate(stack: &Stack) -> Value {
    stack.cli(&["pepper", "rotate", "--timeout", "20"])
}

fn peppers(stack: &Stack) -> Value {
    stack.cli(&["pepper", "status"])
}

#[tokio::test]
async fn two_rotations_under_load_refuse_no_call_and_lose_no_key() {
    let stack = Stack::start(&["--ephemeral", "--gateways", "2"]).await;
    let acme = stack.customer("Acme", 1_000_000);
    let keys: Vec<_> = (0..BUSY_KEYS).map(|_| live_key(&stack, &acme)).collect();
    let (unused_id, unused) = live_key(&stack, &acme);
    let (_, never_used) = live_key(&stack, &acme);
    let first = peppers(&stack);

    let (stop, mut loads) = (CancellationToken::new(), JoinSet::new());
    for (_, key) in &keys {
        busy(&stack, key, &stop, &mut loads);
    }
    let second = rotate(&stack);
    assert_eq!(second["previous_pepper_id"], first["pepper_id"]);
    assert_eq!(second["holders"], json!(3), "keys and two gateways");

    // Two keys were never used, nor those of the demo: the next rotation would lose them.
    let (code, _, errors) = stack.try_cli(&["pepper", "rotate"]);
    assert_eq!(code, Some(64), "{errors}");
    assert!(errors.contains("wait for their first use"), "{errors}");
    let (code, _, errors) = stack.try_cli(&["pepper", "retire"]);
    assert_eq!(code, Some(64), "{errors}");
    assert_eq!(
        peppers(&stack)["pepper_id"],
        second["pepper_id"],
        "nothing was done"
    );

    // A key made now works on both at once; one that waited, too.
    let (_, new) = live_key(&stack, &acme);
    for key in [&new, &unused] {
        for base in stack.gateways() {
            assert_eq!(status(&base, key).await, 200);
        }
    }
    for name in ["live_key", "test_key"] {
        status(&stack.gateways()[0], &stack.demo(name)).await;
    }
    let waiting = eventually(SOON, "one key waits", || async {
        let now = peppers(&stack);
        match now["waiting_keys"].as_i64() {
            Some(1) => Ok(()),
            _ => Err(now.to_string()),
        }
    });
    waiting.await.unwrap();

    // It is given up; everybody else goes on.
    let third = stack.cli(&["pepper", "rotate", "--force", "--timeout", "20"]);
    assert_eq!(third["given_up_keys"], json!(1));
    let (_, newer) = live_key(&stack, &acme);
    for base in stack.gateways() {
        assert_eq!(status(&base, &unused).await, 200);
        assert_eq!(status(&base, &newer).await, 200);
        assert_eq!(status(&base, &never_used).await, 401, "two peppers ago");
    }
    stop.cancel();
    let outcomes = loads.join_all().await;
    let calls: u64 = outcomes.iter().map(|outcome| outcome.sent).sum();
    println!("{calls} calls, every one answered 200");
    for outcome in outcomes {
        assert!(outcome.sent > CALLS_MIN, "there was load: {}", outcome.sent);
        assert_eq!(outcome.by_status.keys().collect::<Vec<_>>(), [&200]);
        assert_eq!((outcome.broken, outcome.unreachable), (0, 0));
    }
    is_retired(&stack, &new, &unused_id).await;
    is_audited(&stack).await;
    is_forgotten(&stack, &new).await;
}

/// Once no key waits the pepper before goes, and with it the hashes that it made.
async fn is_retired(stack: &Stack, key: &str, revoked: &str) {
    stack.cli(&["key", "revoke", revoked, "--reason", "over"]);
    for name in ["live_key", "test_key"] {
        status(&stack.gateways()[0], &stack.demo(name)).await;
    }
    status(&stack.gateways()[0], key).await;
    let waiting = eventually(SOON, "no key waits", || async {
        let now = peppers(stack);
        match now["waiting_keys"].as_i64() {
            Some(0) => Ok(()),
            _ => Err(now.to_string()),
        }
    });
    waiting.await.unwrap();
    stack.cli(&["pepper", "retire", "--timeout", "20"]);
    let now = peppers(stack);
    assert_eq!(now["previous_pepper_id"], Value::Null);
    assert_eq!(now["lost_keys"], json!(1), "the key that was given up");
    for base in stack.gateways() {
        assert_eq!(status(&base, key).await, 200);
    }
}

/// What was hashed with a pepper that nobody has any more goes at the next housekeeping, which a
/// process begins with.
async fn is_forgotten(stack: &Stack, key: &str) {
    let kept = "select count(*) from keys.api_keys where previous_key_hash is not null";
    let lost = "select count(*) from keys.api_keys a where previous_key_hash is not null
                 and pepper_id <> (select pepper_id from keys.peppers)";
    assert!(stack.count(kept).await > stack.count(lost).await);
    for pid in stack.pids("keys") {
        signal(pid, Signal::KILL);
    }
    let forgotten = eventually(SOON, "the hashes before are gone", || async {
        match stack.count(kept).await - stack.count(lost).await {
            0 => Ok(()),
            left => Err(left),
        }
    });
    forgotten.await.unwrap();
    let base = &stack.gateways()[1];
    let works = eventually(SOON, "the key works", || async {
        match status(base, key).await {
            200 => Ok(()),
            other => Err(other),
        }
    });
    works.await.unwrap();
}

async fn is_audited(stack: &Stack) {
    let rotated = "select count(*) from keys.audit_log where action = 'pepper.rotated'";
    assert_eq!(stack.count(rotated).await, 2);
    let retired = "select count(*) from keys.audit_log where action = 'pepper.retired'";
    let noted = eventually(SOON, "the retirement is audited", || async {
        match stack.count(retired).await {
            1 => Ok(()),
            other => Err(other),
        }
    });
    noted.await.unwrap();
    stack.cli(&["audit-log", "verify"]);
    let ops = stack.info()["ops"]["keys"].as_str().unwrap().to_owned();
    let counted = eventually(
        Duration::from_secs(60),
        "keys are counted by pepper",
        || async {
            let answer = Connection::to(&ops).call("", &Shot::get("/metrics")).await;
            let text = String::from_utf8_lossy(&answer.expect("metrics").body).into_owned();
            match text.contains("tollgate_keys_by_pepper{state=\"lost\"} 1") {
                true => Ok(()),
                false => Err(text),
            }
        },
    );
    counted.await.unwrap();
}

/// Gives it peppers, as an operator who replaces a secret does.
async fn give(apart: &Apart, stack: &Stack, current: &str, previous: &str) {
    std::fs::write(apart.dir().join("pepper-previous"), previous).expect("written");
    swap(&apart.dir().join("pepper"), current);
    let id = types::Pepper::new(current).unwrap().id();
    holds(stack, "apart", &id).await;
}

fn current(stack: &Stack) -> PathBuf {
    PathBuf::from(stack.info()["peppers"]["current"].as_str().unwrap())
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a pepper")
}

fn swap(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(&new, path).expect("replaced");
}

/// Waits until a process of this name has this pepper.
async fn holds(stack: &Stack, name: &str, id: &str) {
    let there = eventually(SOON, "it has the pepper", || async {
        let now = peppers(stack);
        let holders = now["holders"].as_array().unwrap().clone();
        let mut it = holders
            .iter()
            .filter(|it| it["name"] == name || it["service"] == name);
        match it.next().is_some_and(|it| it["pepper_id"] == *id) {
            true => Ok(()),
            false => Err(now.to_string()),
        }
    });
    there.await.unwrap();
}

#[tokio::test]
async fn a_gateway_may_follow_late_or_lead_and_both_refuse_what_is_revoked_between() {
    let world = World::start().await;
    let stack = &world.stack;
    let acme = stack.customer("Acme", 100_000);
    let keys = stack.info()["grpc"]["keys"].as_str().unwrap().to_owned();
    let apart = Apart::start(stack, &keys).await;
    let here = stack.gateways()[0].clone();
    let both = [here.as_str(), apart.base.as_str()];
    let old = read(&current(stack));
    let (id, key) = live_key(stack, &acme);
    let (waiting_id, waiting) = live_key(stack, &acme);
    for base in both {
        assert_eq!(status(base, &key).await, 200);
    }

    // One gateway does not follow: it is named, and nothing is refused meanwhile.
    let (code, _, errors) = stack.try_cli(&["pepper", "rotate", "--timeout", "5"]);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("gateway apart"), "{errors}");
    let new = read(&current(stack));
    assert_ne!(new, old);
    // Moved here, they are found there by the hash before; so is one that was made after it all.
    let (_, made) = live_key(stack, &acme);
    for key in [&key, &waiting, &made] {
        for base in both {
            assert_eq!(status(base, key).await, 200);
        }
    }
    let (code, _, errors) = stack.try_cli(&["pepper", "rotate", "--force"]);
    assert_eq!(code, Some(64), "it would be two behind: {errors}");

    // Both hold the key, under different hashes. Both hear of its end.
    let revoked = stack.cli(&["key", "revoke", &id, "--reason", "between"]);
    assert_eq!(revoked["confirmed_gateways"], json!(2), "{revoked}");
    for base in both {
        assert_eq!(status(base, &key).await, 401);
    }
    give(&apart, stack, &new, &old).await;
    for base in both {
        assert_eq!(status(base, &key).await, 401);
        for key in [&waiting, &made] {
            assert_eq!(status(base, key).await, 200);
        }
    }

    // Now it leads: keys it moves are found by those who have not heard of its pepper.
    let newest = "n".repeat(64);
    give(&apart, stack, &newest, &new).await;
    let (_, made) = live_key(stack, &acme);
    for key in [&waiting, &made] {
        for base in [both[1], both[0]] {
            assert_eq!(status(base, key).await, 200);
        }
    }
    stack.cli(&["key", "revoke", &waiting_id, "--reason", "ahead"]);
    for base in both {
        assert_eq!(status(base, &waiting).await, 401);
    }
    let previous = stack.info()["peppers"]["previous"]
        .as_str()
        .unwrap()
        .to_owned();
    swap(Path::new(&previous), &new);
    swap(&current(stack), &newest);
    let id = types::Pepper::new(&newest).unwrap().id();
    for name in ["keys", "gateway-1"] {
        holds(stack, name, &id).await;
    }
    for base in both {
        assert_eq!(status(base, &made).await, 200);
        assert_eq!(status(base, &waiting).await, 401);
    }
}
