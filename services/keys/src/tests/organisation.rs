//! Owners and slugs of organisations.

use proptest::prelude::*;
use types::{Role, Slug};

use super::user;
use crate::{
    domain::organisation::{Membership, owner_after, slug_candidate, slug_stem},
    error::Error,
};

#[test]
fn the_last_owner_cannot_leave_and_a_leaving_owner_is_followed() {
    let member = |n, role| Membership {
        user: user(n),
        role,
    };
    let alone = [member(1, Role::Owner), member(2, Role::Admin)];
    assert!(matches!(
        owner_after(&alone, user(1), user(1)),
        Err(Error::LastOwner)
    ));
    assert_eq!(owner_after(&alone, user(1), user(2)).unwrap(), user(1));
    let two = [
        member(1, Role::Owner),
        member(2, Role::Admin),
        member(3, Role::Owner),
    ];
    assert_eq!(owner_after(&two, user(1), user(1)).unwrap(), user(3));
}

proptest! {
    #[test]
    fn any_name_makes_slugs_that_fit(name in "\\PC{0,90}", n in 1_u32..1000) {
        let slug: Slug = slug_candidate(&slug_stem(&name), n).unwrap();
        prop_assert!(!slug.as_str().starts_with('-') && !slug.as_str().ends_with('-'));
    }
}
