#![expect(
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong about its own data may panic"
)]

use proptest::prelude::*;

use super::*;

fn unit(unit: &str, credits: i64, per: i64) -> UnitPrice {
    UnitPrice {
        unit: unit.to_owned(),
        credits,
        per,
        pointer: String::new(),
        bytes_per_unit: 0,
    }
}

fn estimated(unit: UnitPrice, bytes_per_unit: i64) -> UnitPrice {
    UnitPrice {
        bytes_per_unit,
        ..unit
    }
}

fn price(base: i64, units: Vec<UnitPrice>, max: i64, unreported: Unreported) -> Price {
    Price::new(base, units, max, unreported).expect("a price")
}

fn exact(cost: i64) -> Charge {
    Charge {
        cost,
        ..Charge::default()
    }
}

#[test]
fn a_cost_is_rounded_up_once() {
    // A third and a sixth of a credit: together a half, so one credit and not two.
    let thirds = vec![unit("a", 1, 3), unit("b", 1, 6)];
    let thirds = price(0, thirds, 100, Unreported::MaxCost);
    let counts = |a: u64, b: u64| move |name: &str| Some(if name == "a" { a } else { b });
    assert_eq!(thirds.charge(counts(1, 1), 0), exact(1));
    assert_eq!(thirds.charge(counts(2, 2), 0), exact(1));
    assert_eq!(thirds.charge(counts(2, 3), 0), exact(2));
    assert_eq!(
        thirds.charge(counts(0, 0), 0),
        exact(0),
        "none is none when it is said"
    );
    let tokens = price(2, vec![unit("tokens", 3, 1_000)], 50, Unreported::MaxCost);
    assert_eq!(tokens.charge(|_| Some(1), 0), exact(3));
    assert_eq!(tokens.charge(|_| Some(1_000), 0), exact(5));
    assert_eq!(tokens.charge(|_| Some(1_001), 0), exact(6));
}

#[test]
fn above_the_hold_the_rest_is_overrun() {
    let tokens = price(2, vec![unit("tokens", 3, 1_000)], 10, Unreported::MaxCost);
    let charge = tokens.charge(|_| Some(4_000), 0);
    assert_eq!((charge.cost, charge.overrun), (10, 4));
    let charge = tokens.charge(|_| Some(u64::MAX), 0);
    assert_eq!(charge.cost, 10);
    assert_eq!(charge.overrun, 3 * 1_000_000_000 - 8, "capped, not wrapped");
}

#[test]
fn what_nobody_reported_is_never_nothing_by_oversight() {
    let tokens = || vec![estimated(unit("tokens", 1, 1), 4)];
    let cases = [
        (Unreported::MaxCost, 0, 30),
        (Unreported::Estimate, 1 + 3, 30),
        (Unreported::Base, 1, 30),
    ];
    for (policy, cost, max) in cases {
        let cost = if policy == Unreported::MaxCost {
            max
        } else {
            cost
        };
        let charge = price(1, tokens(), max, policy).charge(|_| None, 9);
        assert_eq!((charge.cost, charge.estimated), (cost, true), "{policy:?}");
    }
    let two = vec![unit("a", 1, 1), unit("b", 1, 1)];
    let two = price(0, two, 30, Unreported::MaxCost);
    let charge = two.charge(|name| (name == "a").then_some(5), 0);
    assert_eq!(
        (charge.cost, charge.estimated),
        (30, true),
        "one of two is missing"
    );
    assert!(!two.is_known(|name| (name == "a").then_some(5)));
    assert!(two.is_known(|_| Some(0)));
}

#[test]
fn a_price_that_makes_no_sense_names_its_field() {
    let sane = || vec![unit("tokens", 1, 1)];
    let refused = |base, units, max, unreported| -> &'static str {
        let error = Price::new(base, units, max, unreported).expect_err("refused");
        assert!(!error.problem.is_empty());
        error.field
    };
    let max = Unreported::MaxCost;
    assert_eq!(refused(0, vec![], 1, max), "unit_prices");
    assert_eq!(refused(-1, sane(), 1, max), "cost");
    assert_eq!(refused(0, sane(), 0, max), "max_cost");
    assert_eq!(refused(5, sane(), 4, max), "max_cost");
    assert_eq!(refused(0, sane(), CALL_COST_MAX + 1, max), "max_cost");
    assert_eq!(refused(0, sane(), 1, Unreported::Base), "unreported");
    assert_eq!(refused(0, sane(), 1, Unreported::Estimate), "unit_prices");
    for wrong in [
        unit("", 1, 1),
        unit("tok ens", 1, 1),
        unit(&"x".repeat(33), 1, 1),
        unit("t", 0, 1),
        unit("t", CALL_COST_MAX + 1, 1),
        unit("t", 1, 0),
        unit("t", 1, PER_MAX + 1),
        estimated(unit("t", 1, 1), -1),
        UnitPrice {
            pointer: "usage".to_owned(),
            ..unit("t", 1, 1)
        },
    ] {
        assert_eq!(refused(0, vec![wrong], 1, max), "unit_prices");
    }
    assert_eq!(refused(0, [sane(), sane()].concat(), 1, max), "unit_prices");
    let primes = vec![unit("a", 1, 999_999_937), unit("b", 1, 999_999_929)];
    assert_eq!(refused(0, primes, 1, max), "unit_prices");
    for name in ["max_cost", "estimate", "base"] {
        assert_eq!(Unreported::parse(name).map(Unreported::as_str), Some(name));
    }
    assert_eq!(Unreported::parse("none"), None);
}

proptest! {
    /// Against exact rationals: the smallest whole number that is not below the sum.
    #[test]
    fn a_charge_is_the_least_that_covers_the_price(
        base in 0..1_000_i64,
        prices in proptest::collection::vec((1..1_000_i64, 0..7_u32, 0..5_000_000_u64), 1..8),
        max in 1_000..1_000_000_i64,
    ) {
        let name = |at: usize| format!("u{at}");
        let units: Vec<UnitPrice> = prices
            .iter()
            .enumerate()
            .map(|(at, (credits, exponent, _))| unit(&name(at), *credits, 10_i64.pow(*exponent)))
            .collect();
        let price = Price::new(base, units, max, Unreported::MaxCost).expect("a price");
        let count = |wanted: &str| {
            let at = (0..prices.len()).find(|at| name(*at) == wanted)?;
            prices.get(at).map(|(_, _, units)| *units)
        };
        let charge = price.charge(count, 0);
        prop_assert!(!charge.estimated);
        prop_assert!((0..=max).contains(&charge.cost));
        prop_assert!(charge.overrun == 0 || charge.cost == max);
        // In millionths, which every price here divides.
        let micros: i128 = prices
            .iter()
            .map(|(credits, exponent, units)| {
                i128::from(*units) * i128::from(*credits) * 10_i128.pow(6 - exponent)
            })
            .sum();
        let whole = i128::from(charge.cost) + i128::from(charge.overrun) - i128::from(base);
        prop_assert!(whole * 1_000_000 >= micros);
        prop_assert!((whole - 1) * 1_000_000 < micros);
    }
}
