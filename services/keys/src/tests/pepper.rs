//! Keys under changing peppers, and reports of leaked ones.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use proto::events::v1::WalletLow;
use types::{KeyDigest, NewKey, Peppers};

use super::*;
use crate::{
    balances,
    domain::{
        leak::{Named, Scanners, Signed},
        pepper::{Ids, Sought, Standing, change, is_stranger},
    },
};

fn text(letter: char) -> String {
    letter.to_string().repeat(32)
}

fn peppers(current: char, previous: Option<char>) -> Peppers {
    let previous = previous.map(text);
    Peppers::new(&text(current), previous.as_deref()).unwrap()
}

fn presented() -> types::PresentedKey {
    NewKey::from_random(Environment::Production, &[5; 28]).presented()
}

/// A row as it is once a gateway with these peppers has moved it.
fn row(by: &Peppers) -> ApiKey {
    let hashes = by.hashes(&presented());
    ApiKey {
        hash: hashes.hash,
        previous_hash: hashes.previous_hash,
        ..stored()
    }
}

/// What a gateway with these peppers asks.
fn sought(by: &Peppers) -> Sought {
    let hashes = by.hashes(&presented());
    let previous = hashes.previous_hash.map(|hash| hash.bytes().to_vec());
    Sought::new(
        hashes.hash.bytes(),
        &previous.unwrap_or_default(),
        hashes.report_hash.bytes(),
        &hashes.pepper_id,
    )
    .unwrap()
}

/// As `Store::key_of` finds.
fn finds(sought: &Sought, row: &ApiKey) -> bool {
    let asked = [Some(sought.hash), sought.previous.map(|(hash, _)| hash)];
    let held = [Some(row.hash), row.previous_hash];
    asked.iter().flatten().any(|it| held.contains(&Some(*it)))
}

#[test]
fn a_key_moves_to_the_next_pepper_and_never_back() {
    let (old, ahead) = (peppers('a', None), peppers('b', Some('a')));
    let waiting = row(&old);
    let way = sought(&ahead).moves(&waiting).expect("it waits");
    assert_eq!(way.to, row(&ahead).hash);
    assert_eq!(way.pepper_id, ahead.ids().0);
    assert_eq!(way.report, ahead.hashes(&presented()).report_hash);
    assert!(sought(&ahead).moves(&row(&ahead)).is_none(), "it is there");
    for late in [&old, &peppers('a', Some('z'))] {
        assert!(sought(late).moves(&row(&ahead)).is_none(), "{late:?}");
    }
}

/// Every pair of neighbours of one rotation: who makes or moves a key, and who looks for it.
#[test]
fn during_a_rotation_everybody_finds_every_key_whoever_was_faster() {
    let generations = [
        peppers('a', None),
        peppers('a', Some('z')),
        peppers('b', Some('a')),
        peppers('b', None),
    ];
    let [late, late_still, ahead, retired] = &generations;
    let cases = [
        (late, late),
        (late, ahead),
        (late_still, ahead),
        (ahead, late),
        (ahead, late_still),
        (ahead, ahead),
        (ahead, retired),
    ];
    for (by, seeker) in cases {
        let (row, sought) = (row(by), sought(seeker));
        assert!(finds(&sought, &row), "{seeker:?} looks for a key of {by:?}");
        // It is held under the seeker's own hash then, and changes are announced under that.
        let moved = sought.moves(&row).map(|way| [Some(way.to), Some(way.from)]);
        let announced = moved.unwrap_or([Some(row.hash), row.previous_hash]);
        assert!(announced.contains(&Some(sought.hash)), "{seeker:?} {by:?}");
    }
    assert!(!finds(&sought(retired), &row(late)), "retired is gone");
}

#[test]
fn a_gateway_that_shares_no_pepper_with_us_is_a_stranger() {
    let ids = |current: char, previous| peppers(current, previous).ids();
    let ours = ids('b', Some('a'));
    for known in [
        ids('b', None),
        ids('a', None),
        ids('a', Some('z')),
        ids('c', Some('b')),
    ] {
        assert!(!is_stranger(&known, &ours), "{known:?}");
    }
    for stranger in [ids('z', Some('y')), ids('c', None), ids('d', Some('c'))] {
        assert!(is_stranger(&stranger, &ours), "{stranger:?}");
    }
}

#[test]
fn a_look_up_needs_whole_hashes_and_the_report_hash_to_move_a_key() {
    let hash = [1; 32];
    assert!(Sought::new(&hash, &[], &[], "0123abcd").is_ok());
    assert!(Sought::new(&hash, &hash, &hash, "0123abcd").is_ok());
    for (previous, report) in [(&hash[..], &[][..]), (&hash[..31], &hash[..])] {
        assert!(Sought::new(&hash, previous, report, "0123abcd").is_err());
    }
}

