#![expect(
    clippy::indexing_slicing,
    reason = "a test that is wrong about its own data may panic"
)]

mod script;

use std::{
    net::IpAddr,
    sync::{OnceLock, atomic::AtomicI64},
};

use proptest::prelude::*;
use runtime::Generation;
use types::{Environment, KeyId, NewKey, OrgId, UserId};
use uuid::Uuid;

pub(crate) use self::script::Script;
use super::*;
use crate::{
    lease::{Account, Owner, Quotas},
    tests::rig::{self, Rig},
};

/// A live key that may use the scopes.
pub(crate) fn entry(scopes: &[&str]) -> Entry {
    let id = |n| Uuid::from_u128(n);
    let owner = Owner::Organisation(OrgId::new(id(1)));
    Entry {
        key: KeyId::new(id(2)),
        org: OrgId::new(id(1)),
        user: UserId::new(id(3)),
        test: false,
        scopes: entry::Scopes::new(scopes.iter().copied()),
        active: true,
        revoked: false,
        expires_at: None,
        rate: None,
        throttle: None,
        allow: Vec::new(),
        version: 1,
        account: Arc::new(Account::new(owner)),
        quotas: Quotas::new(),
        touched: AtomicI64::new(0),
        principal: OnceLock::new(),
        read_at: 0,
        source: Source::Keys,
    }
}

/// Puts a key into memory, as read just now, and returns it as a caller presents it.
pub(crate) fn know(keyring: &Keyring, entry: Entry) -> NewKey {
    know_as(keyring, 7, entry)
}

/// The same for a key of this number: each has another secret.
pub(crate) fn know_as(keyring: &Keyring, number: u8, mut entry: Entry) -> NewKey {
    // The first word on changes forgets everything.
    inform(keyring);
    let key = key(number);
    let hash = keyring.hashing().hash(&key.presented());
    entry.read_at = keyring.now();
    keyring.known.insert(hash, Arc::new(entry));
    key
}

/// There is no news: a test that takes long is not taken for a gateway that is cut off.
pub(crate) fn inform(keyring: &Keyring) {
    keyring.informed(1, keyring.now().max(1));
}

fn key(n: u8) -> NewKey {
    NewKey::from_random(Environment::Production, &[n; 28])
}

fn sought(keyring: &Keyring, key: &NewKey) -> Sought {
    let hashing = Arc::clone(&*keyring.hashing());
    let presented = key.presented();
    let hash = hashing.hash(&presented);
    hashing.seek(hash, &presented)
}

/// As `keys` would tell of a key.
pub(crate) fn record(version: i64) -> KeyRecord {
    let id = |kind: &str, n| format!("{kind}_{}", Uuid::from_u128(n).simple());
    KeyRecord {
        key_id: id("key", 2),
        org_id: id("org", 1),
        created_by: id("usr", 3),
        active: true,
        version,
        ..KeyRecord::default()
    }
}

fn here() -> Origin {
    Origin::from(IpAddr::from([192, 0, 2, 1]))
}

/// A keyring that asks a script.
async fn asking(more: &[(&str, &str)]) -> (Arc<Keyring>, Script) {
    let script = Script::start().await;
    let url = [("TOLLGATE_KEYS_GRPC_URL", script.url.as_str())];
    let (host, config) = rig::host(&[&url, more].concat()).await;
    let rig = Rig::new(&host, &config).await;
    (Arc::clone(&rig.worker.edge.keyring), script)
}

/// What a call finds while `meanwhile` happens between the answer's being given and its arrival.
async fn find_while(
    keyring: &Arc<Keyring>,
    script: &Script,
    key: &NewKey,
    meanwhile: impl FnOnce(&KeyHash),
) -> Option<Arc<Entry>> {
    let sought = sought(keyring, key);
    let hash = sought.hash;
    script.hold();
    let (found, ()) = tokio::join!(keyring.find(&sought, here()), async {
        script.asked(1).await;
        meanwhile(&hash);
        script.release();
    });
    found.expect("an answer").0
}

/// S1: `keys` has read a record and is slow to say so; the key is revoked, and the gateway has
/// confirmed that, before the old record arrives.
#[tokio::test]
async fn a_fill_under_way_does_not_bring_back_what_was_revoked_meanwhile() {
    let (keyring, script) = asking(&[]).await;
    let key = key(1);
    script.answer(Some(record(1)));
    let found = find_while(&keyring, &script, &key, |hash| {
        keyring.changed(*hash, 2);
        script.answer(Some(KeyRecord {
            revoked: true,
            ..record(2)
        }));
    });
    let found = found.await.expect("the key is known");
    assert!(found.revoked && found.version == 2, "{found:?}");
    let hash = sought(&keyring, &key).hash;
    let kept = keyring.cached(&hash, keyring.now()).expect("it is kept");
    assert_eq!(kept.version, 2);
    assert_eq!(script.questions(), 2, "what was outdated was asked again");
}

