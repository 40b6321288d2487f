#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a naive reference is plain sums"
)]

mod failover;
mod lending;
mod low;
mod reference;
mod tables;
mod world;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use types::{Credits, Id, JournalId, LEASE_CALLS_MIN, LEASE_SMALL_PARTS, LeaseId, QuotaKind};
use uuid::Uuid;

use self::{
    tables::Tables,
    world::{World, step},
};
use crate::domain::*;

const NOON: Timestamp = Timestamp::constant(1_800_000_000, 0);
const DAYS_30: SignedDuration = SignedDuration::from_hours(30 * 24);

fn credits(n: i64) -> Credits {
    Credits::new(n)
}

fn lease_id(n: u128) -> LeaseId {
    LeaseId::new(Uuid::from_u128(n))
}

fn journal(n: u128) -> JournalId {
    JournalId::new(Uuid::from_u128(n))
}

fn live_wallet() -> WalletId {
    WalletId::Live(Id::new(Uuid::from_u128(1)))
}

fn test_wallet() -> WalletId {
    WalletId::Test(Id::new(Uuid::from_u128(2)))
}

fn bucket() -> WalletId {
    WalletId::Quota(Id::new(Uuid::from_u128(3)))
}

fn lease(n: u128, owner: u128, granted: i64) -> Lease {
    Lease {
        id: lease_id(n),
        wallet: live_wallet(),
        epoch: 0,
        wallet_epoch: None,
        period_end: None,
        journal: journal(owner),
        granted: credits(granted),
        returned_cum: Credits::ZERO,
        settled_cum: Credits::ZERO,
        known_cum: Credits::ZERO,
        final_cum: None,
        state: LeaseState::Active,
        created_at: NOON,
    }
}

fn spend(n: u128, cost: i64, cum: i64) -> Spend {
    Spend {
        lease: lease_id(n),
        cost: credits(cost),
        cum: credits(cum),
        is_final: false,
    }
}

fn close(n: u128, cum: i64) -> Spend {
    Spend {
        is_final: true,
        ..spend(n, 0, cum)
    }
}

fn batch(owner: u128, spends: &[Spend]) -> Batch {
    let claims = claims(spends.iter().copied()).expect("consistent");
    Batch {
        journal: journal(owner),
        claims,
    }
}

