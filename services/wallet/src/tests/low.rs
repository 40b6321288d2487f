//! When a wallet that runs dry is announced.

use proptest::prelude::*;
use types::Credits;

use super::{batch, bucket, credits, lease, live_wallet, spend, tables::Tables, test_wallet};
use crate::domain::*;

/// Spends so much more of the first lease.
fn settle(tables: &mut Tables, cum: i64, cost: i64) {
    let mut book = tables.book();
    book.settle(&[batch(7, &[spend(1, cost, cum)])])
        .expect("no breach");
    tables.write(book.into_changes());
    tables.check();
}

fn grant(tables: &mut Tables, amount: i64) {
    let mut book = tables.book();
    book.grant(live_wallet(), credits(amount), "test", "operator", "key");
    tables.write(book.into_changes());
    tables.check();
}

fn told(tables: &Tables) -> Vec<(u8, i64)> {
    let told = tables.fallen.iter();
    told.map(|fallen| (fallen.percent, fallen.balance.get()))
        .collect()
}

/// A wallet with all of it lent.
fn wallet(balance: i64) -> Tables {
    Tables::with([lease(1, 7, balance)], balance)
}

#[test]
fn each_share_is_announced_when_it_is_reached_and_not_before() {
    let mut tables = wallet(1000);
    for (cum, expected) in [
        (499, 0),
        (500, 1),
        (799, 1),
        (800, 2),
        (899, 2),
        (900, 3),
        (1000, 3),
    ] {
        let before = tables.used;
        settle(&mut tables, cum, cum - before);
        assert_eq!(tables.fallen.len(), expected, "after {cum}");
    }
    assert_eq!(told(&tables), [(50, 500), (20, 200), (10, 100)]);
    assert!(tables.fallen.iter().all(|it| it.reference == credits(1000)));
}

#[test]
fn one_debit_may_cross_all_of_them_and_a_repetition_crosses_none() {
    let mut tables = wallet(1000);
    settle(&mut tables, 950, 950);
    assert_eq!(told(&tables), [(50, 50), (20, 50), (10, 50)]);
    settle(&mut tables, 950, 950);
    assert_eq!(tables.fallen.len(), 3);
}

#[test]
fn shares_are_not_rounded() {
    let mut tables = wallet(9);
    settle(&mut tables, 4, 4);
    assert!(told(&tables).is_empty(), "5 of 9 is more than half");
    settle(&mut tables, 5, 1);
    assert_eq!(told(&tables), [(50, 4)]);
    settle(&mut tables, 8, 3);
    assert_eq!(
        told(&tables),
        [(50, 4), (20, 1)],
        "1 of 9 is more than a tenth"
    );
}

#[test]
fn credits_that_come_in_arm_all_of_them_again() {
    let mut tables = wallet(1000);
    settle(&mut tables, 850, 850);
    grant(&mut tables, 50);
    assert_eq!(tables.wallet.level, Some(Level::after(credits(200))));
    settle(&mut tables, 950, 100);
    assert_eq!(told(&tables), [(50, 150), (20, 150), (50, 100)]);
    assert_eq!(tables.fallen[2].reference, credits(200));
}

#[test]
fn test_wallets_quotas_and_wallets_that_never_held_anything_are_not_watched() {
    for owner in [test_wallet(), bucket()] {
        let mut tables = Tables::new(owner, 100);
        let wallet = owner;
        tables.wallet.reserved = credits(100);
        let level = tables.wallet.level;
        assert_eq!(level, None);
        let lent = Lease {
            wallet,
            wallet_epoch: tables.wallet.epoch,
            ..lease(1, 7, 100)
        };
        tables.leases.insert(lent.id, lent);
        settle(&mut tables, 100, 100);
        assert!(told(&tables).is_empty());
    }
    assert!(Level::after(Credits::ZERO).fall(Credits::ZERO).is_empty());
}

proptest! {
    #[test]
    fn every_share_is_announced_once_for_each_time_that_credits_came_in(
        steps in prop::collection::vec((any::<bool>(), 1..400_i64), 1..40),
    ) {
        let mut tables = wallet(1000);
        let mut expected: Vec<u8> = Vec::new();
        let (mut reference, mut lowest) = (1000, 100);
        for (is_grant, amount) in steps {
            let balance = tables.wallet.balance.get();
            if is_grant {
                grant(&mut tables, amount);
                (reference, lowest) = (balance + amount, 100);
                continue;
            }
            let free = tables.leases.values().map(|it| it.granted.get()).sum::<i64>() - tables.used;
            let cost = amount.min(free);
            if cost == 0 {
                continue;
            }
            let cum = tables.used + cost;
            settle(&mut tables, cum, cost);
            for percent in [50, 20, 10] {
                let is_reached = (balance - cost) * 100 <= reference * i64::from(percent);
                if is_reached && percent < lowest {
                    expected.push(percent);
                    lowest = percent;
                }
            }
        }
        let percents: Vec<u8> = told(&tables).into_iter().map(|(percent, _)| percent).collect();
        prop_assert_eq!(percents, expected);
    }
}
