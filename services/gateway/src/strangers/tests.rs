#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use proptest::prelude::*;
use runtime::Variables;
use types::Refusal;

use super::{
    sighting::Sightings,
    table::{ADDRESSES_MAX, WINDOW_NANOS},
    *,
};

const MAX: u32 = 20;
const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1_000 * SECOND;

fn strangers() -> (Arc<Strangers>, mpsc::Receiver<Origin>) {
    let none: [(String, String); 0] = [];
    let config = Config::read(&mut Variables::from_pairs(none));
    Strangers::new(&config)
}

fn v4(n: u32) -> Origin {
    Origin::V4(Ipv4Addr::from(n))
}

fn origin(text: &str) -> Origin {
    Origin::from(text.parse::<IpAddr>().expect("an address"))
}

/// One look-up that finds nobody, as a call makes it.
fn in_vain(strangers: &Strangers, origin: Origin, now: u64) -> Result<(), Refused> {
    strangers.take_lookup(Some(origin), now)?;
    strangers.note_lookup_in_vain(origin, now);
    strangers.note_call(origin, now);
    Ok(())
}

#[test]
fn an_ipv6_subscriber_is_one_address_and_a_mapped_address_is_its_ipv4() {
    assert_eq!(origin("2001:db8:1:2::1"), origin("2001:db8:1:2:ffff::9"));
    assert_ne!(origin("2001:db8:1:2::1"), origin("2001:db8:1:3::1"));
    assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
    assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
    assert_eq!(origin("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
    assert_eq!(origin("192.0.2.1").to_string(), "192.0.2.1");
}

#[test]
fn an_address_has_so_many_look_ups_in_vain_and_then_waits_for_its_minute() {
    let (strangers, _) = strangers();
    let (bad, good) = (origin("192.0.2.1"), origin("192.0.2.2"));
    for step in 0..u64::from(MAX) {
        assert!(strangers.refusal(bad, NOW).is_none());
        assert!(in_vain(&strangers, bad, NOW + step * SECOND).is_ok());
    }
    let after = NOW + 30 * SECOND;
    let refused = strangers.refusal(bad, after).expect("all are used up");
    assert_eq!(refused.refusal, Refusal::RateLimited);
    assert_eq!(refused.retry_after, Some(30), "from its first one");
    assert!(strangers.take_lookup(Some(bad), after).is_err());
    assert!(strangers.take_lookup(None, after).is_ok(), "nobody's fault");
    assert!(strangers.refusal(good, after).is_none());
    assert!(strangers.take_lookup(Some(good), after).is_ok());
    let (last, end) = (NOW + WINDOW_NANOS - 1, NOW + WINDOW_NANOS);
    let refused = strangers.refusal(bad, last).expect("one nanosecond left");
    assert_eq!(refused.retry_after, Some(1));
    assert!(strangers.refusal(bad, end).is_none());
    assert!(strangers.take_lookup(Some(bad), end).is_ok());
}

#[test]
fn calls_that_cause_no_look_up_do_not_use_up_look_ups() {
    let (strangers, _) = strangers();
    let bad = origin("192.0.2.1");
    for _ in 0..10_000 {
        strangers.note_call(bad, NOW);
    }
    assert!(strangers.refusal(bad, NOW).is_none());
}

#[test]
fn good_keys_use_up_nothing_however_many_are_looked_up_at_once() {
    let (strangers, _) = strangers();
    let busy = origin("192.0.2.1");
    strangers.note_lookup_in_vain(busy, NOW);
    for _ in 0..100 {
        for _ in 0..LOOKUPS_AT_ONCE_MAX {
            assert!(strangers.take_lookup(Some(busy), NOW).is_ok());
        }
        for _ in 0..LOOKUPS_AT_ONCE_MAX {
            strangers.give_lookup_back();
        }
    }
}

/// Many addresses, each within its own limit: the budget of all holds, and half of it is out of
/// reach for those who have brought unknown keys before.
#[test]
fn many_addresses_share_one_budget_and_leave_half_to_those_without_unknown_keys() {
    let (strangers, _) = strangers();
    let mut now = NOW;
    let known: Vec<Origin> = (0..200).map(v4).collect();
    for origin in &known {
        strangers.table.note_lookup(*origin, now);
    }
    let mut made = 0_u32;
    let mut refused = None;
    for origin in known.iter().cycle().take(100 * 200) {
        now += SECOND / 100_000; // a fifth of a second in all
        match in_vain(&strangers, *origin, now) {
            Ok(()) => made += 1,
            Err(error) => refused = Some(error),
        }
    }
    assert_eq!(LOOKUPS_KEPT * 2, LOOKUPS_BURST);
    let kept = LOOKUPS_BURST - LOOKUPS_KEPT;
    let bound = kept + 200 / 5 + 1;
    assert!((kept..=bound).contains(&made), "{made} look-ups");
    let refused = refused.expect("there were more");
    assert_eq!(refused.refusal, Refusal::CreditsUnavailable);
    assert_eq!(refused.retry_after, Some(1));
    // New ones find the other half.
    let fresh = (1_000..).map(v4).take(10_000);
    let left = fresh.filter(|it| strangers.take_lookup(Some(*it), now).is_ok());
    let left = left.count();
    let expected = usize::try_from(LOOKUPS_KEPT).expect("small");
    assert!(left.abs_diff(expected) <= 1, "{left} left");
}

/// An attacker with very many addresses: those that are refused stay refused, memory does not
/// grow, and who has done nothing is not refused.
#[test]
fn many_addresses_do_not_free_one_that_is_refused() {
    let (strangers, _) = strangers();
    let bad: Vec<Origin> = (0..600).map(v4).collect();
    for origin in &bad {
        for _ in 0..MAX {
            strangers.table.note_lookup(*origin, NOW);
        }
    }
    let flood = u32::try_from(ADDRESSES_MAX * 20).expect("fits");
    for n in 0..flood {
        let counted = strangers.table.note_call(v4(1_000_000 + n), NOW);
        assert!(counted.is_some(), "there is room for those to come");
    }
    let refused = |origin: &&Origin| strangers.refusal(**origin, NOW).is_some();
    assert_eq!(bad.iter().filter(refused).count(), bad.len());
    assert!(strangers.refusal(v4(999_999), NOW).is_none());
}

/// The worst case: every place is held by an address that is refused.
#[test]
fn without_room_the_budget_alone_counts() {
    let (strangers, _) = strangers();
    let all = u32::try_from(ADDRESSES_MAX * 4).expect("fits");
    for n in 0..all {
        for _ in 0..MAX {
            strangers.table.note_lookup(v4(n), NOW);
        }
    }
    let refused = (0..all).filter(|n| strangers.refusal(v4(*n), NOW).is_some());
    let refused = refused.count();
    assert!((ADDRESSES_MAX * 9 / 10..=ADDRESSES_MAX).contains(&refused));
    let fresh = (all..).map(v4).take(20_000);
    let made = fresh.filter(|it| in_vain(&strangers, *it, NOW).is_ok());
    let bound = usize::try_from(LOOKUPS_BURST).expect("small");
    assert_eq!(made.count(), bound);
    // A minute later all is as if nothing had been.
    let later = NOW + WINDOW_NANOS;
    assert!((0..all).all(|n| strangers.refusal(v4(n), later).is_none()));
}

/// The message says how many calls there were: of few of them when the minute is nearly over, of
/// many at once.
#[test]
fn an_address_is_reported_once_a_minute_with_what_it_did_until_then() {
    let (strangers, mut passed) = strangers();
    let (slow, fast, quiet) = (v4(1), v4(2), v4(3));
    let mut sightings = Sightings::new(MAX);
    let mut due = |second: u64| {
        while let Ok(origin) = passed.try_recv() {
            sightings.add(origin);
        }
        let now = NOW + second * SECOND;
        let due = sightings.due(now, |origin| strangers.passed(origin, now));
        let calls = due.into_iter().map(|(origin, count)| (origin, count.calls));
        calls.collect::<Vec<_>>()
    };
    let call = |origin, second: u64, times: u32| {
        for _ in 0..times {
            strangers.note_call(origin, NOW + second * SECOND);
        }
    };
    call(quiet, 0, MAX);
    call(slow, 0, MAX + 1);
    call(fast, 0, MAX * 10);
    assert_eq!(due(1), [(fast, MAX * 10)], "it goes on, surely");
    call(slow, 50, 100);
    call(fast, 50, 1_000);
    assert!(due(56).is_empty(), "once is enough");
    assert_eq!(due(57), [(slow, MAX + 101)]);
    // The next minute begins. Who was reported late waits, who was reported soon need not.
    call(slow, 60, 1_000);
    call(fast, 61, 1_000);
    assert_eq!(due(62), [(fast, 1_000)]);
    assert!(due(116).is_empty());
    assert_eq!(due(117), [(slow, 1_000)]);
    // Once more above the limit, and then silence until the minute is over.
    call(slow, 121, MAX + 1);
    assert!(due(122).is_empty());
    assert!(due(300).is_empty(), "that was long ago");
}

#[test]
fn a_flood_of_addresses_is_not_a_flood_of_messages() {
    let mut sightings = Sightings::new(MAX);
    let mut reported = 0;
    for round in 0..5 {
        for n in 0..2_000 {
            sightings.add(v4(round * 10_000 + n));
        }
        reported += sightings.due(NOW, |_| Some(table::Count::default())).len();
    }
    assert_eq!(reported, SIGHTINGS_MAX);
}

proptest! {
    /// As long as there is room, the table counts as a map of all addresses would.
    #[test]
    fn counts_agree_with_a_naive_model(
        steps in prop::collection::vec((0_u32..6, 0_u64..20 * SECOND, any::<bool>()), 1..200),
    ) {
        let table = Table::new(MAX);
        let mut model: HashMap<u32, (u64, u32, u32)> = HashMap::new();
        let mut now = NOW;
        for (who, step, is_lookup) in steps {
            now += step;
            let (begun, calls, in_vain) = model.entry(who).or_insert((now, 0, 0));
            if now >= *begun + WINDOW_NANOS {
                (*begun, *calls, *in_vain) = (now, 0, 0);
            }
            let counted = if is_lookup {
                *in_vain += 1;
                table.note_lookup(v4(who), now)
            } else {
                *calls += 1;
                table.note_call(v4(who), now)
            };
            let counted = counted.expect("there is room");
            prop_assert_eq!((counted.calls, counted.in_vain), (*calls, *in_vain));
            prop_assert_eq!(counted.ends, *begun + WINDOW_NANOS);
            prop_assert_eq!(table.count(v4(who), now), Some(counted));
        }
    }
}