/// S1: the change comes when the old record has been judged and not yet been put into memory.
#[tokio::test]
async fn what_is_put_into_memory_behind_its_change_does_not_stay() {
    let (keyring, _script) = asking(&[]).await;
    let hash = sought(&keyring, &key(1)).hash;
    let old = keyring.take(&hash, &record(1), Source::Keys, keyring.now());
    let old = old.expect("it is the newest that is known");
    keyring.changed(hash, 2);
    keyring.known.insert(hash, Arc::clone(&old));
    assert!(keyring.unless_outdated(&hash, old).is_none());
    assert!(keyring.cached(&hash, keyring.now()).is_none());
    let new = keyring.take(&hash, &record(2), Source::Keys, keyring.now());
    let new = new.expect("it is as new as the change");
    keyring.known.insert(hash, Arc::clone(&new));
    assert!(keyring.unless_outdated(&hash, new).is_some());
    assert!(keyring.cached(&hash, keyring.now()).is_some());
}

/// S1: too much has changed to be named one by one, so that there are no tombstones.
#[tokio::test]
async fn a_fill_under_way_does_not_outlive_a_reset() {
    let (keyring, script) = asking(&[]).await;
    let key = key(1);
    script.answer(Some(record(1)));
    find_while(&keyring, &script, &key, |_| keyring.reset()).await;
    let hash = sought(&keyring, &key).hash;
    assert!(
        keyring.cached(&hash, keyring.now()).is_none(),
        "the next call asks again"
    );
}

#[tokio::test]
async fn a_key_created_while_it_was_looked_for_is_not_unknown() {
    let (keyring, script) = asking(&[]).await;
    let key = key(1);
    let hash = sought(&keyring, &key).hash;
    script.answer(None);
    let found = find_while(&keyring, &script, &key, |hash| keyring.changed(*hash, 1));
    assert!(found.await.is_none(), "this call came too early");
    assert!(!keyring.is_unknown(&hash), "the next one asks");
    keyring
        .find(&sought(&keyring, &key), here())
        .await
        .expect("an answer");
    assert!(!keyring.is_unknown(&hash), "of a key that has changed");
}

#[tokio::test]
async fn a_key_created_after_its_own_refusal_is_found_by_the_next_call() {
    let (keyring, script) = asking(&[]).await;
    let sought = sought(&keyring, &key(1));
    script.answer(None);
    let found = async || keyring.find(&sought, here()).await.expect("an answer");
    assert!(matches!(found().await, (None, Source::Keys)));
    script.answer(Some(record(1)));
    assert!(matches!(found().await, (None, Source::Negative)));
    keyring.changed(sought.hash, 1);
    assert!(matches!(found().await, (Some(_), Source::Keys)));
    assert_eq!(script.questions(), 2);
}

#[tokio::test]
async fn calls_with_one_key_at_once_are_one_look_up() {
    let (keyring, script) = asking(&[]).await;
    let sought = sought(&keyring, &key(1));
    script.answer(Some(record(1)));
    script.hold();
    let find = || keyring.find(&sought, here());
    let (first, second, third, ()) = tokio::join!(find(), find(), find(), async {
        script.asked(1).await;
        script.release();
    });
    for found in [first, second, third] {
        assert!(matches!(found, Ok((Some(_), Source::Keys))));
    }
    assert_eq!(script.questions(), 1);
}

/// S2: memory is for keys that somebody issued.
#[tokio::test]
async fn unknown_keys_evict_no_known_one() {
    let (keyring, script) = asking(&[
        ("TOLLGATE_GATEWAY_KEYS_MAX", "100"),
        ("TOLLGATE_GATEWAY_UNKNOWN_KEYS_PER_MINUTE_MAX", "1000000"),
        ("TOLLGATE_GATEWAY_UNKNOWN_LOOKUPS_PER_SECOND_MAX", "1000000"),
    ])
    .await;
    let keys: Vec<NewKey> = (100..150).map(key).collect();
    script.answer(Some(record(1)));
    for key in &keys {
        let found = keyring.find(&sought(&keyring, key), here()).await;
        assert!(matches!(found, Ok((Some(_), Source::Keys))));
    }
    script.answer(None);
    for n in 0..1_000_u32 {
        let mut random = [0; 28];
        random[..4].copy_from_slice(&n.to_be_bytes());
        let stranger = NewKey::from_random(Environment::Production, &random);
        let found = keyring.find(&sought(&keyring, &stranger), here()).await;
        assert!(matches!(found, Ok((None, Source::Keys))), "{n}");
    }
    inform(&keyring);
    for key in &keys {
        assert!(
            keyring
                .cached(&sought(&keyring, key).hash, keyring.now())
                .is_some()
        );
    }
}

