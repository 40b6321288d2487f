//! What the steps of an admitted call cost on their own, warm. For a release build, by hand:
//!
//! ```sh
//! cargo nextest run --release -p gateway --run-ignored only costs --no-capture
//! ```

use std::{hint::black_box, sync::Arc, time::Instant};

use http::{HeaderMap, Method, StatusCode};
use tokio::task::LocalSet;

use super::rig::{self, Rig};
use crate::{
    admit::{Admitted, Aim, Asked, admit},
    credential,
    edge::{self, CallId, Told},
    keyring::{self, Entry},
    listen::Peer,
    meter::Ticket,
    strangers::Origin,
    upload::Upload,
};

/// Fresh edges, each with a journal that has room for `CALLS` records.
const ROUNDS: usize = 100;
const CALLS: usize = 200;
/// Enough credits and permits for all of them.
const PLENTY: i64 = 1_000_000_000;
/// A record as most are.
const RECORD_BYTES: usize = 230;

/// Nanoseconds of each step, a figure a round.
#[derive(Default)]
struct Costs {
    check: Vec<u128>,
    admission: Vec<u128>,
    record: Vec<u128>,
    append: Vec<u128>,
}

/// Runs a step for each item, and notes what one of them took.
fn each<T, R>(figures: &mut Vec<u128>, items: Vec<T>, mut step: impl FnMut(T) -> R) -> Vec<R> {
    let mut results = Vec::with_capacity(items.len());
    let calls = items.len() as u128;
    let began = Instant::now();
    for item in items {
        results.push(step(item));
    }
    figures.push(began.elapsed().as_nanos().checked_div(calls).expect("some"));
    results
}

fn median(mut figures: Vec<u128>) -> u128 {
    figures.sort_unstable();
    figures.get(figures.len() / 2).copied().expect("rounds")
}

pub(super) fn ticket(rig: &Rig, entry: &Arc<Entry>) -> Ticket {
    let edge = &rig.worker.edge;
    let (address, started) = (rig.address().ip(), edge.clock.monotonic_nanos());
    let peer = Peer {
        address,
        is_secure: false,
    };
    let told = Told {
        method: &Method::GET,
        path: "/api/v1/echo/a",
        user_agent: Some("curl/8.0"),
        traceparent: None,
        request_id: None,
        client: address,
    };
    let id = CallId::new(&edge.ids);
    let began = (started, edge.clock.now());
    let facts = edge::facts(edge, peer, &told, id, began, ("echo", "/a"));
    let reservation = edge.journal.reserve().expect("room");
    Ticket::new(Arc::clone(edge), Arc::clone(entry), reservation, facts)
}

fn round(rig: &Rig, costs: &mut Costs) {
    let edge = &rig.worker.edge;
    keyring::tests::inform(&edge.keyring);
    for lease in [&rig.lease, &rig.permits[0], &rig.permits[1]] {
        assert!(lease.extend(PLENTY, 0, 0).is_none());
    }
    let origin = || Origin::from(rig.address().ip());
    let keys = vec![rig.key.reveal(); CALLS];
    let entries = each(&mut costs.check, keys, |key| {
        let started = edge.clock.monotonic_nanos();
        let presented = credential::read(None, Some(black_box(key.as_bytes()))).expect("a key");
        let hash = edge.keyring.hashing().hash(&presented);
        let entry = edge::recall(edge, &hash, origin, started);
        entry.ok().flatten().expect("known")
    });
    let tickets = entries.iter().map(|entry| ticket(rig, entry)).collect();
    let catalogue = edge.catalogue.load_full();
    let aim = Aim::Said(&catalogue, "echo", &Method::GET, "/a");
    let mut admitted = each(&mut costs.admission, tickets, |ticket| {
        let asked = Asked::Plain {
            now: ticket.facts().started,
        };
        let admitted = admit(edge, aim, asked, ticket);
        let admitted = futures_util::FutureExt::now_or_never(admitted);
        admitted.expect("from memory").ok().expect("admitted").0
    });
    for Admitted { ticket, .. } in &mut admitted {
        ticket.forwarding(Upload::of(&[])).expect("noted");
        ticket.answered(StatusCode::OK, &HeaderMap::new());
    }
    each(&mut costs.record, admitted, |admitted| {
        admitted.ticket.finish().cost
    });
    let rooms = (0..CALLS).map(|_| edge.journal.reserve().expect("room"));
    let payload = [7; RECORD_BYTES];
    each(&mut costs.append, rooms.collect(), |room| {
        let append = |slot: crate::journal::Slot<'_>| {
            let room = slot.buf.get_mut(..RECORD_BYTES).expect("room");
            room.copy_from_slice(black_box(&payload));
            (RECORD_BYTES, ())
        };
        room.append(append).0
    });
}

#[tokio::test]
#[ignore = "figures of a release build; run by hand"]
async fn costs_of_the_steps_of_a_call() {
    let (host, config) = rig::host(&[]).await;
    let mut costs = Costs::default();
    let all = LocalSet::new();
    let all = all.run_until(async {
        for _ in 0..ROUNDS {
            let rig = Rig::new(&host, &config).await;
            round(&rig, &mut costs);
        }
    });
    all.await;
    let steps = [
        ("key check", costs.check),
        ("scope, rate, two quotas, credits", costs.admission),
        ("record, with its append", costs.record),
        ("journal append", costs.append),
    ];
    for (step, figures) in steps {
        assert_eq!(figures.len(), ROUNDS);
        println!("{step}: {} ns", median(figures));
    }
}