proptest! {
    #[test]
    fn a_lease_is_neither_more_than_there_is_nor_less_than_needed(
        minimum in 1_i64..200, more in 0_i64..500, available in 0_i64..400_000,
        gateways in 0_u32..9,
    ) {
        let want = minimum + more;
        let size = size(credits(want), credits(minimum), credits(available), gateways);
        prop_assert_eq!(size.is_some(), minimum <= available, "the last credit can be lent");
        if let Some(size) = size.map(Credits::get) {
            let parts = LEASE_SMALL_PARTS * i64::from(gateways.max(1));
            let block = (minimum * LEASE_CALLS_MIN).min(available / parts);
            prop_assert!(minimum <= size && size <= want.max(block) && size <= available);
            prop_assert!(size >= block, "a few calls' worth of much");
            let share = available / (2 * i64::from(gateways.max(1)));
            prop_assert!(size <= share.max(minimum), "strict when little is left");
            prop_assert!(size == want || size >= share.min(want), "generous otherwise");
        }
    }

    #[test]
    fn an_epoch_is_the_one_its_moment_is_in(
        late_seconds in 0_i64..400_000_000, nanos in 0_i32..999_999_999,
    ) {
        let first = Epoch::first(NOON);
        let now = Timestamp::new(NOON.as_second() + late_seconds, nanos).expect("in range");
        let epoch = first.at(now);
        let start = epoch.reset_at.checked_sub(DAYS_30).expect("in range");
        prop_assert!(start <= now && now < epoch.reset_at);
        prop_assert_eq!(epoch.number, late_seconds / (30 * 24 * 3600));
        prop_assert_eq!(epoch.at(now), epoch, "asking again changes nothing");
    }

    #[test]
    fn a_lowered_quota_issues_no_more_and_takes_nothing_back(
        quota in 1_i64..100, used in 0_i64..100, reserved in 0_i64..100,
    ) {
        let bucket = permits(
            Id::new(Uuid::from_u128(3)), credits(quota), credits(used), credits(reserved),
        );
        prop_assert_eq!(bucket.available().get(), (quota - used - reserved).max(0));
        prop_assert_eq!(bucket.reserved.get(), reserved);
    }

    #[test]
    fn any_order_repetition_or_subset_settles_to_the_same(
        costs in prop::collection::vec(prop::collection::vec(0_i64..20, 1..12), 1..6),
        order in prop::collection::vec((any::<prop::sample::Index>(), 1_usize..5), 0..60),
    ) {
        // Each lease is a journal's; a message is one record, the last one closes.
        let mut messages = Vec::new();
        let mut leases = Vec::new();
        let mut spent = 0;
        for (n, costs) in costs.iter().enumerate() {
            let id = u128::try_from(n).expect("small") + 1;
            let mut cum = 0;
            for cost in costs {
                cum += cost;
                messages.push(batch(id, &[spend(id, *cost, cum)]));
            }
            messages.push(batch(id, &[close(id, cum)]));
            leases.push(lease(id, id, cum + 5));
            spent += cum;
        }
        let mut tables = Tables::with(leases, 2000);
        for (index, count) in order {
            let from = index.index(messages.len());
            let to = messages.len().min(from + count);
            let mut book = tables.book();
            book.settle(&messages[from..to]).expect("no rule is broken");
            tables.write(book.into_changes());
            tables.check();
        }
        for message in messages.iter().rev() {
            let mut book = tables.book();
            book.settle(std::slice::from_ref(message)).expect("no rule is broken");
            tables.write(book.into_changes());
            tables.check();
        }
        prop_assert_eq!(tables.used, spent);
        prop_assert_eq!(tables.wallet.available().get(), 2000 - spent, "all of it came back");
        prop_assert!(tables.leases.values().all(|lease| lease.state == LeaseState::Closed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_happens_to_a_wallet_its_sums_hold(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new(live_wallet(), 150);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }

    #[test]
    fn whatever_happens_a_quota_is_never_exceeded(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(bucket(), 40);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        let max = world.tables.quota.expect("a bucket").1;
        prop_assert!(world.tables.used <= max);
    }

    #[test]
    fn whatever_happens_to_a_test_wallet_its_epochs_balance(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(test_wallet(), 100);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        let mut epochs: BTreeMap<i64, i64> = BTreeMap::from([(0, 100)]);
        for entry in &world.tables.ledger {
            *epochs.entry(entry.epoch).or_default() += entry.credits.get();
        }
        let current = world.tables.wallet.epoch.expect("a test wallet").number;
        for (epoch, sum) in epochs {
            let left = if epoch == current { world.tables.wallet.balance.get() } else { 0 };
            prop_assert_eq!(sum, left, "epoch {} holds what was left in it", epoch);
        }
        prop_assert!(world.tables.wallet.balance <= TEST_CREDITS);
    }
}

fn settle(tables: &Tables, batches: &[Batch]) -> Result<(), (usize, Breach)> {
    tables.book().settle(batches)
}

#[test]
fn a_batch_that_breaks_a_rule_is_named() {
    let tables = Tables::with([lease(1, 1, 50)], 100);
    let good = batch(1, &[spend(1, 10, 10)]);
    let unknown = settle(&tables, &[good.clone(), batch(1, &[spend(9, 1, 1)])]);
    assert_eq!(
        unknown,
        Err((1, Breach::UnknownLease { lease: lease_id(9) }))
    );
    let (lease, owner) = (lease_id(1), journal(1));
    let foreign = settle(&tables, &[batch(2, &[spend(1, 1, 1)])]);
    assert_eq!(
        foreign,
        Err((
            0,
            Breach::OtherJournal {
                lease,
                owner,
                journal: journal(2)
            }
        ))
    );
    let (granted, cum) = (credits(50), credits(51));
    let above = settle(&tables, &[good.clone(), batch(1, &[spend(1, 1, 51)])]);
    assert_eq!(
        above,
        Err((
            1,
            Breach::OverGranted {
                lease,
                granted,
                cum
            }
        ))
    );
    let (final_cum, settled) = (credits(9), credits(10));
    let below = settle(&tables, &[good.clone(), batch(1, &[close(1, 9)])]);
    assert_eq!(
        below,
        Err((
            1,
            Breach::FinalBelowSettled {
                lease,
                final_cum,
                settled
            }
        ))
    );
    let beyond = settle(&tables, &[batch(1, &[close(1, 9)]), good]);
    assert_eq!(
        beyond,
        Err((
            1,
            Breach::BeyondFinal {
                lease,
                final_cum,
                cum: credits(10)
            }
        ))
    );
}

#[test]
fn records_whose_totals_do_not_add_up_are_refused() {
    assert!(claims([spend(1, 5, 4)]).is_err(), "less than its own cost");
    assert!(
        claims([spend(1, 5, 5), spend(1, 5, 9)]).is_err(),
        "less than both costs"
    );
    assert!(claims([spend(1, -1, 5)]).is_err());
    assert!(claims([spend(1, i64::MAX, i64::MAX), spend(1, 1, i64::MAX)]).is_err());
    assert!(
        claims([spend(1, 5, 5), spend(1, 5, 30)]).is_ok(),
        "records between are applied"
    );
    assert!(
        claims([close(1, 5), spend(1, 1, 6)]).is_err(),
        "nothing after the final count"
    );
}

#[test]
fn a_report_that_would_unlend_spent_credits_is_refused() {
    let spent = Lease {
        settled_cum: credits(30),
        ..lease(1, 1, 50)
    };
    let mut tables = Tables::with([spent], 100);
    tables.wallet.reserved = credits(20);
    let report = |returned: i64, cum: i64| Report {
        journal: journal(1),
        lease: lease_id(1),
        cum: credits(cum),
        returned_cum: credits(returned),
    };
    for (returned, cum) in [(21, 0), (51, 0), (i64::MAX, 0), (11, 40), (0, 51)] {
        assert!(
            tables.book().report(&report(returned, cum)).is_err(),
            "{returned} {cum}"
        );
    }
    let foreign = Report {
        journal: journal(2),
        ..report(1, 1)
    };
    assert!(tables.book().report(&foreign).is_err());
    let mut book = tables.book();
    assert_eq!(book.report(&report(20, 30)), Ok(()));
    assert_eq!(book.wallet(live_wallet()).available(), credits(100));
}

#[test]
fn spend_found_after_a_write_off_is_not_the_customers() {
    let silent = Lease {
        state: LeaseState::Orphaned,
        known_cum: credits(20),
        ..lease(1, 1, 50)
    };
    let mut tables = Tables::with([silent], 60);
    let mut book = tables.book();
    book.write_off(lease_id(1));
    tables.write(book.into_changes());
    tables.check();
    assert_eq!(
        tables.wallet.balance,
        credits(40),
        "what was told is debited"
    );
    assert_eq!(
        tables.wallet.available(),
        credits(40),
        "the rest can be spent again"
    );
    let mut book = tables.book();
    book.settle(&[batch(1, &[spend(1, 5, 35), close(1, 37)])])
        .expect("no rule is broken");
    tables.write(book.into_changes());
    tables.check();
    assert_eq!(tables.wallet.balance, credits(40));
    assert_eq!(tables.late, BTreeMap::from([(lease_id(1), 17)]));
}

#[test]
fn a_repeated_reply_opens_no_ended_lease() {
    let epoch = Epoch::first(NOON);
    let current = Lease {
        wallet_epoch: Some(epoch),
        ..lease(1, 1, 5)
    };
    assert_eq!(current.spend_until(), Some(epoch.reset_at));
    let ended = Lease {
        epoch: -1,
        ..current
    };
    assert_eq!(ended.spend_until(), Some(NOON));
    assert!(ended.must_drain());
    for state in [
        LeaseState::Draining,
        LeaseState::Closed,
        LeaseState::WrittenOff,
    ] {
        assert_eq!(
            Lease {
                state,
                ..lease(1, 1, 5)
            }
            .spend_until(),
            Some(NOON)
        );
    }
    assert_eq!(lease(1, 1, 5).spend_until(), None);
    let end = QuotaKind::Daily.period(NOON).end;
    let permits = Lease {
        wallet: bucket(),
        period_end: Some(end),
        ..lease(1, 1, 5)
    };
    assert_eq!(
        permits.spend_until(),
        Some(end),
        "permits are for one period"
    );
}

#[test]
fn a_gateway_that_is_cut_off_keeps_its_journal_until_its_leases_are_orphaned() {
    let seconds = |n| std::time::Duration::from_secs(n);
    let may_take_over = |silence, orphan| {
        let heard = before(NOON, seconds(silence));
        heard < kept_since(NOON, seconds(orphan))
    };
    assert!(!may_take_over(6, 30) && !may_take_over(30, 30));
    assert!(may_take_over(31, 30));
    // However soon leases are orphaned, who is alive is left alone.
    assert!(!may_take_over(5, 1) && may_take_over(6, 1));
}

#[test]
fn a_lease_whose_final_count_is_discarded_ends_at_what_is_settled() {
    let mut tables = Tables::with([lease(1, 1, 50)], 60);
    let mut book = tables.book();
    book.settle(&[batch(1, &[spend(1, 10, 10)])])
        .expect("no rule is broken");
    book.end(lease_id(1));
    tables.write(book.into_changes());
    tables.check();
    assert_eq!(tables.wallet.available(), credits(50), "the rest is back");
    assert_eq!(tables.leases[&lease_id(1)].state, LeaseState::Closed);
    let mut again = tables.book();
    again.end(lease_id(1));
    assert!(again.into_changes().leases.is_empty(), "twice is once");
    // What comes all the same spends credits that may be spent again.
    let late = settle(&tables, &[batch(1, &[spend(1, 1, 11)])]);
    assert!(matches!(late, Err((0, Breach::BeyondFinal { .. }))));
}
