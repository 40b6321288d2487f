#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use crate::*;

fn pepper() -> Pepper {
    Pepper::new("0123456789abcdef0123456789abcdef").expect("long enough")
}

proptest! {
    #[test]
    fn periods_of_a_quota_follow_each_other_without_a_gap(
        second in 0_i64..4_000_000_000, nanos in 0_i32..999_999_999,
    ) {
        let now = Timestamp::new(second, nanos).expect("in range");
        for kind in [QuotaKind::Daily, QuotaKind::Monthly] {
            let period = kind.period(now);
            prop_assert!(period.start <= now && now < period.end);
            prop_assert_eq!(kind.period(period.start), period);
            let last = period.end - SignedDuration::from_nanos(1);
            prop_assert_eq!(kind.period(last), period);
            prop_assert_eq!(kind.period(period.end).start, period.end);
            let days = period.end.duration_since(period.start).as_hours();
            let hours = if kind == QuotaKind::Daily { 24..=24 } else { 28 * 24..=31 * 24 };
            prop_assert!(hours.contains(&days), "{days}");
        }
        let (day, month) = (QuotaKind::Daily.period(now), QuotaKind::Monthly.period(now));
        prop_assert!(month.start <= day.start && day.end <= month.end);
    }

    #[test]
    fn a_new_key_has_the_published_shape_and_parses(random in any::<[u8; KEY_RANDOM_BYTES]>()) {
        for environment in [Environment::Production, Environment::Test] {
            let key = NewKey::from_random(environment, &random);
            let text = key.reveal();
            prop_assert_eq!(text.len(), 51);
            prop_assert!(text.starts_with(environment.key_prefix()));
            let body = text.chars().skip(8);
            prop_assert!(body.clone().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
            prop_assert_eq!(key.presented().environment(), environment);
        }
    }

    #[test]
    fn one_changed_character_is_refused_without_a_lookup(
        random in any::<[u8; KEY_RANDOM_BYTES]>(), at in 8_usize..51, by in 1_u8..63,
    ) {
        const ALPHABET: &[u8] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = NewKey::from_random(Environment::Production, &random).reveal().to_owned();
        let old = text.as_bytes()[at];
        let index = ALPHABET.iter().position(|c| *c == old).expect("in the alphabet");
        let new = char::from(ALPHABET[(index + usize::from(by)) % 64]);
        text.replace_range(at..=at, &new.to_string());
        prop_assert!(PresentedKey::parse(&text).is_err());
    }

    #[test]
    fn any_text_parses_or_errs_but_never_panics(text in ".{0,80}") {
        let parsed = PresentedKey::parse(&text);
        prop_assert!(parsed.is_err());
    }

    #[test]
    fn an_id_survives_its_text(bytes in any::<[u8; 16]>()) {
        let id = OrgId::from_slice(&bytes).expect("16 bytes");
        let text = id.to_string();
        prop_assert_eq!(text.parse::<OrgId>(), Ok(id));
        prop_assert!(text.parse::<UserId>().is_err());
        prop_assert_eq!(&id.to_ascii::<36>()[..], text.as_bytes());
    }

    #[test]
    fn hashes_are_the_same_only_with_every_bit(bytes in any::<[u8; 32]>(), bit in 0..256_usize) {
        let hash = |bytes: &[u8]| KeyHash::from_slice(bytes).expect("32 bytes");
        let mut other = bytes;
        prop_assert_eq!(hash(&bytes), hash(&other));
        other[bit / 8] ^= 1 << (bit % 8);
        prop_assert_ne!(hash(&bytes), hash(&other));
    }

    #[test]
    fn no_burst_exceeds_the_limit(
        per_second in 1_u32..1000, burst in 1_u32..50,
        steps in prop::collection::vec(0_u64..20_000_000, 1..300),
    ) {
        let rate = Rate { per_second, burst };
        let limiter = Gcra::default();
        let mut now = 5_000_000_000_u64;
        let mut admitted: Vec<u64> = Vec::new();
        for step in steps {
            now += step;
            if limiter.admit(rate, now).is_ok() {
                admitted.push(now);
            }
        }
        for (index, start) in admitted.iter().enumerate() {
            let second = admitted[index..].iter().filter(|t| **t < start + 1_000_000_000).count();
            prop_assert!(second <= usize::try_from(per_second + burst).expect("small"));
        }
    }
}

proptest! {
    #[test]
    fn the_shares_of_a_rate_are_together_the_rate(
        per_second in 1_u32..200, among in 1_u32..8, seconds in 1_u64..20,
    ) {
        let rate = Rate { per_second, burst: 1 };
        let limiters: Vec<Gcra> = (0..among).map(|_| Gcra::default()).collect();
        let (begin, end) = (5_000_000_000_u64, (5 + seconds) * 1_000_000_000);
        let mut admitted = 0_u64;
        for limiter in &limiters {
            let mut now = begin;
            while now < end {
                match limiter.admit(rate.share(among), now) {
                    Ok(()) => admitted += 1,
                    Err(wait) => now += wait,
                }
            }
        }
        // Each begins with a burst of one.
        let whole = u64::from(per_second) * seconds;
        prop_assert!(admitted <= whole + u64::from(among), "{admitted} of {whole}");
        prop_assert!(admitted + u64::from(among) >= whole, "{admitted} of {whole}");
    }
}

#[test]
fn the_hash_is_sha256_of_key_and_pepper() {
    use sha2::Digest;
    let key = NewKey::from_random(Environment::Production, &[7; KEY_RANDOM_BYTES]);
    let text = format!("{}0123456789abcdef0123456789abcdef", key.reveal());
    let expected: [u8; 32] = sha2::Sha256::digest(text.as_bytes()).into();
    assert_eq!(key.presented().hash(&pepper()).bytes(), &expected);
}

#[test]
fn secrets_cannot_be_printed() {
    let key = NewKey::from_random(Environment::Test, &[9; KEY_RANDOM_BYTES]);
    let presented = key.presented();
    let shown = format!(
        "{key:?} {presented:?} {:?} {:?}",
        presented.hash(&pepper()),
        pepper()
    );
    assert!(!shown.contains(key.reveal()));
    assert!(!shown.contains("0123456789abcdef"));
}

#[test]
fn a_short_pepper_is_refused() {
    assert!(Pepper::new("short").is_err());
}

#[test]
fn refusal_codes_are_distinct() {
    let mut codes: Vec<&str> = Refusal::ALL
        .iter()
        .map(|refusal| refusal.as_str())
        .collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), Refusal::ALL.len());
}

