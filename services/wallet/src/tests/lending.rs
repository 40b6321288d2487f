//! Asks that are decided together.

use std::collections::{BTreeMap, BTreeSet};

use super::{NOON, credits, journal, lease, lease_id, live_wallet};
use crate::domain::*;

/// Asks of one journal that are decided together, of a wallet of 100 that has lent 10.
fn round() -> (Round, Book) {
    let open = lease(1, 1, 10);
    let wallet = Wallet {
        id: live_wallet(),
        epoch: None,
        balance: credits(100),
        reserved: credits(10),
        level: None,
    };
    let book = Book::new([wallet], [open]);
    let round = Round {
        is_retired: false,
        is_frozen: false,
        live_gateways: 1,
        replayed: BTreeMap::from([([9; 16], lease_id(1))]),
        open: BTreeMap::new(),
    };
    (round, book)
}

#[test]
fn each_ask_knows_what_those_before_it_were_lent() {
    let (mut round, mut book) = round();
    let mut ask = |nonce: u8, minimum| {
        let wish = Wish {
            nonce: [nonce; 16],
            want: credits(minimum),
            minimum: credits(minimum),
        };
        let new = |wallet: &Wallet| {
            let number = 100 + u128::from(nonce);
            Lease::new(lease_id(number), wallet, None, journal(1), NOON)
        };
        round.answer(&mut book, wish, Some(live_wallet()), new)
    };
    let made = Some(lease_id(101));
    assert_eq!(ask(1, 40), Decision::Lend(made, credits(40)));
    assert_eq!(ask(2, 45), Decision::Lend(made, credits(45)), "extended");
    assert_eq!(ask(3, 6), Decision::Short, "5 of 90 are left");
    assert_eq!(
        ask(1, 40),
        Decision::Replay(lease_id(101)),
        "the same again"
    );
    assert_eq!(
        ask(9, 40),
        Decision::Replay(lease_id(1)),
        "of an earlier request"
    );
    assert_eq!(ask(4, 5), Decision::Lend(made, credits(5)));
    assert_eq!(ask(5, 1), Decision::Short);
    let none = |_: &Wallet| unreachable!("there is nothing to lend");
    let wish = Wish {
        nonce: [6; 16],
        want: credits(1),
        minimum: credits(1),
    };
    let unknown = round.answer(&mut book, wish, None, none);
    assert_eq!(unknown, Decision::Short, "who has no wallet");
    let changes = book.into_changes();
    assert_eq!(changes.opened, BTreeSet::from([lease_id(101)]));
    assert_eq!(changes.leases[&lease_id(101)].granted, credits(90));
    assert_eq!(changes.movements[&live_wallet()].reserved, credits(90));
}
