//! What gateways are told, and say of themselves.

use std::collections::BTreeMap;

use proptest::prelude::*;
use types::KeyHash;

use crate::domain::changes::{self, CHANGES_MAX, Eviction, evict};

#[test]
fn what_gateways_say_of_themselves_is_checked() {
    assert!(changes::gateway_name("gateway-0").is_ok());
    for bad in ["", "a\nb", &"x".repeat(129)] {
        assert!(changes::gateway_name(bad).is_err(), "{bad:?}");
    }
    assert!(changes::pepper_id("0123abcd").is_ok());
    for bad in ["0123abc", "0123ABCD", "0123abcd0"] {
        assert!(changes::pepper_id(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_gateway_that_lags_or_comes_from_another_history_drops_everything() {
    let hash = KeyHash::from_slice(&[1; 32]).unwrap();
    let many = vec![(hash, 1); CHANGES_MAX + 1];
    assert_eq!(evict(5, 9999, &many), Eviction::All);
    assert_eq!(evict(6, 5, &[]), Eviction::All);
    assert_eq!(evict(0, 9999, &many), Eviction::Keys(vec![]));
    assert_eq!(evict(5, 5, &[]), Eviction::Keys(vec![]));
}

proptest! {
    #[test]
    fn each_changed_hash_is_told_once_with_its_newest_version(
        log in prop::collection::vec((0_u8..20, 1_i64..50), 0..200),
    ) {
        let changed: Vec<_> = log
            .iter()
            .map(|(n, version)| (KeyHash::from_slice(&[*n; 32]).unwrap(), *version))
            .collect();
        let mut expected: BTreeMap<u8, i64> = BTreeMap::new();
        for (n, version) in &log {
            let newest = expected.entry(*n).or_default();
            *newest = (*newest).max(*version);
        }
        let Eviction::Keys(told) = evict(1, 1000, &changed) else {
            panic!("within the bound nothing is reset")
        };
        let told: Vec<_> =
            told.iter().map(|(hash, version)| (hash.bytes()[0], *version)).collect();
        prop_assert_eq!(told, expected.into_iter().collect::<Vec<_>>());
    }
}