/// S3. What can be measured from outside is the road a key takes. It is the same for all of these,
/// because nothing on it looks at a key's characters: the checksum is judged first and is right for
/// all; then only the hash is used, which for one changed character is as different as for any
/// other key, and which a stranger cannot steer without the pepper. Memory (known, unknown and
/// changed keys), Redis and PostgreSQL are asked by that hash alone; where its bytes are compared,
/// in memory, it is in full and in constant time. A first presentation is looked up, a second one
/// answered by the unknown keys, whether or not its neighbour is known or revoked.
#[tokio::test]
async fn a_neighbour_of_an_issued_or_revoked_key_takes_the_road_of_any_stranger() {
    let (keyring, script) = asking(&[]).await;
    let (issued, revoked) = ([1; 28], [2; 28]);
    for (random, revoked) in [(issued, false), (revoked, true)] {
        script.answer(Some(KeyRecord {
            revoked,
            ..record(1)
        }));
        let key = NewKey::from_random(Environment::Production, &random);
        let found = keyring.find(&sought(&keyring, &key), here()).await;
        assert!(matches!(found, Ok((Some(entry), _)) if entry.revoked == revoked));
        keyring.changed(sought(&keyring, &key).hash, 1);
    }
    script.answer(None);
    let beside = |mut random: [u8; 28]| {
        random[27] ^= 1;
        random
    };
    let mut lengths = Vec::new();
    for random in [[3; 28], beside(issued), beside(revoked)] {
        let key = NewKey::from_random(Environment::Production, &random);
        let sought = sought(&keyring, &key);
        assert!(
            keyring.cached(&sought.hash, keyring.now()).is_none()
                && !keyring.is_unknown(&sought.hash)
        );
        let before = script.questions();
        let first = keyring.find(&sought, here()).await;
        assert!(matches!(first, Ok((None, Source::Keys))));
        assert_eq!(script.questions(), before + 1);
        lengths.push(prost::Message::encoded_len(&script.last()));
        assert!(keyring.is_unknown(&sought.hash));
        let second = keyring.find(&sought, here()).await;
        assert!(matches!(second, Ok((None, Source::Negative))));
        assert_eq!(script.questions(), before + 1);
    }
    assert!(lengths.iter().all(|it| *it == lengths[0]), "{lengths:?}");
}

/// One wrong key, however often, is one key.
#[tokio::test]
async fn an_address_pays_once_for_a_key_that_it_keeps_bringing() {
    let (keyring, script) = asking(&[("TOLLGATE_GATEWAY_UNKNOWN_KEYS_PER_MINUTE_MAX", "2")]).await;
    script.answer(None);
    let wrong = sought(&keyring, &key(1));
    for _ in 0..5 {
        inform(&keyring);
        let found = keyring.find(&wrong, here()).await;
        assert!(matches!(found, Ok((None, Source::Keys))));
        // As after five seconds.
        let paid = keyring.unknown.get(&wrong.hash).expect("remembered").paid;
        keyring
            .unknown
            .insert(wrong.hash, Unknown { until: 0, paid });
    }
    let other = keyring.find(&sought(&keyring, &key(2)), here()).await;
    assert!(matches!(other, Ok((None, Source::Keys))), "the second one");
    let third = keyring.find(&sought(&keyring, &key(3)), here()).await;
    let refused = third.expect_err("two are allowed");
    assert_eq!(refused.refusal, Refusal::RateLimited);
    assert_eq!(script.questions(), 6);
}

fn hashing(pepper: &str) -> Arc<Hashing> {
    let current = pepper.to_owned().into();
    let generation = Generation {
        current,
        previous: None,
    };
    Arc::new(Hashing::new(&generation).expect("peppers"))
}

fn sought_by(hashing: &Arc<Hashing>, key: &NewKey) -> Sought {
    let presented = key.presented();
    let hash = hashing.hash(&presented);
    Arc::clone(hashing).seek(hash, &presented)
}

const PEPPER: &str = "0123456789abcdef0123456789abcdef";

fn copies(floor: i64) -> Copies {
    let (copies, _) = Copies::new(None);
    copies.believe_from(floor);
    copies
}

