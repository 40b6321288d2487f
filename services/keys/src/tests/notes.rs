//! Metadata, versions, and what lists may be asked for.

use crate::domain::{
    expect_version,
    key::{Edit, name_part, status_wish},
    metadata::{self, Metadata},
};

use super::*;

fn notes(entries: usize, name_chars: usize, value_chars: usize) -> Metadata {
    let name = |n: usize| format!("{n:0>width$}", width = name_chars);
    (0..entries)
        .map(|n| (name(n), "v".repeat(value_chars)))
        .collect()
}

#[test]
fn metadata_is_kept_up_to_its_limits_and_refused_beyond() {
    for fits in [notes(0, 1, 0), notes(20, 40, 200), notes(1, 1, 0)] {
        assert_eq!(metadata::check(&fits).unwrap(), fits);
    }
    let mut control = Metadata::new();
    control.insert("line\nbreak".to_owned(), String::new());
    let mut value = Metadata::new();
    value.insert("a".to_owned(), "\u{7}".to_owned());
    let mut nameless = Metadata::new();
    nameless.insert(String::new(), "x".to_owned());
    for (wish, said) in [
        (notes(21, 2, 1), "at most 20"),
        (notes(1, 41, 1), "1–40"),
        (notes(1, 1, 201), "at most 200"),
        (control, "1–40"),
        (value, "at most 200"),
        (nameless, "1–40"),
    ] {
        let refused = metadata::check(&wish).unwrap_err().to_string();
        assert!(
            refused.starts_with("`metadata`") && refused.contains(said),
            "{refused}"
        );
    }
}

#[test]
fn metadata_is_replaced_as_a_whole_or_stays_and_rotation_takes_it_along() {
    let noted = Draft {
        metadata: notes(2, 3, 3),
        ..draft()
    };
    let settings = noted.check(&catalogue(), &policy(), NOON).unwrap();
    let key = ApiKey {
        settings: settings.clone(),
        ..stored()
    };
    let apply = |edit: Edit| edit.apply(&key, &catalogue(), &policy(), NOON).unwrap();
    assert_eq!(apply(Edit::default()).metadata, settings.metadata);
    let cleared = Edit {
        metadata: Some(Metadata::new()),
        ..Edit::default()
    };
    assert_eq!(apply(cleared).metadata, Metadata::new());
    assert_eq!(
        key.rotate(0, NOON).unwrap().settings.metadata,
        settings.metadata
    );
    assert_eq!(
        settings.facts()["metadata"]["000"],
        "vvv",
        "the audit log shows it"
    );
}

#[test]
fn only_the_version_that_was_seen_is_changed() {
    assert!(expect_version(None, 7).is_ok());
    assert!(expect_version(Some(7), 7).is_ok());
    for seen in [6, 8, 0] {
        let refused = expect_version(Some(seen), 7).unwrap_err();
        assert!(matches!(refused, Error::Stale { now: 7 }), "{seen}");
    }
}

#[test]
fn a_list_is_asked_for_known_statuses_and_for_parts_of_names() {
    assert_eq!(status_wish("").unwrap(), None);
    for status in ["active", "throttled", "suspended", "revoked", "expired"] {
        assert_eq!(status_wish(status).unwrap().as_deref(), Some(status));
    }
    assert!(status_wish("deleted").is_err());
    assert_eq!(name_part("").unwrap(), None);
    assert_eq!(name_part(" 50% ").unwrap().as_deref(), Some("50%"));
    assert!(name_part(&"n".repeat(81)).is_err());
}