#[test]
fn keys_are_counted_by_what_their_pepper_is_now() {
    let ids: Ids = ("b".to_owned(), Some("a".to_owned()));
    let counts = [("a", 3), ("b", 5), ("y", 1), ("z", 2)];
    let counts = counts.map(|(pepper, keys)| (pepper.to_owned(), keys));
    let standing = Standing {
        current: 5,
        waiting: 3,
        lost: 3,
    };
    assert_eq!(Standing::of(&counts, &ids), standing);
}

#[test]
fn a_rotation_and_a_retirement_are_told_apart_and_nothing_is_nothing() {
    let ids = |current: &str, previous: Option<&str>| -> Ids {
        (current.to_owned(), previous.map(ToOwned::to_owned))
    };
    let (first, rotated, retired) = (ids("a", None), ids("b", Some("a")), ids("b", None));
    assert_eq!(change(&first, &rotated), Some("pepper.rotated"));
    assert_eq!(change(&rotated, &retired), Some("pepper.retired"));
    assert_eq!(change(&retired, &rotated), Some("pepper.restored"));
    assert_eq!(change(&rotated, &rotated), None);
}

/// A scanner with its key, and the configuration that knows it.
fn scanner() -> (EcdsaKeyPair, Scanners) {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let mut der = vec![
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    der.extend_from_slice(pair.public_key().as_ref());
    let body = STANDARD.encode(der);
    let (first, second) = body.split_at(64);
    let pem = format!(
        "hub key-1\n-----BEGIN PUBLIC KEY-----\n{first}\n{second}\n-----END PUBLIC KEY-----\n"
    );
    (pair, Scanners::parse(&pem).unwrap())
}

#[test]
fn a_signature_names_its_source_and_any_other_is_refused() {
    let (pair, scanners) = scanner();
    let key = NewKey::from_random(Environment::Production, &[6; 28]);
    let payload = format!("[{{\"token\":\"{}\"}}]", key.reveal());
    let signature = pair.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
    let signature = STANDARD.encode(signature);
    let signed = Signed {
        payload: payload.as_bytes(),
        signature: &signature,
        key_identifier: "key-1",
    };
    let named = Named::Text(key.reveal());
    assert_eq!(scanners.source_of(signed, named).unwrap(), "hub");

    let other = NewKey::from_random(Environment::Production, &[7; 28]);
    let altered = payload.replace("token", "Token");
    let wrong = [
        (signed, Named::Text(other.reveal())),
        (signed, Named::Digest(&key.presented().digest())),
        (
            Signed {
                key_identifier: "key-2",
                ..signed
            },
            named,
        ),
        (
            Signed {
                signature: "",
                ..signed
            },
            named,
        ),
        (
            Signed {
                signature: "AAAA",
                ..signed
            },
            named,
        ),
        (
            Signed {
                payload: altered.as_bytes(),
                ..signed
            },
            named,
        ),
    ];
    for (signed, named) in wrong {
        let refused = scanners.source_of(signed, named);
        assert!(matches!(refused, Err(Error::WrongSignature)), "{signed:?}");
    }
    assert!(Scanners::default().source_of(signed, named).is_err());
}

#[test]
fn a_signed_hash_is_found_in_its_report_in_any_case() {
    let (pair, scanners) = scanner();
    let digest = KeyDigest::from_slice(&[0xab; 32]).unwrap();
    for payload in ["ab".repeat(32), "AB".repeat(32)] {
        let signature = pair.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
        let signed = Signed {
            payload: payload.as_bytes(),
            signature: &STANDARD.encode(signature),
            key_identifier: "key-1",
        };
        scanners.source_of(signed, Named::Digest(&digest)).unwrap();
    }
}

#[test]
fn public_keys_of_scanners_are_checked_when_they_are_read() {
    assert_eq!(Scanners::parse("").unwrap(), Scanners::default());
    let block = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----";
    for bad in ["hub", "hub key-1", &format!("hub key-1\n{block}"), block] {
        assert!(Scanners::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_wallet_that_runs_low_is_read_or_refused() {
    let event = WalletLow {
        org_id: OrgId::new(Uuid::from_u128(1)).to_string(),
        percent: 20,
        balance: 9,
        reference: 50,
        reference_at_unix_micros: 1_800_000_000_000_000,
        at_unix_micros: 1_800_000_000_000_001,
    };
    let low = balances::read(&event).unwrap();
    assert_eq!((low.percent, low.balance, low.reference_at), (20, 9, NOON));
    for bad in [
        WalletLow {
            percent: 0,
            ..event.clone()
        },
        WalletLow {
            percent: 100,
            ..event.clone()
        },
        WalletLow {
            org_id: "acme".to_owned(),
            ..event
        },
    ] {
        assert!(balances::read(&bad).is_err(), "{bad:?}");
    }
}