#[test]
fn a_given_back_call_can_be_made_again() {
    let rate = Rate {
        per_second: 1,
        burst: 1,
    };
    let limiter = Gcra::default();
    assert!(limiter.admit(rate, 10).is_ok());
    assert!(limiter.admit(rate, 11).is_err());
    limiter.give_back(rate);
    assert!(limiter.admit(rate, 12).is_ok());
}

#[test]
fn names_follow_their_grammar() {
    assert!("pdf:write".parse::<Scope>().is_ok());
    for bad in ["pdf", "pdf:", ":x", "Pdf:x", "pdf:x:y", "1pdf:x"] {
        assert!(bad.parse::<Scope>().is_err(), "{bad}");
    }
    assert!(parse_email("owner", "Ada@Example.com").is_ok_and(|a| a == "ada@example.com"));
    for bad in ["ada", "ada@", "@x.y", "a@b", "a@@b.c", "a b@c.d", "a@b..c"] {
        assert!(parse_email("owner", bad).is_err(), "{bad}");
    }
}

#[test]
fn a_plain_hash_is_stored_with_the_pepper_only() {
    use sha2::Digest;
    let key = NewKey::from_random(Environment::Production, &[3; KEY_RANDOM_BYTES]);
    let plain: [u8; 32] = sha2::Sha256::digest(key.reveal().as_bytes()).into();
    let digest = KeyDigest::from_slice(&plain).expect("32 bytes");
    assert_eq!(digest.bytes(), key.presented().digest().bytes());
    let stored = digest.hash(&pepper());
    assert_ne!(stored.bytes(), digest.bytes());
    assert_ne!(stored, key.presented().hash(&pepper()));
    assert_eq!(
        format!("{digest:?} {stored:?}"),
        "KeyDigest(..) KeyHash(..)"
    );
}

#[test]
fn a_key_is_hashed_with_both_peppers_and_one_pepper_twice_is_one() {
    let (old, new) = ("o".repeat(32), "n".repeat(32));
    let key = NewKey::from_random(Environment::Test, &[4; KEY_RANDOM_BYTES]).presented();
    let peppers = Peppers::new(&new, Some(&old)).expect("long enough");
    let hashes = peppers.hashes(&key);
    let old_pepper = Pepper::new(&old).expect("long enough");
    assert_eq!(hashes.previous_hash, Some(key.hash(&old_pepper)));
    assert_eq!(hashes.hash, key.hash(peppers.current()));
    assert_eq!(
        hashes.previous_report_hash,
        Some(key.digest().hash(&old_pepper))
    );
    assert_eq!(hashes.pepper_id, peppers.ids().0);
    assert!(
        Peppers::new(&new, Some(&new))
            .expect("long enough")
            .previous()
            .is_none()
    );
    assert!(Peppers::new(&new, Some("short")).is_err());
}