proptest! {
    /// S16: whoever can write to Redis can change no bit of a copy.
    #[test]
    fn a_forged_copy_is_not_believed(
        at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<prop::sample::Index>(),
        throttle in prop::option::of(1_u32..100),
    ) {
        let sought = sought_by(&hashing(PEPPER), &key(1));
        let record = KeyRecord { throttle_per_second: throttle, ..record(3) };
        let copy = Copies::seal(&sought, &record, 1_000);
        let copies = copies(1_000);
        let believed = Believed { record, asked_at: 1_000 };
        prop_assert_eq!(copies.open(&sought, &copy), Some(believed));
        let mut forged = copy.clone();
        forged[at.index(copy.len())] ^= 1 << bit;
        prop_assert_eq!(copies.open(&sought, &forged), None);
        prop_assert_eq!(copies.open(&sought, &copy[..cut.index(copy.len())]), None);
        let longer = [&copy[..], b"\x80\x01\x00"].concat();
        prop_assert_eq!(copies.open(&sought, &longer), None);
    }
}

/// S16: nor can he move a copy to another key, or make one with a pepper of his own.
#[test]
fn a_copy_is_believed_only_under_its_own_name() {
    let hashing_here = hashing(PEPPER);
    let (mine, other) = (
        sought_by(&hashing_here, &key(1)),
        sought_by(&hashing_here, &key(2)),
    );
    let copy = Copies::seal(&mine, &record(1), 1_000);
    assert!(copies(1_000).open(&mine, &copy).is_some());
    assert!(copies(1_000).open(&other, &copy).is_none(), "moved");
    let theirs = sought_by(&hashing("another pepper, as long as it must be"), &key(1));
    let forged = Sought {
        hash: mine.hash,
        ..theirs
    };
    let forged = Copies::seal(&forged, &record(1), 1_000);
    assert!(copies(1_000).open(&mine, &forged).is_none(), "own pepper");
}

/// S16: an old copy is a right one; it is refused for its age, or for its version.
#[tokio::test]
async fn a_copy_that_was_rolled_back_is_not_believed() {
    let sought_here = sought_by(&hashing(PEPPER), &key(1));
    let copy = Copies::seal(&sought_here, &record(1), 1_000);
    assert!(copies(1_001).open(&sought_here, &copy).is_none(), "too old");
    assert!(copies(0).open(&sought_here, &copy).is_none(), "no news yet");

    let (keyring, _script) = asking(&[]).await;
    let hash = sought(&keyring, &key(1)).hash;
    keyring.changed(hash, 2);
    for (version, is_taken) in [(1, false), (2, true), (3, true)] {
        let taken = keyring.take(&hash, &record(version), Source::Redis, keyring.now());
        assert_eq!(taken.is_some(), is_taken, "version {version}");
    }
}

/// S1: who is cut off believes a copy no longer than what he has read himself: from when it was
/// read, not from when he finds it.
#[tokio::test]
async fn a_copy_grows_old_where_it_lies() {
    let (keyring, _script) = asking(&[]).await;
    inform(&keyring);
    let hash = sought(&keyring, &key(1)).hash;
    let seconds = |n: u64| n * 1_000_000_000;
    let wall = keyring.host.clock().now().as_millisecond();
    let taken = |now: u64, age_millis: i64| {
        let copy = Believed {
            record: record(1),
            asked_at: wall - age_millis,
        };
        keyring.take_copy(&hash, &copy, now)
    };
    assert!(taken(seconds(100), 5_000).is_some());
    assert!(taken(seconds(100), 10_001).is_none());
    assert!(taken(seconds(100), 3_600_000).is_none());
    // One who hears of changes need not care; nor does another's clock that is fast do harm.
    assert!(taken(keyring.now(), 3_600_000).is_some());
    let ahead = taken(seconds(100), -3_600_000).expect("as of now");
    keyring.known.insert(hash, ahead);
    assert!(keyring.cached(&hash, seconds(109)).is_some());
    assert!(keyring.cached(&hash, seconds(111)).is_none());
}

/// A copy that an older gateway has left knows nothing of throttles; a newer one tells of them.
#[tokio::test]
async fn a_record_says_whether_its_key_is_throttled() {
    let (keyring, _script) = asking(&[]).await;
    let hash = sought(&keyring, &key(1)).hash;
    let take = |throttle_per_second| {
        let record = KeyRecord {
            throttle_per_second,
            ..record(1)
        };
        let entry = keyring.take(&hash, &record, Source::Keys, keyring.now());
        entry.expect("it makes sense").throttle.clone()
    };
    assert!(take(None).is_none());
    let (first, second) = (take(Some(3)).expect("a throttle"), take(Some(3)));
    assert_eq!((first.rate.per_second, first.rate.burst), (3, 1));
    let second = second.expect("a throttle");
    assert!(
        Arc::ptr_eq(&first.limiter, &second.limiter),
        "a fresh copy begins no new count"
    );
}
